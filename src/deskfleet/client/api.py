"""The client of the session management API: its nine operations, paging, and waiting.

    with Client("https://broker:8443", credentials=ClientPassword(id, password)) as client:
        for session in client.sessions(owner="ada"):
            print(session.name, session.state)

Laws: one method is one request, but for `sessions`, `servers`, the pages and `wait_for`. What a
broker refuses as a whole is raised (`problems.py`); what it refuses in part is in the answer.

Must not: be used by the broker or an agent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from deskfleet.client.problems import Refused, Unreachable, Unreadable
from deskfleet.client.shapes import (
    CloseServerRequestData,
    CloseServersResponse,
    CreateSessionRequestData,
    CreateSessionsResponse,
    DeleteSessionRequestData,
    DeleteSessionsResponse,
    DescribeServersRequestData,
    DescribeServersResponse,
    DescribeSessionsRequestData,
    DescribeSessionsResponse,
    GetSessionConnectionDataResponse,
    GetSessionScreenshotRequestData,
    GetSessionScreenshotsResponse,
    KeyValuePair,
    OpenServerRequestData,
    OpenServersResponse,
    Server,
    Session,
    UpdateSessionPermissionsRequestData,
    UpdateSessionPermissionsResponse,
)
from deskfleet.client.tokens import Credentials
from deskfleet.client.transport import Transport

T = TypeVar("T")

FIRST_PAUSE = 0.2
LONGEST_PAUSE = 1.0
"""Seconds between two looks at a session that is waited for."""

_FORWARD = ("CREATING", "READY", "DELETING", "DELETED")
"""States only move this way; UNKNOWN stands aside."""


class Client:
    """Safe to share between threads."""

    def __init__(
        self,
        url: str,
        *,
        credentials: Credentials,
        ca_file: Path | None = None,
        verify: bool = True,
        timeout: float = 30.0,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        wire: httpx.BaseTransport | None = None,
    ) -> None:
        """Prepare; nothing is sent yet.

        Without a `ca_file` the system's authorities are trusted. `timeout` is in seconds, for
        each network step. Raises `SetupFailed` where the URL or the file is no good.
        """
        self._monotonic = monotonic
        self._sleep = sleep
        self._transport = Transport(
            url,
            credentials=credentials,
            ca_file=ca_file,
            verify=verify,
            timeout=timeout,
            monotonic=monotonic,
            sleep=sleep,
            wire=wire,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._transport.close()

    def describe_sessions(
        self,
        *,
        session_ids: Sequence[str] = (),
        owner: str | None = None,
        tags: Mapping[str, str] | None = None,
        max_results: int | None = None,
        next_token: str | None = None,
    ) -> DescribeSessionsResponse:
        """Describe the sessions that match all that is given. Tags are those of their servers."""
        filters = [] if owner is None else [KeyValuePair(key="owner", value=owner)]
        filters += [
            KeyValuePair(key=f"tag:{key}", value=value) for key, value in (tags or {}).items()
        ]
        asked = DescribeSessionsRequestData(
            session_ids=tuple(session_ids) or None,
            filters=tuple(filters) or None,
            max_results=max_results,
            next_token=next_token,
        )
        return self._call("POST", "/describeSessions", asked, DescribeSessionsResponse)

    def session_pages(
        self,
        *,
        session_ids: Sequence[str] = (),
        owner: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> Iterator[DescribeSessionsResponse]:
        def page(token: str | None) -> DescribeSessionsResponse:
            return self.describe_sessions(
                session_ids=session_ids, owner=owner, tags=tags, next_token=token
            )

        return _pages(page, lambda answer: answer.next_token)

    def sessions(
        self,
        *,
        session_ids: Sequence[str] = (),
        owner: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> Iterator[Session]:
        for page in self.session_pages(session_ids=session_ids, owner=owner, tags=tags):
            yield from page.sessions

    def describe_servers(
        self,
        *,
        server_ids: Sequence[str] = (),
        max_results: int | None = None,
        next_token: str | None = None,
    ) -> DescribeServersResponse:
        asked = DescribeServersRequestData(
            server_ids=tuple(server_ids) or None, max_results=max_results, next_token=next_token
        )
        return self._call("POST", "/describeServers", asked, DescribeServersResponse)

    def server_pages(self, *, server_ids: Sequence[str] = ()) -> Iterator[DescribeServersResponse]:
        def page(token: str | None) -> DescribeServersResponse:
            return self.describe_servers(server_ids=server_ids, next_token=token)

        return _pages(page, lambda answer: answer.next_token)

    def servers(self, *, server_ids: Sequence[str] = ()) -> Iterator[Server]:
        for page in self.server_pages(server_ids=server_ids):
            yield from page.servers

    def create_sessions(
        self, requests: Sequence[CreateSessionRequestData]
    ) -> CreateSessionsResponse:
        """Create sessions. They are CREATING at first: see `wait_for`."""
        return self._call("POST", "/createSessions", requests, CreateSessionsResponse)

    def delete_sessions(
        self, requests: Sequence[DeleteSessionRequestData]
    ) -> DeleteSessionsResponse:
        return self._call("POST", "/deleteSessions", requests, DeleteSessionsResponse)

    def update_session_permissions(
        self, requests: Sequence[UpdateSessionPermissionsRequestData]
    ) -> UpdateSessionPermissionsResponse:
        return self._call("PUT", "/sessionPermissions", requests, UpdateSessionPermissionsResponse)

    def get_session_connection_data(
        self, session_id: str, user: str
    ) -> GetSessionConnectionDataResponse:
        """Return what `user` needs to connect to a READY session (see `links.link`)."""
        path = f"/sessionConnectionData/{quote(session_id, safe='')}/{quote(user, safe='')}"
        return self._call("GET", path, None, GetSessionConnectionDataResponse)

    def get_session_screenshots(
        self, requests: Sequence[GetSessionScreenshotRequestData]
    ) -> GetSessionScreenshotsResponse:
        return self._call("POST", "/getSessionScreenshots", requests, GetSessionScreenshotsResponse)

    def open_servers(self, server_ids: Sequence[str]) -> OpenServersResponse:
        asked = [OpenServerRequestData(server_id=id) for id in server_ids]
        return self._call("POST", "/openServers", asked, OpenServersResponse)

    def close_servers(
        self, server_ids: Sequence[str], *, force: bool = False
    ) -> CloseServersResponse:
        """Take servers out of placement; with `force` also those that run sessions."""
        asked = [CloseServerRequestData(server_id=id, force=force or None) for id in server_ids]
        return self._call("POST", "/closeServers", asked, CloseServersResponse)

    def wait_for(
        self,
        session_id: str,
        state: str,
        limit: float,
        *,
        seen: Callable[[Session], None] = lambda _: None,
    ) -> Session | None:
        """Return the session once it is in `state`, or past it, or `limit` seconds have passed.

        The caller looks at the state of what is returned. None is a session that the broker does
        not list (any more). A broker that fails meanwhile is asked again until the limit.
        """
        ends_at = self._monotonic() + limit
        pause = FIRST_PAUSE
        while True:
            last = self._monotonic() >= ends_at
            try:
                session = next(iter(self.sessions(session_ids=[session_id])), None)
            except (Unreachable, Refused) as error:
                if last or not (isinstance(error, Unreachable) or error.may_pass):
                    raise
            else:
                if session is not None:
                    seen(session)
                if last or session is None or _has_come(session.state, state):
                    return session
            self._sleep(min(pause, max(0.0, ends_at - self._monotonic())))
            pause = min(pause * 1.5, LONGEST_PAUSE)

    def _call(self, method: str, path: str, asked: object, kind: type[T]) -> T:
        content = None if asked is None else msgspec.json.encode(asked)
        answer = self._transport.send(method, path, content)
        try:
            return msgspec.json.decode(answer, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Unreadable(
                f"the answer to {path.split('/')[1]} can't be read: {error}"
            ) from error


def _pages(page: Callable[[str | None], T], next_token: Callable[[T], str | None]) -> Iterator[T]:
    token: str | None = None
    while True:
        answer = page(token)
        yield answer
        following = next_token(answer)
        if not following:
            return
        if following == token:
            raise Unreadable("the broker's pages have no end")
        token = following


def _has_come(now: str, wanted: str) -> bool:
    if now not in _FORWARD or wanted not in _FORWARD:
        return now == wanted
    return _FORWARD.index(now) >= _FORWARD.index(wanted)
