"""The installer refuses what would end desktops: its own functions, on a machine in a folder."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SYSTEMD = """
systemd_runs() { true; }
systemctl() {
    case $1 in
    start) printf 'systemctl %s\\n' "$*" ;;
    list-units) printf 'deskfleet-agent.service loaded active running\\n' ;;
    stop) printf 'systemctl %s\\n' "$*" && touch "$prefix/stopped" ;;
    esac
}
"""
"""Says what it is asked; the rest is the installer's."""


class Machine:
    def __init__(self, folder: Path) -> None:
        self.folder, self.prefix = folder, folder / "opt"
        for name in ("packaging", "etc/deskfleet", "run/deskfleet", "opt/releases"):
            (folder / name).mkdir(parents=True)
        (folder / "etc/deskfleet/installed").write_text("agent-driver xvnc\n")
        text = (ROOT / "packaging" / "install").read_text().partition("readonly caller=")[0]
        assert "uninstall() {" in text
        # Nothing of this machine is read or changed, whatever the functions do.
        self.text = re.sub(r"(?<![\w}])/(etc|run|var|usr/local)/", rf"{folder}/\1/", text)

    def lists(self, script: str) -> None:
        """Have the program that lists desktops be this."""
        python = self.prefix / "current" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(f"#!/bin/sh\n{script}\n")
        python.chmod(0o755)

    def run(self, command: str, driver: str = "") -> tuple[int, str]:
        given = (
            f"root='' desktops='' purge='' fresh='' config='' driver={driver} prefix={self.prefix}"
        )
        program = self.folder / "packaging" / "install"
        program.write_text(f"{self.text}\n{SYSTEMD}\n{given}\n{command}\nprintf 'through\\n'\n")
        done = subprocess.run(
            ["bash", str(program)], capture_output=True, text=True, timeout=30, check=False
        )
        return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(("name", "is_ours"), [("conf", True), ("bin", False)])
def test_what_an_uninstallation_left_is_no_stranger(
    name: str, is_ours: bool, machine: Machine
) -> None:
    (machine.prefix / "releases").rmdir()
    (machine.prefix / name).mkdir()
    script = "is_root() { false; }; make_release() { printf 'through\\n'; exit 0; }"
    code, said = machine.run(f"{script}; components=(broker); install_them")
    assert (code, said) == (0, "through\n") if is_ours else "somebody else's" in said


@pytest.mark.parametrize(
    ("driver", "file", "said"),
    [
        ("xvnc", "agent.toml", None),
        ("xvnc", "agent.conf", "Environment=DESKFLEET_DRIVER=xvnc"),
        ("simulated", "agent.toml", "Environment=DESKFLEET_DRIVER=simulated"),
        ("dcv", "agent.conf", "User=dcvsmagent"),
    ],
)
def test_an_agent_runs_the_driver_that_was_chosen_whatever_its_file_means(
    driver: str, file: str, said: str | None, machine: Machine
) -> None:
    """Also where only the broker beside it is upgraded."""
    conf, units = machine.folder / "etc/deskfleet", machine.folder / "etc/systemd/system"
    shutil.copytree(ROOT / "packaging/systemd", machine.folder / "packaging/systemd")
    (conf / "installed").write_text(f"agent-driver {driver}\nagent-config /etc/deskfleet/{file}\n")
    assert machine.run("is_root() { false; }; put_unit agent") == (0, "through\n")
    assert f"--config /etc/deskfleet/{file}\n" in (units / "deskfleet-agent.service").read_text()
    drop_in = units / "deskfleet-agent.service.d/10-driver.conf"
    if said is None:
        assert not drop_in.parent.exists()
    else:
        assert said in drop_in.read_text().splitlines()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize("driver", ["dcv", "simulated"])
@pytest.mark.parametrize(
    ("script", "why"),
    [("echo desk1", "desktops run on this server"), ("exit 3", "can't be told")],
)
def test_another_driver_where_desktops_run(
    driver: str, script: str, why: str, machine: Machine
) -> None:
    machine.lists(script)
    code, said = machine.run("choose_driver", driver)
    assert (code, why in said, "through" in said) == (1, True, False)


@pytest.mark.parametrize(("driver", "script"), [("", "echo desk1"), ("dcv", "exit 0")])
def test_nothing_is_lost_by_the_same_driver_or_where_no_desktop_runs(
    driver: str, script: str, machine: Machine
) -> None:
    machine.lists(script)
    assert machine.run("choose_driver", driver) == (0, "through\n")


@pytest.mark.parametrize("script", ["echo desk1", "exit 3"])
def test_desktops_are_looked_for_before_a_removal(script: str, machine: Machine) -> None:
    machine.lists(script)
    code, said = machine.run("uninstall")
    assert (code, "--end-desktops" in said, "systemctl" in said) == (1, True, False)


@pytest.mark.parametrize("then", ["echo desk1", "exit 3"])
def test_a_desktop_that_began_during_the_stop_keeps_its_agent(then: str, machine: Machine) -> None:
    machine.lists(f"if [ -e {machine.prefix}/stopped ]; then {then}; fi")
    code, said = machine.run("uninstall")
    assert code == 1
    began_again, why = said.splitlines()[-2:]
    assert began_again == "systemctl start deskfleet-agent.service"
    assert why.endswith(": --end-desktops ends them.")
    assert (machine.folder / "run" / "deskfleet").is_dir()
    assert (machine.prefix / "releases").is_dir()


def test_a_removal_where_no_desktop_runs(machine: Machine) -> None:
    machine.lists("exit 0")
    code, said = machine.run("uninstall")
    assert (code, "deskfleet is removed" in said) == (0, True)
    assert not machine.prefix.exists() or not (machine.prefix / "releases").exists()
