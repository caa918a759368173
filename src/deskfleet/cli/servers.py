"""The commands about servers. Built like those about sessions."""

from __future__ import annotations

from typing import Annotated

import typer

from deskfleet.cli.connection import Invocation
from deskfleet.cli.sessions import MaxResults, NextToken, listed, some
from deskfleet.client.shapes import DescribeServersResponse

ManyServers = Annotated[list[str] | None, typer.Argument(metavar="SERVER...", help="Their ids.")]
ServerIds = Annotated[
    list[str] | None, typer.Option(metavar="ID,ID...", help="The same as SERVER...")
]


def describe_servers(
    run: Invocation,
    *,
    server: ManyServers = None,
    server_ids: ServerIds = None,
    max_results: MaxResults = None,
    next_token: NextToken = None,
) -> None:
    """List servers."""
    ids = listed(server, server_ids)
    if max_results is None and next_token is None:
        pages = list(run.client.server_pages(server_ids=ids))
        servers = tuple(server for page in pages for server in page.servers)
        answer = DescribeServersResponse(request_id=pages[-1].request_id, servers=servers)
    else:
        answer = run.client.describe_servers(
            server_ids=ids, max_results=max_results, next_token=next_token
        )
    run.output.show_page(answer)


def open_servers(
    run: Invocation, *, server: ManyServers = None, server_ids: ServerIds = None
) -> None:
    """Let sessions be placed on servers."""
    run.output.finish(run.client.open_servers(some(listed(server, server_ids))))


def close_servers(
    run: Invocation,
    *,
    server: ManyServers = None,
    server_ids: ServerIds = None,
    force: Annotated[
        bool, typer.Option("--force", help="Even those that run sessions; these run on.")
    ] = False,
) -> None:
    """Let no more sessions be placed on servers."""
    run.output.finish(run.client.close_servers(some(listed(server, server_ids)), force=force))
