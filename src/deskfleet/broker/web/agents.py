"""The door for agents and for what checks connection tokens."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from http import HTTPStatus
from urllib.parse import parse_qs
from xml.sax.saxutils import escape

from starlette.requests import Request
from starlette.responses import Response
from starlette.websockets import WebSocket, WebSocketDisconnect

from deskfleet.broker.service.convergence import AgentSession
from deskfleet.broker.service.house import House
from deskfleet.broker.web.limits import MAX_FORM_BYTES, body_of
from deskfleet.broker.web.throttle import LINKS_PER_MINUTE, Buckets, Pace
from deskfleet.errors import (
    Forbidden,
    Invalid,
    Missing,
    ProtocolError,
    Stale,
    StoreFailed,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from deskfleet.gate import vouch
from deskfleet.observe import seldom
from deskfleet.wire.messages import FromBroker, decode_from_agent, encode

log = logging.getLogger(__name__)

HELLO_SECONDS = 10.0
SEND_SECONDS = 30.0
"""An agent that doesn't take a message for this long is given up."""

LAST_WORDS_SECONDS = 2.0
OVERSLEPT = 1.5

VERIFIER_FIELDS = ("sessionId", "authenticationToken", "clientAddress")

POLICY_VIOLATION = 1008
GOING_AWAY = 1001


class Agents:
    def __init__(self, house: House) -> None:
        self._house = house
        self._links: Buckets[str] = Buckets(LINKS_PER_MINUTE, 60.0, house.clock.monotonic)

    async def validate_token(self, request: Request) -> Response:
        """Answer the verifier protocol of desktop servers: form in, XML out; a no is a 200, too.

        Whatever is wrong with a request is a no in their words: they know no others.
        """
        asked: dict[str, str] = {}
        try:
            asked = await _asked(request)
            user = await self._house.verifier.admit(
                asked["sessionId"], asked["authenticationToken"], asked["clientAddress"]
            )
        except (Invalid, TooLarge, Missing, Unauthenticated) as error:
            address = request.client.host if request.client else ""
            log.info(
                "token.refused",
                extra={
                    "address": address,
                    **seldom(address),
                    "session_id": asked.get("sessionId", "")[:64],
                    "client": asked.get("clientAddress", "")[:64],
                    "reason": error.message,
                },
            )
            return _verdict("no", f"<message>{escape(error.message)}</message>")
        return _verdict("yes", f"<username>{escape(user)}</username>")

    async def link(self, socket: WebSocket) -> None:
        """Serve one agent link from its hello to its end."""
        try:
            client = await self._house.access.agent(_bearer(socket))
            if self._links.take(client.id):
                raise Unavailable("this agent begins too many links")
        except Unauthenticated:
            # Before a link is accepted, a close of any code is the answer 403.
            await socket.close(POLICY_VIOLATION)
            return
        except (Unavailable, StoreFailed):
            # Nothing is wrong with the token: it must not be thrown away.
            await socket.send_denial_response(Response(status_code=HTTPStatus.SERVICE_UNAVAILABLE))
            return
        vouch(socket.scope)
        await socket.accept()

        async def send(message: FromBroker) -> None:
            try:
                async with asyncio.timeout(SEND_SECONDS):
                    await socket.send_text(encode(message).decode())
            except (WebSocketDisconnect, RuntimeError, OSError) as error:
                raise Unavailable("the server was lost meanwhile") from error

        server_id = client.id
        agent = self._house.links.new(server_id, send, era=client.token_era)
        try:
            await self._serve(socket, agent)
        except (Forbidden, ProtocolError, Stale) as error:
            log.warning("link.refused", extra={"server_id": server_id, "reason": error.message})
        except (WebSocketDisconnect, TimeoutError, ConnectionError, Unavailable, StoreFailed):
            log.info("link.cut", extra={"server_id": server_id})
        except Exception:
            log.exception("link.failed", extra={"server_id": server_id})
        finally:
            self._house.links.part(agent)
            with contextlib.suppress(RuntimeError, WebSocketDisconnect):
                await socket.close(GOING_AWAY)

    async def _serve(self, socket: WebSocket, agent: AgentSession) -> None:
        async with asyncio.timeout(HELLO_SECONDS):
            first = await _text(socket)
        await self._house.links.greet(agent, decode_from_agent(first))
        tasks = [
            asyncio.create_task(self._hear(socket, agent)),
            asyncio.create_task(agent.write()),
            asyncio.create_task(agent.converge()),
            asyncio.create_task(agent.ended.wait()),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _hear(self, socket: WebSocket, agent: AgentSession) -> None:
        silence, clock = agent.link.heartbeat_seconds, self._house.clock
        pace = Pace(clock.monotonic)
        while True:
            asked = clock.monotonic()
            try:
                async with asyncio.timeout(silence):
                    text = await _text(socket)
            except WebSocketDisconnect:
                # Its last words count as well.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LAST_WORDS_SECONDS):
                        await agent.written.wait()
                raise
            except TimeoutError:
                now = clock.monotonic()
                # Where this broker was stopped itself, what agents said meanwhile is still to come.
                overslept = now - asked > OVERSLEPT * silence
                if agent.link.is_silent(now) and not overslept:
                    raise ProtocolError("the agent is silent") from None
                continue
            heard = decode_from_agent(text)
            wait = 0.0 if agent.camera.awaits(heard) else pace.take(len(text))
            message = agent.link.receive(heard, clock.monotonic())
            if message is not None:
                # Written by itself: behind what waits for a store, pings would wait, too.
                agent.take(message)
            if wait:
                await asyncio.sleep(wait)


async def _asked(request: Request) -> dict[str, str]:
    """Read the form, whatever its content type; a field that is missing is empty."""
    body = await body_of(request, MAX_FORM_BYTES)
    try:
        form = parse_qs(body.decode(), max_num_fields=20)
    except (UnicodeDecodeError, ValueError) as error:
        raise Invalid("the form can't be read") from error
    fields = {name: form.get(name, [""]) for name in VERIFIER_FIELDS}
    if any(len(values) > 1 for values in fields.values()):
        raise Invalid("the form has a field twice")
    return {name: values[0] for name, values in fields.items()}


def _bearer(socket: WebSocket) -> str:
    scheme, _, token = socket.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        raise Unauthenticated
    return token.strip()


async def _text(socket: WebSocket) -> str:
    try:
        return await socket.receive_text()
    except KeyError as error:
        raise ProtocolError("a message must be text") from error


def _verdict(result: str, inner: str) -> Response:
    return Response(
        f'<auth result="{result}">{inner}</auth>',
        headers={"Cache-Control": "no-store"},
        media_type="text/xml",
    )
