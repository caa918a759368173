"""A real agent in an interpreter that has nothing of POSIX's own, linked to a real broker."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import windows_like
from support.dcv import DcvSite, dcv_folder
from support.programs import Portal, Site
from support.waiting import until

INTERPRETER = ["-P", str(Path(windows_like.__file__))]
SAYING = """\
#!/bin/sh
for argument; do printf '%s\\n' "$argument"; done >> "$0.said"
"""
"""Stands for a program of Windows: remembers how it was called, and is content."""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("DESKFLEET_AGENT_HEARTBEAT_SECONDS", "0.3")
    with Site(tmp_path) as site:
        site.start_broker()
        yield site


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("icacls", "schtasks"):
        (tools / name).write_text(SAYING)
        (tools / name).chmod(0o755)
    return {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "PYTHONPATH": str(Path(windows_like.__file__).parents[1]),
        "WINDOWS_LIKE_USERS": str(tmp_path / "users"),
    }


def started(site: Site, environment: dict[str, str], *more: str) -> Portal:
    """Start an agent of this Windows and return a client, as soon as the broker knows the agent."""
    program = site.start_agent("agent", *more, environment=environment, python=INTERPRETER)
    portal = site.portal()
    until(
        lambda: program.process.poll() is not None or portal.call("/describeServers")["Servers"],
        seconds=40,
    )
    assert program.process.poll() is None, site.log("agent")
    return portal


def host(portal: Portal) -> dict[str, Any]:
    [server] = portal.call("/describeServers")["Servers"]
    return dict(server["Host"])


def test_an_agent_of_simulated_sessions_lives_without_posix(
    site: Site, environment: dict[str, str], tmp_path: Path
) -> None:
    portal = started(site, environment, "--driver", "simulated")
    until(portal.available)
    about = host(portal)
    assert about["Os"] == {
        "Family": "windows",
        "Name": "Windows Server 2022",
        "BuildNumber": "20348",
    }
    assert "CpuLoadAverage" not in about
    closed = (tmp_path / "tools/icacls.said").read_text().splitlines()
    assert closed[:3] == [str(tmp_path / "agent"), "/inheritance:r", "/grant:r"]
    session = portal.ready("alice")
    assert (tmp_path / "agent/journal.jsonl").read_bytes().count(b"\r") == 0
    portal.delete(session, "alice")
    portal.wait(session, "DELETED")

    kept = portal.ready("bob")
    assert site.stop("agent") == 0, site.log("agent")
    program = site.start_agent(
        "agent", "--driver", "simulated", environment=environment, python=INTERPRETER
    )
    portal.wait(kept, "READY")
    assert program.process.poll() is None
    assert "Traceback" not in site.log("agent")


def test_an_agent_of_a_dcv_server_lives_without_posix(
    site: Site, environment: dict[str, str], tmp_path: Path
) -> None:
    with dcv_folder() as folder:
        server = DcvSite(folder, platform="windows")
        told = {**environment, "DESKFLEET_DCV_ROOT": str(server.program)}
        portal = started(site, told, "--driver", "dcv")
        until(portal.available)
        assert host(portal)["Os"]["Family"] == "windows"
        hello = tmp_path / "agent/autorun/hello.cmd"
        hello.parent.mkdir()
        hello.write_text("echo hello")
        session = portal.ready("alice", Type="CONSOLE", AutorunFile="hello.cmd")
        [found] = server.sessions()
        assert found == session
        [created] = server.calls("create-session")
        assert any(one.startswith(b"--owner") for one in created)
        tasks = tmp_path / "tools/schtasks.said"
        assert not tasks.exists()
        (tmp_path / "users").write_text("alice")
        until(lambda: tasks.exists() and "/Delete" in tasks.read_text())
        said = tasks.read_text().splitlines()
        assert said[said.index("/TR") + 1] == f'"{hello}"'
        assert said[said.index("/RU") + 1] == "alice"
        (tmp_path / "users").write_text("")
        portal.delete(session, "alice")
        portal.wait(session, "DELETED")
        assert server.sessions() == {}
        assert site.stop("agent") == 0, site.log("agent")
    assert "Traceback" not in site.log("agent")


def test_who_is_logged_in_by_other_means_keeps_the_console(
    site: Site, environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "users").write_text("Administrator")
    portal = started(site, environment, "--driver", "simulated")
    [server] = portal.call("/describeServers")["Servers"]
    assert server["Availability"] == "UNAVAILABLE"
    assert server["UnavailabilityReason"] == "EXISTING_LOGGED_IN_USER"
    assert server["Host"]["LoggedInUsers"] == [{"Username": "Administrator"}]
    (tmp_path / "users").write_text("")
    until(portal.available)
    session = portal.ready("CORP\\Alice")
    (tmp_path / "users").write_text("alice")
    until(lambda: host(portal)["LoggedInUsers"] == [{"Username": "alice"}])
    assert portal.available()
    portal.delete(session, "CORP\\Alice")
    until(lambda: not portal.available())

    assert site.stop("agent") == 0
    unasked = {**environment, "DESKFLEET_ENABLE_QUERY_LOGGED_IN_USERS": "false"}
    site.start_agent("agent", "--driver", "simulated", environment=unasked, python=INTERPRETER)
    until(portal.available)
    assert not host(portal).get("LoggedInUsers")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--driver", "xvnc"], "the driver xvnc has no desktops for Windows; choose dcv"),
        (["--driver", "none"], "there is no driver 'none'; choose one of"),
    ],
)
def test_what_is_not_for_windows_is_told_in_a_sentence(
    arguments: list[str], reason: str, environment: dict[str, str], tmp_path: Path
) -> None:
    done = _run(["agent", "run", "--state", str(tmp_path / "state"), *arguments], environment)
    assert done.returncode == 1
    assert reason in done.stderr
    assert "Traceback" not in done.stderr


def test_the_interpreter_really_lacks_what_it_should(environment: dict[str, str]) -> None:
    probe = """
import json, os, sys
from deskfleet.machine import here
missing = []
for name in ("fcntl", "pwd", "grp", "resource", "termios", "uvloop", "spwd", "pty"):
    try:
        __import__(name)
    except ImportError:
        missing.append(name)
lacking = [name for name in ("geteuid", "fork", "killpg", "getloadavg", "fchmod", "fchown",
           "O_NOFOLLOW", "O_DIRECTORY", "uname") if not hasattr(os, name)]
print(json.dumps([here.__name__, missing, lacking]))
"""
    text = (
        f"import sys; sys.argv = ['x']; from support import windows_like as w;"
        f" w.preload(); w.restrict(); exec({probe!r}, {{'__name__': 'deskfleet.probe'}})"
    )
    done = subprocess.run(
        [sys.executable, "-c", text],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    side, missing, lacking = json.loads(done.stdout)
    assert side == "deskfleet.machine.windows"
    assert len(missing) == 8
    assert len(lacking) == 9


def _run(arguments: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *INTERPRETER, "deskfleet", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
