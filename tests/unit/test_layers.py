"""The rules of the house that a machine can check: imports, sizes, names, guards.

An exception to a rule stands here with its reason; one that is no longer needed fails, too.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import deskfleet

SOURCES = Path(deskfleet.__file__).parent
ROOT = Path(__file__).parents[2]

MOST_LINES = 500
MOST_FUNCTION_LINES = 60

LONG_FUNCTIONS = {
    "broker/main.py:_parts": "the list of all parts, in the order in which they know each other",
    "cli/sessions.py:create_session": "one option of the command line for each member of the API",
}
BROAD_EXCEPTS = {
    "agent/desktop/guard.py": "supervisor of one request: nothing unexpected escapes",
    "agent/drivers/dcv.py": "undoes a creation, and raises on; supervisor of the looks",
    "agent/drivers/xvnc.py": "clears what an attempt has left, and raises on",
    "agent/drivers/xvnc_clearing.py": "supervisor of a clearing: what owners bring about ends none",
    "agent/threads.py": "a thread lives on; who waits is told",
    "agent/uplink.py": "an agent without a link is of no use: supervisor of the link",
    "broker/stores/group_commit.py": "the store thread lives on; who waits is told",
    "broker/stores/sql.py": "gives a connection back, and raises on",
    "broker/web/agents.py": "supervisor of one agent link",
    "broker/web/app.py": "supervisor of one request: nothing unexpected escapes",
    "cli/dcvsm.py": "the last supervisor of a command",
    "cli/main.py": "the last supervisor of a command",
    "observe.py": "a log line never makes the program fail that logs it",
}
BANNED = {"manager", "managers", "helper", "helpers", "util", "utils", "common", "misc", "handle"}
FIELD_NAMES = {
    # Names that others have given.
    "session_manager_agent_version": "a member of the API",
    "wait_for_window_manager": "a window manager is one",
    "_window_manager_answers": "a window manager is one",
    "do_GET": "of http.server",
}


def modules() -> list[Path]:
    return [path for path in sorted(SOURCES.rglob("*.py")) if "node_modules" not in path.parts]


def label(path: Path) -> str:
    return path.relative_to(SOURCES).as_posix()


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(path: Path) -> Iterator[Function]:
    for node in ast.walk(tree(path)):
        if isinstance(node, Function):
            yield node


def given_names(path: Path) -> Iterator[str]:
    """Yield every name that a module gives to something."""
    for node in ast.walk(tree(path)):
        if isinstance(node, Function | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def words(name: str) -> set[str]:
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return {word.lower() for word in spaced.split("_") if word}


def test_imports_go_only_downwards() -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    run = subprocess.run(
        [lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "0 broken" in run.stdout


def test_no_module_is_longer_than_a_reader_keeps_in_mind() -> None:
    lengths = {label(path): len(path.read_text().splitlines()) for path in modules()}
    assert len(lengths) > 50
    assert {name: count for name, count in lengths.items() if count > MOST_LINES} == {}


def test_no_function_is_longer_than_a_page() -> None:
    long = {
        f"{label(path)}:{node.name}"
        for path in modules()
        for node in functions(path)
        if (node.end_lineno or 0) - node.lineno + 1 > MOST_FUNCTION_LINES
    }
    assert long == set(LONG_FUNCTIONS)


def test_every_module_with_code_says_what_it_owns() -> None:
    silent = [
        label(path)
        for path in modules()
        if path.name != "__init__.py" and ast.get_docstring(tree(path)) is None
    ]
    assert silent == []


def test_names_are_the_fields_words() -> None:
    vague = {
        f"{label(path)}: {name}"
        for path in modules()
        for name in given_names(path)
        if (words(name) & BANNED or name.lstrip("_").startswith("do_")) and name not in FIELD_NAMES
    }
    assert vague == set()
    assert not [path for path in modules() if words(path.stem) & BANNED]


def test_only_supervisors_catch_everything() -> None:
    broad = set()
    for path in modules():
        for node in ast.walk(tree(path)):
            if not isinstance(node, ast.ExceptHandler):
                continue
            caught = (
                {"bare"} if node.type is None else set(re.findall(r"\w+", ast.unparse(node.type)))
            )
            if caught & {"bare", "Exception", "BaseException"}:
                broad.add(label(path))
    assert broad == set(BROAD_EXCEPTS)


def test_nothing_prints_but_the_command_line() -> None:
    printing = [
        f"{label(path)}:{node.lineno}"
        for path in modules()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
    ]
    assert printing == []


def test_no_program_is_run_by_a_shell() -> None:
    shells = [
        f"{label(path)}:{node.lineno}"
        for path in modules()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call)
        and (
            any(word.arg == "shell" for word in node.keywords)
            or ast.unparse(node.func)
            in {"os.system", "os.popen", "asyncio.create_subprocess_shell", "subprocess.getoutput"}
        )
    ]
    assert shells == []


def test_log_messages_are_fixed_names_with_facts_apart() -> None:
    odd = []
    for path in modules():
        for node in ast.walk(tree(path)):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            logs = isinstance(node.func.value, ast.Name) and node.func.value.id == "log"
            if not logs or node.func.attr == "isEnabledFor":
                continue
            texts = node.args[1:] if node.func.attr == "log" else node.args
            text = texts[0].value if texts and isinstance(texts[0], ast.Constant) else ""
            if len(texts) != 1 or not re.fullmatch(
                r"[a-z0-9]+(-[a-z0-9]+)*\.[a-z0-9]+(-[a-z0-9]+)*", str(text)
            ):
                odd.append(f"{label(path)}:{node.lineno}")
    assert odd == []


def test_nothing_is_left_to_do() -> None:
    marks = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
    assert [label(path) for path in modules() if marks.search(path.read_text())] == []


PUBLIC = {
    "client": {
        ("POST", "/oauth2/token"),
        ("GET", "/dcv-session-manager-api.yaml"),
        ("GET", "/health"),
    },
    "agent": {
        ("POST", "/register"),
        ("POST", "/oauth2/token"),
        ("POST", "/agent/validate-authentication-token"),
        ("GET", "/health"),
    },
    # Who may reach this door at all is settled in the TLS handshake.
    "gateway": {("POST", "/resolveSession"), ("GET", "/health")},
}
OTHERS = {"client": {"CLIENT"}, "agent": {"PEER"}, "gateway": set[str]()}


def route_table(function: str) -> list[tuple[str, str, str]]:
    """Return method, path and caller of each route that is written in the table."""
    [table] = [
        node for node in functions(SOURCES / "broker/web/routes.py") if node.name == function
    ]
    routes = [
        node
        for node in ast.walk(table)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "Route"
    ]
    rows = []
    for route in routes:
        method, path, caller = route.args[:3]
        assert isinstance(method, ast.Constant)
        assert isinstance(path, ast.Constant)
        assert isinstance(caller, ast.Attribute)
        assert ast.unparse(caller.value) == "Caller"
        rows.append((str(method.value), str(path.value), caller.attr))
    return rows


@pytest.mark.parametrize("door", ["client", "agent", "gateway"])
def test_who_may_call_is_written_at_every_route(door: str) -> None:
    rows = route_table(f"{door}_routes")
    assert len(rows) > (1 if door == "gateway" else 5)
    assert len({(method, path) for method, path, _ in rows}) == len(rows)
    public = {(method, path) for method, path, caller in rows if caller == "ANYBODY"}
    assert public == PUBLIC[door]
    others = {caller for _, _, caller in rows if caller != "ANYBODY"}
    assert others == OTHERS[door]


def test_every_route_for_clients_has_its_scope() -> None:
    [table] = [
        node for node in functions(SOURCES / "broker/web/routes.py") if node.name == "client_routes"
    ]
    routes = [
        [ast.unparse(argument) for argument in node.args]
        for node in ast.walk(table)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Route"
    ]
    scoped = [route for route in routes if route[2] == "Caller.CLIENT"]
    assert len(scoped) == 9
    assert all(len(route) == 5 and route[4].startswith("Scope.") for route in scoped)
    assert all(len(route) == 4 for route in routes if route not in scoped)
