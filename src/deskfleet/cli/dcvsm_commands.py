"""The nine commands of `dcvsm`: each makes one request of its options.

Laws: options and their names are those of the original. What can be read from the command line
alone is checked before a setting is looked for. A member that no option gave is not sent, since
older brokers refuse what they don't know.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from deskfleet.cli.dcvsm_call import ask
from deskfleet.cli.dcvsm_values import ENQUEUE, ids, listed, segment, truth
from deskfleet.cli.sessions import permissions, session_type
from deskfleet.client import shapes

ServerIds = Annotated[str, typer.Option(metavar="ID,ID,...", help="Of the servers.")]
SessionId = Annotated[str, typer.Option(metavar="ID", help="Of the session.")]
Owner = Annotated[str, typer.Option(help="Of the session.")]
MaxResults = Annotated[
    int | None, typer.Option(min=1, max=1000, help="Most on one page: 1 to 1000.")
]
NextToken = Annotated[str | None, typer.Option(help="What the page before ended with.")]
Pixels = Annotated[int | None, typer.Option(min=1, help="Of the pictures, in pixels.")]


def close_servers(
    context: typer.Context,
    *,
    server_ids: ServerIds,
    force: Annotated[bool, typer.Option("--force", help="Even if sessions run there.")] = False,
) -> None:
    """Let no more sessions be placed on servers."""
    asked = [
        shapes.CloseServerRequestData(server_id=id, force=force or None)
        for id in ids("--server-ids", server_ids)
    ]
    ask(context.obj, "POST /closeServers", asked, shapes.CloseServersResponse)


def create_session(
    context: typer.Context,
    *,
    name: Annotated[str, typer.Option(help="What people call it.")],
    owner: Annotated[str, typer.Option(help="Whose session it is.")],
    type: Annotated[str, typer.Option(metavar="CONSOLE|VIRTUAL", help="In upper or lower case.")],
    init_file_path: Annotated[
        str | None, typer.Option(help="Script that starts it, below the server's init folder.")
    ] = None,
    autorun_file: Annotated[
        str | None, typer.Option(help="Program to run in it, below the server's autorun folder.")
    ] = None,
    autorun_file_arguments: Annotated[
        str | None, typer.Option(metavar="ARG,ARG,...", help='Its arguments; "quotes" keep commas.')
    ] = None,
    max_concurrent_clients: Annotated[
        int | None, typer.Option(min=1, max=100, help="Most connections at a time: 1 to 100.")
    ] = None,
    dcv_gl_enabled: Annotated[
        bool, typer.Option("--dcv-gl-enabled", help="With hardware OpenGL.")
    ] = False,
    permissions_file: Annotated[
        str | None, typer.Option(metavar="PATH|BASE64", help="Who may do what in it.")
    ] = None,
    requirements: Annotated[
        str | None, typer.Option(help="Which server: \"tag:gpu = 'yes'\", for example.")
    ] = None,
    storage_root: Annotated[
        str | None, typer.Option(help="Folder on the server for transferred files.")
    ] = None,
    enqueue_request: Annotated[
        str | None, typer.Option(ENQUEUE, metavar="[true|false]", help="Wait for a free server.")
    ] = None,
) -> None:
    """Create a session."""
    # Long only because each option is an argument here and a member there.
    asked = shapes.CreateSessionRequestData(
        name=name,
        owner=owner,
        type=session_type(type),
        # Every broker knows this one; `InitFile` is younger.
        init_file_path=init_file_path,
        autorun_file=autorun_file,
        autorun_file_arguments=listed("--autorun-file-arguments", autorun_file_arguments) or None,
        max_concurrent_clients=max_concurrent_clients,
        dcv_gl_enabled=dcv_gl_enabled or None,
        permissions_file=None if permissions_file is None else permissions(permissions_file),
        requirements=requirements,
        storage_root=storage_root,
        enqueue_request=None if enqueue_request is None else truth(ENQUEUE, enqueue_request),
    )
    ask(context.obj, "POST /createSessions", [asked], shapes.CreateSessionsResponse)


def delete_session(
    context: typer.Context,
    *,
    session_id: SessionId,
    owner: Owner,
    force: Annotated[
        bool, typer.Option("--force", help="Forget it, whatever its server says.")
    ] = False,
) -> None:
    """End a session."""
    asked = shapes.DeleteSessionRequestData(session_id=session_id, owner=owner, force=force or None)
    ask(context.obj, "POST /deleteSessions", [asked], shapes.DeleteSessionsResponse)


def describe_servers(
    context: typer.Context,
    *,
    server_ids: Annotated[
        str | None, typer.Option(metavar="ID,ID,...", help="Default: all.")
    ] = None,
    max_results: MaxResults = None,
    next_token: NextToken = None,
) -> None:
    """Describe servers."""
    asked = shapes.DescribeServersRequestData(
        server_ids=None if server_ids is None else ids("--server-ids", server_ids),
        max_results=max_results,
        next_token=next_token,
    )
    ask(context.obj, "POST /describeServers", asked, shapes.DescribeServersResponse)


def describe_sessions(
    context: typer.Context,
    *,
    session_ids: Annotated[
        str | None, typer.Option(metavar="ID,ID,...", help="Default: all.")
    ] = None,
    owner: Annotated[str | None, typer.Option(help="Only the sessions of this one.")] = None,
    max_results: MaxResults = None,
    next_token: NextToken = None,
) -> None:
    """Describe sessions."""
    asked = shapes.DescribeSessionsRequestData(
        session_ids=None if session_ids is None else ids("--session-ids", session_ids),
        filters=None if owner is None else (shapes.KeyValuePair(key="owner", value=owner),),
        max_results=max_results,
        next_token=next_token,
    )
    ask(context.obj, "POST /describeSessions", asked, shapes.DescribeSessionsResponse)


def get_session_connection_data(
    context: typer.Context,
    *,
    session_id: SessionId,
    user: Annotated[str, typer.Option(help="Who connects.")],
) -> None:
    """Fetch what a user needs to connect to a session."""
    path = "/".join(segment(*each) for each in (("--session-id", session_id), ("--user", user)))
    answer = shapes.GetSessionConnectionDataResponse
    ask(context.obj, f"GET /sessionConnectionData/{path}", None, answer)


def get_session_screenshots(
    context: typer.Context,
    *,
    session_ids: Annotated[str, typer.Option(metavar="ID,ID,...", help="Of the sessions.")],
    max_width: Pixels = None,
    max_height: Pixels = None,
) -> None:
    """Take pictures of sessions."""
    asked = [
        shapes.GetSessionScreenshotRequestData(
            session_id=id, max_width=max_width, max_height=max_height
        )
        for id in ids("--session-ids", session_ids)
    ]
    ask(context.obj, "POST /getSessionScreenshots", asked, shapes.GetSessionScreenshotsResponse)


def open_servers(context: typer.Context, *, server_ids: ServerIds) -> None:
    """Let sessions be placed on servers."""
    asked = [shapes.OpenServerRequestData(server_id=id) for id in ids("--server-ids", server_ids)]
    ask(context.obj, "POST /openServers", asked, shapes.OpenServersResponse)


def update_session_permissions(
    context: typer.Context,
    *,
    session_id: SessionId,
    owner: Owner,
    permission_file: Annotated[
        str,
        typer.Option(
            "--permission-file", "--permissions-file", metavar="PATH|BASE64", help="The new ones."
        ),
    ],
) -> None:
    """Replace the permissions of a session."""
    asked = shapes.UpdateSessionPermissionsRequestData(
        session_id=session_id, owner=owner, permissions_file=permissions(permission_file)
    )
    answer = shapes.UpdateSessionPermissionsResponse
    ask(context.obj, "PUT /sessionPermissions", [asked], answer)


COMMANDS: tuple[Callable[..., None], ...] = (
    close_servers,
    create_session,
    delete_session,
    describe_servers,
    describe_sessions,
    get_session_connection_data,
    get_session_screenshots,
    open_servers,
    update_session_permissions,
)
"""As the list of commands shows them."""
