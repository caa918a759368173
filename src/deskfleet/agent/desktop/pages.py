"""The files of the desktop's page, as the build left them, ready to be sent.

Everything is read once, when the entrance is built, so that no request names a path. File names
in the bundle carry a hash of their content, so browsers may keep them for good. A checkout
without a built page still serves the fleet: its entrance says what is missing.
"""

from __future__ import annotations

import gzip
import html
import logging
from dataclasses import dataclass
from pathlib import Path
from string import Template

from starlette.responses import HTMLResponse, PlainTextResponse, Response

log = logging.getLogger(__name__)

_TYPES = {
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}
_NOT_BUILT = "The desktop page is not built; run `npm ci && npm run build` in its folder."


@dataclass(frozen=True)
class _File:
    content: bytes
    packed: bytes
    type: str


class Pages:
    """The page, its files, and the page that says no."""

    def __init__(self, folder: Path) -> None:
        self._files = {path.name: _load(path) for path in _bundled(folder)}
        self._index = _read(folder / "index.html")
        self._refused = _read(folder / "refused.html")
        if self._index is None or self._refused is None:
            log.warning("page.missing", extra={"folder": str(folder)})

    def index(self, *, status: int = 200) -> Response:
        if self._index is None:
            return PlainTextResponse(_NOT_BUILT, status_code=503)
        return HTMLResponse(self._index, status_code=status)

    def refusal(self, *, status: int, title: str, message: str) -> Response:
        """Answer a navigation with the page that says why not."""
        if self._refused is None:
            return PlainTextResponse(f"{title}\n{message}\n", status_code=status)
        text = Template(self._refused).substitute(
            title=html.escape(title), message=html.escape(message)
        )
        return HTMLResponse(text, status_code=status)

    def file(self, name: str, *, takes_gzip: bool) -> Response:
        file = self._files.get(name)
        if file is None:
            return PlainTextResponse("There is nothing here.", status_code=404)
        headers = {
            "Cache-Control": "public, max-age=31536000, immutable",
            "Content-Type": file.type,
            "Vary": "Accept-Encoding",
        }
        if not takes_gzip:
            return Response(file.content, headers=headers)
        return Response(file.packed, headers=headers | {"Content-Encoding": "gzip"})


def _bundled(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.glob("*")) if path.suffix in _TYPES]


def _load(path: Path) -> _File:
    content = path.read_bytes()
    return _File(content, gzip.compress(content, 9, mtime=0), _TYPES[path.suffix])


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None
