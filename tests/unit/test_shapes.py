"""What clients send is read strictly, and what they are sent is what typed clients can read."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deskfleet.broker.web import bodies, rendering, shapes
from deskfleet.core import records
from deskfleet.core.placement import Refusal
from deskfleet.errors import Invalid
from deskfleet.ports import Picture
from support import openapi

API = openapi.description()
AT = datetime(2020, 10, 6, 10, 15, 31, 633_999, tzinfo=UTC)

FACTS = records.Facts(
    id="c2VydmVy+/=",
    hostname="node001",
    ip="10.0.0.7",
    dns_name="node001.example",
    host=records.Host(
        os=records.Os(family="linux", name="Debian", version="12", kernel_version="6.1"),
        memory_total=8_795_672_576,
        memory_used=1_743_886_336,
        cpu=records.Cpu(vendor="GenuineIntel", number_of_cpus=4, physical_cores_per_cpu=2),
        load=(2.24, 0.97, 1.0),
        gpus=(records.Gpu(vendor="NVIDIA", model_name="T4"),),
        logged_in_users=("root",),
        aws=records.Aws(
            region="eu-west-1a", instance_type="t2.large", instance_id="i-1", image_id="ami-1"
        ),
    ),
    driver="simulated",
    version="1.12",
    agent_version="0.1.0",
    boot_id="boot",
    endpoints=(
        records.Endpoint(ip_address="10.0.0.7", port=8444, protocol="QUIC", web_url_path=None),
        records.Endpoint(ip_address="10.0.0.7", port=8443, web_url_path="/desktop"),
        records.Endpoint(ip_address="10.0.0.8", port=9443),
    ),
    tags={"color": "pink", "dcv:os-family": "linux"},
)
BARE_FACTS = records.Facts(
    id="bare",
    hostname="h",
    ip="10.0.0.9",
    host=records.Host(os=records.Os(family="linux"), memory_total=1, memory_used=0),
    driver="simulated",
    version="1",
    agent_version="1",
    boot_id="b",
)
REQUEST = records.SessionRequest(name="s", owner="alice", type=records.Type.VIRTUAL)
SESSION = records.Session(id="0d6f", request=REQUEST, created_at=AT)
ENTRY = {"Name": "s", "Owner": "alice", "Type": "VIRTUAL"}


def sent(answer: shapes.Answer) -> Any:
    """Return an answer as a strict client sees it."""
    value = json.loads(rendering.encode(answer))
    assert openapi.violations(API, value, type(answer).__name__) == []
    return value


def entry(**members: object) -> shapes.CreateSessionRequestData:
    body = json.dumps([{**ENTRY, **members}]).encode()
    return bodies.decode_body(body, list[shapes.CreateSessionRequestData])[0]


def shown(**changes: Any) -> Any:
    arguments: dict[str, Any] = {
        "state": "READY",
        "substate": None,
        "reason": None,
        "report": None,
        "server": None,
    }
    return sent(rendering.session_shape(SESSION, **{**arguments, **changes}))


def complaint(body: bytes) -> str:
    """Return why a body is refused, nothing where it is taken."""
    try:
        bodies.decode_body(body, list[shapes.CreateSessionRequestData])
    except Invalid as invalid:
        return invalid.message
    return ""


class TestBody:
    @pytest.mark.parametrize("body", [b"", b"{}", b' {"SessionIds": null}'])
    def test_a_describe_may_ask_for_nothing(self, body: bytes) -> None:
        asked = bodies.decode_body(body, shapes.DescribeSessionsRequestData)
        assert asked == shapes.DescribeSessionsRequestData()

    @pytest.mark.parametrize("body", [b"", b"{}", b"null", b"[null]", b'["x"]'])
    def test_a_batch_is_a_list_of_objects(self, body: bytes) -> None:
        with pytest.raises(Invalid):
            bodies.decode_body(body, list[shapes.OpenServerRequestData])

    def test_null_sizes_are_as_good_as_none(self) -> None:
        body = b'[{"SessionId": "a", "MaxWidth": null, "MaxHeight": null}]'
        (asked,) = bodies.decode_body(body, list[shapes.GetSessionScreenshotRequestData])
        assert asked == shapes.GetSessionScreenshotRequestData(session_id="a")

    def test_an_unknown_member_is_named_in_the_words_that_clients_look_for(self) -> None:
        with pytest.raises(Invalid) as caught:
            bodies.decode_body(b'[{"MaxDepth": 1}]', list[shapes.GetSessionScreenshotRequestData])
        assert caught.value.message == 'Unrecognized field "MaxDepth"'

    @pytest.mark.parametrize(
        ("sent", "meant"),
        [
            (b'[{"MaxConcurrents": 2}]', {"max_concurrent_clients": 2}),
            (b'[{"DcvGLEnabled": false}]', {"dcv_gl_enabled": False}),
            (
                b'[{"DcvGLEnabled" : true, "Name": "\\u00e9", "MaxConcurrents":null}]',
                {"dcv_gl_enabled": True, "name": "é"},
            ),
        ],
    )
    def test_a_spelling_of_the_guides_prose_is_taken_for_the_descriptions(
        self, sent: bytes, meant: dict[str, Any]
    ) -> None:
        (asked,) = bodies.decode_body(sent, list[shapes.CreateSessionRequestData])
        assert asked == shapes.CreateSessionRequestData(**meant)

    def test_permission_file_is_the_permissions_file_of_an_update(self) -> None:
        body = b'[{"PermissionFile": "x"}]'
        (asked,) = bodies.decode_body(body, list[shapes.UpdateSessionPermissionsRequestData])
        assert asked == shapes.UpdateSessionPermissionsRequestData(permissions_file="x")

    @pytest.mark.parametrize(
        ("body", "told"),
        [
            (
                b'[{"MaxConcurrents": 1, "MaxConcurrentClients": 1}]',
                'Duplicate field "MaxConcurrentClients"',
            ),
            (b'[{"DcvGLEnabled": true, "DcvGLEnabled": true}]', 'Duplicate field "DcvGlEnabled"'),
            (b'[{"PermissionFile": "x"}]', 'Unrecognized field "PermissionFile"'),
            (
                b'[{"MaxConcurrents": 1, "maxConcurrents": 1}]',
                'Unrecognized field "maxConcurrents"',
            ),
            (
                b'[{"MaxConcurrents": "1"}]',
                "[0].MaxConcurrentClients: Expected int | null, got str",
            ),
            (b'[{"MaxConcurrents": NaN}]', "The body is not valid JSON in UTF-8."),
            (b'[{"MaxConcurrents": 1, "Name": "\xff"}]', "The body is not valid JSON in UTF-8."),
            (b'[{"MaxConcurrents": %s}]' % (b"1" * 5_000), "The body is not valid JSON in UTF-8."),
            (b'[{"MaxConcurrents": ' + b"[" * 100_000, "The body is nested too deeply."),
        ],
        ids=lambda value: repr(value)[:48],
    )
    def test_a_spelling_of_the_guides_prose_opens_no_other_door(
        self, body: bytes, told: str
    ) -> None:
        assert complaint(body) == told

    @pytest.mark.parametrize("name", ["X` - at `$[7]", "X`\n", "x" * 5_000, "\x1b[2J", "é"])
    def test_a_hostile_member_name_stays_one_short_line(self, name: str) -> None:
        body = json.dumps([{name: 1}]).encode()
        with pytest.raises(Invalid) as caught:
            bodies.decode_body(body, list[shapes.OpenServerRequestData])
        assert caught.value.message.startswith('Unrecognized field "')
        assert caught.value.message.isprintable()
        assert len(caught.value.message) < 100

    @pytest.mark.parametrize(
        ("body", "member"),
        [
            (b'[{"Name": 5}]', "[0].Name"),
            (b'[{}, {"EnqueueRequest": "false"}]', "[1].EnqueueRequest"),
            (b'[{"MaxConcurrentClients": 1.5}]', "[0].MaxConcurrentClients"),
            (b'[{"MaxConcurrentClients": 9223372036854775808}]', "[0].MaxConcurrentClients"),
            (b'[{"AutorunFileArguments": ["a", null]}]', "[0].AutorunFileArguments[1]"),
            (b'[{"Name": "%s"}]' % (b"x" * 65_537), "[0].Name"),
        ],
    )
    def test_what_can_not_be_read_is_located(self, body: bytes, member: str) -> None:
        with pytest.raises(Invalid) as caught:
            bodies.decode_body(body, list[shapes.CreateSessionRequestData])
        assert caught.value.message.startswith(f"{member}: ")

    @pytest.mark.parametrize(
        "body",
        [
            b'[{"ServerId": "a", "ServerId": "b"}]',
            b'[{"ServerId": "\xff"}]',
            b'[{"ServerId": "\\ud800"}]',
            b'[{"ServerId": NaN}]',
            b"[" * 100_000,
            b'[{"ServerId": ' + b"[" * 100_000,
            b"[{}] {}",
            b"\xef\xbb\xbf[]",
            b"[" + b"{}," * 1_000 + b"{}]",
        ],
    )
    def test_a_dubious_body_is_refused_as_a_whole(self, body: bytes) -> None:
        with pytest.raises(Invalid):
            bodies.decode_body(body, list[shapes.OpenServerRequestData])

    @pytest.mark.parametrize("results", [0, 1_001, -1])
    def test_a_page_holds_1_to_1000(self, results: int) -> None:
        body = b'{"MaxResults": %d}' % results
        with pytest.raises(Invalid):
            bodies.decode_body(body, shapes.DescribeServersRequestData)

    def test_a_filter_needs_a_key_and_a_value(self) -> None:
        with pytest.raises(Invalid):
            bodies.decode_body(b'{"Filters": [{"Key": "a"}]}', shapes.DescribeSessionsRequestData)

    @given(st.binary(max_size=200))
    def test_no_bytes_do_worse_than_invalid(self, body: bytes) -> None:
        assert "\n" not in complaint(body)

    def test_a_thousand_entries_are_taken(self) -> None:
        body = b"[" + b"{}," * 999 + b"{}]"
        assert len(bodies.decode_body(body, list[shapes.OpenServerRequestData])) == 1_000


class TestRequest:
    def test_everything_that_was_asked_reaches_the_core(self) -> None:
        asked = entry(
            Type="Console",
            DcvGlEnabled=False,
            MaxConcurrentClients=2,
            InitFile="init.sh",
            AutorunFile="run.sh",
            AutorunFileArguments=["-a", "b c"],
            PermissionsFile="/dcv/permissions.file",
            Requirements="tag:os = 'linux'",
            EnqueueRequest=True,
            DisableRetryOnFailure=True,
            StorageRoot="%home%",
        )
        assert bodies.to_request(asked) == records.SessionRequest(
            name="s",
            owner="alice",
            type=records.Type.CONSOLE,
            dcv_gl_enabled=False,
            max_concurrent_clients=2,
            init_file="init.sh",
            autorun_file="run.sh",
            autorun_file_arguments=("-a", "b c"),
            permissions_file="/dcv/permissions.file",
            requirements="tag:os = 'linux'",
            enqueue=True,
            disable_retry=True,
            storage_root="%home%",
        )

    def test_the_older_name_of_the_init_file_is_heard_where_the_newer_one_is_absent(self) -> None:
        old = bodies.to_request(entry(InitFilePath="old.sh"))
        both = bodies.to_request(entry(InitFilePath="old.sh", InitFile="new.sh"))
        assert isinstance(old, records.SessionRequest)
        assert isinstance(both, records.SessionRequest)
        assert (old.init_file, both.init_file) == ("old.sh", "new.sh")

    @pytest.mark.parametrize("type", ["VIRTUAL", "Virtual", "virtual"])
    def test_a_type_is_taken_in_any_letter_case(self, type: str) -> None:
        request = bodies.to_request(entry(Type=type))
        assert isinstance(request, records.SessionRequest)
        assert request.type is records.Type.VIRTUAL

    @pytest.mark.parametrize(
        ("members", "named"),
        [
            ({"Name": None}, "Name"),
            ({"Owner": " "}, "Owner"),
            ({"Type": ""}, "Type"),
            ({"Type": "TABLET"}, "Type"),
            ({"MaxConcurrentClients": 0}, "MaxConcurrentClients"),
            ({"Name": "a\nb"}, "Name"),
            ({"Name": "é" * 257}, "Name"),
            ({"Owner": "-u"}, "Owner"),
            ({"Owner": "é" * 257}, "Owner"),
            ({"InitFile": "a\x00"}, "InitFile"),
            ({"InitFilePath": "a\n"}, "InitFilePath"),
            ({"AutorunFile": "a\x7f"}, "AutorunFile"),
            ({"StorageRoot": "a\x00"}, "StorageRoot"),
            ({"AutorunFileArguments": ["x"] * 51}, "AutorunFileArguments"),
            ({"AutorunFileArguments": ["x" * 151]}, "AutorunFileArguments"),
            ({"AutorunFileArguments": ["a\x00"]}, "AutorunFileArguments"),
        ],
    )
    def test_an_impossible_entry_is_refused_by_itself(
        self, members: dict[str, object], named: str
    ) -> None:
        refusal = bodies.to_request(entry(**members))
        assert isinstance(refusal, Refusal)
        assert refusal.reason.startswith(f"{named} ")

    @pytest.mark.parametrize("name", ["-rf", "--help", "é" * 256, "桌" * 256])
    def test_a_name_may_begin_with_a_dash_and_its_characters_are_counted(self, name: str) -> None:
        request = bodies.to_request(entry(Name=name, Owner="é" * 256))
        assert isinstance(request, records.SessionRequest)
        assert request.name == name

    def test_the_limits_of_arguments_are_the_administrators(self) -> None:
        asked = entry(AutorunFileArguments=["x" * 151] * 51)
        # However generous the settings are: a server has to be able to tell what it was asked.
        longer = entry(AutorunFileArguments=("x" * 4097,))
        refusal = bodies.to_request(longer, max_arguments=2**31, max_argument_length=2**31)
        assert isinstance(refusal, Refusal)
        taken = bodies.to_request(asked, max_arguments=51, max_argument_length=151)
        assert isinstance(taken, records.SessionRequest)

    def test_a_refused_entry_goes_back_as_it_came(self) -> None:
        asked = entry(
            Type="tablet",
            EnqueueRequest=False,
            InitFilePath="/dcv/script.sh",
            MaxConcurrents=2,
        )
        failed = shapes.UnsuccessfulCreateSessionRequestData(
            create_session_request_data=asked, failure_reason="no"
        )
        assert sent(failed)["CreateSessionRequestData"] == {
            **ENTRY,
            "Type": "tablet",
            "EnqueueRequest": False,
            "InitFilePath": "/dcv/script.sh",
            "MaxConcurrentClients": 2,
        }


class TestInstant:
    def test_it_has_milliseconds_and_z(self) -> None:
        assert rendering.instant(AT) == "2020-10-06T10:15:31.633Z"
        assert rendering.instant(AT.replace(microsecond=0)) == "2020-10-06T10:15:31.000Z"

    def test_another_zone_is_the_same_instant(self) -> None:
        east = AT.astimezone(timezone(timedelta(hours=5, minutes=30)))
        assert rendering.instant(east) == "2020-10-06T10:15:31.633Z"

    @given(st.datetimes(min_value=datetime(1000, 1, 1), timezones=st.just(UTC)))  # noqa: DTZ001
    def test_it_can_be_read_back(self, at: datetime) -> None:
        read = datetime.fromisoformat(rendering.instant(at))
        assert timedelta(0) <= at - read < timedelta(milliseconds=1)


class TestSession:
    def test_a_fresh_session_has_all_that_clients_rely_on_and_no_more(self) -> None:
        assert shown(state="CREATING", substate="SESSION_PLACING") == {
            "Id": "0d6f",
            "Name": "s",
            "Owner": "alice",
            "Type": "VIRTUAL",
            "State": "CREATING",
            "Substate": "SESSION_PLACING",
            "CreationTime": "2020-10-06T10:15:31.633Z",
            "NumOfConnections": 0,
        }

    def test_what_its_server_said_is_shown(self) -> None:
        report = records.Report(
            id="0d6f",
            server_id="x",
            generation=1,
            phase=records.Phase.RUNNING,
            connections=2,
            last_disconnection_at=AT,
        )
        session = shown(report=report, reason="because")
        assert session["NumOfConnections"] == 2
        assert session["LastDisconnectionTime"] == "2020-10-06T10:15:31.633Z"
        assert session["StateReason"] == "because"

    def test_its_server_is_what_is_needed_to_connect(self) -> None:
        server = shown(server=rendering.session_server_shape(FACTS))["Server"]
        assert server["Id"] == "c2VydmVy+/="
        assert server["Port"] == "8443"
        assert server["WebUrlPath"] == "/desktop"
        assert server["Tags"][0] == {"Key": "color", "Value": "pink"}
        assert server["Endpoints"][0] == {
            "IpAddress": "10.0.0.7",
            "Port": 8444,
            "Protocol": "QUIC",
        }
        assert not {"Host", "Availability", "ConsoleSessionCount", "Version"} & set(server)


class TestServer:
    def test_a_full_server_shows_everything(self) -> None:
        server = sent(
            rendering.server_shape(
                FACTS,
                availability="UNAVAILABLE",
                unavailability_reason="SERVER_FULL",
                console_sessions=0,
                virtual_sessions=5,
            )
        )
        described = set(openapi.schemas(API)["Server"]["properties"])
        assert set(server) == described
        assert set(server["Host"]) == set(openapi.schemas(API)["Host"]["properties"])
        assert server["Host"]["Aws"] == {
            "Region": "eu-west-1a",
            "EC2InstanceType": "t2.large",
            "EC2InstanceId": "i-1",
            "EC2ImageId": "ami-1",
        }
        assert server["Host"]["Memory"] == {"TotalBytes": 8_795_672_576, "UsedBytes": 1_743_886_336}
        assert server["ConsoleSessionCount"] == 0

    def test_what_is_not_known_is_left_out_and_lists_are_there(self) -> None:
        server = sent(
            rendering.server_shape(
                BARE_FACTS,
                availability="AVAILABLE",
                unavailability_reason=None,
                console_sessions=0,
                virtual_sessions=0,
            )
        )
        assert (server["Tags"], server["Endpoints"]) == ([], [])
        assert (server["Host"]["Gpus"], server["Host"]["LoggedInUsers"]) == ([], [])
        assert not {"Port", "WebUrlPath", "UnavailabilityReason", "DefaultDnsName"} & set(server)
        assert not {"Aws", "CpuLoadAverage"} & set(server["Host"])


class TestAnswer:
    @pytest.mark.parametrize(
        "type",
        [
            shapes.CreateSessionsResponse,
            shapes.DeleteSessionsResponse,
            shapes.UpdateSessionPermissionsResponse,
            shapes.GetSessionScreenshotsResponse,
            shapes.OpenServersResponse,
            shapes.CloseServersResponse,
        ],
    )
    def test_a_batch_has_both_lists_even_when_they_are_empty(self, type: Any) -> None:
        answer = sent(type(request_id="r", successful_list=(), unsuccessful_list=()))
        assert answer == {"RequestId": "r", "SuccessfulList": [], "UnsuccessfulList": []}

    def test_the_last_page_has_no_token(self) -> None:
        answer = shapes.DescribeSessionsResponse(request_id="r", sessions=())
        assert sent(answer) == {"RequestId": "r", "Sessions": []}

    def test_an_error_is_one_member(self) -> None:
        answer = sent(shapes.Error(error="No authorization header"))
        assert answer == {"error": "No authorization header"}

    def test_exactly_one_picture_is_the_primary_one_and_it_comes_first(self) -> None:
        pictures = [
            Picture(format="png", content=b"\xff\xfe\xfd", taken_at=AT, primary=False),
            Picture(format="png", content=b"main", taken_at=AT),
            Picture(format="png", content=b"third", taken_at=AT),
        ]
        shot = sent(rendering.screenshot_shape("0d6f", pictures))["SessionScreenshot"]
        assert [image["Primary"] for image in shot["Images"]] == [True, False, False]
        assert base64.b64decode(shot["Images"][0]["Data"], validate=True) == b"main"
        assert shot["Images"][2]["Data"] == "//79"
        assert shot["Images"][0]["CreationTime"] == "2020-10-06T10:15:31.633Z"
