"""Which desktop is shown, and what its environment is told of a session that has no seat."""

from __future__ import annotations

from configparser import ConfigParser
from pathlib import Path

import pytest

from deskfleet.agent.drivers.desktop_config import config_of
from deskfleet.agent.drivers.desktops import ICEWM, installed_desktop


def everything_is_installed(program: str) -> str | None:
    return f"/usr/bin/{program}"


def test_a_desktop_environment_is_preferred_to_icewm(tmp_path: Path) -> None:
    (tmp_path / "gnome.desktop").touch()
    assert installed_desktop(tmp_path, everything_is_installed) == ICEWM
    (tmp_path / "xfce.desktop").touch()
    desktop = installed_desktop(tmp_path, everything_is_installed)
    assert desktop is not None
    assert desktop.argv == ("dbus-run-session", "--", "xfce4-session")


def test_a_desktop_without_its_programs_is_none(tmp_path: Path) -> None:
    (tmp_path / "mate.desktop").touch()
    only_icewm = {"icewm": "/usr/bin/icewm"}
    assert installed_desktop(tmp_path, only_icewm.get) == ICEWM
    assert installed_desktop(tmp_path, {"mate-session": "x"}.get) is None


def test_plasma_is_no_desktop_without_its_window_manager(tmp_path: Path) -> None:
    (tmp_path / "plasma.desktop").touch()
    found = {name: name for name in ("dbus-run-session", "startplasma-x11", "icewm")}
    assert installed_desktop(tmp_path, found.get) == ICEWM
    desktop = installed_desktop(tmp_path, {**found, "kwin_x11": "kwin_x11"}.get)
    assert desktop is not None
    assert desktop.name == "KDE"
    assert "systemdBoot=false" in desktop.config["config/startkderc"]


@pytest.mark.parametrize("entry", ["xfce", "mate", "lxqt", "LXDE", "plasma", "plasmax11"])
def test_no_desktop_locks_its_owner_out(tmp_path: Path, entry: str) -> None:
    (tmp_path / f"{entry}.desktop").touch()
    desktop = installed_desktop(tmp_path, everything_is_installed)
    assert desktop is not None
    for name in ("light-locker", "xscreensaver", "lxpolkit", "lxqt-powermanagement"):
        parser = ConfigParser()
        parser.read_string(desktop.config[f"config/autostart/{name}.desktop"])
        assert parser["Desktop Entry"]["hidden"] == "true"
    service = "xdg/dbus-1/services/org.mate.ScreenSaver.service"
    assert "Exec=/bin/false" in desktop.config[service]


def test_lxqt_need_not_ask_which_window_manager_to_start() -> None:
    only = {"xfwm4": "x", "icewm": "x"}
    told = config_of("LXQt", only.get)["config/lxqt/session.conf"]
    assert told == "[General]\nwindow_manager=xfwm4\n"
    assert "config/lxqt/session.conf" not in config_of("LXQt", {"mutter": "x"}.get)


def test_lxde_keeps_the_machine_s_settings_but_for_what_it_starts(tmp_path: Path) -> None:
    folder = tmp_path / "lxsession/LXDE"
    folder.mkdir(parents=True)
    (folder / "desktop.conf").write_text("[Session]\npolkit/command=lxpolkit\n\n[GTK]\na=b\n")
    (folder / "autostart").write_text("@lxpanel --profile LXDE\n@xscreensaver -no-splash\n")
    config = config_of("LXDE", everything_is_installed, tmp_path)
    assert (
        config["config/lxsession/LXDE/desktop.conf"] == "[Session]\npolkit/command=\n\n[GTK]\na=b\n"
    )
    assert config["config/lxsession/LXDE/autostart"] == "@lxpanel --profile LXDE\n"


def test_lxde_of_another_make_is_left_to_itself(tmp_path: Path) -> None:
    config = config_of("LXDE", everything_is_installed, tmp_path)
    assert not [name for name in config if name.startswith("config/lxsession")]
