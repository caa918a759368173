"""What desktop environments are told before the machine's own settings.

A session has no seat: no logind knows it, its owner may have no password, and it can neither
sleep nor shut the machine down. So what locks the screen, asks for an administrator's password,
watches the battery or offers updates is not started there. An owner's own files go before these,
but for what D-Bus starts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

Which = Callable[[str], str | None]

CONFIG = "config"
"""Below a session's folder: the first of XDG_CONFIG_DIRS."""
_SERVICES = "xdg/dbus-1/services"
"""In XDG_RUNTIME_DIR: where a bus looks first for what it may start."""

_LOCKERS = (
    "light-locker",
    "lxqt-xscreensaver-autostart",
    "mate-screensaver",
    "xfce4-screensaver",
    "xscreensaver",
)
_POLKIT_AGENTS = (
    "lxpolkit",
    "lxqt-policykit-agent",
    "polkit-gnome-authentication-agent-1",
    "polkit-kde-authentication-agent-1",
    "polkit-mate-authentication-agent-1",
    "xfce-polkit",
)
_POWER = ("lxqt-powermanagement", "mate-power-manager", "powerdevil", "xfce4-power-manager")
_UPDATES = ("org.kde.discover.notifier", "package-update-indicator", "update-notifier")
_NOT_STARTED = {
    f"autostart/{name}.desktop": "[Desktop Entry]\nType=Application\nHidden=true\n"
    for name in (*_LOCKERS, *_POLKIT_AGENTS, *_POWER, *_UPDATES)
}
_NOT_ACTIVATED = {
    f"{_SERVICES}/{name}.service": f"[D-BUS Service]\nName={name}\nExec=/bin/false\n"
    for name in ("org.mate.ScreenSaver", "org.xfce.ScreenSaver")
}
_KDE = {
    "startkderc": "[General]\nsystemdBoot=false\n",
    "kscreenlockerrc": "[Daemon]\nAutolock=false\nLockOnResume=false\n",
    "ksmserverrc": "[General]\nloginMode=emptySession\nofferShutdown=false\n",
}
_LXQT_CHOICE = ("openbox", "xfwm4", "kwin_x11", "icewm")


def config_of(name: str, which: Which, system: Path = Path("/etc/xdg")) -> Mapping[str, str]:
    """Return the settings of a desktop environment: files by their place in a session's folder."""
    told = {**_NOT_STARTED, **_particular(name, which, system)}
    return {**{f"{CONFIG}/{place}": text for place, text in told.items()}, **_NOT_ACTIVATED}


def _particular(name: str, which: Which, system: Path) -> Mapping[str, str]:
    if name == "KDE":
        return _KDE
    if name == "LXQt":
        return _lxqt(which)
    if name == "LXDE":
        return _lxde(system)
    return {}


def _lxqt(which: Which) -> Mapping[str, str]:
    """Choose a window manager: where there are several, LXQt would ask before it starts one."""
    for program in _LXQT_CHOICE:
        if which(program):
            return {"lxqt/session.conf": f"[General]\nwindow_manager={program}\n"}
    return {}


def _lxde(system: Path) -> Mapping[str, str]:
    """Return the machine's settings without polkit's agent and the locker.

    LXDE starts those by itself, and reads no more than the first folder of settings it finds.
    """
    folder = "lxsession/LXDE"
    try:
        settings = (system / folder / "desktop.conf").read_text().splitlines()
        started = (system / folder / "autostart").read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return {}
    kept = [line for line in settings if not line.startswith("polkit/")]
    told = [f"{line}\npolkit/command=" if line == "[Session]" else line for line in kept]
    programs = [line for line in started if not any(locker in line for locker in _LOCKERS)]
    return {
        f"{folder}/desktop.conf": "\n".join((*told, "")),
        f"{folder}/autostart": "\n".join((*programs, "")),
    }
