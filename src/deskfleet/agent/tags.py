"""The tags of a server: what its administrator wrote into files, and what deskfleet adds.

A tags folder holds `*.toml` files of `key = "value"` lines. They are read in alphabetical order,
folder after folder, and the later value wins. Files may change while the agent runs: a file is
read again when its stamp has changed, never otherwise.

Laws: a mistake in a file is logged once and costs no more than its own line, or, where the file
can't be read at all, nothing: what the file last said stays. Keys that begin with `dcv:` are
deskfleet's own; a file can't set them. This module changes no file.
"""

from __future__ import annotations

import logging
import os
import re
import stat
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from deskfleet.core.records import MOST_CHARACTERS
from deskfleet.wire import bounds

log = logging.getLogger(__name__)

KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
RESERVED_PREFIX = "dcv:"
MAX_FILE_BYTES = 64 * 1024
"""Tags travel with every report; a larger file is no tags file."""

MOST_TAGS = bounds.MOST_TAGS - 100
"""Of files: what an agent adds of its own has room beside them."""

_Stamp = tuple[int, int, int, int]
_NO_STAMP: _Stamp = (0, 0, 0, 0)
"""Of a file that can't be looked at: equal to itself, so that it is complained about once."""


@dataclass(frozen=True, slots=True)
class _Content:
    """What a file last said; `stamp` is that of the newest content looked at, good or not."""

    stamp: _Stamp | None = None
    tags: dict[str, str] = field(default_factory=dict)


class TagsFolder:
    """The tags of one or more folders. Not for several threads at once."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = tuple(folders)
        self._contents: dict[Path, _Content] = {}
        self._unlisted: set[Path] = set()
        self._said_too_many = False

    def read(self) -> dict[str, str]:
        """Return what the files say now. Costs a stat per file when nothing has changed."""
        contents: dict[Path, _Content] = {}
        for folder in self._folders:
            contents |= self._of_folder(folder)
        self._contents = contents
        merged: dict[str, str] = {}
        for content in contents.values():
            merged |= content.tags
        if len(merged) <= MOST_TAGS:
            return merged
        if not self._said_too_many:
            log.warning("tags.too-many", extra={"tags": len(merged), "kept": MOST_TAGS})
        self._said_too_many = True
        return dict(islice(merged.items(), MOST_TAGS))

    def _of_folder(self, folder: Path) -> dict[Path, _Content]:
        """Return the folder's contents in order; of one that can't be listed, the known ones."""
        try:
            with os.scandir(folder) as entries:
                names = sorted(entry.name for entry in entries if _is_tags_file(entry))
        except FileNotFoundError:
            names = []
        except OSError as error:
            if folder not in self._unlisted:
                log.warning("tags.unreadable", extra={"path": str(folder), "reason": str(error)})
            self._unlisted.add(folder)
            return {path: old for path, old in self._contents.items() if path.parent == folder}
        self._unlisted.discard(folder)
        paths = [folder / name for name in names]
        return {path: _renewed(path, self._contents.get(path, _Content())) for path in paths}


def reserved_tags(
    *, os_family: str, max_virtual_sessions: int, max_sessions_per_user: int
) -> dict[str, str]:
    """Return the tags that every server has, under the names that DCV's own agents use."""
    return {
        "dcv:os-family": os_family,
        "dcv:max-virtual-sessions": str(max_virtual_sessions),
        "dcv:max-concurrent-sessions-per-user": str(max_sessions_per_user),
    }


def _is_tags_file(entry: os.DirEntry[str]) -> bool:
    return entry.name.endswith(".toml") and not entry.name.startswith(".") and entry.is_file()


def _renewed(path: Path, known: _Content) -> _Content:
    """Return the file's content, read only where its stamp is not the known one."""
    stamp = _newest_stamp(path)
    if stamp == known.stamp:
        return known
    try:
        stamp, text = _text(path)
        return _Content(stamp, dict(_accepted(path, tomllib.loads(text))))
    except FileNotFoundError:
        return _Content()
    except (OSError, ValueError) as error:
        log.warning("tags.file-broken", extra={"path": str(path), "reason": str(error)})
        return _Content(stamp, known.tags)


def _newest_stamp(path: Path) -> _Stamp:
    try:
        return _stamp(path.stat())
    except OSError:
        return _NO_STAMP


def _text(path: Path) -> tuple[_Stamp, str]:
    """Read the file, with the stamp it had before: a change during the read is seen next time."""
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_FILE_BYTES:
            raise ValueError(f"not a file of at most {MAX_FILE_BYTES} bytes")
        return _stamp(status), file.read(MAX_FILE_BYTES).decode()


def _stamp(status: os.stat_result) -> _Stamp:
    # The change time too: `cp -p` of a file of the same size keeps all the others.
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino


def _accepted(path: Path, content: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in content.items():
        text = _as_text(value)
        if key.startswith(RESERVED_PREFIX):
            reason = f"{RESERVED_PREFIX} is reserved"
        elif not KEY.fullmatch(key):
            reason = "a key is a letter or _, then letters, digits and _"
        elif text is None:
            reason = "a value is a text, a number or a boolean"
        elif max(len(key), len(text)) > MOST_CHARACTERS:
            reason = f"a key or a value has at most {MOST_CHARACTERS} characters"
        else:
            yield key, text
            continue
        log.warning("tags.refused", extra={"path": str(path), "key": key[:64], "reason": reason})


def _as_text(value: object) -> str | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, str | int | float) else None
