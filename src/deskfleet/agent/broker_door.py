"""The brokers as an agent meets them: enrolment, tokens, and the check of connection tokens.

Several broker addresses are tried in turn. A broker that can't be reached is `Unavailable`; one
that refuses this agent is `Forbidden`.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree as ET

import httpx

from deskfleet.agent.identity import Identity
from deskfleet.errors import Forbidden, SetupFailed, Unavailable, unreached
from deskfleet.ports import Clock
from deskfleet.settings import AGENT_PORT

LIMIT_SECONDS = 10.0
RENEWAL = 0.8
"""The part of a token's life after which a new one is asked for."""
UNAUTHORIZED = {400, 401, 403}


class BrokerDoor:
    def __init__(self, urls: Sequence[str], context: ssl.SSLContext, clock: Clock) -> None:
        self.context = context
        self._urls = list(urls)
        self._clock = clock
        # Requests are rare; a kept connection would mostly be a dead one, which costs an attempt.
        limits = httpx.Limits(max_keepalive_connections=0)
        self._http = httpx.AsyncClient(verify=context, timeout=LIMIT_SECONDS, limits=limits)
        self._token: tuple[float, str] | None = None

    @property
    def url(self) -> str:
        """Return the broker that is asked at present."""
        return self._urls[0]

    def turn(self) -> None:
        """Ask the next broker from now on: this one is no good. A token is good at all of them."""
        self._urls.append(self._urls.pop(0))

    def drop_token(self) -> None:
        """Ask for another token: this one is refused."""
        self._token = None

    async def close(self) -> None:
        await self._http.aclose()

    async def enrol(self, statement: str | None, name: str) -> Identity:
        """Register this agent by a software statement (RFC 7591). Raises `Forbidden`, and
        `SetupFailed` where agents have no business.

        A broker that has no time for it now is `Unavailable`: that is no refusal. Without a
        statement only a broker that asks for none takes it.
        """
        shown = {} if statement is None else {"software_statement": statement}
        answer = await self._post("/register", json={**shown, "client_name": name})
        if answer.status_code == httpx.codes.TOO_MANY_REQUESTS or answer.is_server_error:
            raise Unavailable(f"the broker answered {answer.status_code}")
        if answer.status_code == httpx.codes.NOT_FOUND:
            raise SetupFailed(
                f"{answer.request.url.copy_with(path='')} is no agent port of a broker:"
                f" that is {AGENT_PORT}, unless its administrator has chosen another"
            )
        if answer.status_code != httpx.codes.CREATED:
            raise Forbidden(f"the broker does not enrol this server: {_reason(answer)}")
        body = answer.json()
        return Identity(body["client_id"], body["client_secret"])

    async def token(self, identity: Identity) -> str:
        """Return a token for the agent link. Raises `Forbidden` for an identity that is void."""
        now = self._clock.monotonic()
        if self._token is not None and now < self._token[0]:
            return self._token[1]
        answer = await self._post(
            "/oauth2/token",
            data={"grant_type": "client_credentials"},
            auth=(identity.client_id, identity.client_secret),
        )
        if answer.status_code in UNAUTHORIZED:
            raise Forbidden(f"the broker does not know this server: {_reason(answer)}")
        if answer.is_error:
            raise Unavailable(f"the broker answered {answer.status_code}")
        body = answer.json()
        self._token = now + RENEWAL * body["expires_in"], body["access_token"]
        return str(self._token[1])

    async def check_token(self, session_id: str, token: str, client_address: str) -> str | None:
        """Return the user that a connection token lets into a session, None for nobody."""
        answer = await self._post(
            "/agent/validate-authentication-token",
            data={
                "sessionId": session_id,
                "authenticationToken": token,
                "clientAddress": client_address,
            },
        )
        if answer.is_error:
            raise Unavailable(f"the broker answered {answer.status_code}")
        try:
            verdict = ET.fromstring(answer.text)  # noqa: S314 - our own broker's, over TLS
        except ET.ParseError as error:
            raise Unavailable("the broker's answer can't be read") from error
        return verdict.findtext("username") if verdict.get("result") == "yes" else None

    async def _post(self, path: str, **request: Any) -> httpx.Response:
        try:
            return await self._http.post(self.url + path, **request)
        except httpx.HTTPError as error:
            raise Unavailable(f"{self.url} can't be reached: {unreached(error)}") from error


def _reason(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"])
    except (ValueError, KeyError, TypeError):
        return f"status {answer.status_code}"
