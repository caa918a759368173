"""Permissions files: who may use which features of a session.

The format is that of DCV: `[groups]` and `[aliases]` name users and features, and each line of
`[permissions]` is `actor rule feature...`. Rules are taken from top to bottom and a later one
overrides an earlier one, but what is denied once stays denied. Nobody has what no rule allows.

The format is lines of words, so it is read by a small strict parser rather than by a grammar:
that knows the line of every fault, and which names it could have been. What isn't understood is
refused, never skipped: a rule that was dropped could have been a denial.

It must not read files (`#import` is refused), nor copy the members of one group into another:
groups of groups would grow without bound, so membership is worked out for one user at a time.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from enum import StrEnum
from graphlib import CycleError, TopologicalSorter
from typing import TypeAlias

from deskfleet.errors import PermissionsInvalid

MAX_BYTES = 64 * 1024
MAX_LINES = 2_000


class Feature(StrEnum):
    AUDIO_IN = "audio-in"
    AUDIO_OUT = "audio-out"
    CLIPBOARD_COPY = "clipboard-copy"
    """From the server to the client."""
    CLIPBOARD_PASTE = "clipboard-paste"
    """From the client to the server."""
    DISPLAY = "display"
    EXTENSIONS_CLIENT = "extensions-client"
    EXTENSIONS_SERVER = "extensions-server"
    FILE_DOWNLOAD = "file-download"
    FILE_UPLOAD = "file-upload"
    GAMEPAD = "gamepad"
    KEYBOARD = "keyboard"
    KEYBOARD_SAS = "keyboard-sas"
    """Ctrl+Alt+Del."""
    MOUSE = "mouse"
    """Input from the client's pointer."""
    POINTER = "pointer"
    """Seeing the server's pointer; this is not input."""
    PRINTER = "printer"
    SCREENSHOT = "screenshot"
    SMARTCARD = "smartcard"
    STYLUS = "stylus"
    TOUCH = "touch"
    UNSUPERVISED_ACCESS = "unsupervised-access"
    """Being connected while the owner isn't."""
    USB = "usb"
    WEBCAM = "webcam"
    WEBAUTHN_REDIRECTION = "webauthn-redirection"


Features: TypeAlias = frozenset[Feature]

BUILTIN: Features = frozenset(Feature)


class Kind(StrEnum):
    """What a name stands for, where a user or a set of users is named."""

    USER = "user"
    GROUP = "group"
    OS_GROUP = "osgroup"
    OWNER = "%owner%"
    ANY = "%any%"


@dataclass(frozen=True, slots=True)
class Actor:
    kind: Kind
    name: str = ""


class Verdict(StrEnum):
    ALLOW = "allow"
    DISALLOW = "disallow"
    DENY = "deny"


@dataclass(frozen=True, slots=True)
class Rule:
    actor: Actor
    verdict: Verdict
    features: Features


@dataclass(frozen=True, slots=True)
class Group:
    name: str
    members: tuple[Actor, ...]


@dataclass(frozen=True, slots=True)
class Permissions:
    rules: tuple[Rule, ...]
    groups: tuple[Group, ...] = ()
    """A group stands behind those that are its members."""

    @property
    def depend_on_os_groups(self) -> bool:
        """Tell whether it matters which groups of the operating system a user is in."""
        actors = [
            *(rule.actor for rule in self.rules),
            *(m for g in self.groups for m in g.members),
        ]
        return any(actor.kind is Kind.OS_GROUP for actor in actors)

    def features(self, user: str, owner: str, groups: frozenset[str]) -> Features:
        """Say what a user may use in a session of `owner`; `groups` are the user's OS groups."""
        actors = {Actor(Kind.ANY), Actor(Kind.USER, user)}
        actors.update(Actor(Kind.OS_GROUP, name) for name in groups)
        if user == owner:
            actors.add(Actor(Kind.OWNER))
        for group in self.groups:
            if not actors.isdisjoint(group.members):
                actors.add(Actor(Kind.GROUP, group.name))
        return _judge(rule for rule in self.rules if rule.actor in actors)


def _judge(rules: Iterable[Rule]) -> Features:
    allowed: set[Feature] = set()
    denied: set[Feature] = set()
    for rule in rules:
        match rule.verdict:
            case Verdict.ALLOW:
                allowed |= rule.features
            case Verdict.DISALLOW:
                allowed -= rule.features
            case Verdict.DENY:
                denied |= rule.features
    return frozenset(allowed - denied)


OWNER_ONLY = Permissions((Rule(Actor(Kind.OWNER), Verdict.ALLOW, BUILTIN),))
"""What holds for a session without a permissions file."""


def decode(permissions_file: str) -> Permissions:
    """Read the base64 of a permissions file, as the API carries it. Raises PermissionsInvalid.

    A fault of the encoding or the size is told with line 0.
    """
    # Four letters carry three bytes: what is longer needn't be decoded to be refused.
    if len(permissions_file) > (MAX_BYTES + 2) // 3 * 4:
        raise _too_large()
    try:
        content = binascii.a2b_base64(permissions_file, strict_mode=True)
    except ValueError:
        raise PermissionsInvalid("The permissions file must be sent as base64", 0) from None
    if len(content) > MAX_BYTES:
        raise _too_large()
    try:
        return parse(content.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise PermissionsInvalid("The permissions file must be UTF-8 text", 0) from None


def _too_large() -> PermissionsInvalid:
    return PermissionsInvalid(f"The permissions file can't be larger than {MAX_BYTES:,} bytes", 0)


def parse(text: str) -> Permissions:
    """Read the text of a permissions file. Raises PermissionsInvalid with the faulty line."""
    draft = _Draft()
    for line in _lines(text):
        if line.text.startswith("["):
            draft.open_section(line)
        else:
            draft.add(line)
    return draft.finish()


@dataclass(frozen=True, slots=True)
class _Line:
    """One line with something on it, without blanks and comment."""

    number: int
    text: str

    def invalid(self, message: str) -> PermissionsInvalid:
        return PermissionsInvalid(f"Line {self.number}: {message}", self.number)


_COMMENT = re.compile(r"(?:^|(?<=[ \t]))#.*|^;.*")
_IMPORT = re.compile(r"#(import|include)\b", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\x85\u2028\u2029]")
_BETWEEN_FEATURES = re.compile(r"[ \t]*,[ \t]*|[ \t]+")
_RULE = re.compile(r"([^ \t]+)[ \t]+(allow|disallow|deny)[ \t]+(.+)")
_NAME = re.compile(r"[\w.\\@+$-]{1,256}")
_LONGEST_HINT = 64


def _lines(text: str) -> Iterator[_Line]:
    """Yield the lines that say something; refuse what no line may hold."""
    lines = text.removesuffix("\n").split("\n")
    if len(lines) > MAX_LINES:
        message = f"A permissions file can't have more than {MAX_LINES:,} lines"
        raise PermissionsInvalid(message, MAX_LINES + 1)
    for number, raw in enumerate(lines, start=1):
        line = _Line(number, raw.removesuffix("\r").strip(" \t"))
        if _CONTROL.search(line.text):
            raise line.invalid("a control character has no place in a permissions file")
        comment = _COMMENT.search(line.text)
        if comment and _IMPORT.match(comment[0]):
            raise line.invalid("#import is refused, as it would read a file of the server")
        content = line.text[: comment.start()].rstrip(" \t") if comment else line.text
        if content:
            yield _Line(number, content)


@dataclass(slots=True)
class _Draft:
    """What the lines said so far. Names are looked up at the end: they may be used before."""

    section: str | None = None
    groups: dict[str, tuple[_Line, tuple[Actor, ...]]] = field(default_factory=dict)
    aliases: dict[str, tuple[_Line, list[str]]] = field(default_factory=dict)
    rules: list[tuple[_Line, Actor, Verdict, list[str]]] = field(default_factory=list)

    def open_section(self, line: _Line) -> None:
        if line.text not in {"[groups]", "[aliases]", "[permissions]"}:
            sections = "[groups], [aliases] or [permissions]"
            raise line.invalid(f"unknown section {_clip(line.text)}; expected {sections}")
        self.section = line.text

    def add(self, line: _Line) -> None:
        match self.section:
            case "[groups]":
                self.add_group(line)
            case "[aliases]":
                self.add_alias(line)
            case "[permissions]":
                self.add_rule(line)
            case _:
                raise line.invalid("expected [groups], [aliases] or [permissions] before this")

    def add_group(self, line: _Line) -> None:
        name, words = _definition(line, "name=member, member")
        name = name.removeprefix("group:")
        _check_name(line, name)
        if name in self.groups:
            raise line.invalid(f"the group {_clip(name)} is defined twice")
        members = [word.strip(" \t") for word in words.split(",")] if words else []
        self.groups[name] = line, tuple(_actor(line, word) for word in members)

    def add_alias(self, line: _Line) -> None:
        name, words = _definition(line, "name=feature, feature")
        _check_name(line, name)
        if name in _FEATURES:
            raise line.invalid(f"{name} is a feature, and can't be the name of an alias")
        if name in self.aliases:
            raise line.invalid(f"the alias {_clip(name)} is defined twice")
        self.aliases[name] = line, _BETWEEN_FEATURES.split(words) if words else []

    def add_rule(self, line: _Line) -> None:
        found = _RULE.fullmatch(line.text)
        if not found:
            raise line.invalid("expected: actor allow|disallow|deny feature feature ...")
        who, verdict, features = found.groups()
        actor = _PLACEHOLDERS.get(who) or _actor(line, who)
        words = _BETWEEN_FEATURES.split(features)
        self.rules.append((line, actor, Verdict(verdict), words))

    def finish(self) -> Permissions:
        groups = tuple(self._ordered_groups())
        aliases = self._expanded_aliases()
        rules = []
        for line, actor, verdict, words in self.rules:
            self._check_groups(line, [actor])
            rules.append(Rule(actor, verdict, _expand(line, words, aliases)))
        return Permissions(tuple(rules), groups)

    def _ordered_groups(self) -> Iterator[Group]:
        needs: dict[str, list[str]] = {}
        for name, (line, members) in self.groups.items():
            self._check_groups(line, members)
            needs[name] = [actor.name for actor in members if actor.kind is Kind.GROUP]
        for name in _ordered("group", needs, {n: line for n, (line, _) in self.groups.items()}):
            yield Group(name, self.groups[name][1])

    def _check_groups(self, line: _Line, actors: Iterable[Actor]) -> None:
        for actor in actors:
            if actor.kind is Kind.GROUP and actor.name not in self.groups:
                raise line.invalid(f"the group {_clip(actor.name)} is not defined")

    def _expanded_aliases(self) -> dict[str, Features]:
        needs = {
            n: [w for w in words if w in self.aliases] for n, (_, words) in self.aliases.items()
        }
        expanded: dict[str, Features] = {}
        for name in _ordered("alias", needs, {n: line for n, (line, _) in self.aliases.items()}):
            line, words = self.aliases[name]
            expanded[name] = _expand(line, words, expanded)
        return expanded


_FEATURES: Mapping[str, Features] = {"builtin": BUILTIN} | {f: frozenset({f}) for f in Feature}

_PLACEHOLDERS = {str(kind): Actor(kind) for kind in (Kind.OWNER, Kind.ANY)}


def _definition(line: _Line, form: str) -> tuple[str, str]:
    name, equals, words = line.text.partition("=")
    if not equals:
        raise line.invalid(f"expected {form}")
    return name.rstrip(" \t"), words.lstrip(" \t")


def _check_name(line: _Line, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise line.invalid(f"{_clip(name)!r} is not a name")


def _actor(line: _Line, word: str) -> Actor:
    """Read a user, `user:x`, `group:x` or `osgroup:x`."""
    kind, colon, name = word.partition(":")
    if not colon:
        kind, name = Kind.USER, word
    if kind not in {Kind.USER, Kind.GROUP, Kind.OS_GROUP}:
        raise line.invalid(f"expected user:, group: or osgroup:, found {_clip(kind)!r}")
    _check_name(line, name)
    return Actor(Kind(kind), name)


def _expand(line: _Line, words: Iterable[str], aliases: Mapping[str, Features]) -> Features:
    found: set[Feature] = set()
    for word in words:
        features = _FEATURES.get(word) or aliases.get(word)
        if features is None:
            raise _unknown_feature(line, word)
        found |= features
    return frozenset(found)


def _unknown_feature(line: _Line, word: str) -> PermissionsInvalid:
    near = get_close_matches(word, _FEATURES, n=1) if len(word) <= _LONGEST_HINT else []
    hint = f"; did you mean {near[0]}?" if near else ""
    return line.invalid(f"{_clip(word)!r} is neither a feature nor an alias{hint}")


def _ordered(
    kind: str, needs: Mapping[str, Iterable[str]], lines: Mapping[str, _Line]
) -> Iterable[str]:
    """Order names so that each stands behind those that it needs; refuse a cycle."""
    try:
        return list(TopologicalSorter(needs).static_order())
    except CycleError as error:
        name = max(error.args[1], key=lambda name: lines[name].number)
        raise lines[name].invalid(f"the {kind} {_clip(name)} contains itself") from None


def _clip(word: str) -> str:
    return word if len(word) <= _LONGEST_HINT else word[:_LONGEST_HINT] + "..."
