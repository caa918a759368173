"""DescribeServers: describes one or more servers."""

from __future__ import annotations

from typing import Any

import pytest

from deskfleet.core.records import Endpoint, Host, Type
from support.conformance import (
    UNKNOWN_ID,
    Api,
    Configured,
    Play,
    on,
    with_another_character,
)
from support.played_server import WINDOWS
from support.waiting import until


class TestRequestParameters:
    def test_without_a_body_all_servers_are_returned(self, api: Api) -> None:
        assert api.call("describeServers")["Servers"]

    def test_server_ids(self, api: Api) -> None:
        wanted = api.servers()[0]["Id"]
        found = api.call("describeServers", {"ServerIds": [wanted]})["Servers"]
        assert [one["Id"] for one in found] == [wanted]

    @pytest.mark.parametrize("nothing", [[], None], ids=["empty", "null"])
    def test_server_ids_that_name_none_return_all(self, api: Api, nothing: object) -> None:
        everything = [one["Id"] for one in api.servers()]
        found = api.call("describeServers", {"ServerIds": nothing})["Servers"]
        assert [one["Id"] for one in found] == everything

    def test_server_ids_that_are_unknown_are_absent(self, api: Api) -> None:
        wanted = api.servers()[0]["Id"]
        body = {"ServerIds": [UNKNOWN_ID, wanted, "serverId1", wanted]}
        found = api.call("describeServers", body)["Servers"]
        assert [one["Id"] for one in found] == [wanted]

    @pytest.mark.own_broker
    def test_max_results_and_next_token(self, api: Api, play: Play) -> None:
        for _ in range(3):
            play()
        everything = [one["Id"] for one in api.servers()]
        pages, token = [], None
        while True:
            body = {"MaxResults": 2, **({"NextToken": token} if token else {})}
            answer = api.call("describeServers", body)
            pages.append([one["Id"] for one in answer["Servers"]])
            token = answer.get("NextToken")
            if token is None:
                break
        assert [len(page) for page in pages[:-1]] == [2] * (len(pages) - 1)
        assert [id for page in pages for id in page] == everything

    @pytest.mark.own_broker
    def test_a_next_token_is_good_for_a_page_of_another_size(self, api: Api, play: Play) -> None:
        for _ in range(3):
            play()
        everything = [one["Id"] for one in api.servers()]
        token = api.call("describeServers", {"MaxResults": 2})["NextToken"]
        rest = api.call("describeServers", {"NextToken": token, "MaxResults": 1000})
        assert [one["Id"] for one in rest["Servers"]] == everything[2:]

    @pytest.mark.own_broker
    def test_next_token_with_server_ids(self, api: Api, play: Play) -> None:
        played = [play().id for _ in range(3)]
        body = {"ServerIds": played, "MaxResults": 2}
        first = api.call("describeServers", body)
        rest = api.call("describeServers", {**body, "NextToken": first["NextToken"]})
        assert [one["Id"] for one in (*first["Servers"], *rest["Servers"])] == played
        for other in (played[:2], []):
            asked = {**body, "ServerIds": other, "NextToken": first["NextToken"]}
            assert "NextToken" in api.refused("describeServers", asked)

    @pytest.mark.own_broker
    def test_pages_stay_whole_while_servers_come_and_go(self, configured: Configured) -> None:
        fleet, api = configured(
            seconds_before_deleting_unreachable_dcv_server=1, agent_heartbeat_seconds=0.5
        )
        played = [fleet.play() for _ in range(4)]
        everything = [one["Id"] for one in api.servers()]
        first = api.call("describeServers", {"MaxResults": 2})
        gone = [everything[1], everything[3]]
        for server in played:
            if server.id in gone:
                server.cut()
        until(lambda: not {one["Id"] for one in api.servers()} & set(gone), seconds=30)
        later = fleet.play().id
        rest = api.call("describeServers", {"NextToken": first["NextToken"]})
        assert [one["Id"] for one in first["Servers"]] == everything[:2]
        assert [one["Id"] for one in rest["Servers"]] == [everything[2], everything[4], later]

    @pytest.mark.own_broker
    def test_a_next_token_with_another_character_is_refused(self, api: Api, play: Play) -> None:
        play()
        token = api.call("describeServers", {"MaxResults": 1})["NextToken"]
        for altered in with_another_character(token):
            assert "NextToken" in api.refused("describeServers", {"NextToken": altered})
        assert api.call("describeServers", {"NextToken": token})["Servers"]

    @pytest.mark.own_broker
    def test_a_next_token_of_describe_sessions_is_refused(self, api: Api, owner: str) -> None:
        for _ in range(2):
            api.create(owner)
        token = api.call("describeSessions", {"MaxResults": 1})["NextToken"]
        assert "NextToken" in api.refused("describeServers", {"NextToken": token})

    @pytest.mark.parametrize("size", [1, 1000])
    def test_max_results_at_its_limits(self, api: Api, size: int) -> None:
        assert len(api.call("describeServers", {"MaxResults": size})["Servers"]) <= size

    @pytest.mark.parametrize("size", [0, -1, 1001, 2**31])
    def test_max_results_beyond_its_limits(self, api: Api, size: int) -> None:
        assert "MaxResults" in api.refused("describeServers", {"MaxResults": size})

    def test_on_the_last_page_there_is_no_next_token(self, api: Api) -> None:
        assert api.call("describeServers", {"MaxResults": 1000}).get("NextToken") is None

    @pytest.mark.parametrize("token", ["", "x", "AAAA", "eyJ9"])
    def test_a_next_token_that_is_none(self, api: Api, token: str) -> None:
        assert "NextToken" in api.refused("describeServers", {"NextToken": token})


MEMBERS: dict[str, type] = {
    "Id": str,
    "Ip": str,
    "Hostname": str,
    "Endpoints": list,
    "Version": str,
    "SessionManagerAgentVersion": str,
    "Availability": str,
    "ConsoleSessionCount": int,
    "VirtualSessionCount": int,
    "Host": dict,
    "Tags": list,
    "Port": str,
    "WebUrlPath": str,
}


class TestResponseParametersOfAnyServer:
    def test_request_id_is_unique(self, api: Api) -> None:
        assert len({api.call("describeServers")["RequestId"] for _ in range(3)}) == 3

    @pytest.mark.parametrize("member", MEMBERS)
    def test_member(self, api: Api, member: str) -> None:
        api.wait_available()
        server = next(one for one in api.servers() if one["Availability"] == "AVAILABLE")
        assert type(server[member]) is MEMBERS[member]

    @pytest.mark.parametrize(
        ("member", "kind"), [("IpAddress", str), ("Port", int), ("Protocol", str)]
    )
    def test_endpoints_member(self, api: Api, member: str, kind: type) -> None:
        for endpoint in api.servers()[0]["Endpoints"]:
            assert type(endpoint[member]) is kind

    @pytest.mark.parametrize("part", ["Os", "Memory", "Swap", "CpuInfo", "Gpus", "LoggedInUsers"])
    def test_host_member(self, api: Api, part: str) -> None:
        api.wait_available()
        assert part in api.servers()[0]["Host"]

    def test_an_available_server_has_no_unavailability_reason(self, api: Api) -> None:
        for server_id in api.wait_available():
            assert "UnavailabilityReason" not in api.server(server_id)

    def test_the_port_is_that_of_the_first_http_endpoint(self, api: Api) -> None:
        api.wait_available()
        for server in api.servers():
            http = next(one for one in server["Endpoints"] if one["Protocol"] == "HTTP")
            assert server["Port"] == str(http["Port"])
            assert server["WebUrlPath"] == http["WebUrlPath"]


AS_REPORTED: dict[str, Any] = {
    "Ip": "192.0.2.77",
    "Hostname": "node002",
    "DefaultDnsName": "node002.example",
    "Port": "9443",
    "WebUrlPath": "/desk",
    "Endpoints": [
        {"IpAddress": "192.0.2.77", "Port": 9443, "Protocol": "HTTP", "WebUrlPath": "/desk"},
        {"IpAddress": "192.0.2.77", "Port": 8443, "Protocol": "QUIC"},
    ],
    "Version": "2024.0.1",
    "SessionManagerAgentVersion": "2024.0.2",
    "Tags": [{"Key": "size", "Value": "big"}, {"Key": "dcv:os-family", "Value": "linux"}],
    "Host": {
        "Os": {
            "Family": "linux",
            "Name": "Amazon Linux",
            "Version": "2",
            "KernelVersion": "4.14.203",
            "BuildNumber": "14393",
        },
        "Memory": {"TotalBytes": 32144048128, "UsedBytes": 2184925184},
        "Swap": {"TotalBytes": 1024, "UsedBytes": 512},
        "Aws": {
            "Region": "us-west-2b",
            "EC2InstanceType": "t2.large",
            "EC2InstanceId": "i-123456789",
            "EC2ImageId": "ami-12345678987654321",
        },
        "CpuInfo": {
            "Vendor": "GenuineIntel",
            "ModelName": "Intel(R) Xeon(R) CPU E5-2686 v4 @ 2.30GHz",
            "Architecture": "x86_64",
            "NumberOfCpus": 4,
            "PhysicalCoresPerCpu": 2,
        },
        "CpuLoadAverage": {"OneMinute": 2.25, "FiveMinutes": 1.5, "FifteenMinutes": 0.75},
        "Gpus": [{"Vendor": "NVIDIA Corporation", "ModelName": "GM204GL [Tesla M60]"}],
        "LoggedInUsers": [{"Username": "user45687"}, {"Username": "user789"}],
    },
}


@pytest.mark.own_broker
class TestResponseParametersAsReported:
    @pytest.fixture
    def described(self, api: Api, play: Play, rich_host: Host) -> dict[str, Any]:
        endpoints = (
            Endpoint(ip_address="192.0.2.77", port=8443, web_url_path=None, protocol="QUIC"),
            Endpoint(ip_address="192.0.2.77", port=9443, web_url_path="/desk"),
        )
        server = play(
            hostname="node002",
            ip="192.0.2.77",
            dns_name="node002.example",
            host=rich_host,
            endpoints=endpoints[::-1],
            tags={"size": "big", "dcv:os-family": "linux"},
        )
        return api.server(server.id)

    @pytest.mark.parametrize("member", [one for one in AS_REPORTED if one != "Host"])
    def test_member(self, described: dict[str, Any], member: str) -> None:
        assert described[member] == AS_REPORTED[member]

    @pytest.mark.parametrize("part", AS_REPORTED["Host"])
    def test_host_member(self, described: dict[str, Any], part: str) -> None:
        assert described["Host"][part] == AS_REPORTED["Host"][part]

    @pytest.mark.parametrize("part", ["Memory", "Swap"])
    def test_bytes_are_whole_numbers(self, described: dict[str, Any], part: str) -> None:
        assert all(type(number) is int for number in described["Host"][part].values())

    def test_a_windows_server_has_a_build_number(self, api: Api, play: Play) -> None:
        os = api.server(play(os=WINDOWS).id)["Host"]["Os"]
        assert os == {
            "Family": "windows",
            "Name": "Windows Server 2016 Datacenter",
            "Version": "10.0.14393",
            "BuildNumber": "14393",
        }

    def test_what_is_not_known_is_left_out(self, api: Api, play: Play) -> None:
        server = api.server(play().id)
        assert not {"DefaultDnsName", "UnavailabilityReason"} & set(server)
        assert not {"Aws", "CpuLoadAverage"} & set(server["Host"])
        assert server["Host"]["Gpus"] == []
        assert server["Host"]["LoggedInUsers"] == []

    def test_console_session_count(self, api: Api, owner: str, play: Play) -> None:
        server = play(types=(Type.CONSOLE,))
        api.ready(owner, Type="CONSOLE", **on(server))
        assert api.server(server.id)["ConsoleSessionCount"] == 1
        assert api.server(server.id)["VirtualSessionCount"] == 0

    def test_virtual_session_count(self, api: Api, owner: str, play: Play) -> None:
        server = play()
        for count in (1, 2):
            api.ready(owner, **on(server))
            assert api.server(server.id)["VirtualSessionCount"] == count
        assert api.server(server.id)["ConsoleSessionCount"] == 0

    def test_what_the_agent_reports_anew_is_shown(self, api: Api, play: Play) -> None:
        server = play()
        server.say(hostname="renamed", tags={"played": "renamed"})
        until(lambda: api.server(server.id)["Hostname"] == "renamed")
        assert api.server(server.id)["Tags"] == [{"Key": "played", "Value": "renamed"}]


@pytest.mark.own_broker
class TestAvailability:
    def test_available(self, api: Api, play: Play) -> None:
        assert api.availability(play().id) == ("AVAILABLE", None)

    def test_unavailable_server_full(self, api: Api, owner: str, play: Play) -> None:
        server = play(max_virtual_sessions=1)
        session_id = api.ready(owner, **on(server))
        assert api.availability(server.id) == ("UNAVAILABLE", "SERVER_FULL")
        api.delete(session_id, owner)
        api.wait(session_id, "DELETED")
        assert api.availability(server.id) == ("AVAILABLE", None)

    def test_unavailable_server_full_of_a_console_session(
        self, api: Api, owner: str, play: Play
    ) -> None:
        server = play(types=(Type.CONSOLE, Type.VIRTUAL))
        api.ready(owner, Type="CONSOLE", **on(server))
        assert api.availability(server.id) == ("UNAVAILABLE", "SERVER_FULL")

    def test_unavailable_server_closed(self, api: Api, play: Play) -> None:
        server = play()
        api.call("closeServers", [{"ServerId": server.id}])
        assert api.availability(server.id) == ("UNAVAILABLE", "SERVER_CLOSED")

    def test_unavailable_unreachable_agent(self, api: Api, play: Play) -> None:
        server = play()
        server.cut()
        gone = ("UNAVAILABLE", "UNREACHABLE_AGENT")
        until(lambda: api.availability(server.id) == gone)
        server.link()
        assert api.availability(server.id) == ("AVAILABLE", None)

    def test_unavailable_unreachable_agent_that_is_merely_silent(
        self, api: Api, play: Play
    ) -> None:
        server = play()
        server.hush()
        gone = ("UNAVAILABLE", "UNREACHABLE_AGENT")
        until(lambda: api.availability(server.id) == gone)

    def test_unavailable_unhealthy_dcv_server(self, api: Api, play: Play) -> None:
        server = play()
        server.say(unhealthy="nothing answers")
        ill = ("UNAVAILABLE", "UNHEALTHY_DCV_SERVER")
        until(lambda: api.availability(server.id) == ill)
        server.say(unhealthy=None)
        until(lambda: api.availability(server.id) == ("AVAILABLE", None))

    def test_unavailable_existing_logged_in_user(self, api: Api, play: Play) -> None:
        server = play(os=WINDOWS, types=(Type.CONSOLE,))
        server.say(foreign_user="Administrator")
        used = ("UNAVAILABLE", "EXISTING_LOGGED_IN_USER")
        until(lambda: api.availability(server.id) == used)
        server.say(foreign_user=None)
        until(lambda: api.availability(server.id) == ("AVAILABLE", None))

    def test_unavailable_unknown(self, api: Api, play: Play) -> None:
        """A server that takes no type of session, and doesn't say why."""
        server = play(types=())
        assert api.availability(server.id) == ("UNAVAILABLE", "UNKNOWN")

    @pytest.mark.parametrize(
        ("facts", "words"),
        [
            ({"unhealthy": "nothing answers"}, "can't start sessions now"),
            ({"foreign_user": "Administrator"}, "logged in by other means"),
            ({"types": ()}, "not known well enough"),
        ],
    )
    def test_no_session_is_placed_on_an_unavailable_server(
        self, api: Api, owner: str, play: Play, facts: dict[str, Any], words: str
    ) -> None:
        assert words in api.failure(owner, **on(play(**facts)))


class TestExample:
    def test_two_results_per_page(self, api: Api) -> None:
        assert 1 <= len(api.call("describeServers", {"MaxResults": 2})["Servers"]) <= 2
