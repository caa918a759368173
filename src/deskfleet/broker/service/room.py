"""Room for so many bytes, of which there are more than memory should hold at once.

A room may be part of a larger one: what is taken of it is taken of that, too, and given back when
it is left.
"""

from __future__ import annotations

from typing import Self

from deskfleet.errors import TooLarge


class Room:
    def __init__(self, most: int, reason: str, within: Room | None = None) -> None:
        """`reason` is what is told to whom there is no room for."""
        self.reason = reason
        self.taken = 0
        self.was_short = False
        """Whether something had to be turned away."""
        self._most = most
        self._within = within

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def take(self, count: int) -> None:
        """Take so many bytes, or none of them. Raises `TooLarge`."""
        if self.taken + count > self._most:
            self.was_short = True
            raise TooLarge(self.reason)
        if self._within is not None:
            self._within.take(count)
        self.taken += count

    def leave(self) -> None:
        """Give back all that was taken."""
        self.give(self.taken)

    def give(self, count: int) -> None:
        """Give back so many bytes of those that were taken."""
        self.taken -= count
        if self._within is not None:
            self._within.give(count)
