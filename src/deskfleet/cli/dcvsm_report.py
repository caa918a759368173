"""What `dcvsm` tells on standard error: what went wrong, and with --debug every step.

Law: no secret that went to a broker or came from it stands there, not even in what a broker
answers: passwords, access tokens and connection tokens are masked wherever they turn up.

Must not: change what is sent.
"""

from __future__ import annotations

import base64
import json
import re
from typing import TYPE_CHECKING, Any, TextIO
from urllib.parse import quote, quote_plus

from deskfleet.cli.output import clean

if TYPE_CHECKING:
    import httpx

MASK = "***"
_MARK = 12
"""So many of a long secret's characters give away that it begins there, wherever it is cut off."""

_SECRET_NAME = re.compile(r"token|password|secret|authorization|credential|cookie|assertion")
_PUBLIC_NAMES = {"nexttoken", "tokentype"}
_GRANT = "grant_type=client_credentials"
_SHOWN_HEADERS = ("content-type", "content-length", "location", "retry-after", "server")


class Report:
    """The standard error of one run. It watches what is sent and answered."""

    def __init__(self, stream: TextIO, *, debug: bool = False) -> None:
        self.debug = debug
        self._stream = stream
        self._secrets: dict[str, re.Pattern[str]] = {}

    def learn(self, secret: str) -> None:
        """Mask a secret from now on, in each form in which it may come back."""
        encoded = secret.encode("utf-8", "replace")
        for form in (
            secret,
            quote(encoded),
            quote(encoded, safe=""),
            quote_plus(encoded),
            json.dumps(secret)[1:-1],
            " ".join(secret.split()),
            base64.b64encode(encoded).decode(),
        ):
            if form:
                self._secrets[form] = _pattern(form)

    def masked(self, text: str) -> str:
        for form in sorted(self._secrets, key=len, reverse=True):
            text = self._secrets[form].sub(MASK, text)
        return text

    def tell(self, text: str) -> None:
        for line in text.splitlines():
            self._stream.write(f"dcvsm: {clean(self.masked(line))}\n")

    def detail(self, text: str) -> None:
        """Tell one step, if anybody wants to know."""
        if self.debug:
            self.tell(f"debug: {text}")

    def request(self, request: httpx.Request) -> None:
        authorization = request.headers.get("Authorization", "")
        scheme, _, secret = authorization.partition(" ")
        self.learn(secret)
        self.detail(f"> {request.method} {_without_query(str(request.url))}")
        if authorization:
            self.detail(f"> Authorization: {scheme} {MASK}")
        self._body(">", request.read())

    def response(self, response: httpx.Response) -> None:
        content = response.read()
        self._learn_from(_json(content))
        self.detail(f"< HTTP {response.status_code} {response.reason_phrase}")
        for name in _SHOWN_HEADERS:
            if name in response.headers:
                self.detail(f"< {name}: {_without_query(response.headers[name])}")
        self._body("<", content)

    def _body(self, mark: str, content: bytes) -> None:
        body = _json(content)
        if body is not None:
            self.detail(f"{mark} {json.dumps(_hidden(body))}")
        elif content:
            self.detail(f"{mark} ({len(content)} bytes that are not JSON)")

    def _learn_from(self, value: Any) -> None:
        if isinstance(value, list):
            for each in value:
                self._learn_from(each)
        elif isinstance(value, dict):
            for name, member in value.items():
                if isinstance(member, str) and member and _is_secret(name):
                    self.learn(member)
                self._learn_from(member)


def _without_query(url: str) -> str:
    """Return a URL without what an authorization server may want to have kept secret."""
    before, mark, query = url.partition("?")
    shown = query if query in {"", _GRANT} else MASK
    return f"{before}{mark}{shown}"


def _pattern(form: str) -> re.Pattern[str]:
    if len(form) <= _MARK:
        return re.compile(re.escape(form))
    # The rest is optional: a message may end in the middle of a secret.
    return re.compile(rf"{re.escape(form)}|{re.escape(form[:_MARK])}[^\s\"'<>&,;]*")


def _json(content: bytes) -> Any:
    """Return what a body says, and None where it is no object and no list."""
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return body if isinstance(body, dict | list) else None


def _is_secret(name: str) -> bool:
    plain = re.sub(r"[^a-z]", "", name.lower())
    return plain not in _PUBLIC_NAMES and bool(_SECRET_NAME.search(plain))


def _hidden(value: Any) -> Any:
    if isinstance(value, list):
        return [_hidden(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {name: _member(name, member) for name, member in value.items()}


def _member(name: str, value: Any) -> Any:
    if _is_secret(name) and value is not None:
        return MASK
    if name == "Data" and isinstance(value, str):
        return f"({len(value)} characters of a picture)"
    return _hidden(value)
