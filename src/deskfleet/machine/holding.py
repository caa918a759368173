"""State folders: one program at a time works with each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deskfleet.errors import SetupFailed
from deskfleet.machine import here


@contextmanager
def held(folder: Path, name: str, taken: str) -> Iterator[None]:
    """Hold a folder by a file in it until the context is left, or the program ends in any way.

    Raises `SetupFailed`: with `taken` where another program holds it.
    """
    try:
        file = (folder / name).open("a")
    except OSError as error:
        raise SetupFailed(f"the state folder {folder} can't be used: {error.strerror}") from error
    with file:
        if not here.take(file.fileno()):
            raise SetupFailed(taken)
        yield
