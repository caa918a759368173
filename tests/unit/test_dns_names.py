"""DNS mappings: what a file may say, and which name a server is found by."""

from __future__ import annotations

import json
from typing import Any

import pytest

from deskfleet.core.dns_names import MAX_SERVER_ID, mapping_id, name_of, read_mappings
from deskfleet.core.placement import Refusal
from deskfleet.core.records import Aws, DnsMapping, Endpoint, Facts, ServerIdType
from deskfleet.core.session import replace
from deskfleet.errors import Invalid
from support.builders import a_fleet, some_facts

ENDPOINT = Endpoint(ip_address="10.0.0.7", port=8443)
LONGEST_LABEL = "x" * 63


def an_entry(**changes: Any) -> dict[str, Any]:
    entry = {
        "ServerIdType": "Id",
        "ServerId": "n1",
        "DnsNames": {"InternalDnsName": "n1.internal.example"},
    }
    return {**entry, **changes}


def read(*entries: Any) -> list[DnsMapping]:
    return read_mappings(json.dumps(entries).encode())


def a_mapping(kind: ServerIdType, value: str, name: str) -> DnsMapping:
    return DnsMapping(
        id=mapping_id(kind, value), server_id_type=kind, server_id=value, internal_name=name
    )


class TestFiles:
    def test_the_documented_form(self) -> None:
        names = {"InternalDnsName": "a.internal.example", "ExternalDnsName": "a.example"}
        mappings = read(
            an_entry(DnsNames=names),
            an_entry(ServerIdType="Ip", ServerId="192.168.0.1"),
            an_entry(ServerIdType="Host.Aws.Ec2InstanceId", ServerId="i-0123456789abcdef0"),
        )
        assert [(one.server_id_type, one.server_id) for one in mappings] == [
            (ServerIdType.ID, "n1"),
            (ServerIdType.IP, "192.168.0.1"),
            (ServerIdType.EC2_INSTANCE_ID, "i-0123456789abcdef0"),
        ]
        assert mappings[0].internal_name == "a.internal.example"
        assert mappings[0].external_name == "a.example"
        assert mappings[1].external_name is None

    @pytest.mark.parametrize("key", ["InternalDnsName", "InternalDnsNames", "internalDnsName"])
    def test_every_spelling_of_the_documentation(self, key: str) -> None:
        [mapping] = read(an_entry(DnsNames={key: "Desk-1.example."}))
        assert mapping.internal_name == "Desk-1.example"

    def test_what_describing_prints_is_read_again(self) -> None:
        [mapping] = read(
            {
                "serverIdType": "host.aws.ec2InstanceId",
                "serverId": "i-1",
                "dnsNames": {"internalDnsName": "a", "externalDnsName": None},
            }
        )
        assert mapping.server_id_type is ServerIdType.EC2_INSTANCE_ID
        assert (mapping.internal_name, mapping.external_name) == ("a", None)

    def test_addresses_have_one_spelling(self) -> None:
        mappings = read(an_entry(ServerIdType="Ip", ServerId="FE80:0::1"))
        assert mappings[0].server_id == "fe80::1"

    def test_a_byte_order_mark_and_an_empty_array(self) -> None:
        assert read_mappings(b"\xef\xbb\xbf[]") == []

    @pytest.mark.parametrize(
        ("entry", "why"),
        [
            (an_entry(ServerIdType="Hostname"), "ServerIdType must be one of Id, Ip, Host.Aws"),
            (an_entry(ServerIdType=None), "ServerIdType is missing"),
            (an_entry(ServerIdType=7), "ServerIdType must be a text"),
            (an_entry(ServerId=""), "ServerId must be a text, and not empty"),
            (an_entry(ServerId="x" * (MAX_SERVER_ID + 1)), "up to 200 characters"),
            (an_entry(ServerId="a\nb"), "must be printable"),
            (an_entry(ServerIdType="Ip", ServerId="desk1"), "'desk1' is not an IP address"),
            (an_entry(ServerIdType="Ip", ServerId="10.0.0.300"), "is not an IP address"),
            (an_entry(DnsNames=None), "DnsNames is missing"),
            (an_entry(DnsNames="n1.example"), "DnsNames must be a JSON object"),
            (an_entry(DnsNames={}), "DnsNames has no InternalDnsName"),
            (an_entry(DnsNames={"ExternalDnsName": "a.example"}), "has no InternalDnsName"),
            (an_entry(DnsNames={"InternalDnsName": ""}), "must be a text, and not empty"),
            (an_entry(DnsNames={"InternalDnsName": ["a"]}), "InternalDnsName must be a text"),
            (an_entry(DnsNames={"InternalDnsName": "10.0.0.7"}), "is an address"),
            (an_entry(DnsNames={"InternalDnsName": "[fe80::1]"}), "is an address"),
            (an_entry(DnsNames={"InternalDnsName": "10.7"}), "is an address"),
            (an_entry(DnsNames={"InternalDnsName": "-a.example"}), "is not a DNS name"),
            (an_entry(DnsNames={"InternalDnsName": "a..example"}), "is not a DNS name"),
            (an_entry(DnsNames={"InternalDnsName": "a example"}), "is not a DNS name"),
            (an_entry(DnsNames={"InternalDnsName": "a.example/x"}), "is not a DNS name"),
            (an_entry(DnsNames={"InternalDnsName": "a.example:8443"}), "is not a DNS name"),
            (an_entry(DnsNames={"InternalDnsName": "bücher.example"}), "is not a DNS name"),
            (an_entry(DnsNames={"InternalDnsName": f"{LONGEST_LABEL}x.example"}), "not a DNS name"),
            (an_entry(DnsNames={"InternalDnsName": f"{LONGEST_LABEL}." * 4}), "not a DNS name"),
            (
                an_entry(DnsNames={"InternalDnsName": "a", "InternalDnsNames": "b"}),
                "in two spellings",
            ),
            (an_entry(DnsNames={"InternalName": "a"}), "unknown key 'InternalName'"),
            (an_entry(Port=8443), "the entry has an unknown key 'Port'"),
            (an_entry(serverid="n2"), "has the key 'serverid' twice"),
            ("n1", "the entry must be a JSON object"),
            (None, "the entry is missing"),
        ],
    )
    def test_a_bad_entry_is_named_with_what_is_wrong(self, entry: Any, why: str) -> None:
        with pytest.raises(Invalid) as refused:
            read(an_entry(ServerId="good"), entry)
        assert refused.value.message.startswith("entry 2: ")
        assert why in refused.value.message
        assert len(refused.value.message.splitlines()) == 1

    @pytest.mark.parametrize(
        ("content", "why"),
        [
            (b"", "not JSON"),
            (b"[", "not JSON"),
            (b"[" * 100_000, "not JSON"),
            (b"\xff\xfe[\x00]\x00", "not JSON"),
            (b"{}", "must be a JSON array"),
            (b"null", "must be a JSON array"),
        ],
    )
    def test_what_is_no_file_of_mappings(self, content: bytes, why: str) -> None:
        with pytest.raises(Invalid, match=why):
            read_mappings(content)

    def test_one_server_twice_is_a_mistake(self) -> None:
        entries = [
            an_entry(ServerIdType="Ip", ServerId="::1"),
            an_entry(ServerId="::1"),
            an_entry(ServerIdType="ip", ServerId="0::1"),
        ]
        with pytest.raises(Invalid, match="entry 3: Ip ::1 is in entry 1, too"):
            read(*entries)


class TestNames:
    MAPPINGS = (
        a_mapping(ServerIdType.ID, "n1", "by-id.example"),
        a_mapping(ServerIdType.EC2_INSTANCE_ID, "i-1", "by-instance.example"),
        a_mapping(ServerIdType.IP, "10.0.0.7", "by-address.example"),
    )

    def facts(self, **fields: Any) -> Facts:
        facts = some_facts("n1", dns_name="said.example", **fields)
        return replace(facts, host=replace(facts.host, aws=Aws(instance_id="i-1")))

    def test_the_nearest_mapping_wins_and_then_what_the_server_says(self) -> None:
        names = ["by-id.example", "by-instance.example", "by-address.example", "said.example"]
        for number, name in enumerate(names):
            fleet = a_fleet(*self.MAPPINGS[number:])
            assert name_of(fleet, self.facts(), ENDPOINT) == name

    def test_the_address_of_the_endpoint_counts_too_and_spellings_do_not(self) -> None:
        fleet = a_fleet(a_mapping(ServerIdType.IP, "fe80::1", "six.example"))
        endpoint = replace(ENDPOINT, ip_address="FE80::0001")
        assert name_of(fleet, self.facts(), endpoint) == "six.example"
        assert name_of(fleet, self.facts(ip="fe80:0::1"), ENDPOINT) == "six.example"

    def test_a_mapping_of_another_kind_or_server_is_not_taken(self) -> None:
        fleet = a_fleet(
            a_mapping(ServerIdType.ID, "10.0.0.7", "wrong.example"),
            a_mapping(ServerIdType.ID, "i-1", "wrong.example"),
            a_mapping(ServerIdType.IP, "10.0.0.8", "wrong.example"),
        )
        assert name_of(fleet, self.facts(), ENDPOINT) == "said.example"

    def test_a_server_without_a_name_is_told_with_all_that_it_lacks(self) -> None:
        nameless = replace(self.facts(), dns_name=None)
        refusal = name_of(a_fleet(), nameless, ENDPOINT)
        assert isinstance(refusal, Refusal)
        assert refusal.reason == (
            "server n1 (host n1.example) has no DNS name: no mapping is registered for"
            " Id n1, Host.Aws.Ec2InstanceId i-1, Ip 10.0.0.7, and its agent knows no full name"
            " of its host"
        )
