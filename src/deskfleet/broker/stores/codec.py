"""How a record is written into a row, and read back.

Owns the encoding of bodies: JSON by msgspec, decoded by the kind that stands beside it.

Laws: what was encoded decodes to an equal value. A body that doesn't decode fails the store by
name, and the message never shows the body, for it may hold a secret. A kind that this version
doesn't know belongs to a newer broker at work on the same store, and is passed over.
"""

from __future__ import annotations

from typing import Any

import msgspec

from deskfleet.core.change import Stored, Tombstone
from deskfleet.core.records import KINDS, Record, Revision
from deskfleet.errors import StoreFailed


class Codec:
    def __init__(self) -> None:
        self._encoder = msgspec.json.Encoder()
        self._decoders: dict[str, msgspec.json.Decoder[Any]] = {
            name: msgspec.json.Decoder(kind) for name, kind in KINDS.items()
        }

    def encode(self, record: Record) -> bytes:
        return self._encoder.encode(record)

    def decode(
        self, kind: str, id: str, revision: Revision, body: bytes | None
    ) -> Stored | Tombstone | None:
        """Return what a row says, None where its kind is not known to this version."""
        decoder = self._decoders.get(kind)
        if decoder is None:
            return None
        if body is None:
            return Tombstone(revision, kind, id)
        try:
            return Stored(revision, decoder.decode(body))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise StoreFailed(f"the store holds a {kind} that can't be read: {id!r}") from error
