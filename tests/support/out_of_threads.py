"""A machine on which no other thread can be made: all that its system allows are there."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import pytest


@contextmanager
def out_of_threads() -> Iterator[None]:
    """Let nobody start a thread until the block ends, in the words of Python."""

    def refused(_thread: threading.Thread) -> NoReturn:
        raise RuntimeError("can't start new thread")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Thread, "start", refused)
        yield
