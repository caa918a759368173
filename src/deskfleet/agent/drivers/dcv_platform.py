"""What a DCV server can run on which operating system, and what a session of it needs first.

`prepare` finds and checks all that can be known beforehand: the session's type, its owner, the
administrator's programs. Blocking: the name service is asked. Nothing is made here.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deskfleet.agent.drivers import dcv_plan
from deskfleet.agent.drivers.dcv_plan import Files
from deskfleet.core.records import Type
from deskfleet.errors import StartFailed
from deskfleet.machine import here
from deskfleet.ports import SessionSpec

DEFAULT_INIT = Path("/etc/dcv/dcvsessioninit")
"""What DCV itself starts in a virtual session without an init file."""


@dataclass(slots=True)
class Preparation:
    init: Path | None = None
    autorun: list[str] | None = None
    """To be run in a virtual session as it begins."""
    at_log_on: Path | None = None
    """An autorun file to be run when the owner of a console session logs on."""
    permissions: bytes | None = None
    script: Path | None = None
    """What the driver writes to bring `autorun` into the session."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DcvPlatform:
    types: tuple[Type, ...]
    check_owner: Callable[[str], object]
    """Raises `StartFailed` for who can't own a session."""
    init_folder: Path
    autorun_folder: Path
    default_init: Path = DEFAULT_INIT
    logged_in: Callable[[], Collection[str]] = here.logged_in_users
    start_as: Callable[[str, Sequence[str], Mapping[str, str]], None] = here.start_as

    def prepare(self, spec: SessionSpec) -> Preparation:
        """Return what a session is started with; raise `StartFailed` with why it can't be."""
        request = spec.request
        if request.type not in self.types:
            raise StartFailed(f"this server runs no {request.type.lower()} sessions")
        # Whatever no program can be told is refused before anything is looked for.
        dcv_plan.creation(spec.session_id, request, Files())
        self.check_owner(request.owner)
        found = Preparation(permissions=dcv_plan.permissions_text(request))
        autorun = None
        if request.autorun_file:
            autorun = here.find_program(self.autorun_folder, request.autorun_file, "autorun file")
        if request.type is not Type.VIRTUAL:
            found.at_log_on = autorun
            return found
        if request.init_file:
            found.init = here.find_program(self.init_folder, request.init_file, "init file")
        if autorun is not None:
            found.autorun = dcv_plan.autorun(autorun, request)
        return found


def types_here() -> tuple[Type, ...]:
    """Return which sessions a DCV server of this operating system can run."""
    return (Type.VIRTUAL, Type.CONSOLE) if sys.platform == "linux" else (Type.CONSOLE,)


def platform_here(
    *, init_folder: Path, autorun_folder: Path, allow_root_sessions: bool
) -> DcvPlatform:
    """Return what holds on this machine."""
    return DcvPlatform(
        types=types_here(),
        check_owner=_owner_check(allow_root=allow_root_sessions),
        init_folder=init_folder,
        autorun_folder=autorun_folder,
    )


def _owner_check(*, allow_root: bool) -> Callable[[str], object]:
    """Return how an owner is checked: on Windows, who may own the console is the server's word."""
    if sys.platform == "win32":
        return lambda _owner: None
    from deskfleet.agent.drivers.owners import ROOT, OwnerPolicy  # noqa: PLC0415 - POSIX only

    # Sessions are the DCV server's, which can be anybody, whoever the agent is.
    return OwnerPolicy(ROOT, allow_root_sessions=allow_root).check


def runtime_here(state: Path) -> Path:
    """Return where files are that the DCV server must be able to reach."""
    if sys.platform == "win32":
        return state / "run"
    from deskfleet.agent.drivers.session_folders import runtime_folder  # noqa: PLC0415

    folder = runtime_folder(state)
    of_the_service = os.environ.get("RUNTIME_DIRECTORY")
    if of_the_service:
        # Made by systemd, and open to others as the unit has it.
        return Path(of_the_service) / folder.name
    if folder.is_relative_to(os.environ.get("XDG_RUNTIME_DIR") or "/nowhere"):
        # That is closed to everybody but the agent.
        return Path(f"/tmp/deskfleet-{os.geteuid()}") / folder.name  # noqa: S108 - checked there
    return folder


def scripts_here(state: Path) -> Path:
    """Return where scripts are that session owners must be able to run: not below /run."""
    if sys.platform == "win32":
        return state / "scripts"
    runtime = runtime_here(state)
    of_the_service = os.environ.get("CACHE_DIRECTORY")
    if of_the_service:
        return Path(of_the_service) / runtime.name
    if os.geteuid() == 0:
        return Path("/var/cache/deskfleet") / runtime.name
    return runtime / "scripts"
