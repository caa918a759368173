#!/usr/bin/env python3
"""A stand-in for the `dcv` program of Amazon DCV, written from its documentation.

It takes the documented commands and options, and nothing else, prints the documented forms, and
keeps the sessions of a server that isn't there in a folder. Texts that no document gives are made
up. A file beside the program, with its name and `.json`, says what kind of server it plays:

    state          the folder
    platform       linux, windows
    whole_list     whether list-sessions says all that describe-session says
    hidden         what it says of no session
    endpoints      whether list-endpoints says anything
    web_port       what get-config says
    create_seconds how long a creation takes

Accidents are played as the file `fault` in the folder says: `{"command": NAME or "*", "kind": ...}`
with one of the kinds in `play`. Each call is written down in `calls`: its process and its
arguments. Needs nothing but the standard library, and Pillow for pictures.
"""

# What most calls have no use for is imported by those that have: a call is to be quick.
# ruff: noqa: PLC0415
from __future__ import annotations

import base64
import fcntl
import json
import os
import pwd
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

SCREEN = (1280, 800)
PALETTE = 64
LONGEST_NAME = 256
FLOOD_BYTES = 100_000_000
HOURS = 3600
JSON = {"--json": None, "-j": "--json"}

# For each command: its options, with what kind of value they take, None for a switch, or the
# long form of a short one; and how many arguments stand alone.
COMMANDS: dict[str, tuple[dict[str, str | None], int]] = {
    "create-session": (
        {
            "--type": "value",
            "--name": "value",
            "--user": "value",
            "--owner": "value",
            "--permissions-file": "value",
            "--storage-root": "value",
            "--gl": "value",
            "--max-concurrent-clients": "value",
            "--init": "value",
        },
        1,
    ),
    "close-session": ({}, 1),
    "list-sessions": (JSON, 0),
    "describe-session": (JSON, 1),
    "list-connections": (JSON, 1),
    "close-connection": ({"--session": "value"}, 1),
    "set-permissions": (
        {"--session": "value", "--none": None, "--reset-builtin": None, "--file": "value"},
        0,
    ),
    "set-name": ({"--session": "value", "--name": "value", "--none": None}, 0),
    "set-storage-root": ({"--session": "value"}, 1),
    "set-display-layout": ({"--session": "value"}, 1),
    "get-screenshot": (
        {
            "--max-width": "value",
            "--max-height": "value",
            "--format": "value",
            "--primary": None,
            "--output": "value",
            "-o": "--output",
            **JSON,
        },
        1,
    ),
    "list-endpoints": (JSON, 0),
    "get-config": ({"--section": "value", "--key": "value"}, 0),
    "set-config": ({"--section": "value", "--key": "value"}, 1),
    "reload-licenses": ({}, 0),
    "version": ({}, 0),
    "help": ({}, 0),
}


class No(Exception):
    """What the program ends with: a sentence and status 1."""


def main() -> None:
    settings = json.loads(Path(f"{sys.argv[0]}.json").read_text())
    folder = Path(settings["state"])
    folder.mkdir(parents=True, exist_ok=True)
    write_down(folder)
    try:
        command, options, alone = parsed(sys.argv[1:])
        play(folder, command, "before")
        server = Server(folder, settings)
        answer = server.run(command, options, alone)
        play(folder, command, "after")
    except No as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(1)
    sys.stdout.write(answer)


def write_down(folder: Path) -> None:
    arguments = [base64.b64encode(os.fsencode(one)).decode() for one in sys.argv[1:]]
    line = json.dumps({"pid": os.getpid(), "arguments": arguments}) + "\n"
    descriptor = os.open(folder / "calls", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(descriptor, line.encode())
    os.close(descriptor)


def parsed(arguments: list[str]) -> tuple[str, dict[str, str], list[str]]:
    """Read a command line as strictly as option parsers do."""
    if not arguments or arguments[0] not in COMMANDS:
        raise No(f"Unknown command {arguments[:1]}")
    known, expected = COMMANDS[arguments[0]]
    options: dict[str, str] = {}
    alone: list[str] = []
    rest = arguments[1:]
    while rest:
        one = rest.pop(0)
        if one == "--":
            alone += rest
            break
        if not one.startswith("-") or one == "-":
            alone.append(one)
            continue
        read_option(one, rest, known, options)
    if len(alone) != expected:
        raise No(f"{arguments[0]} takes {expected} arguments, not {len(alone)}")
    return arguments[0], options, alone


def read_option(
    one: str, rest: list[str], known: dict[str, str | None], options: dict[str, str]
) -> None:
    name, has_value, value = one.partition("=")
    if name not in known:
        raise No(f"Unknown option {one}")
    meaning = known[name]
    if meaning is not None and meaning.startswith("--"):
        name, meaning = meaning, known[meaning]
    if name in options:
        raise No(f"Option {name} is given twice")
    if meaning is None and has_value:
        raise No(f"Option {name} takes no value")
    if meaning is not None and not has_value:
        if not rest:
            raise No(f"Missing argument for {name}")
        value = rest.pop(0)
    options[name] = value


def play(folder: Path, command: str, when: str) -> None:
    """Have the accident that is asked for, if it is due now."""
    try:
        fault = json.loads((folder / "fault").read_text())
    except FileNotFoundError:
        return
    if fault["command"] not in {"*", command} or fault.get("when", "before") != when:
        return
    kinds: dict[str, Callable[[], object]] = {
        "hang": hang,
        "fail": lambda: fail("Could not connect to the DCV server"),
        "garbage": garbage,
        "flood": flood,
        "die": lambda: os.kill(os.getpid(), signal.SIGKILL),
    }
    kinds[fault["kind"]]()


def hang() -> None:
    """Wait for nothing, with a child that does so too and doesn't care for polite signals."""
    import subprocess

    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    subprocess.run(["/bin/sleep", str(HOURS)], check=False)


def fail(text: str) -> NoReturn:
    raise No(text)


def garbage() -> NoReturn:
    sys.stdout.buffer.write(b'[{"id": \xff\x00 <html>' + os.urandom(64))
    sys.exit(0)


def flood() -> NoReturn:
    chunk = b"x" * 65_536
    for _ in range(FLOOD_BYTES // len(chunk)):
        sys.stdout.buffer.write(chunk)
    sys.exit(0)


class Server:
    """The server that isn't there, as its folder remembers it."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self._folder, self._settings = folder, settings

    def run(self, command: str, options: dict[str, str], alone: list[str]) -> str:
        method: Callable[..., str] = getattr(self, command.replace("-", "_"))
        return method(options, *alone)

    def create_session(self, options: dict[str, str], id: str) -> str:
        kind = options.get("--type", "console")
        session = self._checked(options, id, kind)
        with self._sessions() as sessions:
            if id in sessions:
                raise No(f"Session '{id}' already exists")
            kinds = {one["type"] for one in sessions.values()}
            if "console" in kinds or (kind == "console" and kinds):
                raise No("Could not create session: a console session can't run beside others")
            sessions[id] = session
        time.sleep(self._settings.get("create_seconds", 0))
        if "--init" in options:
            pid = self._start_init(options, id)
            with self._sessions() as sessions:
                sessions[id]["pid"] = pid
        return ""

    def _checked(self, options: dict[str, str], id: str, kind: str) -> dict[str, Any]:
        owner = options.get("--owner", options.get("--user", "root"))
        clients = options.get("--max-concurrent-clients", "-1")
        if kind not in {"console", "virtual"}:
            raise No(f"Invalid session type '{kind}'")
        if kind == "virtual" and self._settings["platform"] != "linux":
            raise No("Virtual sessions are not supported on this platform")
        if kind == "console" and {"--user", "--init", "--gl"} & options.keys():
            raise No("That option is for virtual sessions only")
        if len(options.get("--name", "")) > LONGEST_NAME:
            raise No("The session name is too long")
        if options.get("--gl", "on") not in {"on", "off"} or not id:
            raise No("Invalid value")
        if not clients.removeprefix("-").isdecimal():
            raise No("Invalid number of clients")
        self._account(owner)
        return {
            "id": id,
            "owner": owner,
            "name": options.get("--name", ""),
            "num-of-connections": 0,
            "creation-time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "last-disconnection-time": "",
            "licenses": [],
            "storage-root": options.get("--storage-root", ""),
            "type": kind,
            "permissions": permissions_of(options.get("--permissions-file")),
            "max-concurrent-clients": int(clients),
            "gl": options.get("--gl", ""),
        }

    def _account(self, name: str) -> pwd.struct_passwd | None:
        if self._settings["platform"] != "linux":
            return None
        try:
            return pwd.getpwnam(name)
        except (KeyError, ValueError):
            raise No(f"User '{name}' does not exist") from None

    def _start_init(self, options: dict[str, str], id: str) -> int:
        """Start the init file as the user, as the leader of a session of its own."""
        import subprocess

        account = self._account(options["--user"])
        assert account is not None
        whom: dict[str, Any] = {}
        if os.geteuid() == 0:
            whom = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        null = subprocess.DEVNULL
        started = subprocess.Popen(
            [options["--init"]],
            stdin=null,
            stdout=null,
            stderr=null,
            cwd="/",
            env={
                "PATH": "/usr/bin:/bin",
                "HOME": account.pw_dir,
                "USER": account.pw_name,
                "DISPLAY": ":77",
                "DCV_SESSION_ID": id,
            },
            start_new_session=True,
            **whom,
        )
        return started.pid

    def close_session(self, options: dict[str, str], id: str) -> str:
        with self._sessions() as sessions:
            session = self._found(sessions, id)
            del sessions[id]
        if "pid" in session:
            with suppress(ProcessLookupError):
                os.killpg(session["pid"], signal.SIGKILL)
        return ""

    def list_sessions(self, options: dict[str, str]) -> str:
        with self._sessions() as sessions:
            found = list(sessions.values())
        if "--json" not in options:
            form = "Session: '{id}' (owner:{owner} type:{type} name:'{name}')\n"
            return "".join(form.format(**one) for one in found)
        if not self._settings.get("whole_list", True):
            keys = ("id", "owner", "num-of-connections")
            shown = [self._shown(one) for one in found]
            return json.dumps([{key: one[key] for key in keys if key in one} for one in shown])
        return json.dumps([self._shown(one) for one in found])

    def describe_session(self, options: dict[str, str], id: str) -> str:
        with self._sessions() as sessions:
            session = self._found(sessions, id)
        if "--json" in options:
            return json.dumps(self._shown(session))
        return "Session: '{id}'\n\towner: {owner}\n\tname: {name}\n".format(**session)

    def _shown(self, session: dict[str, Any]) -> dict[str, Any]:
        ours = {"permissions", "max-concurrent-clients", "gl", "pid", "connected"}
        ours |= set(self._settings.get("hidden", ()))
        shown = {key: value for key, value in session.items() if key not in ours}
        if self._settings["platform"] == "linux":
            shown |= {"x11-display": ":77", "x11-authority": "/run/user/77/dcv/x.xauth"}
        width, height = SCREEN
        whole = [{"width": width, "height": height, "x": 0, "y": 0}]
        return {"display-layout": whole, **shown}

    def list_connections(self, options: dict[str, str], id: str) -> str:
        with self._sessions() as sessions:
            session = self._found(sessions, id)
        names = session.get("connected") or ["someone"] * session["num-of-connections"]
        one = {"connection-time": ""}
        return json.dumps([{"id": id, "username": name, **one} for id, name in enumerate(names, 1)])

    def close_connection(self, options: dict[str, str], connection: str) -> str:
        with self._sessions() as sessions:
            session = self._found(sessions, options.get("--session", ""))
            known = {str(id) for id in range(1, session["num-of-connections"] + 1)}
            if connection not in known:
                raise No(f"Could not find connection '{connection}'")
            session["num-of-connections"] -= 1
            session["last-disconnection-time"] = datetime.now(UTC).isoformat()
        return ""

    def set_permissions(self, options: dict[str, str]) -> str:
        rules = {"--none", "--reset-builtin", "--file"} & options.keys()
        if len(rules) != 1 or "--session" not in options:
            raise No("Choose one of --none, --reset-builtin and --file, and a session")
        with self._sessions() as sessions:
            session = self._found(sessions, options["--session"])
            session["permissions"] = permissions_of(options.get("--file"))
            if "--none" in options:
                session["permissions"] = ""
        return ""

    def set_name(self, options: dict[str, str]) -> str:
        if len({"--name", "--none"} & options.keys()) != 1:
            raise No("Choose one of --name and --none")
        with self._sessions() as sessions:
            session = self._found(sessions, options.get("--session", ""))
            session["name"] = options.get("--name", "")
        return ""

    def set_storage_root(self, options: dict[str, str], path: str) -> str:
        with self._sessions() as sessions:
            self._found(sessions, options.get("--session", ""))["storage-root"] = path
        return ""

    def set_display_layout(self, options: dict[str, str], layout: str) -> str:
        heads = [re.fullmatch(r"(\d+)x(\d+)\+(\d+)\+(\d+)", one) for one in layout.split(",")]
        names = ("width", "height", "x", "y")
        shown = [dict(zip(names, map(int, head.groups()), strict=True)) for head in heads if head]
        if len(shown) < len(heads):
            raise No(f"Invalid display layout '{layout}'")
        with self._sessions() as sessions:
            self._found(sessions, options.get("--session", ""))["display-layout"] = shown
        return ""

    def get_screenshot(self, options: dict[str, str], id: str) -> str:
        with self._sessions() as sessions:
            self._found(sessions, id)
        picture, form = drawn(options)
        if "--output" in options:
            Path(options["--output"]).write_bytes(picture)
            return ""
        encoded = base64.b64encode(picture).decode()
        return json.dumps([{"format": form, "primary": True, "data": encoded}])

    def list_endpoints(self, options: dict[str, str]) -> str:
        if not self._settings.get("endpoints", True):
            return json.dumps({"certificates": [{"fingerprint": "00:11", "port": "web"}]})
        port = self._settings.get("web_port", 8443)
        kinds = ("http", "quic")
        return json.dumps([{"protocol": kind, "port": port, "address": "::"} for kind in kinds])

    def get_config(self, options: dict[str, str]) -> str:
        values = {
            "web-port": str(self._settings.get("web_port", 8443)),
            "quic-port": str(self._settings.get("web_port", 8443)),
            "web-url-path": "'/'",
            "enable-quic-frontend": "true",
        }
        known = {f"connectivity {key}": value for key, value in values.items()} | self._changed()
        name = f"{options.get('--section')} {options.get('--key')}"
        if name not in known:
            raise No(f"No such key '{options.get('--key')}'")
        return f"{known[name]}\n"

    def set_config(self, options: dict[str, str], value: str) -> str:
        if not {"--section", "--key"} <= options.keys():
            raise No("Missing --section or --key")
        changed = self._changed() | {f"{options['--section']} {options['--key']}": value}
        (self._folder / "config.json").write_text(json.dumps(changed))
        return ""

    def _changed(self) -> dict[str, str]:
        path = self._folder / "config.json"
        changed: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
        return changed

    def reload_licenses(self, options: dict[str, str]) -> str:
        return ""

    def help(self, options: dict[str, str]) -> str:
        return "Usage: dcv COMMAND\n" + "".join(f"  {name}\n" for name in COMMANDS)

    def version(self, options: dict[str, str]) -> str:
        return "Amazon DCV 2024.0 (r19030)\nCopyright (C) 2010-2024\n"

    @staticmethod
    def _found(sessions: dict[str, Any], id: str) -> dict[str, Any]:
        if id not in sessions:
            raise No(f"Could not find session '{id}'")
        session: dict[str, Any] = sessions[id]
        return session

    @contextmanager
    def _sessions(self) -> Iterator[dict[str, Any]]:
        """Hold the sessions, and keep what has become of them."""
        path = self._folder / "sessions.json"
        with (self._folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            before = path.read_text() if path.exists() else "{}"
            sessions = json.loads(before)
            yield sessions
            after = json.dumps(sessions)
            if after != before:
                draft = path.with_suffix(".new")
                draft.write_text(after)
                draft.rename(path)


def permissions_of(file: str | None) -> str | None:
    if file is None:
        return None
    try:
        return Path(file).read_text()
    except OSError as error:
        raise No(f"Could not read '{file}': {error.strerror}") from None


def drawn(options: dict[str, str]) -> tuple[bytes, str]:
    """Draw a screen with some colours, made smaller where that is asked."""
    import io
    import site

    # Left out at the start, for it takes longer than all else.
    site.main()
    from PIL import Image, ImageDraw

    form = options.get("--format", "PNG")
    if form not in {"PNG", "JPEG"}:
        raise No(f"Unknown format '{form}'")
    screen = Image.new("RGB", SCREEN, "navy")
    pen = ImageDraw.Draw(screen)
    for step in range(PALETTE):
        pen.rectangle((step * 20, 100, step * 20 + 19, 700), fill=(step * 4, 255 - step * 4, 90))
    largest = (int(options.get("--max-width", 5000)), int(options.get("--max-height", 5000)))
    screen.thumbnail(largest)
    content = io.BytesIO()
    screen.save(content, form)
    return content.getvalue(), form


if __name__ == "__main__":
    main()
