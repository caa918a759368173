"""The administrator's programs on Windows: which names are names, and where they lead.

Windows has many names for one file, and names for what is no file: so only plain ones are taken,
which mean one file below the folder and say so. `components` is a pure decision and knows no disk;
`find_program` then asks where the path leads with every link resolved, and takes no other answer
than the path itself. Who may change the folder is for its access list to say, which this doesn't
read: the default places are closed to ordinary users by Windows itself or by their administrator.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from deskfleet.errors import StartFailed
from deskfleet.machine.program_names import refuse_unspeakable

RUNNABLE = frozenset({".exe", ".com", ".bat", ".cmd", ".ps1"})
MAX_COMPONENT = 255

_SEPARATORS = re.compile(r"[\\/]")
_FORBIDDEN = re.compile(r'[<>:"|?*%^&!\x00-\x1f\x7f]')
"""What no name may have there, a stream's `:` among them; and what the interpreter of batch files
would take for something else than a letter."""
_SHORT = re.compile(r"~\d")
"""PROGRA~1 is another name of a file that has one."""
_DEVICES = frozenset(
    {"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$", "CLOCK$"}
    | {f"{port}{number}" for port in ("COM", "LPT") for number in "0123456789¹²³"}
)
"""Devices wherever they stand, and with every suffix."""


def find_program(
    folder: Path,
    name: str,
    kind: str,
    resolve: Callable[[str], str] = lambda path: os.path.realpath(path, strict=True),
) -> Path:
    """Return the path of a program below the folder; raise `StartFailed` with why there is none.

    `kind` is what the owner calls it; `resolve` follows every link, and fails where nothing is.
    """
    parts = components(name, kind)
    what = f"{kind} {name!r}"
    try:
        root = Path(resolve(str(folder)))
    except OSError as error:
        raise StartFailed(f"the folder of {kind}s can't be opened: {error.strerror}") from error
    path = root.joinpath(*parts)
    try:
        found = Path(resolve(str(path)))
    except OSError as error:
        raise StartFailed(f"{what}: {error.strerror}") from error
    # The case of letters may differ, nothing else: not the folder, not the number of steps.
    if str(found).lower() != str(path).lower():
        raise StartFailed(f"{what}: a link is on its way, where only folders may be")
    if not found.is_file():
        raise StartFailed(f"{what} is not a file")
    return found


def components(name: str, kind: str) -> list[str]:
    """Return what a name is made of; raise `StartFailed` for one that may lead out of its folder,
    names a device or a stream, or could be read in two ways."""
    refuse_unspeakable(name, kind)
    if name[:1] in {"\\", "/"} or re.match(r"[A-Za-z]:", name):
        raise StartFailed(f"the {kind} must be relative to its folder: {name!r}")
    parts = [part for part in _SEPARATORS.split(name) if part not in {"", "."}]
    if not parts or ".." in parts:
        raise StartFailed(f"the {kind} must not leave its folder: {name!r}")
    for part in parts:
        why = _flaw(part)
        if why is not None:
            raise StartFailed(f"{kind} {name!r}: {why}")
    if Path(parts[-1]).suffix.lower() not in RUNNABLE:
        raise StartFailed(
            f"{kind} {name!r} is not executable: it must end in one of"
            f" {', '.join(sorted(RUNNABLE))}"
        )
    return parts


def _flaw(part: str) -> str | None:
    """Return what is wrong with one component, None where it can only be one file's name."""
    if len(part) > MAX_COMPONENT:
        return f"a name has at most {MAX_COMPONENT} characters"
    if _FORBIDDEN.search(part):
        return "a character in it has a meaning of its own"
    if part[-1] in {".", " "} or part[0] == " ":
        return "a name neither begins with a blank nor ends with a dot or a blank"
    if _SHORT.search(part):
        return "short names are not taken; write the whole one"
    # A device's name counts up to the first dot, and blanks before that don't.
    if part.partition(".")[0].rstrip(" ").upper() in _DEVICES:
        return "that is the name of a device"
    return None
