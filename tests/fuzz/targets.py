"""What is fuzzed: everything that reads what a stranger wrote, and the law that each has to hold.

A refusal in the words of its reader is an answer; any other exception is a failure.
"""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, cast

import jwt
from cryptography.hazmat.primitives.asymmetric import ec

from deskfleet.broker.service.access import Access, Audience
from deskfleet.broker.service.external_tokens import ExternalTokens
from deskfleet.broker.service.jwks import Keys, read_keys
from deskfleet.broker.service.key_sets import KeySets
from deskfleet.broker.service.paging import Paging
from deskfleet.broker.service.replica import Replica
from deskfleet.broker.web import shapes
from deskfleet.broker.web.bodies import decode_body, to_request
from deskfleet.core import permissions, requirements
from deskfleet.core.change import Stored
from deskfleet.core.fleet import Fleet
from deskfleet.core.records import AuthServer
from deskfleet.errors import (
    Forbidden,
    Invalid,
    PermissionsInvalid,
    RequirementsInvalid,
    Unauthenticated,
)
from deskfleet.system import SystemIds
from fuzz.agent_messages import agent_messages
from support.builders import NOON, FakeClock, FastSigner, some_facts
from support.fuzzing import Target
from support.house import signing_key

FACTS = some_facts("n1", tags={"color": "pink", "dcv:max-virtual-sessions": "10"})


def requirements_parser() -> Target[str]:
    """Law: what is taken can be printed, and is the same when it is read again."""

    def run(text: str) -> None:
        with contextlib.suppress(RequirementsInvalid):
            parsed = requirements.parse(text)
            assert parsed.matches(FACTS) in {True, False}
            printed = str(parsed)
            with contextlib.suppress(RequirementsInvalid):
                # Printed text may be longer than what is taken.
                assert requirements.parse(printed) == parsed

    return Target(
        readers=[run],
        seeds=[
            "",
            "tag:color = 'pink' and (server:Host.Os.Family = 'windows' or tag:color := 'red')",
            "server:Host.Aws.Ec2InstanceType := 't2' and server:Host.CpuInfo.NumberOfCpus >= 2",
            "server:Host.Memory.TotalBytes > 1024E6",
            "not (tag:dcv:max-virtual-sessions != 'it''s' OR server:Version <= '2024.0.1')",
            "(" * 40 + "tag:a = ''" + ")" * 40,
            "not " * 60 + "tag:a = 1",
            " or ".join(["tag:a = 'x'"] * 100),
            "tag:a = '" + "x" * 5_000 + "'",
            "tag:a = " + "9" * 450,
            "tag:a = 1e" + "9" * 30,
            "(" * 4_000,
            "tag:a = ''" * 400,
        ],
        words=[
            *("tag:", "server:", "color", "dcv:", "Host.", "Os.Family", "Id", "Hostname"),
            *("=", "!=", ">", ">=", "<", "<=", ":=", " ", "\n", "\t", "(", ")", "'", "''"),
            *(" and ", " or ", " not ", "AND", "'pink'", "1024E6", "-1.5e9", "0", ".", "\x00", "é"),
            *("2024.0.1", "9" * 50, "'" * 30, "((((", "))))", "not(", "EC2InstanceId"),
        ],
        modules=["core/requirements.py"],
        longest=20_000,
    )


def permissions_parser() -> Target[str]:
    """Law: nobody has a feature that no rule allows them."""

    def run(text: str) -> None:
        file = base64.b64encode(text.encode("utf-8", "surrogatepass")).decode()
        with contextlib.suppress(PermissionsInvalid):
            parsed = permissions.decode(file)
            allowed = parsed.features("ann", "bob", frozenset({"staff"}))
            named = [r.features for r in parsed.rules if r.verdict is permissions.Verdict.ALLOW]
            assert allowed <= frozenset().union(*named)

    def run_as_it_came(text: str) -> None:
        with contextlib.suppress(PermissionsInvalid):
            permissions.decode(text)

    return Target(
        readers=[run, run_as_it_came],
        seeds=[
            "[permissions]\n%owner% allow builtin\n%any% deny printer, usb\n",
            (
                "[groups]\nteam=ann, osgroup:staff\nall=group:team, user:bob\n"
                "[aliases]\nview=display, pointer\nmore=view keyboard\n"
                "[permissions]\ngroup:all allow more\nuser:eve disallow view ; no\n# end"
            ),
            "#import other\n",
            "[groups]\na=group:b\nb=group:a\n",
            "[groups]\n" + "".join(f"g{n}=group:g{n + 1}\n" for n in range(900)) + "g900=ann\n",
            "[aliases]\n" + "".join(f"a{n}=a{n + 1} a{n + 2}\n" for n in range(500)),
            "[permissions]\n" + "%any% allow builtin\n" * 1_900,
            "[permissions]\n%any% allow " + "display " * 7_000,
            "[permissions]\n%any% allow " + "x" * 60_000,
            "[permissions]\n%any% allow" + " " * 60_000 + "display",
            "\n" * 60_000,
            " " * 60_000,
        ],
        words=[
            *("[groups]", "[aliases]", "[permissions]", "[", "]", "\n", "\r\n", " ", "\t", ","),
            *("%owner%", "%any%", "user:", "group:", "osgroup:", "ann", "=", "#", ";", "#import "),
            *(" allow ", " disallow ", " deny ", "builtin", "display", "keyboard-sas", "clipboard"),
            *("\x00", "\ufeff", "é", "x" * 300, "\ud800", "\u2028"),
        ],
        modules=["core/permissions.py"],
        longest=70_000,
    )


def next_token() -> Target[str]:
    """Law: a token that was not given for a query leads nowhere."""
    paging, query = Paging(FastSigner()), ["sessions", [], ["ann"], []]
    place = (datetime(2030, 1, 1, tzinfo=UTC), "78b45deb-1163-46b1-879b-7d8fcbe9d9d6")
    _, token = paging.page(iter([1, 2]), 1, query, lambda _: place)
    _, other = paging.page(iter([1, 2]), 1, ["servers", []], lambda _: place)
    assert token is not None
    assert other is not None

    def run(text: str) -> None:
        with contextlib.suppress(Invalid):
            assert paging.after(text, query) == place
            assert text[:-4] == token[:-4]

    return Target(
        readers=[run],
        seeds=[token, other, "", "A" * 24, "=" * 30, "A" * 60_000],
        words=["=", "-", "_", "+", "/", "A", "\n", "é", "\x00", token[:22], other[22:]],
        modules=["service/paging.py"],
        longest=65_536,
    )


def tokens() -> Target[str]:
    """Law: what is let in says what a signer has signed, for this door, and not more."""
    clock, replica = FakeClock(), Replica(cast(Any, None))
    replica.fleet.apply(Stored(1, signing_key()))
    access = Access(replica, clock, SystemIds(), FastSigner())
    mine = access.sign(Audience.API, {"sub": "client"}, timedelta(hours=1))
    elsewhere = access.sign(Audience.CONNECT, {"sub": "client"}, timedelta(hours=1))
    external, theirs = _external(clock)

    def run(text: str) -> None:
        with contextlib.suppress(Unauthenticated, Forbidden):
            assert access.verify(Audience.API, text)["sub"] == "client"
        with contextlib.suppress(Unauthenticated, Forbidden):
            assert external.caller(text) in {"portal", None}

    head, body, seal = theirs.split(".")
    none = jwt.encode({"sub": "eve"}, "", "none")
    return Target(
        readers=[run],
        seeds=[
            *(mine, elsewhere, theirs, none, "", ".", "..", "a.b.c"),
            jwt.encode({"client_id": "eve", "iss": "login"}, "x" * 40, "HS256", {"kid": "key"}),
            jwt.encode({"sub": "eve"}, "x" * 40, "HS256", {"kid": "first", "jku": "https://x"}),
            f"{_text(b'{' * 2_000)}.{body}.{seal}",
            f"{_text(b'[' * 2_000)}.{_text(b'[' * 4_000)}.{seal}",
            f"{head}.{_text(b'{' * 5_000)}.{seal}",
            "." * 8_000,
            "A" * 9_000,
        ],
        words=[
            *(".", "=", "-", "_", "A", "eyJ", *theirs.split("."), *mine.split(".")),
            *(_text(b'{"alg":"none"}'), _text(b'{"alg":"HS256","kid":"key"}'), "\x00", "é", " "),
        ],
        modules=["service/access.py", "service/tokens.py", "service/external_tokens.py"],
        longest=9_000,
    )


def _text(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


class _OneKeySet:
    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    def current(self, server: AuthServer) -> Keys:
        return self._keys


def _external(clock: FakeClock) -> tuple[ExternalTokens, str]:
    """Return what reads the tokens of an external server, and one of its tokens."""
    private, server_id = ec.generate_private_key(ec.SECP256R1()), "https://login.example/jwks"
    told = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(private.public_key()))
    keys = read_keys(json.dumps({"keys": [{**told, "kid": "key"}]}).encode(), None)
    fleet = Fleet()
    fleet.apply(Stored(1, AuthServer(id=server_id, registered_at=NOON, issuer="login")))
    now = int(clock.now().timestamp())
    claims = {"iss": "login", "client_id": "portal", "iat": now, "exp": now + 600}
    token = jwt.encode(claims, private, "ES256", {"kid": "key"})
    external = ExternalTokens(fleet, clock, cast(KeySets, _OneKeySet(keys)))
    assert external.caller(token) == "portal"
    return external, token


def request_bodies() -> Target[bytes]:
    """Law: what is taken is of its type, and a refusal is one line that a log can hold."""
    types: list[Any] = [
        list[shapes.CreateSessionRequestData],
        list[shapes.DeleteSessionRequestData],
        list[shapes.GetSessionScreenshotRequestData],
        list[shapes.UpdateSessionPermissionsRequestData],
        list[shapes.CloseServerRequestData],
        shapes.DescribeSessionsRequestData,
        shapes.DescribeServersRequestData,
    ]

    def run(type: Any, body: bytes) -> None:
        decoded: Any = []
        refusal = ""
        try:
            decoded = decode_body(body, type)
        except Invalid as error:
            refusal = error.message
        assert len(refusal) < 1_000
        assert refusal.isprintable()
        for item in decoded if type is types[0] else []:
            to_request(item)

    full = {
        **dict.fromkeys(("Name", "Owner", "InitFile", "AutorunFile", "StorageRoot"), "x"),
        "Type": "VIRTUAL",
        "DcvGlEnabled": True,
        "MaxConcurrentClients": 2,
        "AutorunFileArguments": ["a", "b"],
        "Requirements": "tag:a = 'b'",
    }
    filters = [{"Key": "owner", "Value": "ann"}]
    return Target(
        readers=[partial(run, type) for type in types],
        seeds=[
            *(b"", b"{}", b"[]", b"[{}]", b"null"),
            json.dumps([full]).encode(),
            json.dumps([full] * 1_000).encode(),
            json.dumps([{"SessionId": "s", "Owner": "o", "Force": True}]).encode(),
            json.dumps([{"SessionId": "s", "MaxWidth": 1, "MaxHeight": None}]).encode(),
            json.dumps({"SessionIds": ["s"] * 1_000, "Filters": filters * 1_000}).encode(),
            json.dumps({"MaxResults": 7, "NextToken": "t"}).encode(),
            b"[" * 50_000,
            b'[{"x":' * 20_000,
            b'[{"Name":"' + b"\\u0000" * 60_000 + b'"}]',
            b'[{"MaxWidth":' + b"9" * 60_000 + b"}]",
            b'[{"' + b"x" * 60_000 + b'":1}]',
            b'[{"Name":"a","Name":"b"}]',
        ],
        words=[
            *(b"{", b"}", b"[", b"]", b":", b",", b'"', b"null", b"true", b"1e400", b"-0", b"\\"),
            *(b'"Name"', b'"Owner"', b'"Type"', b'"SessionId"', b'"Force"', b'"MaxWidth"'),
            *(b"\\ud800", b"\xff", b"\xef\xbb\xbf", b"\\u0000", b"NaN", b"9" * 400, b" ", b"\n"),
            *(b'"SessionIds"', b'"Filters"', b'"Key"', b'"NextToken"', b"1.5", b'"\xc3\xa9"'),
        ],
        modules=["web/bodies.py"],
        longest=400_000,
    )


TARGETS: dict[str, Callable[[], Target[Any]]] = {
    one.__name__: one
    for one in (
        requirements_parser,
        permissions_parser,
        next_token,
        tokens,
        request_bodies,
        agent_messages,
    )
}
