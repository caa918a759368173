"""The installer: it changes nothing twice, and takes back all that it made."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

# A whole virtual environment is made, once.
pytestmark = pytest.mark.timeout(300)

ROOT = Path(__file__).parents[2]
CONF = Path("etc/deskfleet")
DCVSM = Path("opt/deskfleet/conf/dcvsmcli.conf")
ORIGINAL = Path("etc/dcv-session-manager-agent/agent.conf")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return what is taken to a machine, built of these sources."""
    if not (ROOT / ".setup" / "build").is_dir():
        pytest.skip("this checkout was not set up by scripts/setup")
    folder = tmp_path_factory.mktemp("archive") / "deskfleet"
    subprocess.run([ROOT / "scripts" / "archive", str(folder)], check=True, timeout=120)
    return folder


@pytest.fixture(scope="module")
def machine(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Yield a machine with a broker, and an agent in the original's place.

    Afterwards all is taken back, in two steps, and the machine has to be what it was.
    """
    root = tmp_path_factory.mktemp("machine")
    original = root / ORIGINAL
    original.parent.mkdir(parents=True)
    original.write_text("version = '0.1'\n[agent]\nbroker_host = 'old.example'\n")
    ca_file, statement = root / "ca.pem", root / "statement"
    ca_file.write_text("an authority\n")
    statement.write_text("software-statement:\nc3RhdGVtZW50\n")
    before = listing(root)
    run(archive, "install", "broker", root=root)
    run(
        archive,
        *("install", "agent", "--broker-host", "new.example:9", "--ca-file", str(ca_file)),
        *("--software-statement-file", str(statement)),
        root=root,
    )
    (root / DCVSM).write_text("[broker]\nurl = http://not.https\n")
    installed = listing(root)
    yield root
    run(archive, "uninstall", root=root)
    kept = listing(root)
    ours = ("etc/deskfleet", "var", "opt/deskfleet/conf")
    assert (kept.keys() - before.keys()) - {"opt", "opt/deskfleet"} == {
        name for name in installed if name.startswith(ours)
    }
    run(archive, "uninstall", "--purge", root=root)
    assert listing(root) == before


def run(archive: Path, *arguments: str, root: Path, code: int = 0) -> str:
    done = subprocess.run(
        [archive / "packaging" / "install", *arguments, "--root", str(root)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        # The Python that runs the tests has what the installer asks of one.
        env={**os.environ, "PYTHON": sys.executable, "PIP_NO_COMPILE": "1"},
    )
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def listing(root: Path) -> dict[str, tuple[int, str]]:
    """Return mode and content of everything but the bytecode that running leaves."""
    return {
        str(path.relative_to(root)): (path.lstat().st_mode, _content(path))
        for path in root.rglob("*")
        if "__pycache__" not in path.parts
    }


def _content(path: Path) -> str:
    if path.is_symlink():
        return str(path.readlink())
    return path.read_text(errors="replace") if path.is_file() and "lib" not in path.parts else ""


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_the_commands_are_there_and_know_nothing_of_where_they_were_made(machine: Path) -> None:
    release = machine / "opt/deskfleet" / (machine / "opt/deskfleet/current").readlink()
    said = subprocess.run(
        [release / "bin/python", "-m", "deskfleet", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.startswith("deskfleet ")
    script = (release / "bin/deskfleet").read_text()
    assert str(machine) not in script
    assert script.startswith("#!/opt/deskfleet/releases/")
    assert (machine / "usr/local/bin/dcvsm").readlink() == Path("/opt/deskfleet/current/bin/dcvsm")
    assert not (release / "bin/pip").exists()


def test_the_settings_of_dcvsm_outlive_a_release(machine: Path) -> None:
    release = machine / "opt/deskfleet" / (machine / "opt/deskfleet/current").readlink()
    assert (release / "conf").resolve() == (machine / DCVSM).parent
    said = subprocess.run(
        [release / "bin/python", "-m", "deskfleet.cli.dcvsm", "describe-servers"],
        env={"HOME": "/nowhere"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 253
    assert "conf/dcvsmcli.conf: url in [broker]: " in said.stderr


def test_secrets_and_state_are_closed_and_programs_are_not(machine: Path) -> None:
    assert mode(machine / "var/lib/deskfleet") == 0o700
    assert mode(machine / "var/lib/deskfleet-agent") == 0o700
    assert mode(machine / CONF / "broker.toml") == 0o640
    assert mode(machine / "etc/systemd/system/deskfleet-broker.service") == 0o644
    assert mode(machine / "opt/deskfleet/releases") == 0o755


def test_a_second_installation_changes_nothing(machine: Path, archive: Path) -> None:
    before = listing(machine)
    assert "is here already" in run(archive, "install", "all", root=machine)
    assert listing(machine) == before


def test_the_original_agents_file_is_taken_and_left_as_it_was(machine: Path) -> None:
    taken = tomllib.loads((machine / CONF / "agent.conf").read_text())
    assert taken["agent"] == {
        "broker_host": "new.example",
        "broker_port": 9,
        "ca_file": "/etc/deskfleet/broker-ca.pem",
        "software_statement_path": "/etc/deskfleet/software-statement",
    }
    assert tomllib.loads((machine / ORIGINAL).read_text())["agent"] == {
        "broker_host": "old.example"
    }
    assert (machine / CONF / "broker-ca.pem").read_text() == "an authority\n"


def test_a_statement_is_kept_as_a_secret_and_without_its_heading(machine: Path) -> None:
    kept = machine / CONF / "software-statement"
    assert kept.read_text() == "c3RhdGVtZW50\n"
    assert mode(kept) == 0o600


def test_units_say_what_was_chosen(machine: Path) -> None:
    units = machine / "etc/systemd/system"
    agent = (units / "deskfleet-agent.service").read_text()
    assert "--config /etc/deskfleet/agent.conf\n" in agent
    broker = (units / "deskfleet-broker.service").read_text()
    assert "--config /etc/deskfleet/broker.toml\n" in broker
    drop_in = (units / "deskfleet-agent.service.d" / "10-driver.conf").read_text()
    assert "User=dcvsmagent" in drop_in


@pytest.mark.parametrize(
    "arguments",
    [
        ["install", "broker", "--prefix", "relative"],
        ["install", "agent", "--driver", "vnc"],
        ["install", "agent", "--broker-host", "a;b"],
        ["install", "agent", "--ca-file", "/no/such/file"],
        ["install", "all", "--config", __file__],
        ["install", "agent", "--fresh", "--config", __file__],
        ["uninstall", "--all", "yes"],
    ],
    ids=" ".join,
)
def test_what_makes_no_sense_is_refused_with_a_sentence(
    archive: Path, arguments: list[str], tmp_path: Path
) -> None:
    said = run(archive, *arguments, root=tmp_path, code=1)
    assert said.startswith("install: ")
    assert len(said.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
