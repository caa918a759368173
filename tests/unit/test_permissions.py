"""Permissions files: what they grant, what they refuse to be, and that nothing crashes them."""

from __future__ import annotations

import base64
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deskfleet.core.permissions import (
    BUILTIN,
    MAX_BYTES,
    MAX_LINES,
    OWNER_ONLY,
    Feature,
    Permissions,
    decode,
    parse,
)
from deskfleet.errors import PermissionsInvalid

OWNER = "olga"
NOBODY: frozenset[str] = frozenset()


def granted(text: str, user: str = "alice", *groups: str) -> set[str]:
    return {str(feature) for feature in parse(text).features(user, OWNER, frozenset(groups))}


def refusal(text: str) -> PermissionsInvalid:
    with pytest.raises(PermissionsInvalid) as caught:
        parse(text)
    return caught.value


def encoded(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def test_there_are_the_documented_features() -> None:
    documented = (
        "audio-in audio-out clipboard-copy clipboard-paste display extensions-client"
        " extensions-server file-download file-upload gamepad keyboard keyboard-sas mouse pointer"
        " printer screenshot smartcard stylus touch unsupervised-access usb webcam"
        " webauthn-redirection"
    )
    assert {str(feature) for feature in Feature} == set(documented.split())
    assert frozenset(Feature) == BUILTIN


def test_without_a_file_the_owner_may_everything_and_nobody_else_anything() -> None:
    assert OWNER_ONLY.features(OWNER, OWNER, NOBODY) == BUILTIN
    assert OWNER_ONLY.features("alice", OWNER, frozenset({OWNER})) == frozenset()
    assert parse("[permissions]\n%owner% allow builtin\n") == OWNER_ONLY


def test_permissions_are_hashable_and_equal_by_value() -> None:
    text = "[groups]\ng=a\n[aliases]\nx=mouse\n[permissions]\ngroup:g allow x"
    assert parse(text) == parse(text)
    assert len({parse(text), parse(text), OWNER_ONLY}) == 2


ACTORS = [
    ("alice", "alice", (), True),
    ("alice", "bob", (), False),
    ("alice", "Alice", (), False),
    ("user:alice", "alice", (), True),
    (r"example\alice", r"example\alice", (), True),
    (r"example\alice", "alice", (), False),
    ("alice@example.com", "alice@example.com", (), True),
    ("%any%", "anybody", (), True),
    ("%owner%", OWNER, (), True),
    ("%owner%", "alice", (), False),
    ("osgroup:staff", "alice", ("staff",), True),
    ("osgroup:staff", "alice", ("guests",), False),
    ("osgroup:staff", "staff", (), False),
    ("group:team", "alice", (), True),
    ("group:team", "bob", (), True),
    ("group:team", "carol", ("staff",), True),
    ("group:team", "carol", ("guests",), False),
    ("group:team", r"example\dora", (), True),
    ("group:team", "eve", (), True),
    ("group:team", "team", ("team",), False),
]


@pytest.mark.parametrize(("actor", "user", "groups", "expected"), ACTORS)
def test_actors(actor: str, user: str, groups: tuple[str, ...], *, expected: bool) -> None:
    text = (
        "[permissions]\n"
        f"{actor} allow display\n"
        "[groups]\n"
        r"team=alice, user:bob , osgroup:staff,example\dora, group:inner" + "\n"
        "inner = eve\n"
    )
    assert granted(text, user, *groups) == ({"display"} if expected else set())


RULES = [
    ("%any% allow display mouse", {"display", "mouse"}),
    ("%any% allow display,mouse, keyboard", {"display", "mouse", "keyboard"}),
    ("%any% allow display\nalice disallow display", set()),
    ("%any% disallow display\nalice allow display", {"display"}),
    ("%any% deny display\nalice allow display", set()),
    ("alice allow display\n%any% deny display", set()),
    ("bob deny display\nalice allow display", {"display"}),
    ("%any% deny builtin\nalice allow builtin", set()),
    ("%any% allow builtin\n%any% disallow builtin\n%any% allow usb", {"usb"}),
    ("%any%\tallow \t usb", {"usb"}),
    ("", set()),
]


@pytest.mark.parametrize(("rules", "expected"), RULES)
def test_the_last_rule_wins_but_a_denial_is_final(rules: str, expected: set[str]) -> None:
    assert granted(f"[permissions]\n{rules}") == expected


def test_aliases_may_name_aliases_that_come_later() -> None:
    text = (
        "[permissions]\n%any% allow files screenshot\n"
        "[aliases]\nfiles=up, down\nup=file-upload\ndown=file-download,up\nnothing=\n"
    )
    assert granted(text) == {"file-upload", "file-download", "screenshot"}


def test_comments_blank_lines_windows_line_ends_and_repeated_sections() -> None:
    text = (
        "# who\r\n\r\n; and what\r\n[permissions]\r\n  %any% allow display # watch only\r\n"
        "#important: more follows\r\n[groups]\r\n[permissions]\r\nalice allow mouse"
    )
    assert granted(text) == {"display", "mouse"}


def test_a_file_as_a_portal_writes_it() -> None:
    text = (
        "[groups]\ngroup:admins=user:root, osgroup:wheel\n"
        "[aliases]\nadmin-allow=builtin\nwatch-allow=display, pointer\nwatch-deny=keyboard\n"
        "[permissions]\nalice allow watch-allow\nalice deny watch-deny\n"
        "group:admins allow admin-allow\n%owner% allow admin-allow\n"
    )
    assert granted(text) == {"display", "pointer"}
    assert granted(text, "alice", "wheel") == BUILTIN - {"keyboard"}
    assert granted(text, OWNER) == BUILTIN


REFUSALS = [
    ("%any% allow display", 1, "expected [groups], [aliases] or [permissions] before"),
    ("[rules]", 1, "unknown section [rules]"),
    ("[permissions", 1, "unknown section"),
    ("[permissions]\n\n%any% allow dispaly", 3, "did you mean display?"),
    ("[permissions]\n%any% allow", 2, "expected: actor"),
    ("[permissions]\n%any% grant display", 2, "expected: actor"),
    ("[permissions]\nalice,allow,display", 2, "expected: actor"),
    ("[permissions]\n%any% Allow display", 2, "expected: actor"),
    ("[permissions]\n%any% allow display,,mouse", 2, "'' is neither a feature"),
    ("[permissions]\n%any% allow display\u00a0mouse", 2, "neither a feature nor an alias"),
    ("[permissions]\n%all% allow display", 2, "'%all%' is not a name"),
    ("[permissions]\nrole:x allow display", 2, "expected user:, group: or osgroup:, found 'role'"),
    ("[permissions]\ngroup: allow display", 2, "'' is not a name"),
    ("[permissions]\ngroup:nobody allow display", 2, "the group nobody is not defined"),
    ("[groups]\ng=a\nh=group:x", 3, "the group x is not defined"),
    ("[groups]\ng a", 2, "expected name=member"),
    ("[groups]\ng=a,", 2, "'' is not a name"),
    ("[groups]\ng=%any%", 2, "'%any%' is not a name"),
    ("[groups]\n=a", 2, "'' is not a name"),
    ("[groups]\ng=a\ng=b", 3, "the group g is defined twice"),
    ("[groups]\ng=group:g", 2, "the group g contains itself"),
    ("[groups]\na=group:b\nb=group:c\nc=group:a", 4, "the group c contains itself"),
    ("[aliases]\nx", 2, "expected name=feature"),
    ("[aliases]\nx=y", 2, "neither a feature nor an alias"),
    ("[aliases]\nmouse=keyboard", 2, "mouse is a feature"),
    ("[aliases]\nbuiltin=keyboard", 2, "builtin is a feature"),
    ("[aliases]\nx=usb\nx=usb", 3, "the alias x is defined twice"),
    ("[aliases]\nx=x", 2, "the alias x contains itself"),
    ("[aliases]\nx=y\ny=x,usb", 3, "the alias y contains itself"),
    ("#import ../default.perm\n[permissions]", 1, "#import is refused"),
    ("[permissions]\n  #IMPORT x", 2, "#import is refused"),
    ("[permissions]\n#include x", 2, "#import is refused"),
    ("[permissions]\n%any% allow usb #import x", 2, "#import is refused"),
    ("[permissions]\n# note\r%any% allow usb", 2, "control character"),
    ("[permissions]\n%any% allow usb\0", 2, "control character"),
    ("[permissions]\n# a\u2028%any% allow usb", 2, "control character"),
]


@pytest.mark.parametrize(("text", "line", "message"), REFUSALS)
def test_refusals_name_the_line_and_the_fault(text: str, line: int, message: str) -> None:
    error = refusal(text)
    assert error.line == line
    assert message in error.message
    assert error.message.startswith(f"Line {line}: ")


def test_messages_stay_short_whatever_is_sent() -> None:
    assert len(refusal("[permissions]\n%any% allow " + "x" * 50_000).message) < 200
    assert len(refusal("[" + "x" * 50_000).message) < 200


def test_decode_reads_base64_of_utf8() -> None:
    text = "[permissions]\nzoë allow display\n"
    for content in (text.encode(), text.encode("utf-8-sig"), text.replace("\n", "\r\n").encode()):
        assert decode(encoded(content)).features("zoë", OWNER, NOBODY) == {Feature.DISPLAY}
    assert decode("") == Permissions(())


BAD_ENCODINGS = [
    ("not base64!", "must be sent as base64"),
    ("/etc/dcv/default.perm", "must be sent as base64"),
    ("QQ", "must be sent as base64"),
    ("QQ==\n", "must be sent as base64"),
    ("QQ==QQ==", "must be sent as base64"),
    ("=", "must be sent as base64"),
    ("Wé==", "must be sent as base64"),
    (encoded(b"\xff\xfe["), "must be UTF-8 text"),
    (encoded(b"#" * (MAX_BYTES + 1)), "can't be larger than 65,536 bytes"),
    ("A" * 1_000_000, "can't be larger than 65,536 bytes"),
]


@pytest.mark.parametrize(("sent", "message"), BAD_ENCODINGS)
def test_decode_refuses_what_is_not_a_small_base64_text(sent: str, message: str) -> None:
    with pytest.raises(PermissionsInvalid, match=message) as caught:
        decode(sent)
    assert caught.value.line == 0


def test_the_limits_themselves_are_allowed() -> None:
    assert decode(encoded(b"#" * MAX_BYTES)) == Permissions(())
    assert parse("\n" * MAX_LINES) == Permissions(())
    assert refusal("\n" * (MAX_LINES + 1)).line == MAX_LINES + 1


@pytest.mark.parametrize(
    ("text", "depend"),
    [
        ("%owner% allow builtin\nbob allow display", False),
        ("osgroup:lab allow display", True),
        ("bob allow display\nosgroup:lab deny mouse", True),
        ("group:g allow display\n[groups]\ng=bob", False),
        ("group:g allow display\n[groups]\nh=osgroup:lab\ng=bob,group:h", True),
    ],
)
def test_groups_of_the_system_count_where_they_are_named(text: str, *, depend: bool) -> None:
    assert parse(f"[permissions]\n{text}").depend_on_os_groups == depend
    assert not OWNER_ONLY.depend_on_os_groups


def test_a_long_chain_of_aliases_and_groups_needs_no_recursion() -> None:
    groups = "\n".join(f"n{i}=group:n{i + 1}" for i in range(900))
    aliases = "\n".join(f"n{i}=n{i + 1}" for i in range(900))
    text = (
        f"[groups]\n{groups}\nn900=alice\n[aliases]\n{aliases}\nn900=usb\n"
        "[permissions]\ngroup:n0 allow n0"
    )
    assert granted(text) == {"usb"}
    assert granted(text, "bob") == set()


def test_groups_of_a_large_group_share_its_members() -> None:
    base = "big=" + ",".join(f"u{i}" for i in range(6_000))
    nested = [f"g{i}=group:big" for i in range(1_500)]
    text = "\n".join(["[groups]", base, *nested, "[permissions]", "group:g7 allow usb"])
    permissions = parse(text)
    assert sum(len(group.members) for group in permissions.groups) == 7_500
    assert permissions.features("u5999", OWNER, NOBODY) == {Feature.USB}


WORDS = (
    st.sampled_from(["[groups]", "[aliases]", "[permissions]", "%any%", "%owner%", "group:x"])
    | st.sampled_from(
        ["allow", "disallow", "deny", "builtin", "display", "usb", "x", "y", "user:a"]
    )
    | st.sampled_from(["=", ",", "#", ";", "#import", "\0", "é", "\\", ":", "%", "osgroup:s"])
    | st.sampled_from(["\n", "\r\n", "\t", " "])
)


def outcome(read: Callable[[str], Permissions], text: str) -> Permissions | PermissionsInvalid:
    try:
        return read(text)
    except PermissionsInvalid as error:
        return error


@given(st.one_of(st.text(), st.lists(WORDS).map("".join)), st.text(max_size=5))
def test_no_text_crashes_the_parser(text: str, user: str) -> None:
    found = outcome(parse, text)
    if isinstance(found, Permissions):
        assert found.features(user, OWNER, NOBODY) <= BUILTIN
    else:
        assert 1 <= found.line <= text.count("\n") + 1


@given(st.one_of(st.text(), st.binary().map(encoded)))
def test_no_text_crashes_the_decoder(sent: str) -> None:
    assert isinstance(outcome(decode, sent), Permissions | PermissionsInvalid)


VERDICTS = st.tuples(
    st.sampled_from(["allow", "disallow", "deny"]),
    st.lists(st.sampled_from(["builtin", *map(str, Feature)]), min_size=1, max_size=4),
)


@given(st.lists(VERDICTS, max_size=12))
def test_each_feature_follows_the_rules_that_name_it(rules: list[tuple[str, list[str]]]) -> None:
    text = "[permissions]\n" + "\n".join(f"%any% {rule} {' '.join(f)}" for rule, f in rules)
    features = parse(text).features("alice", OWNER, NOBODY)
    for feature in Feature:
        said = [rule for rule, words in rules if "builtin" in words or str(feature) in words]
        expected = bool(said) and "deny" not in said and said[-1] == "allow"
        assert (feature in features) is expected
