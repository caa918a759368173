"""Pages of a listing, and the tokens that lead from one to the next.

A token names the place of the last record that was sent, so that rows which come and go in
between are neither sent twice nor missed. It is bound to the query, but not to the size of the
page, and sealed, so that it can't be made up.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Callable, Iterator
from datetime import datetime
from itertools import islice
from typing import TypeVar

import msgspec

from deskfleet.core.fleet import Place
from deskfleet.errors import Invalid
from deskfleet.ports import Signer

T = TypeVar("T")

MAC_BYTES = 16
MAX_TOKEN_CHARACTERS = 1024


class Paging:
    def __init__(self, signer: Signer) -> None:
        self._signer = signer

    def after(self, token: str | None, query: object) -> Place | None:
        """Return the place that a token stands for. Raises `Invalid`."""
        if token is None:
            return None
        try:
            if len(token) > MAX_TOKEN_CHARACTERS:
                raise ValueError("too long")
            sealed = base64.b64decode(token.encode("ascii"), altchars=b"-_", validate=True)
            if base64.urlsafe_b64encode(sealed).decode() != token:
                raise ValueError("not written as it was")
            mac, payload = sealed[:MAC_BYTES], sealed[MAC_BYTES:]
            if not hmac.compare_digest(mac, self._mac(payload, query)):
                raise ValueError("not ours, or of another query")
            return msgspec.json.decode(payload, type=tuple[datetime, str])
        except (ValueError, binascii.Error, msgspec.DecodeError) as error:
            raise Invalid("NextToken is not one that this query was given") from error

    def page(
        self, rows: Iterator[T], size: int, query: object, place_of: Callable[[T], Place]
    ) -> tuple[list[T], str | None]:
        """Take a page off `rows`; the token is None on the last page."""
        page = list(islice(rows, size))
        if next(rows, None) is None:
            return page, None
        payload = msgspec.json.encode(place_of(page[-1]))
        sealed = self._mac(payload, query) + payload
        return page, base64.urlsafe_b64encode(sealed).decode()

    def _mac(self, payload: bytes, query: object) -> bytes:
        text = b"next-token:" + msgspec.json.encode(query) + b":" + payload
        return self._signer.hash(text.decode())[:MAC_BYTES]
