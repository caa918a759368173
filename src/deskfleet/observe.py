"""Logs: JSON lines for machines, readable lines for a terminal, and no secret in either.

Every record passes one filter that masks what looks like a credential, whoever logged it, and
one formatter that escapes control characters, so that what a stranger sent can neither forge a
line nor drive a terminal, and caps sizes, so that it can't fill a disk. Nor can many of them: what
a stranger can bring about again and again is logged with `seldom`, and written every ten seconds.

Laws: a record, however odd, never makes the caller fail. What is masked stays masked for all
later handlers. Only `configure_logging` touches global state; composition roots alone call it.
"""

from __future__ import annotations

import hmac
import json as json_text
import logging
import math
import re
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Protocol, TypeVar

from deskfleet.core.addresses import counted
from deskfleet.errors import SetupFailed

T = TypeVar("T")

MASK = "********"
LEVELS = {
    "error": logging.ERROR,
    "warning": logging.WARNING,
    "info": logging.INFO,
    "debug": logging.DEBUG,
}
MAX_EVENT = 2_000
MAX_FIELD = 2_000
MAX_EXCEPTION = 16_000
MAX_FIELDS = 40
MAX_LINE = 64_000
"""A longer line is written without its fields."""
MAX_ITEMS = 20
"""Of one list or mapping in a field."""
SELDOM_SECONDS = 10.0
MAX_SELDOM = 10_000
"""Kinds of records by whom they are about; of more, the ones that were written longest ago."""
_MAX_DEPTH = 3
_MAX_SCANNED = 64_000

# Loggers whose lower levels tell URLs, headers or frames.
_TALKATIVE = ("httpx", "httpcore", "h11", "hpack", "websockets", "sqlalchemy", "PIL", "asyncio")
_UVICORN = ("uvicorn", "uvicorn.error", "uvicorn.asgi")

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
_OUR_FIELDS = frozenset({"time", "level", "logger", "event", "exception", "stack"})

_SECRET_WORD = r"(?:token|secret|passw(?:or)?d|assertion|software[_-]statement|private[_-]key)"  # noqa: S105
_HEADER_WORD = r"(?:authorization|cookies?|x-aws-ec2-metadata-token)"
_QUOTED = r"""\\*"[^"\r\n]*"?|\\*'[^'\r\n]*'?"""
_SECRET_FIELD = re.compile(rf"(?is).*(?:{_SECRET_WORD}|{_HEADER_WORD})")

_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = (
    (  # a private key in PEM, even if cut off
        re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*-----|\Z)", re.DOTALL),
        MASK,
    ),
    (  # `Authorization: ...`, also in a printed mapping or list of raw headers
        re.compile(
            rf"""(?i)({_HEADER_WORD}\\*(?:["']\s*[,:=]|\s*[:=])\s*)b?(?:{_QUOTED}|[^\r\n"']+)"""
        ),
        rf"\1{MASK}",
    ),
    (  # `authToken=...`, `"client_secret": "..."`, also percent-encoded
        re.compile(
            rf"""(?i)({_SECRET_WORD}\\*["']?\s*(?:[:=]|%3D)\s*)b?(?:{_QUOTED}|[^\s"'&,;#)}}\]]+)"""
        ),
        rf"\1{MASK}",
    ),
    (re.compile(r"(?i)\b(bearer|basic)(\s+|%20)[\w.~+/=-]{8,}"), rf"\1\2{MASK}"),
    (re.compile(r"eyJ[\w-]{5,}(?:\.[\w-]*)*"), MASK),
    (re.compile(r"(://[^/\s:@]*:)[^/\s@]+@"), rf"\1{MASK}@"),
)


_SELDOM_BY = "seldom_by"


def seldom(address: str, *kind: str | int) -> dict[str, Any]:
    """Return fields for a record that is to be written every ten seconds for each address.

    Records are told apart by their event and `kind`, which strangers must not be free to choose.
    The next one that is written says how many were left out.
    """
    return {_SELDOM_BY: (counted(address) or address, *kind)}


class Secret:
    """A text that prints masked. Only `reveal` gives it, where it is needed."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"Secret({MASK})"

    def __str__(self) -> str:
        return MASK

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        """Compare in constant time."""
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._text.encode(), other._text.encode())

    def __hash__(self) -> int:
        return hash(self._text)


def redact(text: str) -> str:
    """Mask what looks like a credential. Drops what is beyond 64,000 characters."""
    text = text[:_MAX_SCANNED]
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


class RedactingFilter(logging.Filter):
    """Masks credentials in a record's message, arguments, extra fields and exception, in place."""

    def __init__(self) -> None:
        super().__init__()
        self._tracebacks = logging.Formatter()

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = redact(_message(record)), ()
        if record.exc_info and record.exc_info[0] is not None and not record.exc_text:
            record.exc_text = self._tracebacks.formatException(record.exc_info)
        # Another handler would print the exception anew from exc_info, with its secrets.
        record.exc_info = None
        if record.exc_text:
            record.exc_text = redact(record.exc_text)
        if record.stack_info:
            record.stack_info = redact(record.stack_info)
        for name, value in _extras(record).items():
            setattr(record, name, _field(name, value))
        return True


class RepeatsFilter(logging.Filter):
    """Leaves out what was logged with `seldom` a short while ago, and counts it."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._now = now
        self._written: dict[object, tuple[float, int]] = {}
        """When a kind was written last, and how many were left out since; the oldest first."""

    def filter(self, record: logging.LogRecord) -> bool:
        by = record.__dict__.pop(_SELDOM_BY, None)
        if by is None and record.name in _UVICORN and record.levelno <= logging.WARNING:
            # What it has to say of garbage names nobody.
            by = ()
        if by is None:
            return True
        key, now = (record.name, record.msg, by), self._now()
        written, left_out = self._written.get(key, (-math.inf, 0))
        if now - written < SELDOM_SECONDS:
            self._written[key] = written, left_out + 1
            return False
        self._written.pop(key, None)
        self._written[key] = now, 0
        if len(self._written) > MAX_SELDOM:
            del self._written[next(iter(self._written))]
        if left_out:
            record.left_out = left_out
        return True


class JsonFormatter(logging.Formatter):
    """One JSON object in ASCII per line: `time`, `level`, `logger`, `event`, then the facts."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": _capped(record.getMessage(), MAX_EVENT),
        }
        if record.exc_text:
            line["exception"] = _capped(record.exc_text, MAX_EXCEPTION)
        if record.stack_info:
            line["stack"] = _capped(record.stack_info, MAX_EXCEPTION)
        extras = _extras(record)
        named = {f"{name}_" if name in _OUR_FIELDS else name: extras[name] for name in extras}
        text = _ascii_json(line | named)
        return (
            text if len(text) <= MAX_LINE else _ascii_json({**line, "fields_dropped": len(named)})
        )


class TextFormatter(logging.Formatter):
    """For people: time, level, logger, event and `name=value` in one line; then a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        event = _printable(_capped(record.getMessage(), MAX_EVENT))
        facts = [f"{_printable(n)}={_shown(v)}" for n, v in _extras(record).items()]
        head = f"{_time(record)} {record.levelname:<7} {record.name} {event}"
        lines = [_capped(" ".join([_printable(head), *facts]), MAX_LINE)]
        for text in (record.exc_text, record.stack_info):
            if text:
                capped = _capped(text, MAX_EXCEPTION)
                lines += [f"    {_printable(line)}" for line in capped.splitlines()]
        return "\n".join(lines)


class Stream(Protocol):
    """What records are written to: each in one call."""

    def write(self, text: str, /) -> int: ...

    def flush(self) -> None: ...


class _OurHandler(logging.StreamHandler[Stream]):
    """So that configuring again replaces our handler and leaves those of others alone."""


def configure_logging(level: str, stream: Stream, *, json: bool) -> None:
    """Send every record of this process, of `level` and above, to the stream, and to nothing else.

    Libraries that log URLs, headers or frames are held at warnings, access logs are off. Give
    uvicorn `log_config=None`, or it sets up its own. `level` is a name such as `info`.
    """
    wanted = LEVELS.get(level.lower())
    if wanted is None:
        raise SetupFailed(f"{level!r} is no log level; choose one of {', '.join(LEVELS)}")
    handler = _OurHandler(stream)
    # First: what is left out costs no more than that.
    handler.addFilter(RepeatsFilter())
    handler.addFilter(RedactingFilter())
    handler.setFormatter(JsonFormatter() if json else TextFormatter())
    root = logging.getLogger()
    for old in [h for h in root.handlers if isinstance(h, _OurHandler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(wanted)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(max(wanted, logging.WARNING))
    for name in _UVICORN:
        _only_through_root(logging.getLogger(name), propagate=True)
    # Without a handler uvicorn doesn't even build the line.
    _only_through_root(logging.getLogger("uvicorn.access"), propagate=False)


def _only_through_root(logger: logging.Logger, *, propagate: bool) -> None:
    logger.handlers.clear()
    logger.propagate = propagate


def _message(record: logging.LogRecord) -> str:
    whole = _guarded(record.getMessage, None)
    return whole if whole is not None else _guarded(lambda: str(record.msg), "record.unprintable")


def _guarded(make: Callable[[], T], otherwise: T) -> T:
    """Return what `make` does: a log line never makes the program that logs it fail."""
    try:
        return make()
    except Exception:  # noqa: BLE001  (any object's __str__, __iter__ or __format__ ran in there)
        return otherwise


def _extras(record: logging.LogRecord) -> dict[str, Any]:
    names = [name for name in record.__dict__ if name not in _STANDARD]
    return {name: record.__dict__[name] for name in names[:MAX_FIELDS]}


def _field(name: str, value: object) -> Any:
    """Return a field as JSON can hold it: masked, capped, and of plain types."""
    return _guarded(lambda: _plain(name, value, depth=0), f"<{type(value).__name__}>")


def _plain(name: str, value: object, *, depth: int) -> Any:
    if value is None or isinstance(value, bool | int):
        return value
    if _SECRET_FIELD.fullmatch(name):
        return MASK
    if isinstance(value, float):
        return value if abs(value) < float("inf") else str(value)
    if isinstance(value, Mapping) and depth < _MAX_DEPTH:
        items = [(_text(key), value[key]) for key in list(value)[:MAX_ITEMS]]
        return {key: _plain(key, item, depth=depth + 1) for key, item in items}
    if isinstance(value, list | tuple | set | frozenset) and depth < _MAX_DEPTH:
        return [_plain("", item, depth=depth + 1) for item in list(value)[:MAX_ITEMS]]
    return _text(value)


def _text(value: object) -> str:
    return _capped(redact(str(value)), MAX_FIELD)


def _capped(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)"


def _ascii_json(line: dict[str, Any]) -> str:
    """Encode in ASCII: JSON needn't escape C1 controls, direction marks and line separators."""
    return json_text.dumps(line, ensure_ascii=True, default=str).replace("\x7f", "\\u007f")


def _time(record: logging.LogRecord) -> str:
    instant = datetime.fromtimestamp(record.created, UTC)
    return instant.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _shown(value: object) -> str:
    text = value if isinstance(value, str) else json_text.dumps(value, ensure_ascii=False)
    if isinstance(value, str) and (not text or re.search(r'[\s"=]', text)):
        text = json_text.dumps(text, ensure_ascii=False)
    return _printable(text)


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
