"""The commands about sessions.

A command is a function of an `Invocation` and its options; `main.py` names it and gives it the
options of the connection, so that another command line can offer the same ones.

Laws: options are those of `dcvsm`, with defaults where one is plain. Files that a server sends are
written under names that it can't choose. What is awaited is awaited with a limit.
"""

from __future__ import annotations

import base64
import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from deskfleet.cli.connection import Invocation
from deskfleet.cli.named import GONE, id_of, whose
from deskfleet.cli.person import current_user
from deskfleet.client.shapes import (
    CreateSessionRequestData,
    CreateSessionsResponse,
    DeleteSessionRequestData,
    DeleteSessionsResponse,
    DeleteSessionSuccessfulResponse,
    DescribeSessionsResponse,
    GetSessionScreenshotRequestData,
    GetSessionScreenshotsResponse,
    Session,
    UpdateSessionPermissionsRequestData,
)
from deskfleet.errors import Invalid, SetupFailed, plain

TYPES = ("CONSOLE", "VIRTUAL")

OneSession = Annotated[
    str | None,
    typer.Argument(metavar="SESSION", help="Its id, or the name of one of the user's own."),
]
ManySessions = Annotated[
    list[str] | None,
    typer.Argument(metavar="SESSION...", help="Their ids, or names of the user's own."),
]
SessionId = Annotated[str | None, typer.Option(help="The same as SESSION, an id only.")]
SessionIds = Annotated[
    list[str] | None, typer.Option(metavar="ID,ID...", help="The same as SESSION..., ids only.")
]
Owner = Annotated[str | None, typer.Option(help="Default: the current user.")]
ItsOwner = Annotated[
    str | None, typer.Option(help="Default: the current user; for root, whoever owns it.")
]
MaxResults = Annotated[
    int | None, typer.Option(min=1, max=1000, help="One page of so many. Default: all.")
]
NextToken = Annotated[str | None, typer.Option(help="Go on where a page ended.")]
Seconds = Annotated[float, typer.Option(min=0, help="How long --wait waits at most.")]


def describe_sessions(
    run: Invocation,
    *,
    session: ManySessions = None,
    session_ids: SessionIds = None,
    owner: Annotated[str | None, typer.Option(help="Those of one owner.")] = None,
    tag: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Those on servers with this tag.")
    ] = None,
    max_results: MaxResults = None,
    next_token: NextToken = None,
) -> None:
    """List sessions."""
    ids, tags = many_ids(run, session, session_ids, owner), _tags(tag or [])
    if max_results is None and next_token is None:
        pages = list(run.client.session_pages(session_ids=ids, owner=owner, tags=tags))
        sessions = tuple(session for page in pages for session in page.sessions)
        answer = DescribeSessionsResponse(request_id=pages[-1].request_id, sessions=sessions)
    else:
        answer = run.client.describe_sessions(
            session_ids=ids,
            owner=owner,
            tags=tags,
            max_results=max_results,
            next_token=next_token,
        )
    run.output.show_page(answer)


def create_session(
    run: Invocation,
    *,
    name: Annotated[str, typer.Option(help="What people call it.")],
    owner: Owner = None,
    type: Annotated[
        str,
        typer.Option(
            metavar="VIRTUAL|CONSOLE", help="A desktop of its own, or the server's screen."
        ),
    ] = "VIRTUAL",
    requirements: Annotated[
        str | None, typer.Option(help="Which server: \"tag:gpu = 'yes'\", for example.")
    ] = None,
    autorun_file: Annotated[
        str | None, typer.Option(help="Program to run in it, below the server's autorun folder.")
    ] = None,
    autorun_file_arguments: Annotated[
        list[str] | None,
        typer.Option(metavar="ARG,ARG...", help='Its arguments; "quotes" keep a comma.'),
    ] = None,
    init_file: Annotated[
        str | None,
        typer.Option(
            "--init-file",
            "--init-file-path",
            help="Script that starts the desktop, below the server's init folder.",
        ),
    ] = None,
    permissions_file: Annotated[
        str | None, typer.Option(metavar="FILE|BASE64", help="Who may do what in it.")
    ] = None,
    max_concurrent_clients: Annotated[
        int | None, typer.Option(min=1, max=100, help="How many may watch at once.")
    ] = None,
    storage_root: Annotated[str | None, typer.Option(help="Folder for file transfer.")] = None,
    dcv_gl_enabled: Annotated[
        bool, typer.Option("--dcv-gl-enabled", help="Use hardware OpenGL.")
    ] = False,
    enqueue_request: Annotated[
        bool, typer.Option("--enqueue-request", help="Wait in the queue if no server is free.")
    ] = False,
    disable_retry_on_failure: Annotated[
        bool, typer.Option("--disable-retry-on-failure", help="Don't try another server.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Return when it is READY.")] = False,
    wait_seconds: Seconds = 120,
) -> None:
    """Create a session."""
    # Long only because each option is an argument here and a member there.
    asked = CreateSessionRequestData(
        name=name,
        owner=owner or current_user(),
        type=session_type(type),
        requirements=requirements,
        autorun_file=autorun_file,
        autorun_file_arguments=tuple(_split(autorun_file_arguments or [])) or None,
        init_file=init_file,
        permissions_file=None if permissions_file is None else permissions(permissions_file),
        max_concurrent_clients=max_concurrent_clients,
        storage_root=storage_root,
        dcv_gl_enabled=dcv_gl_enabled or None,
        enqueue_request=enqueue_request or None,
        disable_retry_on_failure=disable_retry_on_failure or None,
    )
    answer = run.client.create_sessions([asked])
    if not (wait and answer.successful_list):
        run.output.finish(answer)
        return
    _finish_created(run, answer, wait_seconds)


def _finish_created(run: Invocation, answer: CreateSessionsResponse, limit: float) -> None:
    created = answer.successful_list[0]
    session = await_state(run, created, "READY", limit)
    run.output.finish(msgspec.structs.replace(answer, successful_list=(session or created,)))
    require_ready(run, created.id, session)


def delete_session(
    run: Invocation,
    *,
    session: OneSession = None,
    session_id: SessionId = None,
    owner: ItsOwner = None,
    force: Annotated[
        bool, typer.Option("--force", help="Forget it without asking its server.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Return when it is DELETED.")] = False,
    wait_seconds: Seconds = 60,
) -> None:
    """End a session and everything that runs in it."""
    id = one_id(run, session, session_id, owner)
    asked = DeleteSessionRequestData(
        session_id=id, owner=owner or whose(run, id), force=force or None
    )
    answer = run.client.delete_sessions([asked])
    if not (wait and answer.successful_list):
        run.output.finish(answer)
        return
    _finish_deleted(run, answer, wait_seconds)


def _finish_deleted(run: Invocation, answer: DeleteSessionsResponse, limit: float) -> None:
    id = answer.successful_list[0].session_id
    with run.output.spinner(f"{id}: DELETING"):
        session = run.client.wait_for(id, "DELETED", limit)
    # A broker that keeps no DELETED sessions doesn't list it any more.
    state = "DELETED" if session is None else session.state
    done = DeleteSessionSuccessfulResponse(session_id=id, state=state)
    run.output.finish(msgspec.structs.replace(answer, successful_list=(done,)))
    if state != "DELETED":
        raise run.output.failure(f"{id} is still {state} after {limit:g} s")


def get_session_connection_data(
    run: Invocation,
    *,
    session: OneSession = None,
    session_id: SessionId = None,
    user: ItsOwner = None,
) -> None:
    """Fetch what a user needs to connect to a session, a connection token among it."""
    id = one_id(run, session, session_id, user)
    run.output.show(run.client.get_session_connection_data(id, user or whose(run, id)))


def get_session_screenshots(
    run: Invocation,
    *,
    session: ManySessions = None,
    session_ids: SessionIds = None,
    max_width: Annotated[int | None, typer.Option(min=1, help="Pixels.")] = None,
    max_height: Annotated[int | None, typer.Option(min=1, help="Pixels.")] = None,
    folder: Annotated[
        Path | None, typer.Option(file_okay=False, help="Write the pictures into this folder.")
    ] = None,
) -> None:
    """Take pictures of sessions."""
    ids = some(many_ids(run, session, session_ids))
    answer = run.client.get_session_screenshots(
        [
            GetSessionScreenshotRequestData(
                session_id=id, max_width=max_width, max_height=max_height
            )
            for id in ids
        ]
    )
    if folder is None:
        run.output.finish(answer)
        return
    for path in _write_pictures(answer, folder, asked=ids):
        run.output.line(str(path))
    run.output.check(answer)


def update_session_permissions(
    run: Invocation,
    *,
    permissions_file: Annotated[
        str,
        typer.Option(
            "--permissions-file", "--permission-file", metavar="FILE|BASE64", help="The new ones."
        ),
    ],
    session: OneSession = None,
    session_id: SessionId = None,
    owner: ItsOwner = None,
) -> None:
    """Replace the permissions of a session."""
    rules = permissions(permissions_file)
    id = one_id(run, session, session_id, owner)
    asked = UpdateSessionPermissionsRequestData(
        session_id=id, owner=owner or whose(run, id), permissions_file=rules
    )
    run.output.finish(run.client.update_session_permissions([asked]))


def await_state(run: Invocation, session: Session, state: str, limit: float) -> Session | None:
    """Wait for a session with a spinner; return it as last seen, None if it is gone.

    Who interrupts that is told its id, which hasn't been printed yet.
    """

    def told(now: Session) -> str:
        parts = (now.name or now.id, now.state, now.state_reason)
        return ": ".join(part for part in parts if part)

    try:
        with run.output.spinner(told(session)) as spin:
            return run.client.wait_for(session.id, state, limit, seen=lambda now: spin(told(now)))
    except KeyboardInterrupt:
        run.output.tell(f"{session.id} is not waited for any longer, and lives on")
        raise


def require_ready(run: Invocation, id: str, session: Session | None) -> None:
    """End the command with the reason if a session isn't READY."""
    if session is not None and session.state == "READY":
        return
    if session is None:
        raise run.output.failure(f"{id} is gone")
    late = None if session.state in GONE else "it did not become READY in time"
    told = (f"{id} is {session.state}", session.state_reason or late)
    raise run.output.failure(": ".join(part for part in told if part))


def one_id(run: Invocation, argument: str | None, option: str | None, user: str | None) -> str:
    """Return the one id that was given, or is meant by a name."""
    [given] = some([id for id in (argument, option) if id], most=1)
    return id_of(run, given, user) if argument else given


def many_ids(
    run: Invocation,
    arguments: Sequence[str] | None,
    options: Sequence[str] | None,
    user: str | None = None,
) -> list[str]:
    """Return the ids that were given one by one, or are meant by names, or stand in lists."""
    return [*(id_of(run, each, user) for each in arguments or ()), *_split(options or [])]


def listed(arguments: Sequence[str] | None, options: Sequence[str] | None) -> list[str]:
    """Return ids that were given one by one or in lists with commas."""
    return [*(arguments or []), *_split(options or [])]


def some(ids: list[str], most: int | None = None) -> list[str]:
    if not ids:
        raise Invalid("no id was given")
    if most is not None and len(ids) > most:
        raise Invalid("only one id can be given")
    return ids


def _split(lists: Sequence[str]) -> list[str]:
    parts = (part.strip() for row in csv.reader(lists, skipinitialspace=True) for part in row)
    return [part for part in parts if part]


def _tags(pairs: Sequence[str]) -> dict[str, str]:
    tags = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise Invalid(f"--tag {pair} is not KEY=VALUE")
        tags[key] = value
    return tags


def session_type(type: str) -> str:
    if type.upper() not in TYPES:
        raise Invalid(f"--type {type} is neither {' nor '.join(TYPES)}")
    return type.upper()


def permissions(value: str) -> str:
    """Return the base64 of a permissions file: a path is looked for first."""
    try:
        return base64.b64encode(Path(value).read_bytes()).decode()
    except (OSError, ValueError) as error:
        # Base64 makes all kinds of impossible paths: too long, below a file, missing.
        if _is_base64(value):
            return value
        raise Invalid(
            f"{value} is no permissions file, nor the base64 of one: {plain(error)}"
        ) from error


def _is_base64(value: str) -> bool:
    try:
        base64.b64decode(value, validate=True).decode()
    except ValueError:
        return False
    return bool(value)


def _write_pictures(
    answer: GetSessionScreenshotsResponse, folder: Path, *, asked: Sequence[str]
) -> list[Path]:
    """Write `<session>.png` and, for further screens, `<session>-2.png` and so on."""
    written = []
    for done in answer.successful_list:
        id = done.session_screenshot.session_id
        if id not in asked:
            raise SetupFailed("the broker sent a picture of a session that nobody asked for")
        for number, image in enumerate(done.session_screenshot.images, 1):
            name = _file_name(id, number, image.format)
            written.append(_write(folder / name, image.data))
    return written


def _file_name(id: str, number: int, format: str) -> str:
    stem = re.sub(r"[^A-Za-z0-9_-]", "_", id) + ("" if number == 1 else f"-{number}")
    return f"{stem}.{'jpeg' if format == 'jpeg' else 'png'}"


def _write(path: Path, content: bytes) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        raise SetupFailed(f"{path} can't be written: {error.strerror}") from error
    return path
