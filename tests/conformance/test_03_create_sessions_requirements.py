"""CreateSessions: Requirements, the whole language, and what is none of it."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest

from support.conformance import NO_PLACE, Api, Play, on
from support.played_server import PlayedServer


def _is_placed(api: Api, owner: str, server: PlayedServer) -> Callable[[str], bool]:
    def placed(expression: str) -> bool:
        mine = on(server)["Requirements"]
        item = api.item(owner, Requirements=f"{mine} and ({expression})")
        answer = api.call("createSessions", [item])
        for refused in answer["UnsuccessfulList"]:
            assert NO_PLACE in refused["FailureReason"].lower(), refused["FailureReason"]
        return bool(answer["SuccessfulList"])

    return placed


TRUE = [
    "tag:color = 'pink'",
    "tag:color != 'red'",
    "tag:size = 'it''s big'",
    "tag:dcv:max-virtual-sessions = '-1'",
    "tag:color := 'in'",
    "server:Host.CpuInfo.NumberOfCpus > 3",
    "server:Host.CpuInfo.NumberOfCpus >= 4",
    "server:Host.CpuInfo.NumberOfCpus < 5",
    "server:Host.CpuInfo.NumberOfCpus <= 4",
    "server:Host.CpuInfo.NumberOfCpus = 4",
    "server:Host.CpuInfo.NumberOfCpus != 5",
    "server:Host.Memory.TotalBytes > 1024E6",
    "server:Host.Memory.TotalBytes > +1.5e9",
    "tag:color = 'pink' and tag:size := 'big'",
    "tag:color = 'red' or tag:size := 'big'",
    "not tag:color = 'red'",
    "NOT (tag:color = 'red' OR tag:color = 'blue') AND tag:size := 'big'",
    "tag:color = 'red' and tag:color = 'blue' or tag:color = 'pink'",
    "tag:color='pink'",
    "tag:color = 'pink' and (server:Host.Os.Family = 'windows' or tag:color := 'p')",
    "server:Host.Aws.Ec2InstanceType := 't2' and server:Host.CpuInfo.NumberOfCpus >= 2",
    "server:Host.Aws.EC2InstanceType = 't2.large'",
    "server:Host.CpuInfo.NumberOfCpus = '4'",
    "server:Host.CpuLoadAverage.OneMinute > 2250e-4",
    "server:Version > '2023.12.1'",
    "server:Version < '2024.0.10'",
    "server:Host.Os.KernelVersion > '4.9.9'",
    "tag:color != 5",
    "tag:nowhere != ''",
    "tag:nowhere != 5",
    "not tag:nowhere = 'x'",
    "server:Host.Memory.TotalBytes != 'much'",
    "tag:color = 'pink'" + " and tag:color = 'pink'" * 150,
    "(" * 31 + "tag:color = 'pink'" + ")" * 31,
]
FALSE = [
    "tag:color = 'PINK'",
    "tag:color != 'pink'",
    "tag:color := 'x'",
    "server:Host.CpuInfo.NumberOfCpus > 4",
    "server:Host.CpuInfo.NumberOfCpus < 4",
    "tag:color = 'pink' and tag:size = 'small'",
    "not tag:color = 'pink'",
    "tag:color = 'red' or tag:size = 'small'",
    "tag:color = 'pink' and (tag:size = 'small' or tag:size = 'tiny')",
    "tag:nowhere = ''",
    "tag:nowhere := ''",
    "tag:nowhere < 'x'",
    "not tag:nowhere != 'x'",
    "tag:color = 5",
    "tag:color < 5",
    "tag:color > 5",
    "server:Version > '2024.0.10'",
    "server:Host.CpuInfo.NumberOfCpus > '10'",
]
PROPERTIES = {
    "Hostname": "'node001'",
    "Version": "'2024.0.1'",
    "SessionManagerAgentVersion": "'2024.0.2'",
    "Host.Os.BuildNumber": "'14393'",
    "Host.Os.Family": "'linux'",
    "Host.Os.KernelVersion": "'4.14.203'",
    "Host.Os.Name": "'Amazon Linux'",
    "Host.Os.Version": "'2'",
    "Host.Memory.TotalBytes": "32144048128",
    "Host.Memory.UsedBytes": "2184925184",
    "Host.Swap.TotalBytes": "1024",
    "Host.Swap.UsedBytes": "512",
    "Host.CpuLoadAverage.OneMinute": "2.25",
    "Host.CpuLoadAverage.FiveMinutes": "1.5",
    "Host.CpuLoadAverage.FifteenMinutes": "0.75",
    "Host.Aws.Ec2InstanceId": "'i-123456789'",
    "Host.Aws.Ec2InstanceType": "'t2.large'",
    "Host.Aws.Region": "'us-west-2b'",
    "Host.Aws.Ec2ImageId": "'ami-12345678987654321'",
    "Host.CpuInfo.Architecture": "'x86_64'",
    "Host.CpuInfo.ModelName": "'Intel(R) Xeon(R) CPU E5-2686 v4 @ 2.30GHz'",
    "Host.CpuInfo.NumberOfCpus": "4",
    "Host.CpuInfo.PhysicalCoresPerCpu": "2",
    "Host.CpuInfo.Vendor": "'GenuineIntel'",
}


@pytest.mark.own_broker
class TestRequirements:
    @pytest.fixture
    def placed(self, api: Api, owner: str, play: Play, rich_host: Any) -> Callable[[str], bool]:
        name = f"rich_{uuid.uuid4().hex[:8]}"
        tags = {
            "played": name,
            "color": "pink",
            "size": "it's big",
            "dcv:max-virtual-sessions": "-1",
        }
        return _is_placed(
            api, owner, play(name=name, hostname="node001", host=rich_host, tags=tags)
        )

    @pytest.mark.parametrize("expression", TRUE)
    def test_true(self, placed: Callable[[str], bool], expression: str) -> None:
        assert placed(expression)

    @pytest.mark.parametrize("expression", FALSE)
    def test_false(self, placed: Callable[[str], bool], expression: str) -> None:
        assert not placed(expression)

    @pytest.mark.parametrize("name", PROPERTIES)
    def test_server_property(self, placed: Callable[[str], bool], name: str) -> None:
        assert placed(f"server:{name} = {PROPERTIES[name]}")
        assert not placed(f"server:{name} != {PROPERTIES[name]}")

    def test_server_property_id(self, api: Api, owner: str, play: Play) -> None:
        server = play()
        created = api.create(owner, Requirements=f"server:Id = '{server.id}'")
        assert api.wait(created["Id"], "READY")["Server"]["Id"] == server.id


class TestRequirementsThatAreNone:
    @pytest.mark.parametrize(
        "expression",
        [
            "color = 'pink'",
            "tag:color",
            "tag:color == 'pink'",
            "tag:color = pink",
            "tag:color = 'pink",
            "tag:color = 'pink' and",
            "tag:color = 'pink' tag:size = 'big'",
            "(tag:color = 'pink'",
            "tag:color = 'pink')",
            "not not tag:color = 'pink'",
            "'pink' = tag:color",
            "tag:color < > 'pink'",
            "tag:color := 5",
        ],
    )
    def test_fail_with_their_reason(self, api: Api, owner: str, expression: str) -> None:
        assert api.failure(owner, Requirements=expression)

    @pytest.mark.own_broker
    @pytest.mark.parametrize("name", ["Ip", "Availability", "host.os.family", "Host.Gpus", "X"])
    def test_an_unknown_property_is_named(self, api: Api, owner: str, name: str) -> None:
        reason = api.failure(owner, Requirements=f"server:{name} = 'x'")
        assert f"Server property server:{name} not found" in reason

    @pytest.mark.own_broker
    @pytest.mark.parametrize(
        ("expression", "told"),
        [
            (
                "tag:color =",
                "Expected text in single quotes or a number at column 12, found the end",
            ),
            (
                "tag:color = 'pink' tag:size = 'big'",
                'Expected "and", "or" or the end at column 20, found \'tag\'',
            ),
            (
                "tag:color ~ 'pink'",
                "Expected an operator (= != < <= > >= :=) at column 11, found '~'",
            ),
            (
                "color = 'pink'",
                'Expected tag:NAME, server:PROPERTY, "not" or "(" at column 1, found \'color\'',
            ),
            ("tag:color = 'pink", "The text in quotes has no closing quote; it opens at column 13"),
            (
                "tag:color := 5",
                "Unexpected CONTAINS operator at column 11; := needs text in single quotes",
            ),
        ],
    )
    def test_the_reason_has_the_column_and_what_was_expected(
        self, api: Api, owner: str, expression: str, told: str
    ) -> None:
        assert api.failure(owner, Requirements=expression) == told

    @pytest.mark.own_broker
    @pytest.mark.parametrize(
        ("name", "nearest"),
        [("Host.Os.Famly", "Host.Os.Family"), ("host.memory.totalbytes", "Host.Memory.TotalBytes")],
    )
    def test_of_a_mistyped_property_the_nearest_is_named(
        self, api: Api, owner: str, name: str, nearest: str
    ) -> None:
        reason = api.failure(owner, Requirements=f"tag:a = 'b' and server:{name} = 'x'")
        assert reason == (
            f"Server property server:{name} not found at column 17; did you mean server:{nearest}?"
        )

    @pytest.mark.own_broker
    def test_there_may_be_4096_characters_and_no_more(self, api: Api, owner: str) -> None:
        longest = "tag:nowhere = '" + "x" * (4096 - 16) + "'"
        assert len(longest) == 4096
        assert NO_PLACE in api.failure(owner, Requirements=longest)
        assert api.failure(owner, Requirements=longest + " ") == (
            "Requirements can't be longer than 4,096 characters at column 4097"
        )

    @pytest.mark.own_broker
    def test_parentheses_may_be_32_deep_and_no_more(self, api: Api, owner: str) -> None:
        def nested(depth: int) -> str:
            return "(" * depth + "tag:nowhere = 'x'" + ")" * depth

        assert NO_PLACE in api.failure(owner, Requirements=nested(32))
        assert api.failure(owner, Requirements=nested(33)) == (
            "Parentheses can't be more than 32 deep at column 33"
        )
