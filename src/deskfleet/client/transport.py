"""One client's way to a broker: TLS, the access token, patience, and errors as they are.

Laws: a certificate is checked unless the caller said in so many words that it isn't. A 401 is
tried once again with a new token; a 429 or 503 that says when to come back is obeyed, a bounded
number of times and for a bounded time. Nothing else is sent twice: the caller can't know whether
the first one was done.

Must not: know the operations of the API, or put a secret into a URL or a message.
"""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import httpx
import msgspec

from deskfleet import __version__
from deskfleet.client.problems import CredentialsRefused, Refused, Unreachable, Unreadable
from deskfleet.client.tokens import AccessToken, ClientPassword, Credentials, Grant, Tokens
from deskfleet.errors import SetupFailed, plain, unreached

TRIES = 4
"""Of one request that is told to come back later."""

LONGEST_PAUSE = 15.0
"""Seconds; a broker that wants more is not waited for."""

_TOKEN_PATH = "/oauth2/token?grant_type=client_credentials"  # noqa: S105 (no password)
_REASON_CHARACTERS = 500
_BUSY = (httpx.codes.TOO_MANY_REQUESTS, httpx.codes.SERVICE_UNAVAILABLE)


class _Error(msgspec.Struct):
    error: str


class Watcher(Protocol):
    """Sees what is sent and what comes back, secrets and all."""

    def request(self, request: httpx.Request) -> None: ...

    def response(self, response: httpx.Response) -> None: ...


class Transport:
    def __init__(
        self,
        url: str,
        *,
        credentials: Credentials,
        ca_file: Path | None,
        verify: bool,
        timeout: float,
        monotonic: Callable[[], float],
        sleep: Callable[[float], None],
        wire: httpx.BaseTransport | None = None,
        watcher: Watcher | None = None,
    ) -> None:
        self._url = checked(url)
        self._credentials = credentials
        self._sleep = sleep
        self._tokens = Tokens(self._fetch_token, monotonic)

        def client(url: httpx.URL, context: ssl.SSLContext) -> httpx.Client:
            return httpx.Client(
                base_url=self._url,
                verify=context,
                timeout=timeout,
                transport=wire,
                event_hooks=_hooks(watcher),
                # The proxies of the environment are for others, not for this machine.
                trust_env=not _is_loopback(url.host),
                headers={"User-Agent": f"deskfleet/{__version__}", "Accept": "application/json"},
            )

        self._http = client(self._url, trust(ca_file, verify=verify))
        self._token_url, self._token_http = httpx.URL(_TOKEN_PATH), self._http
        if isinstance(credentials, ClientPassword) and credentials.token_url is not None:
            self._token_url = checked(credentials.token_url)
            # The fleet's private authority vouches for brokers; the world's vouch for this one.
            context = trust(ca_file, verify=verify, also_the_systems=True)
            self._token_http = client(self._token_url, context)

    def close(self) -> None:
        self._http.close()
        self._token_http.close()

    def send(self, method: str, path: str, content: bytes | None = None) -> bytes:
        """Return the body of a 200; raises `ClientError` for everything else."""
        headers = {} if content is None else {"Content-Type": "application/json"}
        request = self._http.build_request(method, path, content=content, headers=headers)
        if isinstance(self._credentials, AccessToken):
            return _body(self._sent_with(request, self._credentials.token))
        token = self._tokens.current()
        response = self._sent_with(request, token)
        if response.status_code == httpx.codes.UNAUTHORIZED:
            response = self._sent_with(request, self._tokens.replace(token))
        return _body(response)

    def _sent_with(self, request: httpx.Request, token: str) -> httpx.Response:
        try:
            request.headers["Authorization"] = f"Bearer {token}"
        except UnicodeEncodeError:
            raise SetupFailed("the access token holds characters that no token has") from None
        return self._sent(request)

    def _sent(self, request: httpx.Request, http: httpx.Client | None = None) -> httpx.Response:
        http = http or self._http
        response = self._sent_once(request, http)
        for _ in range(TRIES - 1):
            pause = _pause(response)
            if pause is None:
                break
            self._sleep(pause)
            response = self._sent_once(request, http)
        return response

    def _sent_once(self, request: httpx.Request, http: httpx.Client) -> httpx.Response:
        place = f"{request.url.scheme}://{request.url.netloc.decode()}"
        try:
            return http.send(request)
        except httpx.TimeoutException as error:
            raise Unreachable(f"{place} did not answer in time") from error
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise Unreachable(f"{place} can't be reached: {unreached(error)}") from error

    def _fetch_token(self) -> Grant:
        assert isinstance(self._credentials, ClientPassword)
        response = self._sent(self._token_request(self._credentials), self._token_http)
        if response.status_code in {400, 401, 403}:
            reason = f"the broker does not accept these client credentials: {_reason(response)}"
            raise CredentialsRefused(reason, status=response.status_code)
        if response.status_code != httpx.codes.OK:
            reason = f"no access token is given here: {_reason(response)}"
            raise Refused(reason, status=response.status_code)
        try:
            return msgspec.json.decode(response.content, type=Grant, strict=False)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Unreadable(f"the token endpoint's answer can't be read: {error}") from error

    def _token_request(self, credentials: ClientPassword) -> httpx.Request:
        """Ask in the query where the URL does so (as DCV's does), in the form otherwise."""
        url = self._token_url
        asked = {} if "grant_type" in url.params else {"grant_type": "client_credentials"}
        request = self._token_http.build_request(
            "POST", url, data=asked, headers={"Content-Type": "application/x-www-form-urlencoded"}
        )
        basic = httpx.BasicAuth(credentials.client_id, credentials.password)
        return next(basic.auth_flow(request))


def _hooks(watcher: Watcher | None) -> dict[str, list[Callable[..., Any]]]:
    if watcher is None:
        return {}
    return {"request": [watcher.request], "response": [watcher.response]}


def checked(url: str) -> httpx.URL:
    """Read an https URL; plain HTTP is for this machine alone. Raises `SetupFailed`."""
    shown = url.partition("?")[0]
    if "@" in shown:
        raise SetupFailed("a URL is no place for a password")
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise SetupFailed(f"{shown} is not a URL: {error}") from error
    plain = parsed.scheme == "http" and _is_loopback(parsed.host)
    if not parsed.host or not (parsed.scheme == "https" or plain):
        raise SetupFailed(f"{shown} is not an https URL")
    if parsed.port is not None and not 0 < parsed.port < 65_536:
        raise SetupFailed(f"{shown} has a port that there is not")
    return parsed


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def trust(
    ca_file: Path | None, *, verify: bool = True, also_the_systems: bool = False
) -> ssl.SSLContext:
    """Return what checks certificates: by the file alone where one is named, by default.

    Raises `SetupFailed` where the file is no good.
    """
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise SetupFailed(
            f"the authority's certificate {ca_file} can't be read: {plain(error)}"
        ) from None
    if also_the_systems:
        context.load_default_certs()
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _pause(response: httpx.Response) -> float | None:
    """Return how long to wait before the same request may be sent again; None for never."""
    if response.status_code not in _BUSY:
        return None
    try:
        seconds = float(response.headers.get("Retry-After", ""))
    except ValueError:
        return None
    return seconds if 0 <= seconds <= LONGEST_PAUSE else None


def _body(response: httpx.Response) -> bytes:
    if response.status_code == httpx.codes.OK:
        return response.content
    kind = CredentialsRefused if response.status_code == httpx.codes.UNAUTHORIZED else Refused
    raise kind(_reason(response), status=response.status_code)


def _reason(response: httpx.Response) -> str:
    """Return the broker's reason in one line; of what isn't a broker's, the status before it."""
    status = f"HTTP {response.status_code} {response.reason_phrase}".strip()
    try:
        return _line(msgspec.json.decode(response.content, type=_Error).error) or status
    except (msgspec.DecodeError, UnicodeDecodeError):
        line = _line(response.text)
    return status if line in {"", response.reason_phrase} else f"{status}: {line}"


def _line(text: str) -> str:
    return " ".join(text.split())[:_REASON_CHARACTERS]
