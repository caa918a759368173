"""The command lines of `dcv`: from what is asked to the arguments that say it, or why not.

Pure. Law: every value reaches the program byte for byte, as one argument that can't be taken for
anything else, or the request is refused with a reason. So a value stands in one argument with its
option (`--name=VALUE`), where a leading dash means nothing; a session id, which stands alone, has
no leading dash; and what isn't a character of one line of text is not passed on at all.
"""

from __future__ import annotations

import binascii
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from deskfleet.core import permissions
from deskfleet.core.records import SessionRequest, Type
from deskfleet.errors import PermissionsInvalid, StartFailed

LONGEST_NAME = 256
LONGEST_VALUE = 4096
"""Bytes of one argument: as long as a path may be."""
_UNFIT = frozenset({"Cc", "Cs", "Zl", "Zp"})
"""Control characters, lone surrogates, and what ends a line or a paragraph."""


@dataclass(frozen=True, slots=True)
class Files:
    """The files that a session is created with, found or written by us."""

    init: PurePath | None = None
    permissions: PurePath | None = None


def creation(session_id: str, request: SessionRequest, files: Files) -> list[str]:
    """Return the arguments that create a session; raise `StartFailed` with why there are none."""
    _refuse_bad_id(session_id)
    if len(request.name) > LONGEST_NAME:
        raise StartFailed(f"the name is longer than {LONGEST_NAME} characters")
    if not request.owner:
        raise StartFailed("a session must have an owner")
    argv = ["create-session", f"--type={request.type.lower()}"]
    argv += _valued("--name", request.name, "name")
    argv += _valued("--owner", request.owner, "owner")
    if request.type is Type.VIRTUAL:
        argv += _valued("--user", request.owner, "owner")
        argv += _valued("--init", _text(files.init), "init file")
        if request.dcv_gl_enabled is not None:
            argv.append(f"--gl={'on' if request.dcv_gl_enabled else 'off'}")
    argv += _valued("--permissions-file", _text(files.permissions), "permissions file")
    argv += _valued("--storage-root", request.storage_root or "", "storage root")
    if request.max_concurrent_clients is not None:
        argv.append(f"--max-concurrent-clients={request.max_concurrent_clients}")
    return [*argv, session_id]


def closing(session_id: str) -> list[str]:
    return ["close-session", *_positional(session_id)]


def listing() -> list[str]:
    return ["list-sessions", "--json"]


def describing(session_id: str) -> list[str]:
    return ["describe-session", "--json", *_positional(session_id)]


def connections(session_id: str) -> list[str]:
    return ["list-connections", "--json", *_positional(session_id)]


def permitting(session_id: str, file: PurePath | None) -> list[str]:
    """Return how permissions are replaced: by a file's, or by those of DCV itself."""
    rule = "--reset-builtin" if file is None else f"--file={file}"
    return ["set-permissions", f"--session={session_id}", rule]


def screenshot(
    session_id: str, *, max_width: int, max_height: int, format: str, output: PurePath
) -> list[str]:
    return [
        "get-screenshot",
        f"--max-width={max_width}",
        f"--max-height={max_height}",
        f"--format={format.upper()}",
        "--primary",
        f"--output={output}",
        *_positional(session_id),
    ]


def endpoints() -> list[str]:
    return ["list-endpoints", "-j"]


def configuration(section: str, key: str) -> list[str]:
    return ["get-config", f"--section={section}", f"--key={key}"]


def version() -> list[str]:
    return ["version"]


def permissions_text(request: SessionRequest) -> bytes | None:
    """Return the permissions file of a request as DCV reads it, None where there is none.

    One that can't be read gives nobody more than the owner has: it counts as none.
    """
    if request.permissions_file is None:
        return None
    try:
        permissions.decode(request.permissions_file)
    except PermissionsInvalid:
        # The broker takes no such file.
        return None
    return binascii.a2b_base64(request.permissions_file)


def autorun(program: PurePath, request: SessionRequest) -> list[str]:
    """Return the command line of an autorun file; raise `StartFailed` with why there is none."""
    for argument in request.autorun_file_arguments:
        _refuse_unfit(argument, "argument of the autorun file")
    return [str(program), *request.autorun_file_arguments]


def _positional(session_id: str) -> Sequence[str]:
    """Return an id as found on the server; one that somebody made with a dash comes after `--`."""
    return ["--", session_id] if session_id.startswith("-") else [session_id]


def _refuse_bad_id(session_id: str) -> None:
    _refuse_unfit(session_id, "session id")
    if not session_id or session_id.startswith("-"):
        raise StartFailed(f"{session_id!r} can't be the id of a session")


def _valued(option: str, value: str, what: str) -> list[str]:
    """Return an option with its value in one argument; none for an empty value."""
    _refuse_unfit(value, what)
    return [f"{option}={value}"] if value else []


def _refuse_unfit(value: str, what: str) -> None:
    if any(unicodedata.category(character) in _UNFIT for character in value):
        raise StartFailed(f"the {what} holds a character that no program can be given")
    if len(value.encode()) > LONGEST_VALUE:
        raise StartFailed(f"the {what} is longer than {LONGEST_VALUE} bytes")


def _text(path: PurePath | None) -> str:
    return "" if path is None else str(path)
