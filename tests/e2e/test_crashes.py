"""What is left after programs are killed, and after sessions are deleted: real ones, on Xvnc."""

from __future__ import annotations

import os
import pty
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from support.programs import LiveBroker, Portal, Program, Site, announced, free_ports
from support.users import ordinary_user
from support.waiting import until

pytestmark = pytest.mark.skipif(
    shutil.which("Xvnc") is None and os.environ.get("CI") != "true", reason="Xvnc is not installed"
)

CTRL_C = b"\x03"
RESTART_SECONDS = 10.0
SESSIONS = 3
LEFT_SECONDS = 30.0
"""The law: nothing of a session is left this long after it is DELETED."""


@pytest.fixture
def autorun_folder() -> Iterator[Path]:
    """Yield a folder that owners can reach; those of pytest they can't."""
    folder = Path(tempfile.mkdtemp(prefix="deskfleet-autorun-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def site(tmp_path: Path, autorun_folder: Path) -> Iterator[Site]:
    (tmp_path / "agent.toml").write_text(f"driver = 'xvnc'\nautorun_folder = '{autorun_folder}'\n")
    with Site(tmp_path) as site:
        site.start_broker()
        site.start_agent("agent", "--config", str(tmp_path / "agent.toml"))
        portal = site.portal()
        until(portal.available)
        yield site
        portal.delete_all()


@pytest.fixture
def owner() -> str:
    return ordinary_user("dfalice").pw_name


def _desktops(session_ids: list[str]) -> dict[int, float]:
    """Return pid and start time of each X server of these sessions."""
    found = {}
    for process in psutil.process_iter(["name", "environ", "create_time"]):
        environ = process.info["environ"] or {}
        if process.info["name"] == "Xvnc" and environ.get("DCV_SESSION_ID") in session_ids:
            found[process.pid] = process.info["create_time"]
    return found


def _processes_of(session_ids: set[str]) -> list[str]:
    left = []
    for process in psutil.process_iter(["name", "environ"]):
        environ = process.info["environ"] or {}
        if environ.get("DCV_SESSION_ID") in session_ids:
            left.append(f"{process.pid} {process.info['name']}")
    return left


def _all_ready(portal: Portal, session_ids: list[str]) -> bool:
    try:
        return all(portal.state(one) == "READY" for one in session_ids)
    except httpx.TransportError:
        return False


def test_three_desktops_survive_kill_9_of_broker_and_agent(site: Site, owner: str) -> None:
    portal = site.portal()
    sessions = [portal.ready(owner, f"desktop {number}") for number in range(SESSIONS)]
    before = _desktops(sessions)
    assert len(before) == SESSIONS

    site.kill("broker")
    site.start_broker()
    until(lambda: _all_ready(portal, sessions), seconds=RESTART_SECONDS)
    assert _desktops(sessions) == before

    site.kill("agent")
    assert _desktops(sessions) == before
    site.start_agent("agent", "--config", str(site.folder / "agent.toml"))
    until(lambda: site.log("agent").count("agent ready") == 2, seconds=RESTART_SECONDS)
    until(lambda: _all_ready(portal, sessions), seconds=RESTART_SECONDS)
    assert _desktops(sessions) == before
    # READY also within the grace of a lost link; a picture takes the agent itself.
    until(lambda: _pictures(portal, sessions) == SESSIONS, seconds=RESTART_SECONDS)


def _pictures(portal: Portal, sessions: list[str]) -> int:
    shots = portal.call("/getSessionScreenshots", [{"SessionId": one} for one in sessions])
    return len(shots["SuccessfulList"])


def test_deleted_sessions_leave_nothing(site: Site, owner: str, autorun_folder: Path) -> None:
    portal = site.portal()
    # What outlives careless ends: agents that detach, daemons, and a shell that ignores TERM.
    script = autorun_folder / "litter.sh"
    script.write_text(
        "#!/bin/sh\n"
        "ssh-agent >/dev/null 2>&1\n"
        "gpg-agent --daemon >/dev/null 2>&1\n"
        "setsid sleep 1000 >/dev/null 2>&1 &\n"
        "sh -c 'trap \"\" TERM HUP; while :; do sleep 1; done' &\n"
        'touch "$HOME/.littered"\n'
    )
    script.chmod(0o755)
    littered = Path(f"~{owner}").expanduser() / ".littered"
    littered.unlink(missing_ok=True)
    sessions = [
        portal.ready(owner, f"desktop {number}", AutorunFile="litter.sh")
        for number in range(SESSIONS)
    ]
    folders = _runtime_folders(sessions)
    files = _display_files(sessions)
    assert len(folders) == SESSIONS
    assert len([file for file in files if file.exists()]) >= SESSIONS
    until(littered.exists)
    until(lambda: sum("sleep" in line for line in _processes_of(set(sessions))) >= SESSIONS)

    for session in sessions:
        portal.delete(session, owner)
    for session in sessions:
        portal.wait(session, "DELETED", seconds=LEFT_SECONDS)

    until(lambda: not _processes_of(set(sessions)), seconds=LEFT_SECONDS)
    assert not [path for path in folders | files if path.exists()]


def _display_files(session_ids: list[str]) -> set[Path]:
    """Return where the X servers of these sessions have their sockets and locks."""
    files = set()
    for process in psutil.process_iter(["environ"]):
        environ = process.info["environ"] or {}
        if environ.get("DCV_SESSION_ID") in session_ids and environ.get("DISPLAY"):
            number = environ["DISPLAY"].lstrip(":")
            files |= {Path(f"/tmp/.X11-unix/X{number}"), Path(f"/tmp/.X{number}-lock")}
    return files


def _runtime_folders(session_ids: list[str]) -> set[Path]:
    """Return the folders in which the sessions keep their sockets."""
    folders = set()
    for pid in _desktops(session_ids):
        arguments = psutil.Process(pid).cmdline()
        folders.add(Path(arguments[arguments.index("-rfbunixpath") + 1]).parent)
    return folders


def test_up_finds_its_desktops_again_after_ctrl_c(tmp_path: Path) -> None:
    owner = ordinary_user("dfalice").pw_name
    ports = free_ports(3)
    state = tmp_path / "state"
    ours, theirs = pty.openpty()
    program, broker = _up(state, ports, terminal=theirs)
    portal = Portal.of(broker)
    session = portal.ready(owner)
    desktops = _desktops([session])
    portal.close()
    os.write(ours, CTRL_C)
    assert program.wait() == 0
    os.close(ours)
    os.close(theirs)
    assert _desktops([session]) == desktops

    program, again = _up(state, ports)
    try:
        assert again.client_id == broker.client_id
        portal = Portal.of(again)
        portal.wait(session, "READY", seconds=RESTART_SECONDS)
        assert _desktops([session]) == desktops
        portal.delete(session, owner)
        portal.wait(session, "DELETED", seconds=LEFT_SECONDS)
        portal.close()
    finally:
        program.stop()


def _up(state: Path, ports: list[int], terminal: int | None = None) -> tuple[Program, LiveBroker]:
    flags = zip(("--client-port", "--agent-port", "--desktop-port"), ports, strict=True)
    program = Program(
        ["up", "--state", str(state), "--output", "json"]
        + [text for flag, port in flags for text in (flag, str(port))],
        state.parent / "up.log",
        terminal=terminal,
    )
    return program, announced(program.first_line(), state)
