"""What commands print: clean, complete, and in colour only on a terminal."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from deskfleet import errors
from deskfleet.cli import tables
from deskfleet.cli.output import ExitCode, Format, Output, as_json, clean, exit_code
from deskfleet.client import problems, shapes

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
ID = "0f8fad5b-d9cb-469f-a165-70867728950e"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def session(**more: Any) -> shapes.Session:
    given = {"id": ID, "name": "cad", "owner": "ada", "type": "VIRTUAL", "state": "READY", **more}
    return shapes.Session(**given)


def shown(answer: Any, file: io.StringIO | None = None) -> str:
    file = file or io.StringIO()
    Output(Format.TABLE, stdout=file, stderr=io.StringIO(), now=lambda: NOW).show(answer)
    return file.getvalue()


@pytest.mark.parametrize(
    ("dirty", "plain"),
    [
        ("ordinary text, größer, 日本 🙂", "ordinary text, größer, 日本 🙂"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07after", "after"),
        ("\x1b]8;;https://evil.example\x1b\\click\x1b]8;;\x1b\\", "click"),
        ("\x9b2Jgone", "gone"),
        ("\x1bPdevice\x1b\\x", "x"),
        ("\x1b(0lqk", "lqk"),
        ("end\x1b", "end"),
        ("two\r\nlines\tand a tab", "two lines and a tab"),
        ("bell\x07 null\x00 delete\x7f", "bell null delete"),
        ("left \u202eto right\u2066", "left to right"),
        ("\x1b\x1b[31mnested", "nested"),
    ],
)
def test_control_characters_are_taken_out(dirty: str, plain: str) -> None:
    assert clean(dirty) == plain


@given(st.text(alphabet=st.characters(codec="utf-8") | st.sampled_from("\x1b[]m;\x9b")))
def test_nothing_that_a_terminal_obeys_is_left(text: str) -> None:
    assert not any(ord(each) < 32 or 127 <= ord(each) < 160 for each in clean(text))


@given(st.text(alphabet=st.characters(codec="utf-8") | st.sampled_from("\x9b\u202e")))
def test_json_means_the_same_and_shows_no_control_characters(text: str) -> None:
    printed = as_json(session(name=text))
    assert json.loads(printed)["Name"] == text
    assert not any(127 <= ord(each) < 160 or each == "\u202e" for each in printed)


def test_json_is_the_apis_own_answer() -> None:
    answer = {
        "RequestId": "r",
        "Sessions": [
            {
                "Id": ID,
                "Name": "größer",
                "Owner": "ada",
                "Type": "VIRTUAL",
                "State": "READY",
                "CreationTime": "2020-10-06T10:15:31.633Z",
                "NumOfConnections": 0,
                "Server": {
                    "Id": "x",
                    "Port": "8444",
                    "Endpoints": [],
                    "Tags": [{"Key": "a", "Value": "b"}],
                },
            }
        ],
    }
    told = msgspec.json.decode(json.dumps(answer), type=shapes.DescribeSessionsResponse)
    assert json.loads(as_json(told)) == answer
    assert "größer" in as_json(told)


def test_pictures_stay_base64_in_json() -> None:
    image = shapes.SessionScreenshotImage(format="png", data=b"\x89PNG", primary=True)
    assert json.loads(as_json(image)) == {"Format": "png", "Data": "iVBORw==", "Primary": True}


def test_programs_get_json_and_people_get_tables() -> None:
    assert Output(stdout=io.StringIO()).format is Format.JSON
    assert Output(stdout=Terminal()).format is Format.TABLE
    assert Output(Format.JSON, stdout=Terminal()).format is Format.JSON


def test_a_session_is_a_row() -> None:
    server = shapes.Server(id="v", hostname="node1")
    then = NOW - timedelta(minutes=5)
    one = session(creation_time=then, num_of_connections=2, server=server)
    heading, _, row = shown(shapes.DescribeSessionsResponse(sessions=(one,))).splitlines()
    assert heading.split() == (
        ["Session", "Name", "Owner", "Type", "State", "Server", "Clients", "Created"]
    )
    assert row.split() == ([ID, "cad", "ada", "VIRTUAL", "READY", "node1", "2", "5", "min", "ago"])


def test_a_reason_has_a_column_where_there_is_one() -> None:
    failed = session(state="DELETED", state_reason="the disk is full")
    assert "the disk is full" in shown(shapes.DescribeSessionsResponse(sessions=(failed,)))


def test_no_rows_are_said_in_words() -> None:
    assert shown(shapes.DescribeSessionsResponse(sessions=())) == "no sessions\n"
    assert shown(shapes.DescribeServersResponse(servers=())) == "no servers\n"
    # Why nothing was created is told elsewhere.
    nothing = shapes.CreateSessionsResponse(successful_list=(), unsuccessful_list=())
    assert shown(nothing) == ""


@pytest.mark.parametrize("columns", ["20", "60", "80", "200"])
def test_ids_are_whole_on_every_terminal(columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("NO_COLOR", "1")
    answer = shapes.DescribeSessionsResponse(sessions=(session(name="n" * 30),))
    assert ID in shown(answer, Terminal())


def test_a_long_server_id_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    id = "aXAtMTAtMTUw" * 12
    answer = shapes.DescribeServersResponse(
        servers=(shapes.Server(id=id, hostname="h", availability="AVAILABLE"),)
    )
    assert id in shown(answer, Terminal())


def test_a_state_is_coloured_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    answer = shapes.DescribeSessionsResponse(sessions=(session(name="READY"),))
    assert shown(answer, Terminal()).count("\x1b[32m") == 1
    assert "\x1b" not in shown(answer)


def test_a_table_is_clean_and_reads_no_markup() -> None:
    dirty = session(name="[bold]\x1b[31mred[/bold]", owner="a\nb")
    printed = shown(shapes.DescribeSessionsResponse(sessions=(dirty,)))
    assert "\x1b" not in printed
    assert "[bold]red[/bold]" in printed
    assert len(printed.splitlines()) == 3


def test_every_answer_has_a_table() -> None:
    host = shapes.Host(
        os=shapes.Os(family="linux", name="Debian", version="12"),
        memory=shapes.Memory(total_bytes=8 << 30, used_bytes=1 << 29),
        cpu_info=shapes.CpuInfo(number_of_cpus=4),
        cpu_load_average=shapes.CpuLoadAverage(one_minute=0.5),
    )
    server = shapes.Server(
        id="v",
        ip="10.0.0.7",
        port="8444",
        availability="UNAVAILABLE",
        unavailability_reason="SERVER_CLOSED",
        virtual_session_count=3,
        console_session_count=0,
        host=host,
        tags=(shapes.KeyValuePair(key="gpu", value="yes"),),
    )
    printed = shown(shapes.DescribeServersResponse(servers=(server, shapes.Server())))
    for part in ("UNAVAILABLE SERVER_CLOSED", "3 virtual", "0.5 of 4", "gpu=yes"):
        assert part in printed
    assert "512.0 MiB of 8.0 GiB" in printed
    assert "console" not in printed
    one = session(server=server)
    connection = shapes.GetSessionConnectionDataResponse(session=one, connection_token="t")
    assert f"https://10.0.0.7:8444/?authToken=t#{ID}" in shown(connection).splitlines()[-1]
    deleted = shapes.DeleteSessionSuccessfulResponse(session_id=ID, state="DELETING")
    answer = shapes.DeleteSessionsResponse(successful_list=(deleted,), unsuccessful_list=())
    assert "DELETING" in shown(answer)


@pytest.mark.parametrize(
    ("ago", "text"),
    [(-60, "now"), (0, "now"), (59, "59 s ago"), (7200, "2 h ago"), (200000, "2 d ago")],
)
def test_times_are_relative(ago: int, text: str) -> None:
    assert tables.since(NOW - timedelta(seconds=ago), NOW) == text


def test_a_batch_that_failed_in_part_ends_with_an_error() -> None:
    failed = shapes.UnsuccessfulSession(session_id="s", failure_reason="it\x1b[2J is not yours")
    answer = shapes.DeleteSessionsResponse(successful_list=(), unsuccessful_list=(failed,))
    out, err = io.StringIO(), io.StringIO()
    with pytest.raises(typer.Exit) as caught:
        Output(stdout=out, stderr=err).finish(answer)
    assert caught.value.exit_code == 254
    assert json.loads(out.getvalue())["UnsuccessfulList"][0]["SessionId"] == "s"
    assert err.getvalue() == "deskfleet: s: it is not yours\n"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.SetupFailed(), 253),
        (problems.CredentialsRefused("no", status=401), 253),
        (problems.Refused("no", status=400), 254),
        (errors.Invalid(), 252),
        (problems.Unreachable(), 255),
        (problems.Unreadable(), 255),
        (errors.DeskfleetError(), 255),
    ],
)
def test_return_codes_are_those_of_dcvsm(error: errors.DeskfleetError, code: int) -> None:
    assert exit_code(error) == code


def test_the_return_codes_are_these() -> None:
    assert sorted(ExitCode) == [0, 2, 130, 252, 253, 254, 255]


def test_people_are_told_how_to_go_on() -> None:
    page = shapes.DescribeSessionsResponse(sessions=(session(),), next_token="abc")
    err = io.StringIO()
    Output(Format.TABLE, stdout=io.StringIO(), stderr=err).show_page(page)
    assert "--next-token abc" in err.getvalue()


def test_a_spinner_is_for_terminals() -> None:
    quiet = io.StringIO()
    with Output(stderr=quiet).spinner("cad: CREATING") as spin:
        spin("cad: READY")
    assert quiet.getvalue() == ""
    terminal = Terminal()
    with Output(stderr=terminal).spinner("cad: CREATING"):
        pass
    assert "cad: CREATING" in terminal.getvalue()
