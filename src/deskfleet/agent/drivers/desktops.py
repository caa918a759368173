"""Which desktop a session shows: the desktop environment that is installed, or else icewm.

A desktop environment is found by its entry in /usr/share/xsessions and started directly, never
through the distribution's Xsession, whose agents outlive sessions. Only those are known here that
start without systemd's user services; GNOME and the like are passed over.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

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


_KNOWN: tuple[tuple[str, Desktop], ...] = (
    ("xfce", Desktop("XFCE", (*_OWN_BUS, "xfce4-session"), _environment_of("XFCE"))),
    ("mate", Desktop("MATE", (*_OWN_BUS, "mate-session"), _environment_of("MATE"))),
    ("lxqt", Desktop("LXQt", (*_OWN_BUS, "startlxqt"), _environment_of("LXQt"))),
    ("LXDE", Desktop("LXDE", (*_OWN_BUS, "startlxde"), _environment_of("LXDE"))),
)


def installed_desktop(
    entries: Path = SESSION_ENTRIES, which: Callable[[str], str | None] = shutil.which
) -> Desktop | None:
    """Return the desktop that sessions of this machine get, None where there is none."""
    for entry, desktop in _KNOWN:
        programs = [word for word in desktop.argv if word != "--"]
        if (entries / f"{entry}.desktop").exists() and all(map(which, programs)):
            return desktop
    return ICEWM if which("icewm") else None
