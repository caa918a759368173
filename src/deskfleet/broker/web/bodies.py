"""What clients send, read: a body into its struct, one entry of createSessions into a request.

Laws: what can't be read as a whole raises `Invalid` with one line that names the member, and no
value of the body comes back in that line; one entry of a batch that can't be granted is a
`Refusal`, so that the other entries live. An unknown member is answered with the words
`Unrecognized field "X"`: clients look for them, and ask again without it. A spelling that the
developer guide uses in its prose alone is taken for that of the description.

Must not: look at the fleet, or judge requirements and permissions (the core does).
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar, get_origin

import msgspec

from deskfleet.broker.web.shapes import (
    MAX_ENTRIES,
    CreateSessionRequestData,
    UpdateSessionPermissionsRequestData,
)
from deskfleet.core.placement import Refusal
from deskfleet.core.records import MOST_CHARACTERS, SessionRequest, Type
from deskfleet.errors import Invalid
from deskfleet.wire.bounds import MOST_ENTRIES

T = TypeVar("T")

MAX_NAME = 256
"""Characters of a session's name, and of its owner's."""
TYPES = frozenset(str(each) for each in Type)

PROSE: dict[Any, dict[str, str]] = {
    list[CreateSessionRequestData]: {
        "MaxConcurrents": "MaxConcurrentClients",
        "DcvGLEnabled": "DcvGlEnabled",
    },
    list[UpdateSessionPermissionsRequestData]: {"PermissionFile": "PermissionsFile"},
}
"""Members as the prose of the developer guide spells them, and as all the rest does.

They are no members of their own: generators of clients would make one name of two.
"""

_UNKNOWN_MEMBER = re.compile(
    r"Object contains unknown field `(.*?)(?:`(?: - at `\$[^`]*`)?)?", re.DOTALL
)
_AT = re.compile(r"(.*) - at `\$\.?(.*)`", re.DOTALL)
_LONGEST_PROBLEM = 1_000
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
"""What is no character of one line of text: no agent gives it to a program."""


def decode_body(body: bytes, type: type[T]) -> T:
    """Read a request body as `type`: a struct of `shapes`, or a list of one.

    No body at all is a struct without members, but not a list. Raises `Invalid`.
    """
    if not body and get_origin(type) is not list:
        body = b"{}"
    hashable: Any = type
    prose = PROSE.get(type, {})
    try:
        if any(f'"{name}"'.encode() in body for name in prose):
            body = json.dumps(_members_once(body, prose)).encode()
        decoded: T = _decoder(hashable).decode(body)
        # msgspec lets the last of two equal members win; another reader may see the first.
        # Two members take two colons, which most bodies don't have.
        if body.count(b":") > 1:
            _members_once(body, {})
    except msgspec.ValidationError as error:
        raise Invalid(_explain(str(error))) from None
    except (msgspec.DecodeError, ValueError):
        raise Invalid("The body is not valid JSON in UTF-8.") from None
    except RecursionError:
        raise Invalid("The body is nested too deeply.") from None
    return decoded


def to_request(
    item: CreateSessionRequestData, *, max_arguments: int = 50, max_argument_length: int = 150
) -> SessionRequest | Refusal:
    """Turn one entry of createSessions into what the core knows, or say why it can't be granted."""
    reason = (
        _missing(item) or _unfit_name(item) or _unfit_files(item) or _unfit_number(item)
    ) or _unfit_arguments(item.autorun_file_arguments or (), max_arguments, max_argument_length)
    if reason:
        return Refusal(reason)
    return SessionRequest(
        name=item.name or "",
        owner=item.owner or "",
        type=Type((item.type or "").upper()),
        dcv_gl_enabled=item.dcv_gl_enabled,
        max_concurrent_clients=item.max_concurrent_clients,
        init_file=item.init_file or item.init_file_path or None,
        autorun_file=item.autorun_file or None,
        autorun_file_arguments=item.autorun_file_arguments or (),
        permissions_file=item.permissions_file or None,
        requirements=item.requirements or None,
        enqueue=bool(item.enqueue_request),
        disable_retry=bool(item.disable_retry_on_failure),
        storage_root=item.storage_root or None,
    )


@functools.cache
def _decoder(type: Any) -> msgspec.json.Decoder[Any]:
    is_list = get_origin(type) is list
    limited: Any = Annotated[type, msgspec.Meta(max_length=MAX_ENTRIES)] if is_list else type
    return msgspec.json.Decoder(limited)


def _members_once(body: bytes, spellings: Mapping[str, str]) -> Any:
    """Read a body whose objects have each member once, those in `spellings` by their other name.

    Raises `Invalid` for a member that stands twice.
    """

    def members_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [spellings.get(name, name) for name, _ in pairs]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise Invalid(f'Duplicate field "{twice}"')
        return dict(zip(names, (value for _, value in pairs), strict=True))

    return json.loads(body.decode(), object_pairs_hook=members_of)


def _explain(problem: str) -> str:
    # A member's name may have megabytes; nobody reads on.
    problem = problem[:_LONGEST_PROBLEM]
    unknown = _UNKNOWN_MEMBER.fullmatch(problem)
    if unknown:
        name = "".join(c for c in unknown[1] if c.isprintable())
        return f'Unrecognized field "{name[:64]}"'
    located = _AT.fullmatch(problem)
    if located:
        return f"{located[2]}: {located[1].replace('`', '')}"
    return f"The body: {problem.replace('`', '')}"


def _missing(item: CreateSessionRequestData) -> str | None:
    for member, value in (("Name", item.name), ("Owner", item.owner), ("Type", item.type)):
        if not value or value.isspace():
            return f"{member} is required."
    if (item.type or "").upper() not in TYPES:
        return "Type must be CONSOLE or VIRTUAL."
    return None


def _unfit_name(item: CreateSessionRequestData) -> str | None:
    for member, value in (("Name", item.name or ""), ("Owner", item.owner or "")):
        if len(value) > MAX_NAME:
            return f"{member} is longer than {MAX_NAME} characters."
        if _CONTROL.search(value):
            return f"{member} contains a control character."
    # Programs are given a name together with its option; no login name begins so.
    if item.owner and item.owner.startswith("-"):
        return "Owner must not begin with '-'."
    return None


def _unfit_files(item: CreateSessionRequestData) -> str | None:
    for member, value in (
        ("InitFilePath", item.init_file_path),
        ("InitFile", item.init_file),
        ("AutorunFile", item.autorun_file),
        ("StorageRoot", item.storage_root),
    ):
        if value and len(value) > MOST_CHARACTERS:
            return f"{member} is longer than {MOST_CHARACTERS} characters."
        if value and _CONTROL.search(value):
            return f"{member} contains a control character."
    return None


def _unfit_number(item: CreateSessionRequestData) -> str | None:
    clients = item.max_concurrent_clients
    if clients is not None and clients < 1:
        return "MaxConcurrentClients must be at least 1."
    return None


def _unfit_arguments(arguments: tuple[str, ...], max_arguments: int, max_length: int) -> str | None:
    # What is granted here has to go over the wire, whatever the settings say.
    max_arguments, max_length = min(max_arguments, MOST_ENTRIES), min(max_length, MOST_CHARACTERS)
    if len(arguments) > max_arguments:
        return f"AutorunFileArguments holds more than {max_arguments} arguments."
    for argument in arguments:
        if len(argument) > max_length:
            return f"AutorunFileArguments holds one of more than {max_length} characters."
        if _CONTROL.search(argument):
            return "AutorunFileArguments contains a control character."
    return None
