"""What a browser meets on a server: the page, the swap of a token for a cookie, the WebSocket.

`https://{Ip}:{Port}/?authToken={token}#{session id}` opens a session. The fragment never leaves
the browser, so the page posts it together with the token to `/connect`; a token that is refused
is told apart already at the navigation, by the session that it names itself.

Laws: a token is never in an answer, a log or a cookie. A WebSocket needs its own page's origin
and the session's cookie, and what it may do is decided anew at each connection. Nothing here
knows how desktops are run, or verifies a token: both are asked.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from deskfleet.agent.desktop.admission import Admission, Admissions, cookie_name, read_claims
from deskfleet.agent.desktop.attendance import Attendance, Close, Visit
from deskfleet.agent.desktop.desktops import Desktop, Desktops
from deskfleet.agent.desktop.groups import Groups
from deskfleet.agent.desktop.guard import Guard
from deskfleet.agent.desktop.headers import SecurityHeaders
from deskfleet.agent.desktop.pages import Pages
from deskfleet.agent.desktop.relay import DesktopSocket, relay
from deskfleet.agent.desktop.rfb import RfbFilter, rights_of
from deskfleet.agent.desktop.verdicts import Verdicts
from deskfleet.core.permissions import Feature
from deskfleet.errors import Unavailable
from deskfleet.gate import vouch
from deskfleet.machine import here
from deskfleet.observe import seldom
from deskfleet.ports import Clock, Signer, TokenCheck

log = logging.getLogger(__name__)

_BUNDLE = Path(__file__).parent / "page" / "bundle"
_MOST_BODY_BYTES = 16 * 1024
MAX_MESSAGE_BYTES = 1024 * 1024
"""Of one WebSocket message; the listener holds browsers to it."""
_CLOSE_SECONDS = 2.0


@dataclass(frozen=True)
class Refused:
    """A no, for a person and for the page."""

    status: int
    code: str
    message: str

    def json(self) -> Response:
        body = msgspec.json.encode({"code": self.code, "message": self.message})
        return Response(body, status_code=self.status, media_type="application/json")


_NOT_A_TOKEN = Refused(403, "token.refused", "This link is not valid. Ask for a new one.")
_EXPIRED = Refused(403, "token.expired", "This link has expired. Ask for a new one.")
_FOREIGN = Refused(403, "token.foreign", "This link belongs to another session.")
_NOT_HERE = Refused(
    403, "session.missing", "This session is not on this server; it may have ended."
)
_NOT_ADMITTED = Refused(403, "admission.missing", "Open this session with a new link.")
_NOT_ALLOWED = Refused(
    403, "permissions.display", "The permissions of this session do not let you see its desktop."
)
_UNSUPERVISED = Refused(
    403, "permissions.unsupervised", "You may be here only while the owner is connected."
)
_ENDED = Refused(
    410, "session.ended", "There is no desktop here any more; you may close this window."
)
_UNREACHABLE = Refused(503, "broker.unreachable", "Your link can't be checked right now.")
_UNCHECKED = Refused(503, "groups.unknown", "Your rights can't be checked right now.")
_BAD_REQUEST = Refused(400, "request.invalid", "The request is not valid.")
_BAD_ORIGIN = Refused(403, "origin.foreign", "This request comes from another site.")

_COOKIE: dict[str, Any] = {"path": "/", "secure": True, "httponly": True, "samesite": "strict"}


class ConnectRequest(msgspec.Struct, rename="camel"):
    session_id: str
    auth_token: str


@dataclass(frozen=True)
class Standing:
    """What an admitted visitor finds: a desktop, and what they may do there."""

    admission: Admission
    desktop: Desktop
    features: frozenset[Feature]

    @property
    def supervises(self) -> bool:
        return (
            self.admission.user == self.desktop.owner
            or Feature.UNSUPERVISED_ACCESS in self.features
        )


def build_entrance(
    desktops: Desktops,
    check: TokenCheck,
    attendance: Attendance,
    clock: Clock,
    signer: Signer,
    *,
    groups: Callable[[str], frozenset[str]] = here.groups_of,
    bundle: Path = _BUNDLE,
) -> Starlette:
    """Put the entrance of one server together; its listener holds to `MAX_MESSAGE_BYTES`."""
    entrance = _Entrance(desktops, check, attendance, clock, signer, groups, Pages(bundle))
    app = Starlette(
        routes=[
            Route("/", entrance.page),
            Route("/connect", entrance.connect, methods=["POST"]),
            Route("/admission/{session_id}", entrance.admission),
            Route("/bundle/{name}", entrance.file),
            Route("/health", entrance.health),
            WebSocketRoute("/rfb/{session_id}", entrance.rfb),
        ],
        middleware=[Middleware(SecurityHeaders), Middleware(Guard)],
    )
    # A slash too many makes another path; a redirect would name a host that a client chose.
    app.router.redirect_slashes = False
    return app


class _Entrance:
    def __init__(
        self,
        desktops: Desktops,
        check: TokenCheck,
        attendance: Attendance,
        clock: Clock,
        signer: Signer,
        groups: Callable[[str], frozenset[str]],
        pages: Pages,
    ) -> None:
        self._desktops = desktops
        self._verdicts = Verdicts(check, clock)
        self._attendance = attendance
        self._clock = clock
        self._groups = Groups(groups)
        self._pages = pages
        self._admissions = Admissions(clock, signer)

    async def health(self, _request: Request) -> Response:
        return Response(b'{"status":"ok"}', media_type="application/json")

    async def file(self, request: Request) -> Response:
        takes_gzip = "gzip" in request.headers.get("accept-encoding", "")
        return self._pages.file(request.path_params["name"], takes_gzip=takes_gzip)

    async def page(self, request: Request) -> Response:
        """Answer the navigation; a token that won't be accepted is refused here already."""
        token = request.query_params.get("authToken")
        if token is None:
            return self._pages.index()
        claims = read_claims(token)
        verdict = (
            _NOT_A_TOKEN
            if claims is None
            else await self._verify(request, claims.session_id, token, self._verdicts.look)
        )
        if not isinstance(verdict, Refused):
            return self._pages.index()
        self._log_refusal(verdict, request, claims.session_id if claims else "")
        if verdict.status == 503:
            # The page has the token, and asks again by itself.
            return self._pages.index(status=503)
        title = "This link does not open a desktop"
        return self._pages.refusal(status=verdict.status, title=title, message=verdict.message)

    async def connect(self, request: Request) -> Response:
        """Swap a token for the cookie of its session."""
        asked = await self._read_connect(request)
        if isinstance(asked, Refused):
            return asked.json()
        verdict = await self._verify(
            request, asked.session_id, asked.auth_token, self._verdicts.take
        )
        if isinstance(verdict, Refused):
            self._log_refusal(verdict, request, asked.session_id)
            return verdict.json()
        user, desktop = verdict
        log.info(
            "admission.granted",
            extra={"session_id": desktop.session_id, "user": user, "address": _address(request)},
        )
        answer = Response(status_code=204)
        _set_cookie(answer, desktop.session_id, self._admissions.grant(desktop.session_id, user))
        for name in self._admissions.ended(request.cookies, self._is_here):
            answer.delete_cookie(name, **_COOKIE)
        return answer

    async def admission(self, request: Request) -> Response:
        """Tell a page where it stands: what it may do, or why it is not let in (any more)."""
        standing = await self._standing(request)
        if isinstance(standing, Refused):
            return standing.json()
        about = {"name": standing.desktop.name, "features": sorted(standing.features)}
        answer = Response(msgspec.json.encode(about), media_type="application/json")
        renewed = self._admissions.renewal(standing.admission)
        if renewed is not None:
            _set_cookie(answer, standing.desktop.session_id, renewed)
        return answer

    async def rfb(self, browser: WebSocket) -> None:
        """Carry one browser's connection to its desktop from the first check to the last byte."""
        standing = _BAD_ORIGIN if not _same_origin(browser) else await self._standing(browser)
        if isinstance(standing, Refused):
            self._log_refusal(standing, browser, browser.path_params["session_id"])
            await browser.send_denial_response(standing.json())
            return
        desktop = standing.desktop
        visit = self._attendance.enter(
            session_id=desktop.session_id,
            user=standing.admission.user,
            page=browser.query_params.get("page", ""),
            supervises=standing.supervises,
            limit=desktop.max_clients,
        )
        reason = Close.FULL
        try:
            await browser.accept(subprotocol=_subprotocol(browser))
            if visit is not None:
                reason = await self._carry(browser, standing, visit)
        finally:
            if visit is not None:
                self._attendance.leave(visit)
        await _close(browser, reason)

    async def _carry(self, browser: WebSocket, standing: Standing, visit: Visit) -> Close:
        about = {
            "session_id": visit.session_id,
            "user": visit.user,
            "address": _address(browser),
        }
        try:
            desktop = await DesktopSocket.open(standing.desktop.socket)
        except Unavailable:
            log.warning("desktop.unreachable", extra=about)
            return Close.UNREACHABLE
        reason = Close.GONE
        try:
            self._attendance.arrive(visit)
            log.info("connection.opened", extra=about)
            client_filter = RfbFilter(rights_of(standing.features))
            reason = await relay(browser, desktop, client_filter, visit.asked_to_end)
        finally:
            desktop.close()
            log.info("connection.closed", extra={**about, "reason": reason.name.lower()})
        return reason

    def _is_here(self, session_id: str) -> bool:
        return self._desktops.find(session_id) is not None

    async def _read_connect(self, request: Request) -> ConnectRequest | Refused:
        if not _same_origin(request):
            return _BAD_ORIGIN
        if request.headers.get("content-type", "").partition(";")[0] != "application/json":
            return _BAD_REQUEST
        body = bytearray()
        try:
            async for part in request.stream():
                body += part
                if len(body) > _MOST_BODY_BYTES:
                    return _BAD_REQUEST
            return msgspec.json.decode(body, type=ConnectRequest)
        except (ClientDisconnect, msgspec.MsgspecError):
            return _BAD_REQUEST

    async def _verify(
        self, connection: HTTPConnection, session_id: str, token: str, check: TokenCheck
    ) -> tuple[str, Desktop] | Refused:
        """Ask who a token lets in; what can't be right is refused without asking."""
        claims = read_claims(token)
        if claims is None:
            return _NOT_A_TOKEN
        if claims.session_id != session_id:
            return _FOREIGN
        if self._desktops.find(session_id) is None:
            return _NOT_HERE
        try:
            user = await check(session_id, token, _address(connection))
        except Unavailable:
            return _UNREACHABLE
        if user is not None:
            vouch(connection.scope)
            try:
                found = await self._found(session_id, user)
            except Unavailable:
                return _UNCHECKED
            if found is None:
                return _NOT_HERE
            desktop, features = found
            return (user, desktop) if Feature.DISPLAY in features else _NOT_ALLOWED
        now = self._clock.now().timestamp()
        expired = claims.expires_at is not None and claims.expires_at <= now
        return _EXPIRED if expired else _NOT_A_TOKEN

    async def _standing(self, connection: HTTPConnection) -> Standing | Refused:
        session_id = connection.path_params["session_id"]
        admission = self._admissions.find(session_id, connection.cookies)
        if admission is None:
            return _NOT_ADMITTED
        vouch(connection.scope)
        try:
            found = await self._found(session_id, admission.user)
        except Unavailable:
            return _UNCHECKED
        if found is None:
            return _ENDED
        desktop, features = found
        if Feature.DISPLAY not in features:
            return _NOT_ALLOWED
        standing = Standing(admission, desktop, features)
        if not standing.supervises and not self._attendance.has_supervisor(session_id):
            return _UNSUPERVISED
        return standing

    async def _found(self, session_id: str, user: str) -> tuple[Desktop, frozenset[Feature]] | None:
        """Find a desktop, and decide what a user may do there.

        Raises `Unavailable` while groups that count aren't known.
        """
        groups: frozenset[str] | None = None
        while True:
            # Anew once the groups are known: until then permissions may change, and whom that
            # concerns is not among the visitors yet who are sent to be checked again.
            desktop = self._desktops.find(session_id)
            if desktop is None:
                return None
            if groups is not None or not desktop.permissions.depend_on_os_groups:
                known = groups or frozenset()
                return desktop, desktop.permissions.features(user, desktop.owner, known)
            groups = await self._groups.of(user)

    def _log_refusal(self, refused: Refused, connection: HTTPConnection, session_id: str) -> None:
        address = _address(connection)
        log.info(
            "admission.refused",
            extra={
                "session_id": session_id[:128],
                "reason": refused.code,
                "address": address,
                **seldom(address, refused.code),
            },
        )


def _set_cookie(answer: Response, session_id: str, admission: str) -> None:
    answer.set_cookie(cookie_name(session_id), admission, **_COOKIE)


def _address(connection: HTTPConnection) -> str:
    return connection.client.host if connection.client else ""


def _same_origin(connection: HTTPConnection) -> bool:
    """Compare the Origin, which a page can't forge, with the host that was asked."""
    try:
        origin = urlsplit(connection.headers.get("origin", ""))
    except ValueError:
        return False
    # Browsers leave the port out where it is that of https; some proxies put it in.
    host = connection.headers.get("host", "").lower().removesuffix(":443")
    asked = origin.netloc.lower().removesuffix(":443")
    return origin.scheme == "https" and bool(host) and asked == host


def _subprotocol(browser: WebSocket) -> str | None:
    return "binary" if "binary" in browser.scope.get("subprotocols", ()) else None


async def _close(browser: WebSocket, reason: Close) -> None:
    """Say goodbye, for as long as a browser that doesn't read may keep us."""
    with suppress(WebSocketDisconnect, RuntimeError, TimeoutError):
        async with asyncio.timeout(_CLOSE_SECONDS):
            await browser.close(code=reason, reason=reason.name.lower())
