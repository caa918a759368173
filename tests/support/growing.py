"""Files that somebody writes meanwhile."""

from __future__ import annotations

from pathlib import Path


def whole_lines(path: Path) -> list[str]:
    """Return the lines of a file, without the beginning of one that is just being written."""
    whole, _, _ = path.read_text().rpartition("\n")
    return whole.splitlines()
