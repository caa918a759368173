"""What `dcv` is given: whatever a client makes up arrives as it is, or is refused.

The stand-in's own option parser is the judge of what a program would understand.
"""

from __future__ import annotations

import base64
import re
from pathlib import PurePosixPath
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from deskfleet.agent.drivers import dcv_plan
from deskfleet.agent.drivers.dcv_plan import Files
from deskfleet.core.records import SessionRequest, Type
from deskfleet.errors import StartFailed
from support.builders import a_request
from support.dcv_program import parsed

ODD = [
    *(
        "-",
        "--",
        "--help",
        "-rf",
        "--name=x",
        "-o/etc/passwd",
        "--owner",
        "'",
        '"',
        "`id`",
        "$(id)",
    ),
    *(
        "a\nb",
        "a\rb",
        "\0",
        "..",
        "../../etc",
        "/",
        "%home%",
        "a b",
        "",
        " ",
        "=",
        "a=b",
        ";id",
        "&",
    ),
    *("\u0430dmin", "\uff41", "\u202eevil", "\ud800", "\u2028", "\x85", "\x1b[2J", "*", "~", "\\"),
    *("\u00e9", "e\u0301", "\U0001d51e"),
]
"""Among them letters that look like others, and one letter in two spellings."""

hostile = st.one_of(
    st.sampled_from(ODD),
    st.text(max_size=40),
    st.lists(st.sampled_from(ODD), max_size=4).map("".join),
    st.text(min_size=250, max_size=300),
)
requests = st.builds(
    SessionRequest,
    name=hostile,
    owner=hostile,
    type=st.sampled_from(Type),
    dcv_gl_enabled=st.sampled_from([None, True, False]),
    max_concurrent_clients=st.none() | st.integers(0, 2**31),
    storage_root=st.none() | hostile,
    autorun_file_arguments=st.lists(hostile, max_size=3).map(tuple),
)
FILES = Files(init=PurePosixPath("/i/-init x"), permissions=PurePosixPath("/p/a=b.perm"))


def arrives_or_is_refused(session_id: str, request: SessionRequest) -> None:
    try:
        arguments = dcv_plan.creation(session_id, request, FILES)
    except StartFailed:
        assert not is_plain(session_id, request)
        return
    virtual = request.type is Type.VIRTUAL
    wanted: dict[str, Any] = {
        "--type": request.type.lower(),
        "--name": request.name,
        "--owner": request.owner,
        "--user": request.owner if virtual else "",
        "--init": "/i/-init x" if virtual else "",
        "--permissions-file": "/p/a=b.perm",
        "--storage-root": request.storage_root or "",
        "--gl": {None: "", True: "on", False: "off"}[request.dcv_gl_enabled] if virtual else "",
        "--max-concurrent-clients": str(
            "" if request.max_concurrent_clients is None else request.max_concurrent_clients
        ),
    }
    asked = {option: value for option, value in wanted.items() if value}
    assert parsed(arguments) == ("create-session", asked, [session_id])
    for one in arguments:
        assert one.encode().decode() == one
        assert not {"\0", "\n", "\r"} & set(one)


def is_plain(session_id: str, request: SessionRequest) -> bool:
    """Tell of requests that there is no reason to refuse."""
    values = (session_id, request.name, request.owner, request.storage_root or "x")
    return all(re.fullmatch(r"[A-Za-z0-9 ']{1,200}", value) for value in values)


def autorun_arrives_or_is_refused(request: SessionRequest) -> None:
    try:
        argv = dcv_plan.autorun(PurePosixPath("/a/run"), request)
    except StartFailed:
        assert any(not one.isprintable() for one in request.autorun_file_arguments)
        return
    assert argv == ["/a/run", *request.autorun_file_arguments]


@given(hostile, requests)
@example("-x", a_request())
@example("s", a_request(name="--owner=root", owner="-u"))
@settings(max_examples=400)
def test_what_is_asked_arrives_as_it_is_or_is_refused(
    session_id: str, request: SessionRequest
) -> None:
    arrives_or_is_refused(session_id, request)
    autorun_arrives_or_is_refused(request)


@pytest.mark.torture
@given(hostile, requests)
@settings(max_examples=10_000)
def test_ten_thousand_that_are_asked_arrive_as_they_are_or_are_refused(
    session_id: str, request: SessionRequest
) -> None:
    arrives_or_is_refused(session_id, request)
    autorun_arrives_or_is_refused(request)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"name": "a\nb"}, "name holds a character"),
        ({"owner": "a\0"}, "owner holds a character"),
        ({"owner": ""}, "must have an owner"),
        ({"name": "x" * 257}, "longer than 256"),
        ({"storage_root": "/\u2028"}, "storage root holds a character"),
        ({"storage_root": "/" + "x" * 5000}, "storage root is longer"),
    ],
)
def test_a_refusal_says_what_is_wrong(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(StartFailed, match=reason):
        dcv_plan.creation("s", a_request(**fields), Files())


@pytest.mark.parametrize("session_id", ["", "-", "--help", "a\n", "\ud800"])
def test_an_id_that_could_be_taken_for_something_else_is_refused(session_id: str) -> None:
    with pytest.raises(StartFailed):
        dcv_plan.creation(session_id, a_request(), Files())


def test_what_others_created_with_a_dash_is_still_addressed() -> None:
    for plan in (dcv_plan.closing, dcv_plan.describing, dcv_plan.connections):
        assert parsed(plan("-x"))[2] == ["-x"]
        assert parsed(plan("console"))[2] == ["console"]
    _, options, _ = parsed(dcv_plan.permitting("-x", PurePosixPath("/p")))
    assert options == {"--session": "-x", "--file": "/p"}
    _, options, _ = parsed(dcv_plan.permitting("x", None))
    assert options == {"--session": "x", "--reset-builtin": ""}


def test_a_permissions_file_is_what_its_sender_wrote_or_none() -> None:
    text = b"[permissions]\n%owner% allow builtin\n"
    encoded = base64.b64encode(text).decode()
    assert dcv_plan.permissions_text(a_request(permissions_file=encoded)) == text
    assert dcv_plan.permissions_text(a_request()) is None
    for unreadable in ("?", base64.b64encode(b"[nonsense\n").decode()):
        assert dcv_plan.permissions_text(a_request(permissions_file=unreadable)) is None
