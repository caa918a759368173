"""Requirements: what parses, what is refused and where, what matches, and at what cost."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deskfleet.core.records import Aws, Cpu, Facts, Host, Os
from deskfleet.core.requirements import (
    _PROPERTIES,
    MAX_DEPTH,
    MAX_LENGTH,
    And,
    Node,
    Not,
    Or,
    Requirements,
    Term,
    parse,
)
from deskfleet.errors import RequirementsInvalid

FACTS = Facts(
    id="aXAtMTAtMTUw+/Yjg=",
    hostname="ip-10-0-0-1",
    ip="10.0.0.1",
    host=Host(
        os=Os(family="linux", name="Debian", version="12.4", kernel_version="6.1.0"),
        memory_total=16_000_000_000,
        memory_used=2**53 + 1,
        swap_used=7,
        cpu=Cpu(vendor="GenuineIntel", model_name="Xeon", architecture="x86_64", number_of_cpus=8),
        load=(0.5, 1.25, 2.0),
        aws=Aws(region="us-west-2b", instance_type="t2.micro", instance_id="i-1", image_id="ami"),
    ),
    driver="xvnc",
    version="2024.0.100",
    agent_version="0.10.0",
    boot_id="boot",
    tags={
        "color": "pink",
        "ram": "16",
        "size": "1e3",
        "empty": "",
        "quote": "it's",
        "dcv:os-family": "linux",
    },
)
BARE = msgspec.structs.replace(
    FACTS, host=Host(os=Os(family="linux"), memory_total=1, memory_used=1), tags={}
)


def matches(text: str, facts: Facts = FACTS) -> bool:
    return parse(text).matches(facts)


def refusal(text: str) -> RequirementsInvalid:
    with pytest.raises(RequirementsInvalid) as caught:
        parse(text)
    return caught.value


PINK = Term("tag:color", "=", "pink")
RED = Term("tag:color", ":=", "red")
WINDOWS = Term("server:Host.Os.Family", "=", "windows")
A, B, C = (Term(f"tag:{name}", "=", 1) for name in "abc")

TREES: list[tuple[str, Node | None]] = [
    ("", None),
    (" \t\r\n", None),
    (
        "tag:color = 'pink' and (server:Host.Os.Family = 'windows' or tag:color := 'red')",
        And((PINK, Or((WINDOWS, RED)))),
    ),
    (
        "server:Host.Aws.Ec2InstanceType := 't2' and server:Host.CpuInfo.NumberOfCpus >= 2",
        And(
            (
                Term("server:Host.Aws.Ec2InstanceType", ":=", "t2"),
                Term("server:Host.CpuInfo.NumberOfCpus", ">=", 2),
            )
        ),
    ),
    (
        "server:Host.Memory.TotalBytes > 1024E6",
        Term("server:Host.Memory.TotalBytes", ">", 1_024_000_000),
    ),
    ("server:Host.Aws.EC2ImageId='ami'", Term("server:Host.Aws.Ec2ImageId", "=", "ami")),
    ("tag:idea_session_id='5f-1'", Term("tag:idea_session_id", "=", "5f-1")),
    ("tag:dcv:os-family = 'linux'", Term("tag:dcv:os-family", "=", "linux")),
    ("tag:dcv='x'", Term("tag:dcv", "=", "x")),
    ("tag:_x1 != ''", Term("tag:_x1", "!=", "")),
    ("tag:q = 'it''s '''", Term("tag:q", "=", "it's '")),
    ("tag:q = 'two\nlines'", Term("tag:q", "=", "two\nlines")),
    ("tag:n = -1.5e-3", Term("tag:n", "=", -0.0015)),
    ("tag:n = +1.", Term("tag:n", "=", 1)),
    ("tag:n = 9007199254740993", Term("tag:n", "=", 2**53 + 1)),
    ("tag:a=1 or tag:b=1 and tag:c=1", Or((A, And((B, C))))),
    ("tag:a=1 and tag:b=1 or tag:c=1", Or((And((A, B)), C))),
    ("tag:a=1 and (tag:b=1 and tag:c=1)", And((A, B, C))),
    ("(tag:a=1)or((tag:b=1 or tag:c=1))", Or((A, B, C))),
    ("NOT tag:a=1 AND not(tag:b=1 oR tag:c=1)", And((Not(A), Not(Or((B, C)))))),
    ("not (not (tag:a=1))", Not(Not(A))),
    ("tag:a=1and tag:b=1or tag:c=1", Or((And((A, B)), C))),
]


@pytest.mark.parametrize(("text", "tree"), TREES)
def test_trees(text: str, tree: Node | None) -> None:
    requirements = parse(text)
    assert requirements == Requirements(tree)
    assert parse(str(requirements)) == requirements


def test_canonical_text() -> None:
    text = "NOT(tag:a='x' OR tag:b>1E3)and(tag:c!='it''s' or server:Host.Aws.EC2ImageId:='a')"
    assert str(parse(text)) == (
        "not (tag:a = 'x' or tag:b > 1000) and "
        "(tag:c != 'it''s' or server:Host.Aws.Ec2ImageId := 'a')"
    )
    assert str(parse("  ")) == ""


KEYS = 'Expected tag:NAME, server:PROPERTY, "not" or "("'
VALUES = "Expected text in single quotes or a number"
SIGN = "Expected an operator (= != < <= > >= :=)"

REFUSALS = [
    ("ram_gb = '4'", 1, f"{KEYS} at column 1, found 'ram_gb'"),
    ("  and", 3, f"{KEYS} at column 3, found 'and'"),
    ("()", 2, f"{KEYS} at column 2, found ')'"),
    ("tag: a = 1", 1, KEYS),
    ("TAG:a = 1", 1, KEYS),
    ("tag:1 = 1", 1, KEYS),
    ("tag:a = 1 and", 14, f"{KEYS} at column 14, found the end"),
    (
        "not not tag:a = 1",
        5,
        "Expected tag:NAME, server:PROPERTY or \"(\" at column 5, found 'not'",
    ),
    ("tag:a", 6, f"{SIGN} at column 6, found the end"),
    ("tag:my-tag = 1", 7, f"{SIGN} at column 7, found '-'"),
    ("'x' = tag:a", 1, KEYS),
    ("tag:a =", 8, f"{VALUES} at column 8, found the end"),
    ("tag:a == 1", 8, f"{VALUES} at column 8, found '='"),
    ('tag:a = "x"', 9, f"{VALUES} at column 9, found '\"'"),
    ("tag:a = tag:b", 9, f"{VALUES} at column 9, found 'tag'"),
    ("tag:a = .5", 9, VALUES),
    ("tag:a = 0x1", 10, 'Expected "and", "or" or the end at column 10, found \'x1\''),
    ("tag:a = 1 tag:b = 2", 11, 'Expected "and", "or" or the end at column 11'),
    ("tag:a = 1)", 10, 'Expected "and", "or" or the end at column 10, found \')\''),
    ("(tag:a = 1", 11, 'Expected "and", "or" or ")" at column 11, found the end'),
    ("tag:a = 'x", 9, "The text in quotes has no closing quote; it opens at column 9"),
    ("tag:a = 'x''", 9, "The text in quotes has no closing quote; it opens at column 9"),
    ("tag:a = 1\n or\n  tag:b ~ 2", 23, f"{SIGN} at column 23, found '~'"),
    ("tag:a = \u0661", 9, VALUES),
    ("tag:a\u00a0= 1", 6, SIGN),
    ("tag:a := 5", 7, "Unexpected CONTAINS operator at column 7"),
    ("server:Version := 5", 16, "Unexpected CONTAINS operator at column 16"),
    ("tag:a = 1e999", 9, "The number is too large at column 9"),
    ("tag:a = -1e999", 9, "The number is too large at column 9"),
    (f"tag:a = {'9' * 3_000}", 9, "The number is too large at column 9"),
    (
        "server:Host.Os.Famly = 'x'",
        1,
        "server:Host.Os.Famly not found at column 1; did you mean server:Host.Os.Family?",
    ),
    ("tag:a=1 or server:id = 'x'", 12, "server:id not found at column 12; did you mean server:Id?"),
    ("server:Host.CpuInfo.PhysicalCorePerCpu=1", 1, "server:Host.CpuInfo.PhysicalCoresPerCpu?"),
    ("server:Ip = '1'", 1, "Server property server:Ip not found at column 1"),
    ("server: = 1", 1, "Server property server: not found at column 1"),
    ("server:Tag.instance = 1", 1, "Server property server:Tag.instance not found at column 1"),
    (f"server:{'I' * 4_000} = 1", 1, "III... not found at column 1"),
    (
        f"tag:a = '{'x' * MAX_LENGTH}'",
        MAX_LENGTH + 1,
        "can't be longer than 4,096 characters at column 4097",
    ),
    ("(" * 33 + "tag:a=1" + ")" * 33, 33, "Parentheses can't be more than 32 deep at column 33"),
    ("(" * 4_000, 33, "Parentheses can't be more than 32 deep at column 33"),
    ("not(" * 33, 132, "Parentheses can't be more than 32 deep at column 132"),
]


@pytest.mark.parametrize(("text", "column", "message"), REFUSALS)
def test_refusals_name_the_column_and_what_was_expected(
    text: str, column: int, message: str
) -> None:
    error = refusal(text)
    assert message in error.message
    assert error.column == column
    assert len(error.message) < 200


def test_a_property_that_resembles_none_gets_no_suggestion() -> None:
    assert "did you mean" not in refusal("server:Availability.Zone.Name = 1").message


def test_the_limits_themselves_are_allowed() -> None:
    deep = "(" * MAX_DEPTH + "tag:a=1" + ")" * MAX_DEPTH
    assert parse(deep).tree == A
    long = "tag:a='" + "x" * (MAX_LENGTH - 8) + "'"
    assert len(long) == MAX_LENGTH
    assert matches(long) is False
    many = "tag:a=1 or " * (MAX_LENGTH // 11) + "a"
    assert refusal(many).column == len(many)
    assert matches(many[: -len(" or a")]) is False


MATCHES = [
    ("", True),
    ("tag:color = 'pink'", True),
    ("tag:color = 'Pink'", False),
    ("tag:color != 'pink'", False),
    ("tag:color := 'in'", True),
    ("tag:color := ''", True),
    ("tag:color := 'ink '", False),
    ("tag:color > 'piglet'", True),
    ("tag:color <= 'pink'", True),
    ("tag:quote = 'it''s'", True),
    ("tag:empty = ''", True),
    ("tag:dcv:os-family = 'linux'", True),
    # A number against text
    ("tag:ram = 16", True),
    ("tag:ram = 16.0", True),
    ("tag:ram >= 4", True),
    ("tag:ram != 16", False),
    ("tag:size = 1000", True),
    ("tag:color = 1", False),
    ("tag:color != 1", True),
    ("tag:color < 1", False),
    ("tag:color > 1", False),
    ("tag:empty != 1", True),
    # Versions of one shape, and of two
    ("tag:ram > '4'", True),
    ("server:Version >= '2023.1.9'", True),
    ("server:Version > '2024.0.99'", True),
    ("server:Version < '2024.0.99'", False),
    ("server:Version <= '2024.0.100'", True),
    ("server:Version = '2024.0.0100'", False),
    ("server:Version < '2024.0.99.1'", True),
    ("server:SessionManagerAgentVersion > '0.9.0'", True),
    ("server:Host.Os.Version > '9.4'", True),
    ("server:Host.Os.KernelVersion > '6.1'", True),
    # Text against a number
    ("server:Host.CpuInfo.NumberOfCpus = '8'", True),
    ("server:Host.CpuInfo.NumberOfCpus >= '10'", False),
    ("server:Host.CpuInfo.NumberOfCpus = 'eight'", False),
    ("server:Host.CpuInfo.NumberOfCpus != 'eight'", True),
    ("server:Host.CpuInfo.NumberOfCpus > 'eight'", False),
    ("server:Host.Memory.TotalBytes := '16'", True),
    ("server:Host.Memory.TotalBytes > 1024E6", True),
    ("server:Host.Memory.UsedBytes = 9007199254740993", True),
    ("server:Host.Memory.UsedBytes = 9007199254740992", False),
    ("server:Host.CpuLoadAverage.OneMinute < 0.75", True),
    ("server:Host.CpuLoadAverage.FifteenMinutes = 2", True),
    # What the server lacks
    ("tag:none = 'x'", False),
    ("tag:none != 'x'", True),
    ("tag:none < 'x'", False),
    ("tag:none := ''", False),
    ("tag:none = 1", False),
    ("tag:none != 1", True),
    ("not tag:none = 'x'", True),
    ("not tag:none != 'x'", False),
    ("server:Host.Os.BuildNumber = '1'", False),
    ("server:Host.Os.BuildNumber != 1", True),
    ("server:Host.CpuInfo.PhysicalCoresPerCpu >= 0", False),
    ("server:Host.CpuInfo.PhysicalCoresPerCpu != 'x'", True),
    ("server:Host.CpuInfo.PhysicalCoresPerCpu := '1'", False),
    # Structure
    ("tag:color = 'pink' and (server:Host.Os.Family = 'windows' or tag:color := 'red')", False),
    ("tag:color = 'pink' and (server:Host.Os.Family = 'linux' or tag:color := 'red')", True),
    ("server:Host.Aws.Ec2InstanceType := 't2' and server:Host.CpuInfo.NumberOfCpus >= 2", True),
    ("tag:a=1 and tag:b=1 or tag:ram=16", True),
    ("tag:a=1 and (tag:b=1 or tag:ram=16)", False),
    ("not (tag:a=1 or tag:ram=16)", False),
    ("not tag:a=1 and tag:ram=16", True),
]


@pytest.mark.parametrize(("text", "expected"), MATCHES)
def test_matches(text: str, *, expected: bool) -> None:
    assert matches(text) is expected
    assert (parse(text).explain(FACTS) is None) is expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Id", "aXAtMTAtMTUw+/Yjg="),
        ("Hostname", "ip-10-0-0-1"),
        ("Version", "2024.0.100"),
        ("SessionManagerAgentVersion", "0.10.0"),
        ("Host.Os.Family", "linux"),
        ("Host.Os.KernelVersion", "6.1.0"),
        ("Host.Os.Name", "Debian"),
        ("Host.Os.Version", "12.4"),
        ("Host.Memory.TotalBytes", 16_000_000_000),
        ("Host.Memory.UsedBytes", 2**53 + 1),
        ("Host.Swap.TotalBytes", 0),
        ("Host.Swap.UsedBytes", 7),
        ("Host.CpuLoadAverage.OneMinute", 0.5),
        ("Host.CpuLoadAverage.FiveMinutes", 1.25),
        ("Host.CpuLoadAverage.FifteenMinutes", 2),
        ("Host.Aws.Ec2InstanceId", "i-1"),
        ("Host.Aws.Ec2InstanceType", "t2.micro"),
        ("Host.Aws.EC2InstanceType", "t2.micro"),
        ("Host.Aws.Region", "us-west-2b"),
        ("Host.Aws.Ec2ImageId", "ami"),
        ("Host.CpuInfo.Architecture", "x86_64"),
        ("Host.CpuInfo.ModelName", "Xeon"),
        ("Host.CpuInfo.NumberOfCpus", 8),
        ("Host.CpuInfo.Vendor", "GenuineIntel"),
    ],
)
def test_a_property_reads_its_own_fact(name: str, value: str | float) -> None:
    requirements = parse(str(Term(f"server:{name}", "=", value)))
    assert requirements.matches(FACTS)
    assert not parse(str(Term(f"server:{name}", "!=", value))).matches(FACTS)


@pytest.mark.parametrize("name", _PROPERTIES)
def test_every_property_can_be_asked_of_a_server_that_says_little(name: str) -> None:
    text, number = parse(f"server:{name} = 'x'"), parse(f"server:{name} = -1")
    assert not text.matches(BARE)
    assert not number.matches(BARE)


def test_explain_prints_the_first_clause_that_fails() -> None:
    requirements = parse("tag:color='pink' AND (tag:gpu='yes' OR not tag:ram<4) and (tag:x=1)")
    assert requirements.explain(FACTS) == "tag:x = 1"
    assert requirements.explain(BARE) == "tag:color = 'pink'"
    poor = msgspec.structs.replace(FACTS, tags={"color": "pink", "ram": "2"})
    assert requirements.explain(poor) == "tag:gpu = 'yes' or not tag:ram < 4"


EQUALITIES = [
    ("", ()),
    ("tag:a = 'x'", (("a", "x"),)),
    (
        "tag:a = 'x' and (tag:dcv:b-c = 'y' and tag:d = '4')",
        (("a", "x"), ("dcv:b-c", "y"), ("d", "4")),
    ),
    ("tag:a = 'x' or tag:b = 'y'", ()),
    ("not tag:a = 'x' and not (tag:b = 'y')", ()),
    ("tag:a != 'x' and tag:b := 'y' and tag:c = 4 and tag:d >= '4'", ()),
    ("server:Id = 'x' and tag:a = 'x'", (("a", "x"),)),
]


@pytest.mark.parametrize(("text", "expected"), EQUALITIES)
def test_equalities_are_tags_that_every_match_has(
    text: str, expected: tuple[tuple[str, str], ...]
) -> None:
    assert parse(text).equalities == expected


def test_requirements_are_hashable_and_equal_by_value() -> None:
    assert len({parse("tag:a=1"), parse(" tag:a = 1.0 "), parse("tag:a=2")}) == 2


TEXTS = st.text(max_size=8)
NUMBERS = st.integers(-(10**20), 10**20) | st.floats(allow_nan=False, allow_infinity=False)
TAGS = st.from_regex(r"tag:(dcv:[a-z-]+|[A-Za-z_][A-Za-z0-9_]*)", fullmatch=True).filter(
    lambda tag: len(tag) < 20
)
NAMES = TAGS | st.sampled_from([f"server:{name}" for name in _PROPERTIES])
SIGNS = st.sampled_from(["=", "!=", "<", "<=", ">", ">="])
TERMS: st.SearchStrategy[Node] = st.one_of(
    st.builds(Term, NAMES, SIGNS, TEXTS | NUMBERS), st.builds(Term, NAMES, st.just(":="), TEXTS)
)


def _joined(
    kind: Callable[[tuple[Node, ...]], Node],
    other: tuple[type, ...],
    nodes: st.SearchStrategy[Node],
) -> st.SearchStrategy[Node]:
    operands = nodes.filter(lambda node: isinstance(node, other))
    return st.lists(operands, min_size=2, max_size=3).map(tuple).map(kind)


def _nested(nodes: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
    return st.one_of(
        _joined(And, (Term, Not, Or), nodes), _joined(Or, (Term, Not, And), nodes), nodes.map(Not)
    )


TREE_NODES = st.recursive(TERMS, _nested, max_leaves=10)


@given(TREE_NODES)
def test_every_tree_prints_to_text_that_parses_to_it(tree: Node) -> None:
    assert parse(str(tree)).tree == tree


@given(TREE_NODES)
def test_not_turns_every_answer_round(tree: Node) -> None:
    for facts in (FACTS, BARE):
        assert Requirements(Not(tree)).matches(facts) is not Requirements(tree).matches(facts)


@given(NAMES, TEXTS | NUMBERS)
def test_different_is_the_opposite_of_equal(name: str, value: str | float) -> None:
    same, different = (Requirements(Term(name, sign, value)) for sign in ("=", "!="))
    for facts in (FACTS, BARE):
        assert same.matches(facts) is not different.matches(facts)


WORDS = (
    st.sampled_from(["tag:a", "tag:dcv:b-c", "server:Id", "server:Host.Os.Family", "server:No"])
    | st.sampled_from(["and", "OR", "Not", "(", ")", "=", "!=", ":=", "<", ">="])
    | st.sampled_from(["1", "-2.5e3", "1e999", "'x'", "''", "'", '"', "é", "\0", "tag", ":", "."])
)


@given(st.one_of(st.text(), st.lists(WORDS).map(" ".join), st.lists(WORDS).map("".join)))
def test_no_text_raises_anything_but_requirements_invalid(text: str) -> None:
    try:
        requirements = parse(text)
    except RequirementsInvalid as error:
        found = error
    else:
        assert parse(str(requirements)) == requirements
        assert requirements.matches(FACTS) is (requirements.explain(FACTS) is None)
        return
    assert 1 <= found.column <= len(text) + 1
    assert found.message


WORST: dict[str, Callable[[int], str]] = {
    "blanks": lambda size: " " * (size - 1) + "(",
    "text": lambda size: "tag:a = '" + "x" * (size - 9),
    "quotes": lambda size: "tag:a = '" + "''" * ((size - 9) // 2),
    "digits": lambda size: "tag:a = " + "1" * (size - 8),
    "exponent": lambda size: "tag:a = 1e" + "1" * (size - 10),
    "name": lambda size: "tag:" + "a" * (size - 4),
    "reserved name": lambda size: "tag:dcv:" + "-" * (size - 8),
    "property": lambda size: "server:" + "Host.Os." * ((size - 7) // 8),
    "terms": lambda size: "tag:a='" + "x" * (size // 8) + "'" + " or tag:a=1" * (size // 64),
}


def _fastest(text: str) -> float:
    """Time the best of some readings: noise only ever adds."""
    best = float("inf")
    for _ in range(15):
        began = time.perf_counter()
        with suppress(RequirementsInvalid):
            parse(text)
        best = min(best, time.perf_counter() - began)
    return best


@pytest.mark.parametrize("shape", WORST)
def test_reading_takes_linear_time(shape: str) -> None:
    make = WORST[shape]
    parse("tag:a = 1")
    small, large = _fastest(make(MAX_LENGTH // 8)), _fastest(make(MAX_LENGTH))
    # Eight times the text: quadratic reading would take sixty-four times as long.
    assert large < 24 * small
