"""What a session can't have on which kind of server: the platform matrix of createSessions.

`UNSUPPORTED` is the whole truth. What it says of a type alone is refused before anything is
looked for; what depends on a server's operating system makes that server unfit. What a request
leaves out, or switches off, it doesn't ask for.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from deskfleet.core.records import SessionRequest, Type

WINDOWS, LINUX = "windows", "linux"
MACOS = ("macos", "darwin")


@dataclass(frozen=True, slots=True)
class Unsupported:
    """What can't be had: with a type of sessions, on some systems, or both."""

    what: str
    """Begins with the member's name."""
    is_asked: Callable[[SessionRequest], object]
    type: Type | None = None
    families: Collection[str] = ()
    """Lower-case families of operating systems; none stands for all."""


def _has_relative_root(request: SessionRequest) -> bool:
    root = request.storage_root
    return root is not None and not root.startswith("/")


UNSUPPORTED = (
    Unsupported("InitFile", lambda asked: asked.init_file, Type.CONSOLE),
    Unsupported("AutorunFile", lambda asked: asked.autorun_file, Type.CONSOLE, (LINUX,)),
    Unsupported("AutorunFileArguments", lambda asked: asked.autorun_file_arguments, Type.CONSOLE),
    Unsupported("DcvGlEnabled", lambda asked: asked.dcv_gl_enabled, Type.CONSOLE),
    Unsupported("DcvGlEnabled", lambda asked: asked.dcv_gl_enabled, families=(WINDOWS,)),
    Unsupported("StorageRoot without an absolute path", _has_relative_root, families=MACOS),
)


def refusal_of(request: SessionRequest) -> str | None:
    """Return why no server of whatever kind could take this request; None where one might."""
    for rule in UNSUPPORTED:
        if rule.type is request.type and not rule.families and rule.is_asked(request):
            return f"{_words(rule)} is not supported."
    return None


def demands_of(request: SessionRequest) -> tuple[Unsupported, ...]:
    """Return the rules that keep a request from servers with some operating systems."""
    return tuple(
        rule
        for rule in UNSUPPORTED
        if rule.families and rule.type in {None, request.type} and rule.is_asked(request)
    )


def unfit(demands: Collection[Unsupported], family: str) -> str | None:
    """Return why servers with an operating system can't meet these demands, None where they can."""
    family = family.lower()
    for rule in demands:
        if family in rule.families:
            return f"run {family} and don't support {_words(rule)}"
    return None


def _words(rule: Unsupported) -> str:
    return f"{rule.what} with {rule.type.lower()} sessions" if rule.type else rule.what
