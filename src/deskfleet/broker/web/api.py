"""The nine operations: decode, one use case each, render.

Whether a caller may call is settled before a handler runs (`app.py`), over a fleet that is caught
up since the request came: reads need no look of their own. For a caller that acts for one owner,
each use case is told so (`mine`): the sessions of others aren't there. Batches answer 200 with
their refusals inside, in the order of the request.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from starlette.requests import Request
from starlette.responses import Response

from deskfleet.broker.service.blocks import Blocks
from deskfleet.broker.service.house import House
from deskfleet.broker.service.replica import Entries
from deskfleet.broker.service.room import Room
from deskfleet.broker.service.screenshots import Wish
from deskfleet.broker.service.servers import Closing
from deskfleet.broker.service.sessions import Deletion, PermissionsUpdate, SessionView
from deskfleet.broker.web import rendering, shapes
from deskfleet.broker.web.bodies import decode_body, to_request
from deskfleet.broker.web.held import held
from deskfleet.broker.web.limits import body_of
from deskfleet.broker.web.rights import settled, settled_client
from deskfleet.core.fleet import Place, place_of
from deskfleet.core.pictures import MOST_PIXELS
from deskfleet.core.placement import Refusal
from deskfleet.core.records import KIND_OF, Facts, Session
from deskfleet.core.server import Availability
from deskfleet.core.session import Seen, State, Substate, replace
from deskfleet.errors import Invalid

PAGE = 1000
MAX_USER = 256
"""Characters."""

_UNFIT = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ufffe\uffff]")


@dataclass(frozen=True, slots=True)
class Defaults:
    """What holds where a request says nothing, and what a request may not exceed."""

    screenshot_width: int
    screenshot_height: int
    screenshot_format: str
    max_arguments: int
    max_argument_length: int


class Api:
    def __init__(self, house: House, defaults: Defaults) -> None:
        self._house = house
        self._defaults = defaults
        self._server_shapes: dict[str, tuple[Facts, shapes.Server]] = {}
        house.replica.subscribe(self._forget_changed)
        rows = house.sessions.showing(lambda view: rendering.row(self._session(view)))
        self._rows = Blocks(rows, rendering.join)

    async def describe_sessions(self, request: Request) -> Response:
        asked = decode_body(await body_of(request), shapes.DescribeSessionsRequestData)
        owners, tags = _filters(asked.filters or ())
        mine = settled(request).owner
        if mine is not None:
            owners.append(mine)
        query = ["sessions", asked.session_ids or (), owners, tags]
        house = self._house
        after = house.paging.after(asked.next_token, query)
        rows = house.sessions.select(asked.session_ids or (), owners, tags, after)
        page, token = house.paging.page(rows, asked.max_results or PAGE, query, _itself)
        return self._answer(
            rendering.SessionRows(
                request_id=house.ids.uuid(),
                sessions=self._rows.of(page),
                next_token=token,
            )
        )

    async def describe_servers(self, request: Request) -> Response:
        asked = decode_body(await body_of(request), shapes.DescribeServersRequestData)
        query = ["servers", asked.server_ids or ()]
        house, mine = self._house, settled(request).owner
        after = house.paging.after(asked.next_token, query)
        rows = house.servers.select(asked.server_ids or (), after)
        page, token = house.paging.page(rows, asked.max_results or PAGE, query, place_of)
        servers = []
        for server in page:
            view = house.servers.view(server)
            available = Availability.UNAVAILABLE if view.unavailability else Availability.AVAILABLE
            servers.append(
                rendering.server_shape(
                    _known_to(mine, view.facts),
                    availability=available,
                    unavailability_reason=view.unavailability,
                    console_sessions=view.seats.console,
                    virtual_sessions=view.seats.virtual,
                )
            )
        return self._answer(
            shapes.DescribeServersResponse(
                request_id=house.ids.uuid(), servers=servers, next_token=token
            )
        )

    async def create_sessions(self, request: Request) -> Response:
        asked = decode_body(await body_of(request), list[shapes.CreateSessionRequestData])
        limits = self._defaults
        wishes = [
            to_request(
                item,
                max_arguments=limits.max_arguments,
                max_argument_length=limits.max_argument_length,
            )
            for item in asked
        ]
        granted = iter(
            await self._house.sessions.create(
                [wish for wish in wishes if not isinstance(wish, Refusal)],
                mine=settled(request).owner,
            )
        )
        outcomes = [wish if isinstance(wish, Refusal) else next(granted) for wish in wishes]
        return self._batch(
            shapes.CreateSessionsResponse,
            shapes.Session,
            (
                self._created(outcome)
                if isinstance(outcome, Session)
                else shapes.UnsuccessfulCreateSessionRequestData(
                    create_session_request_data=item, failure_reason=outcome.reason
                )
                for item, outcome in zip(asked, outcomes, strict=True)
            ),
        )

    async def delete_sessions(self, request: Request) -> Response:
        asked = decode_body(await body_of(request), list[shapes.DeleteSessionRequestData])
        deletions = [
            Deletion(item.session_id or "", item.owner or "", bool(item.force)) for item in asked
        ]
        answers = await self._house.sessions.delete(deletions, mine=settled(request).owner)
        return self._batch(
            shapes.DeleteSessionsResponse,
            shapes.DeleteSessionSuccessfulResponse,
            (
                shapes.DeleteSessionUnsuccessfulResponse(
                    session_id=item.session_id, failure_reason=answer.reason
                )
                if isinstance(answer, Refusal)
                else shapes.DeleteSessionSuccessfulResponse(
                    session_id=item.session_id or "", state=answer
                )
                for item, answer in zip(asked, answers, strict=True)
            ),
        )

    async def update_session_permissions(self, request: Request) -> Response:
        asked = decode_body(
            await body_of(request), list[shapes.UpdateSessionPermissionsRequestData]
        )
        updates = [
            PermissionsUpdate(item.session_id or "", item.owner or "", item.permissions_file or "")
            for item in asked
        ]
        answers = await self._house.sessions.update_permissions(
            updates, mine=settled(request).owner
        )
        return self._batch(
            shapes.UpdateSessionPermissionsResponse,
            shapes.UpdateSessionPermissionsSuccessfulResponse,
            (
                shapes.UpdateSessionPermissionsUnsuccessfulResponse(
                    session_id=item.session_id, failure_reason=answer.reason
                )
                if answer
                else shapes.UpdateSessionPermissionsSuccessfulResponse(
                    session_id=item.session_id or ""
                )
                for item, answer in zip(asked, answers, strict=True)
            ),
        )

    async def get_session_connection_data(self, request: Request) -> Response:
        session_id, user = _decoded(request, "sessionId"), _decoded(request, "user")
        if not 0 < len(user) <= MAX_USER or _UNFIT.search(user):
            # It travels in a token and in XML, and is nobody's name.
            raise Invalid("the user is empty, too long, or holds characters that can't be printed")
        mine = settled(request).owner
        view, token = await self._house.sessions.connect(
            session_id, user, mine=mine, client=settled_client(request)
        )
        return self._answer(
            shapes.GetSessionConnectionDataResponse(
                session=self._session(view, user), connection_token=token
            )
        )

    async def get_session_screenshots(self, request: Request) -> Response:
        asked = decode_body(await body_of(request), list[shapes.GetSessionScreenshotRequestData])
        room = self._house.screenshots.room()
        return await held(self._screenshots(asked, room, settled(request).owner), room)

    async def _screenshots(
        self, asked: list[shapes.GetSessionScreenshotRequestData], room: Room, mine: str | None
    ) -> Response:
        answers = await self._house.screenshots.take(
            [self._wish(item) for item in asked], room, mine=mine
        )
        return self._batch(
            shapes.GetSessionScreenshotsResponse,
            shapes.GetSessionScreenshotSuccessfulResponse,
            (
                shapes.GetSessionScreenshotUnsuccessfulResponse(
                    get_session_screenshot_request_data=item, failure_reason=answer.reason
                )
                if isinstance(answer, Refusal)
                else rendering.screenshot_shape(item.session_id or "", answer)
                for item, answer in zip(asked, answers, strict=True)
            ),
        )

    async def open_servers(self, request: Request) -> Response:
        asked = decode_body(await body_of(request), list[shapes.OpenServerRequestData])
        answers = await self._house.servers.open([item.server_id or "" for item in asked])
        return self._batch(
            shapes.OpenServersResponse,
            shapes.OpenServerSuccessfulResponse,
            (
                shapes.OpenServerUnsuccessfulResponse(
                    open_server_request_data=item,
                    failure_code=answer.code,
                    failure_reason=answer.reason,
                )
                if answer
                else shapes.OpenServerSuccessfulResponse(server_id=item.server_id or "")
                for item, answer in zip(asked, answers, strict=True)
            ),
        )

    async def close_servers(self, request: Request) -> Response:
        asked = decode_body(await body_of(request), list[shapes.CloseServerRequestData])
        answers = await self._house.servers.close(
            [Closing(item.server_id or "", bool(item.force)) for item in asked]
        )
        return self._batch(
            shapes.CloseServersResponse,
            shapes.CloseServerSuccessfulResponse,
            (
                shapes.CloseServerUnsuccessfulResponse(
                    close_server_request_data=item,
                    failure_code=answer.code,
                    failure_reason=answer.reason,
                )
                if answer
                else shapes.CloseServerSuccessfulResponse(server_id=item.server_id or "")
                for item, answer in zip(asked, answers, strict=True)
            ),
        )

    def _batch(
        self,
        answer: Callable[..., shapes.Answer],
        successful: type[shapes.Answer],
        entries: Iterable[shapes.Answer],
    ) -> Response:
        """Answer what became of each entry: those of the type `successful` stand in their list."""
        granted: list[shapes.Answer] = []
        refused: list[shapes.Answer] = []
        for entry in entries:
            (granted if isinstance(entry, successful) else refused).append(entry)
        return self._answer(
            answer(
                request_id=self._house.ids.uuid(),
                successful_list=granted,
                unsuccessful_list=refused,
            )
        )

    def _wish(self, item: shapes.GetSessionScreenshotRequestData) -> Wish:
        width, height = item.max_width, item.max_height
        if width is not None and width < 1:
            raise Invalid("MaxWidth must be greater than 0")
        if height is not None and height < 1:
            raise Invalid("MaxHeight must be greater than 0")
        return Wish(
            session_id=item.session_id or "",
            max_width=min(width or self._defaults.screenshot_width, MOST_PIXELS),
            max_height=min(height or self._defaults.screenshot_height, MOST_PIXELS),
            format=self._defaults.screenshot_format,
        )

    def _created(self, session: Session) -> shapes.Session:
        # The answer to a create always says so, also where a place was found at once.
        seen = Seen(State.CREATING, Substate.SESSION_PLACING, session.reason)
        return self._session(SessionView(session, seen, None, None))

    def _session(self, view: SessionView, user: str | None = None) -> shapes.Session:
        return rendering.session_shape(
            view.session,
            state=view.seen.state,
            substate=view.seen.substate,
            reason=view.seen.reason,
            report=view.report,
            server=None if view.facts is None else self._server(view.facts),
            user=user,
        )

    def _forget_changed(self, entries: Entries) -> None:
        for entry in entries:
            if entry.key[0] == KIND_OF[Facts]:
                self._server_shapes.pop(entry.key[1], None)

    def _server(self, facts: Facts) -> shapes.Server:
        known = self._server_shapes.get(facts.id)
        if known is not None and known[0] is facts:
            return known[1]
        shape = rendering.session_server_shape(facts)
        self._server_shapes[facts.id] = (facts, shape)
        return shape

    @staticmethod
    def _answer(answer: shapes.Answer) -> Response:
        return rendering.Answered(answer)


def _known_to(mine: str | None, facts: Facts) -> Facts:
    """Return what a caller may know of a server: not who else is logged in, if it has an owner."""
    if mine is None:
        return facts
    users = tuple(name for name in facts.host.logged_in_users if name == mine)
    return replace(facts, host=replace(facts.host, logged_in_users=users))


def _decoded(request: Request, name: str) -> str:
    """Return a part of the path. Raises `Invalid`."""
    encoded: str = request.path_params[name]
    try:
        return unquote_to_bytes(encoded.encode("latin-1")).decode()
    except UnicodeDecodeError:
        raise Invalid(f"the {name} in the path is not percent-encoded UTF-8") from None


def _itself(place: Place) -> Place:
    return place


def _filters(
    filters: tuple[shapes.KeyValuePair, ...],
) -> tuple[list[str], list[tuple[str, str]]]:
    owners, tags = [], []
    for one in filters:
        if one.key == "owner":
            owners.append(one.value)
        elif one.key.startswith("tag:"):
            tags.append((one.key[4:], one.value))
        else:
            raise Invalid(f"Filters: {one.key!r} is neither owner nor tag:<key>")
    return owners, tags
