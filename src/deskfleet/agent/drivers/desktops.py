"""Which desktop a session shows: the desktop environment that is installed, or else icewm.

A desktop environment is found by its entry in /usr/share/xsessions and started directly, never
through the distribution's Xsession, whose agents outlive sessions. Only those are known here that
start without systemd's user services; GNOME and the like are passed over.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from deskfleet.agent.drivers.desktop_config import Which, config_of

SESSION_ENTRIES = Path("/usr/share/xsessions")
_OWN_BUS = ("dbus-run-session", "--")
_ICEWM_PREFERENCES = """\
Theme="NanoBlue/default.theme"
TaskBarShowCPUStatus=0
TaskBarShowMEMStatus=0
TaskBarShowNetStatus=0
TaskBarShowMailboxStatus=0
TaskBarShowAPMStatus=0
TaskBarShowWorkspaces=0
WorkspaceNames="1"
TimeFormat="%H:%M"
RebootCommand=""
ShutdownCommand=""
SuspendCommand=""
"""


@dataclass(frozen=True, slots=True)
class Settings:
    """A file of settings that a desktop is given, unless its owner has one of their own."""

    file: str
    text: str
    argument: str
    """What brings it to the program, to be followed by its path."""
    unless: tuple[str, ...]
    """The owner's own, relative to their home."""


@dataclass(frozen=True, slots=True)
class Desktop:
    name: str
    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    settings: Settings | None = None
    config_dirs: str = "/etc/xdg"
    """Where its settings are, besides the home: XDG_CONFIG_DIRS, after ours."""
    config: Mapping[str, str] = field(default_factory=dict)
    """Settings that it is given: files by their place in a session's folder."""
    needs: tuple[str, ...] = ()
    """Programs that it starts, and is none without, though it can be installed so."""


ICEWM = Desktop(
    "icewm",
    ("icewm",),
    {"XDG_CURRENT_DESKTOP": "ICEWM", "DESKTOP_SESSION": "icewm"},
    Settings(
        "icewm.preferences",
        _ICEWM_PREFERENCES,
        "--config=",
        (".icewm/preferences", ".config/icewm/preferences"),
    ),
)


def _environment_of(name: str) -> dict[str, str]:
    return {
        "XDG_CURRENT_DESKTOP": name,
        "XDG_SESSION_DESKTOP": name.lower(),
        "DESKTOP_SESSION": name.lower(),
    }


_PLASMA = Desktop(
    "KDE", (*_OWN_BUS, "startplasma-x11"), _environment_of("KDE"), needs=("kwin_x11",)
)
_KNOWN: tuple[tuple[str, Desktop], ...] = (
    ("xfce", Desktop("XFCE", (*_OWN_BUS, "xfce4-session"), _environment_of("XFCE"))),
    ("mate", Desktop("MATE", (*_OWN_BUS, "mate-session"), _environment_of("MATE"))),
    (
        "lxqt",
        Desktop(
            "LXQt",
            (*_OWN_BUS, "startlxqt"),
            _environment_of("LXQt"),
            config_dirs="/etc:/etc/xdg:/usr/share",  # as startlxqt has it
        ),
    ),
    ("LXDE", Desktop("LXDE", (*_OWN_BUS, "startlxde"), _environment_of("LXDE"))),
    ("plasma", _PLASMA),
    ("plasmax11", _PLASMA),
)


def installed_desktop(
    entries: Path = SESSION_ENTRIES, which: Which = shutil.which
) -> Desktop | None:
    """Return the desktop that sessions of this machine get, None where there is none."""
    for entry, desktop in _KNOWN:
        programs = [*(word for word in desktop.argv if word != "--"), *desktop.needs]
        if (entries / f"{entry}.desktop").exists() and all(map(which, programs)):
            return replace(desktop, config=config_of(desktop.name, which))
    return ICEWM if which("icewm") else None
