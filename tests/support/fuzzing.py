"""A small fuzzer: changes known inputs at random, and keeps what reaches lines not seen before.

An input is text or bytes. The lines of the modules under test are watched, by tracing, so that
what is kept leads deeper. An input that takes longer than a limit of its own thread's time, three
times in a row, counts as a hang; one that raises what the target doesn't expect, as a crash.
"""

from __future__ import annotations

import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import CodeType, FrameType
from typing import Any, Generic, TypeVar

I = TypeVar("I", str, bytes)  # noqa: E741  an input

HANG_SECONDS = 0.05
GIVE_UP_SECONDS = 10
MOST_KEPT = 400


@dataclass(frozen=True)
class Target(Generic[I]):
    """What is fuzzed. A reader raises where a law is broken, and swallows the refusals it expects.

    Each reader has its own time.
    """

    readers: Sequence[Callable[[I], object]]
    seeds: Sequence[I]
    words: Sequence[I]
    """What the language is made of."""
    modules: Sequence[str]
    """Whose lines are to be reached, by the ends of their file names."""
    longest: int


@dataclass
class Campaign(Generic[I]):
    """What came of a target within its time."""

    target: Target[I]
    seed: int
    runs: int = 0
    slowest: float = 0.0
    lines: set[tuple[CodeType, int]] = field(default_factory=set)
    failure: str | None = None

    def go_on(self, seconds: float) -> None:
        chance = random.Random(self.seed)
        kept = list(self.target.seeds)
        deadline = time.monotonic() + seconds
        queue = list(kept)
        while self.failure is None and (queue or time.monotonic() < deadline):
            known = queue.pop() if queue else None
            candidate = known if known is not None else mutated(chance, kept, self.target)
            self._try(candidate)
            if self.failure is None and self._reaches_more(candidate) and known is None:
                kept.append(candidate)
                if len(kept) > MOST_KEPT:
                    kept.pop(chance.randrange(len(self.target.seeds), len(kept)))

    def _try(self, candidate: I) -> None:
        self.runs += 1
        try:
            with _limit():
                self._time(candidate)
        except Exception:  # noqa: BLE001  whatever it is: that is what is looked for
            self.failure = f"{candidate!r:.4000}\n{traceback.format_exc()}"

    def _time(self, candidate: I) -> None:
        for read in self.target.readers:
            taken = _seconds_of(read, candidate)
            if taken > HANG_SECONDS:
                # Once may be the collector of garbage, or a cache that is filled.
                taken = min(taken, *(_seconds_of(read, candidate) for _ in range(2)))
            self.slowest = max(self.slowest, taken)
            if taken > HANG_SECONDS:
                raise TimeoutError(f"it took {taken * 1000:.0f} ms")

    def _reaches_more(self, candidate: I) -> bool:
        before = len(self.lines)
        with _watching(self.target.modules, self.lines):
            for read in self.target.readers:
                read(candidate)
        return len(self.lines) > before


def mutated(chance: random.Random, kept: Sequence[I], target: Target[I]) -> I:
    """Change one of the known inputs a few times."""
    candidate = chance.choice(kept)
    for _ in range(chance.choice((1, 1, 2, 3, 5, 8))):
        candidate = _mutation(chance, candidate, kept, target.words)[: target.longest]
    return candidate


def _mutation(chance: random.Random, text: I, kept: Sequence[I], words: Sequence[I]) -> I:
    at, end = sorted(chance.randrange(len(text) + 1) for _ in range(2))
    match chance.randrange(7):
        case 0:
            return text[:at] + text[end:]
        case 1:
            return text[:at] + chance.choice(words) + text[at:]
        case 2:
            return text[:at] + chance.choice(words) + text[end:]
        case 3:
            other = chance.choice(kept)
            return text[:at] + other[chance.randrange(len(other) + 1) :]
        case 4:
            part = text[at:end] if chance.randrange(2) else text[at : at + 8]
            return text[:at] + part * chance.choice((2, 2, 3, 10, 300)) + text[end:]
        case 5:
            return text[:at] + _noise(chance, text) + text[at + 1 :]
        case _:
            return text[:at] + text[end:] + text[at:end]


def _noise(chance: random.Random, like: I) -> I:
    code = chance.choice((chance.randrange(128), chance.randrange(128), chance.randrange(0x3000)))
    return bytes([code % 256]) if isinstance(like, bytes) else chr(code)


def _seconds_of(read: Callable[[I], object], candidate: I) -> float:
    began = time.thread_time()
    read(candidate)
    return time.thread_time() - began


@contextmanager
def _limit() -> Iterator[None]:
    """Interrupt what would never end."""

    def give_up(*_: object) -> None:
        raise TimeoutError(f"it did not end within {GIVE_UP_SECONDS} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(GIVE_UP_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _watching(modules: Sequence[str], lines: set[tuple[CodeType, int]]) -> Iterator[None]:
    ends = tuple(modules)

    def in_frame(frame: FrameType, event: str, _argument: Any) -> Any:
        lines.add((frame.f_code, frame.f_lineno))
        return in_frame

    def at_call(frame: FrameType, event: str, _argument: Any) -> Any:
        return in_frame if frame.f_code.co_filename.endswith(ends) else None

    before = sys.gettrace()
    sys.settrace(at_call)
    try:
        yield
    finally:
        sys.settrace(before)
