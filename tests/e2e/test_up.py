"""`deskfleet up` as a new user meets it."""

from __future__ import annotations

import json
import os
import pwd
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from deskfleet.cli.up import NO_OWNER
from support.programs import LiveBroker, Portal, Program, announced, free_ports, trust, up
from support.sessions import need_xvnc
from support.users import need_root, ordinary_user
from support.waiting import until


def _ended(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "deskfleet", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **more},
    )


def _failure(*arguments: str) -> str:
    """Run a command that must not start, and return what it says."""
    done = _ended(*arguments)
    assert done.returncode == 1, done.stdout
    return done.stderr


def _command(*arguments: str, **more: str) -> str:
    """Run a command that must succeed, and return what it prints."""
    done = _ended(*arguments, **more)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("flag", ["--client-port", "--agent-port", "--desktop-port"])
def test_a_taken_port_ends_in_one_sentence_that_names_it(tmp_path: Path, flag: str) -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        flags = {"--client-port": "0", "--agent-port": "0", "--desktop-port": "0", flag: str(port)}
        said = _failure(
            *("up", "--state", str(tmp_path / "state"), "--driver", "simulated"),
            *(text for pair in flags.items() for text in pair),
        )
    assert len(said.strip().splitlines()) == 1
    assert f"port {port}" in said
    assert "taken" in said


def test_it_says_where_everything_is_and_keeps_it(tmp_path: Path) -> None:
    with up(tmp_path / "state") as (_program, first):
        mode = stat.S_IMODE(first.client_password_file.stat().st_mode)
        assert mode == 0o600
        portal = Portal.of(first)
        (server,) = portal.available()
        portal.close()
    with up(tmp_path / "state") as (_program, again):
        assert (again.client_id, again.client_password) == (first.client_id, first.client_password)
        portal = Portal.of(again)
        assert portal.available() == [server]
        tags = portal.call("/describeServers")["Servers"][0]["Tags"]
        assert {"Key": "driver", "Value": "simulated"} in tags
        portal.close()


def test_nobody_else_can_look_into_its_state(tmp_path: Path) -> None:
    with up(tmp_path / "state") as (_program, broker):
        assert stat.S_IMODE(broker.state.stat().st_mode) == 0o700
        loose = [
            path
            for path in broker.state.rglob("*")
            if path.is_file()
            and path.stat().st_mode & 0o077
            and path.suffix != ".pem"
            and path.stat().st_size
        ]
        assert loose == []
        passwords = broker.client_password.encode()
        holders = [path for path in broker.state.rglob("*") if _holds(path, passwords)]
        assert holders == [broker.client_password_file]


def _holds(path: Path, secret: bytes) -> bool:
    return path.is_file() and secret in path.read_bytes()


def test_one_program_at_a_time_works_with_a_state_folder(tmp_path: Path) -> None:
    with up(tmp_path / "state"):
        said = _failure("up", "--state", str(tmp_path / "state"), "--client-port", "0")
    assert "already runs" in said
    assert len(said.strip().splitlines()) == 1


def test_it_tells_a_person_where_to_go_on(tmp_path: Path) -> None:
    ports = free_ports(3)
    flags = zip(("--client-port", "--agent-port", "--desktop-port"), map(str, ports), strict=True)
    state = tmp_path / "state"
    program = Program(
        ["up", "--state", str(state), "--driver", "simulated"]
        + [text for pair in flags for text in pair],
        tmp_path / "stderr",
    )
    assert program.process.stdout is not None
    said = ""
    while "Ctrl-C" not in said:
        said += program.process.stdout.readline()
    try:
        assert f"https://localhost:{ports[0]}" in said
        assert str(state / "client-password") in said
        assert str(state / "tls" / "ca.pem") in said
        # The curl line is there to be pasted.
        line = next(line.strip() for line in said.splitlines() if "curl" in line)
        answer = subprocess.run(
            ["sh", "-c", line], capture_output=True, text=True, timeout=30, check=False
        )
        assert json.loads(answer.stdout)["token_type"] == "Bearer", answer.stderr
        # So are the two that make a session and open it.
        create, connect = (_arguments(said, command) for command in ("create-session", "connect"))
        assert connect[-1] == "--browser"
        _command(*create)
        assert _command(*connect[:-1]).startswith("https://")
    finally:
        assert program.stop() == 0


def _arguments(said: str, command: str) -> list[str]:
    """Return what is typed after the program's name in the line that has this command."""
    line = next(line for line in said.splitlines() if f" {command} " in line)
    words = shlex.split(line)
    return words[words.index(command) :]


def test_the_environment_sets_what_no_option_does(tmp_path: Path) -> None:
    clients, agents, desktops = free_ports(3)
    state = tmp_path / "state"
    program = Program(
        ["up", "--output", "json", "--agent-port", str(agents)],
        tmp_path / "stderr",
        {
            "DESKFLEET_STATE": str(state),
            "DESKFLEET_CLIENT_PORT": str(clients),
            "DESKFLEET_AGENT_PORT": "1",
            "DESKFLEET_DESKTOP_PORT": str(desktops),
            "DESKFLEET_DRIVER": "simulated",
        },
    )
    try:
        broker = announced(program.first_line(), state)
        assert broker.url == f"https://localhost:{clients}"
        told = json.loads(_command("describe-servers", DESKFLEET_STATE=str(state)))
        (server,) = told["Servers"]
        assert {"Key": "driver", "Value": "simulated"} in server["Tags"]
    finally:
        assert program.stop() == 0


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Yield a folder that another user can work in."""
    folder = Path(tempfile.mkdtemp(prefix="deskfleet-test-"))
    folder.chmod(0o1777)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user takes root")
def test_an_ordinary_user_runs_it_for_themselves_alone(open_folder: Path) -> None:
    account = ordinary_user("dfalice")
    if not _may_run(account.pw_uid, account.pw_gid):
        pytest.skip("this Python can't be executed by other users")
    state = open_folder / "state"
    arguments = ["up", "--state", str(state), "--output", "json"]
    arguments += ["--client-port", "0", "--agent-port", "0", "--desktop-port", "0"]
    program = subprocess.Popen(
        [sys.executable, "-m", "deskfleet", *arguments],
        user=account.pw_uid,
        group=account.pw_gid,
        extra_groups=[],
        cwd="/",
        env={"HOME": account.pw_dir, "PATH": os.environ["PATH"], "LANG": "C.UTF-8"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert program.stdout is not None
    try:
        portal = Portal.of(announced(program.stdout.readline(), state))
        portal.ready(account.pw_name)
        foreign = portal.create(ordinary_user("dfbob").pw_name)
        refused = portal.wait(foreign, "DELETED")
        assert "another user" in refused["StateReason"]
        portal.delete_all()
        portal.close()
    finally:
        program.terminate()
        program.wait(timeout=30)
        program.stdout.close()


def _may_run(uid: int, gid: int) -> bool:
    try:
        done = subprocess.run(
            [sys.executable, "-c", "import deskfleet"],
            user=uid,
            group=gid,
            extra_groups=[],
            cwd="/",
            capture_output=True,
            check=False,
        )
    except PermissionError:
        return False
    return done.returncode == 0


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("Xvnc") is None, reason="takes root and Xvnc")
@pytest.mark.parametrize(
    ("owner", "reason"),
    [
        ("root", "root are not allowed"),
        ("daemon", "system account"),
        ("nobody-of-that-name", "no user"),
        ("../alice", "no user"),
    ],
)
def test_other_owners_are_refused_with_a_reason(tmp_path: Path, owner: str, reason: str) -> None:
    with up(tmp_path / "state", driver="xvnc") as (_program, broker):
        portal = Portal.of(broker)
        session = portal.create(owner)
        assert reason in portal.wait(session, "DELETED")["StateReason"]
        portal.close()


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("Xvnc") is None, reason="takes root and Xvnc")
def test_open_makes_a_session_and_prints_a_link_that_works(tmp_path: Path) -> None:
    with up(tmp_path / "state", "--open", "--allow-root-sessions", driver="xvnc") as (
        program,
        broker,
    ):
        link = program.first_line().strip()
        assert _opens(link, broker)
    # The second start finds the desktop of the first.
    with up(tmp_path / "state", "--open", "--allow-root-sessions", driver="xvnc") as (
        program,
        broker,
    ):
        again = program.first_line().strip()
        assert again.partition("#")[2] == link.partition("#")[2]
        assert _opens(again, broker)
        portal = Portal.of(broker)
        portal.delete_all()
        portal.close()


@pytest.mark.parametrize("told", ["json", "text"])
def test_a_machine_without_ordinary_users_is_told_so(tmp_path: Path, told: str) -> None:
    need_root("hiding the users of this machine")
    need_xvnc()
    if subprocess.run(["unshare", "--mount", "true"], check=False).returncode != 0:
        pytest.skip("mounts can't be hidden here: the root folder is none")
    passwd = tmp_path / "passwd"
    passwd.write_text("root:x:0:0::/root:/bin/sh\ndaemon:x:1:1::/:/bin/false\n")
    script = 'mount --bind "$0" /etc/passwd && exec "$@"'
    ports = ("--client-port", "0", "--agent-port", "0", "--desktop-port", "0")
    with (tmp_path / "stderr").open("w") as errors:
        program = subprocess.Popen(
            [
                *("unshare", "--mount", "sh", "-c", script, str(passwd)),
                *(sys.executable, "-m", "deskfleet", "up", "--driver", "xvnc", *ports),
                *("--state", str(tmp_path / "state"), "--output", told),
            ],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    with program:
        until((tmp_path / "stderr").read_text)
        program.send_signal(signal.SIGINT)
        said, _ = program.communicate(timeout=30)
    assert program.returncode == 0
    assert (tmp_path / "stderr").read_text() == f"deskfleet: {NO_OWNER}\n"
    # Nor is a line printed that could only fail.
    assert "create-session" not in said


def _opens(link: str, broker: LiveBroker) -> bool:
    answer = httpx.get(link, verify=trust(broker.ca_file), trust_env=False, timeout=30)
    return answer.status_code == 200


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("Xvnc") is None, reason="takes root and Xvnc")
def test_root_is_told_how_to_open_a_desktop_of_somebody_else(tmp_path: Path) -> None:
    user = ordinary_user("dfalice").pw_name
    errors = tmp_path / "state.stderr"
    with up(tmp_path / "state", "--open", driver="xvnc") as (program, broker):
        until(lambda: "\n" in errors.read_text())
        said = errors.read_text().strip()
        assert said.startswith("deskfleet: root may own no desktop here; for somebody else: ")
        arguments = shlex.split(said)
        options = arguments[arguments.index("create-session") + 1 :]
        assert pwd.getpwnam(options[options.index("--owner") + 1]).pw_uid >= 1000
        [made] = json.loads(_command("create-session", *options))["SuccessfulList"]
        assert made["State"] == "READY"
        # What root does with a session is done for its owner.
        where = ("--state", str(broker.state))
        assert _opens(_command("connect", made["Id"], *where).strip(), broker)
        told = json.loads(_command("get-session-connection-data", made["Id"], *where))
        assert told["ConnectionToken"]
        _command("delete-session", made["Id"], *where, "--wait")
        portal = Portal.of(broker)
        portal.delete_all()
        portal.close()
    behind = {"SUDO_USER": user}
    with up(tmp_path / "state", "--open", driver="xvnc", environment=behind) as (program, broker):
        assert program.first_line().startswith("https://")
        portal = Portal.of(broker)
        [session] = portal.call("/describeSessions")["Sessions"][-1:]
        assert session["Owner"] == user
        portal.delete_all()
        portal.close()


def test_its_log_is_put_by_when_it_is_large(tmp_path: Path) -> None:
    state = tmp_path / "state"
    limits = {"DESKFLEET_LOG_MAX_FILE_SIZE": "1024", "DESKFLEET_LOG_ROTATE": "2"}
    with up(state, environment=limits):
        pass
    logs = sorted(state.glob("deskfleet.log*"))
    assert [log.name for log in logs] == ["deskfleet.log", "deskfleet.log.1", "deskfleet.log.2"]
    assert {log.stat().st_mode & 0o777 for log in logs} == {0o600}
    for log in logs:
        assert log.stat().st_size <= 1024
        assert all(json.loads(line)["event"] for line in log.read_text().splitlines())
