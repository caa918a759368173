"""Requirements of a session: the text that a client sends, its tree, and its compiled match.

The language is the one that DCV Session Manager's clients check against: terms `key operator
value` under `not`, `and`, `or` and parentheses. `parse` refuses what is too long, too deep or
not in the language, with the column of the fault; it takes linear time, and so does `matches`.

How values compare (the one place that says it):
* `!=` is true exactly where `=` is false.
* A tag or property that the server lacks: every other comparison is false.
* Numbers compare as numbers, whichever side is written as text. A number and a text that is none
  are different, and neither is more or less than the other.
* Text compares as text; under `< <= > >=` two versions with the same count of parts
  (`2024.0.100`, `16`) compare part by part, as numbers. `:=` asks for a part of the text.

It must not touch the store or the fleet, nor compile anything of a client's into a regex or code.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache, lru_cache
from typing import Any, TypeAlias, cast

from lark import Lark, Token, Transformer, UnexpectedCharacters, UnexpectedToken

from deskfleet.core.records import Facts
from deskfleet.errors import RequirementsInvalid

MAX_LENGTH = 4_096
MAX_DEPTH = 32

Value: TypeAlias = str | int | float
Test: TypeAlias = Callable[[Facts], bool]
Read: TypeAlias = Callable[[Facts], Any]
"""The value of a tag or property of a server, None where it has none."""

CONTAINS = ":="

_GRAMMAR = r"""
    ?start: disjunction
    ?disjunction: conjunction (_OR conjunction)*
    ?conjunction: factor (_AND factor)*
    ?factor: "(" disjunction ")" | negation | term
    negation: _NOT (term | "(" disjunction ")")
    term: (TAG | PROPERTY) OPERATOR (TEXT | NUMBER)

    TAG: /tag:(dcv:[A-Za-z0-9_-]+|[A-Za-z_][A-Za-z0-9_]*)/
    PROPERTY: /server:[A-Za-z0-9._-]*/
    OPERATOR: /:=|!=|>=|<=|=|>|</
    TEXT: /'[^']*(?:''[^']*)*'(?!')/
    NUMBER: /[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?/
    _AND: "and"i
    _OR: "or"i
    _NOT: "not"i
    %ignore /[ \t\r\n]+/
"""
# PROPERTY takes more than any name has, so that a mistyped name is told as a whole.

_BLANK = " \t\r\n"

_EXPECTATIONS = {
    "TAG": "tag:NAME",
    "PROPERTY": "server:PROPERTY",
    "_NOT": '"not"',
    "LPAR": '"("',
    "OPERATOR": "an operator (= != < <= > >= :=)",
    "TEXT": "text in single quotes",
    "NUMBER": "a number",
    "_AND": '"and"',
    "_OR": '"or"',
    "RPAR": '")"',
    "$END": "the end",
}

_PROPERTIES: dict[str, Read] = {
    "Id": operator.attrgetter("id"),
    "Hostname": operator.attrgetter("hostname"),
    "Version": operator.attrgetter("version"),
    "SessionManagerAgentVersion": operator.attrgetter("agent_version"),
    "Host.Os.BuildNumber": operator.attrgetter("host.os.build_number"),
    "Host.Os.Family": operator.attrgetter("host.os.family"),
    "Host.Os.KernelVersion": operator.attrgetter("host.os.kernel_version"),
    "Host.Os.Name": operator.attrgetter("host.os.name"),
    "Host.Os.Version": operator.attrgetter("host.os.version"),
    "Host.Memory.TotalBytes": operator.attrgetter("host.memory_total"),
    "Host.Memory.UsedBytes": operator.attrgetter("host.memory_used"),
    "Host.Swap.TotalBytes": operator.attrgetter("host.swap_total"),
    "Host.Swap.UsedBytes": operator.attrgetter("host.swap_used"),
    "Host.CpuLoadAverage.OneMinute": lambda facts: facts.host.load and facts.host.load[0],
    "Host.CpuLoadAverage.FiveMinutes": lambda facts: facts.host.load and facts.host.load[1],
    "Host.CpuLoadAverage.FifteenMinutes": lambda facts: facts.host.load and facts.host.load[2],
    "Host.Aws.Ec2InstanceId": lambda facts: facts.host.aws and facts.host.aws.instance_id,
    "Host.Aws.Ec2InstanceType": lambda facts: facts.host.aws and facts.host.aws.instance_type,
    "Host.Aws.Region": lambda facts: facts.host.aws and facts.host.aws.region,
    "Host.Aws.Ec2ImageId": lambda facts: facts.host.aws and facts.host.aws.image_id,
    "Host.CpuInfo.Architecture": operator.attrgetter("host.cpu.architecture"),
    "Host.CpuInfo.ModelName": operator.attrgetter("host.cpu.model_name"),
    "Host.CpuInfo.NumberOfCpus": operator.attrgetter("host.cpu.number_of_cpus"),
    "Host.CpuInfo.PhysicalCoresPerCpu": operator.attrgetter("host.cpu.physical_cores_per_cpu"),
    "Host.CpuInfo.Vendor": operator.attrgetter("host.cpu.vendor"),
}

_NUMERIC = ("Host.Memory.", "Host.Swap.", "Host.CpuLoadAverage.")
_MOVING = ("server:Host.CpuLoadAverage.", "server:Host.Memory.Used", "server:Host.Swap.Used")
_COUNTS = ("Host.CpuInfo.NumberOfCpus", "Host.CpuInfo.PhysicalCoresPerCpu")

_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}

_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?")
_VERSION = re.compile(r"[0-9]{1,18}(\.[0-9]{1,18}){0,7}")
_LONGEST_NUMBER = 400
_LONGEST_NAME = 64
_EXACT = 2**53


@dataclass(frozen=True, slots=True)
class Term:
    """One comparison. The key keeps its prefix (`tag:color`, `server:Host.Os.Family`)."""

    key: str
    operator: str
    value: Value

    def __str__(self) -> str:
        value = self.value
        text = "'" + value.replace("'", "''") + "'" if isinstance(value, str) else repr(value)
        return f"{self.key} {self.operator} {text}"


@dataclass(frozen=True, slots=True)
class Not:
    operand: Node

    def __str__(self) -> str:
        bare = isinstance(self.operand, Term)
        return f"not {self.operand}" if bare else f"not ({self.operand})"


@dataclass(frozen=True, slots=True)
class And:
    """All of two or more operands, none of which is an And."""

    operands: tuple[Node, ...]

    def __str__(self) -> str:
        return " and ".join(f"({o})" if isinstance(o, Or) else str(o) for o in self.operands)


@dataclass(frozen=True, slots=True)
class Or:
    """Any of two or more operands, none of which is an Or."""

    operands: tuple[Node, ...]

    def __str__(self) -> str:
        return " or ".join(map(str, self.operands))


Node: TypeAlias = Term | Not | And | Or


@dataclass(frozen=True, slots=True)
class Requirements:
    """What a session asks of its server. Without a tree it asks for nothing.

    `str()` is canonical text: it parses to an equal tree, and may be longer than what was sent.
    """

    tree: Node | None = None
    equalities: tuple[tuple[str, str], ...] = field(init=False, repr=False, compare=False)
    """Tags (key without prefix, text) that every matching server has."""
    follows_load: bool = field(init=False, repr=False, compare=False)
    """Whether the answer may change with what moves every few seconds."""
    clauses: tuple[tuple[str, Test], ...] = field(init=False, repr=False, compare=False)
    """What a server must fulfil, all of it: canonical texts and their tests."""

    def __post_init__(self) -> None:
        clauses = _clauses_of(self.tree)
        object.__setattr__(self, "equalities", tuple(_equalities(clauses)))
        object.__setattr__(self, "follows_load", any(map(_follows_load, clauses)))
        object.__setattr__(self, "clauses", tuple((str(c), _compile(c)) for c in clauses))

    def __str__(self) -> str:
        return "" if self.tree is None else str(self.tree)

    def matches(self, facts: Facts) -> bool:
        for _, test in self.clauses:  # noqa: SIM110 - all() over a generator costs twice as much
            if not test(facts):
                return False
        return True

    def explain(self, facts: Facts) -> str | None:
        """Print the first clause that this server fails; None when it matches."""
        for text, test in self.clauses:
            if not test(facts):
                return text
        return None


def parse(text: str) -> Requirements:
    """Read requirements. Raises RequirementsInvalid; its column counts characters from 1."""
    if len(text) > MAX_LENGTH:
        message = f"Requirements can't be longer than {MAX_LENGTH:,} characters"
        raise _invalid(message, MAX_LENGTH + 1)
    return Requirements(_tree(text) if text.strip(_BLANK) else None)


def _tree(text: str) -> Node:
    reading: Any = _parser().parse_interactive(text)
    position: int | None = None
    try:
        _check(reading.iter_parse())
        position = len(text)
        return cast("Node", reading.feed_eof())
    except (UnexpectedCharacters, UnexpectedToken) as error:
        fault: Any = error
        position = fault.pos_in_stream if position is None else position
    raise _unexpected(text, position)


def _check(tokens: Iterator[Token]) -> None:
    """Refuse, while they are read, tokens that the grammar takes and the language doesn't."""
    depth = 0
    sign: Token | None = None
    for token in tokens:
        depth += (token.type == "LPAR") - (token.type == "RPAR")
        if depth > MAX_DEPTH:
            raise _invalid(f"Parentheses can't be more than {MAX_DEPTH} deep", _column(token))
        if token.type == "PROPERTY":
            _check_property(token)
        elif token.type == "OPERATOR":
            sign = token
        elif token.type == "NUMBER":
            _check_number(token, sign)


def _check_property(token: Token) -> None:
    name = token.removeprefix("server:")
    if _canonical(name) in _PROPERTIES:
        return
    spelling = {known.lower(): known for known in _PROPERTIES}
    near = get_close_matches(name.lower(), spelling, n=1) if len(name) <= _LONGEST_NAME else []
    hint = f"; did you mean server:{spelling[near[0]]}?" if near else ""
    column = _column(token)
    found = f"Server property {_clip(token)} not found at column {column}{hint}"
    raise RequirementsInvalid(found, column)


def _check_number(token: Token, sign: Token | None) -> None:
    if sign is not None and sign == CONTAINS:
        column = _column(sign)
        reason = f"Unexpected CONTAINS operator at column {column}; := needs text in single quotes"
        raise RequirementsInvalid(reason, column)
    if _number(token) is None:
        raise _invalid("The number is too large", _column(token))


def _column(token: Token) -> int:
    return (token.start_pos or 0) + 1


def _invalid(message: str, column: int) -> RequirementsInvalid:
    return RequirementsInvalid(f"{message} at column {column}", column)


def _unexpected(text: str, position: int) -> RequirementsInvalid:
    """Say what was expected at a position, and what stands there instead."""
    # Read again up to there: the fault itself has already moved the first parser's state.
    before: Any = _parser().parse_interactive(text[:position])
    before.exhaust_lexer()
    accepted = before.accepts()
    column = position + 1
    if "TEXT" in accepted and text.startswith("'", position):
        return _invalid("The text in quotes has no closing quote; it opens", column)
    *rest, last = (words for terminal, words in _EXPECTATIONS.items() if terminal in accepted)
    expected = f"{', '.join(rest)} or {last}" if rest else last
    found = re.match(r"\w{1,32}|.|\n", text[position:])
    instead = repr(found[0]) if found else "the end"
    return RequirementsInvalid(f"Expected {expected} at column {column}, found {instead}", column)


def _clip(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else name[:_LONGEST_NAME] + "..."


def _canonical(name: str) -> str:
    """Spell a property as expressions do: the API's own answers have EC2, expressions Ec2."""
    return name.replace("Host.Aws.EC2", "Host.Aws.Ec2", 1)


class _Build(Transformer[Token, Node]):
    """Makes our tree while the parser reduces, so that no second walk is needed."""

    def disjunction(self, operands: list[Node]) -> Node:
        return Or(tuple(_flat(Or, operands)))

    def conjunction(self, operands: list[Node]) -> Node:
        return And(tuple(_flat(And, operands)))

    def negation(self, operands: list[Node]) -> Node:
        return Not(operands[0])

    def term(self, tokens: list[Token]) -> Node:
        key, sign, value = tokens
        prefix, _, name = key.partition(":")
        plain = f"{prefix}:{_canonical(name)}" if prefix == "server" else str(key)
        if value.type == "TEXT":
            return Term(plain, str(sign), value[1:-1].replace("''", "'"))
        # Never None: the number was checked when its token was read.
        return Term(plain, str(sign), cast("Value", _number(value)))


def _flat(kind: type[And | Or], operands: Iterable[Node]) -> Iterator[Node]:
    for operand in operands:
        if isinstance(operand, And | Or) and isinstance(operand, kind):
            yield from operand.operands
        else:
            yield operand


@cache
def _parser() -> Lark:
    return Lark(_GRAMMAR, parser="lalr", lexer="contextual", transformer=_Build())


# A fleet has few distinct values: remembering them makes a term three times as fast.
@lru_cache(maxsize=1_024)
def _number(text: str) -> int | float | None:
    """Read a decimal number; None where the text is none, or not a finite one."""
    found = _NUMBER.fullmatch(text) if len(text) <= _LONGEST_NUMBER else None
    value = float(text) if found else math.inf
    if found is None or not math.isfinite(value):
        return None
    if found.lastindex is None:
        return int(text)
    return int(value) if value.is_integer() and abs(value) <= _EXACT else value


@lru_cache(maxsize=1_024)
def _version(text: str) -> tuple[int, ...] | None:
    return tuple(map(int, text.split("."))) if _VERSION.fullmatch(text) else None


def _clauses_of(tree: Node | None) -> tuple[Node, ...]:
    if isinstance(tree, And):
        return tree.operands
    return () if tree is None else (tree,)


def _equalities(clauses: Iterable[Node]) -> Iterator[tuple[str, str]]:
    for clause in clauses:
        if isinstance(clause, Term) and clause.operator == "=" and isinstance(clause.value, str):
            prefix, _, name = clause.key.partition(":")
            if prefix == "tag":
                yield name, clause.value


def _follows_load(node: Node) -> bool:
    match node:
        case Term(key):
            return key.startswith(_MOVING)
        case Not(operand):
            return _follows_load(operand)
        case And(operands) | Or(operands):
            return any(map(_follows_load, operands))


def _compile(node: Node) -> Test:
    match node:
        case Term():
            return _term(node)
        case Not(operand):
            test = _compile(operand)
            return lambda facts: not test(facts)
        case And(operands):
            return _until(value=False, tests=tuple(map(_compile, operands)))
        case Or(operands):
            return _until(value=True, tests=tuple(map(_compile, operands)))


def _until(*, value: bool, tests: tuple[Test, ...]) -> Test:
    """Answer `value` at the first test that answers it, else its opposite."""
    opposite = not value

    def test(facts: Facts) -> bool:
        for one in tests:
            if one(facts) is value:
                return value
        return opposite

    return test


def _term(term: Term) -> Test:
    prefix, _, name = term.key.partition(":")
    is_property = prefix == "server"
    read = _PROPERTIES[name] if is_property else _tag(name)
    numeric = is_property and (name.startswith(_NUMERIC) or name in _COUNTS)
    value = term.value
    if isinstance(value, str):
        if term.operator == CONTAINS:
            return _contains(read, value)
        if not numeric:
            return _text_term(read, term.operator, value)
    number = _number(value) if isinstance(value, str) else value
    return _number_term(read, term.operator, number)


def _tag(name: str) -> Read:
    return lambda facts: facts.tags.get(name)


def _contains(read: Read, part: str) -> Test:
    def test(facts: Facts) -> bool:
        value = read(facts)
        return value is not None and part in str(value)

    return test


def _number_term(read: Read, sign: str, number: float | None) -> Test:
    """Compare numbers; None stands for a text that is no number."""
    compare = _COMPARISONS[sign]
    otherwise = sign == "!="
    if number is None:
        return lambda _facts: otherwise

    def test(facts: Facts) -> bool:
        value = read(facts)
        if isinstance(value, str):
            value = _number(value)
        return otherwise if value is None else compare(value, number)

    return test


def _text_term(read: Read, sign: str, text: str) -> Test:
    # An absent value is None, which equals no text: = and != need no case for it.
    if sign == "=":
        return lambda facts: bool(read(facts) == text)
    if sign == "!=":
        return lambda facts: bool(read(facts) != text)
    compare = _COMPARISONS[sign]
    parts = _version(text)

    def test(facts: Facts) -> bool:
        value = read(facts)
        if value is None:
            return False
        theirs = None if parts is None else _version(value)
        if parts is not None and theirs is not None and len(theirs) == len(parts):
            return compare(theirs, parts)
        return compare(value, text)

    return test
