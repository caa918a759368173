"""Hostile names of programs, thrown at the whole way from a request's body to what is run.

`python -m support.hostile_programs FOLDER COUNT SEED` makes a folder of programs with canaries
around it, and prints as JSON what came of so many names and arguments. It is a program of its own,
because it watches each file that it opens: with an audit hook, which nothing can take away again,
and through the descriptors themselves, which say where an opened name has led.
"""

from __future__ import annotations

import json
import os
import random
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from deskfleet.agent.drivers.desktops import ICEWM
from deskfleet.agent.drivers.session_folders import RuntimeFolders
from deskfleet.agent.drivers.xvnc_launch import Programs, leader_order
from deskfleet.broker.web.bodies import decode_body, to_request
from deskfleet.broker.web.shapes import CreateSessionRequestData
from deskfleet.core.placement import Refusal
from deskfleet.core.records import Intent, SessionRequest
from deskfleet.errors import Invalid, StartFailed
from deskfleet.machine.posix_programs import find_program
from deskfleet.ports import SessionSpec
from deskfleet.wire.messages import Desire, Desired, decode_from_broker, encode

ECHO = '#!/bin/sh\ncat "/proc/$$/cmdline" > "$DF_SAID"\n'
"""Says how it was run, byte for byte."""
CANARY = '#!/bin/sh\necho "$0" >> "$DF_CANARY"\n'
GOOD = (
    *("good", "-dash", "--help", "sp ace", " lead", "trail ", "quo'te", 'dou"ble', "back\\slash"),
    *("$(id)", "`id`", ";id", "&&id", "|id", "*", "?", "[a]", "~", "~root", "%s", "{}", "#!", "!"),
    *("\u00e9", "e\u0301", "\uff0e\uff0e", "\uff0fetc", "\u2024\u2024", "日本", "😀", "ﬁle"),
    *("...", "..good", "good..", ".hidden", "l" * 255, "inner/deep/run", "inner/-x", "inner/.../z"),
)
"""Names of programs that are there, each another file, however alike two of them look."""
PIECES = (
    *("/", "//", "/./", "./", "../", "..", ".", "/..", "\\", "\n", "\r", "\t", "\x00", "\x1b[2J"),
    *("\x7f", "\x85", "\u2028", "\u202e", "\u200b", "\ufeff", "\xad", " ", "'", '"', "$", "`", ";"),
    *("good", "inner", "link", "linked", "loop", "fifo", "folder", "plain", "open", "theirs"),
    *("outside", "canary", "init", "proc/self/fd/0", "dev/stdin", "etc/passwd", "\ud800", "\udcff"),
    *("x" * 300, "é", "e\u0301", "\uff0e\uff0e/", "%2e%2e/", "%00", "~", "-", "--"),
)
SPEAKABLE = tuple(
    piece
    for piece in PIECES
    if not any(unicodedata.category(one) in {"Cc", "Cs", "Zl", "Zp"} for one in piece)
)
"""What a program is given: characters of one line of text."""
BAD = (
    *("link", "linked/canary", "loop", "fifo", "folder", "plain", "open", "theirs", "hard/../good"),
    *(
        "up/init/good",
        "../outside/canary",
        "/bin/sh",
        "inner/../good",
        "good/",
        "good/x",
        "missing",
    ),
    *("open-folder/run", "their-folder/run", "inner/link", "", "/", ".", "..", "a/" * 600 + "b"),
)


Find = Callable[[Path, str, str], Path]


def make_place(folder: Path, echo: str = ECHO) -> Path:
    """Make a folder of programs with all that can be wrong in one; return it."""
    init, outside = folder / "init", folder / "outside"
    inner = init / "inner"
    for path in (folder, init, inner, inner / "deep", inner / "...", outside):
        path.mkdir(mode=0o755, parents=True, exist_ok=True)
    for name in GOOD:
        _program(init / name, echo)
    _program(outside / "canary", CANARY)
    (init / "link").symlink_to("../outside/canary")
    (init / "linked").symlink_to("../outside")
    (init / "up").symlink_to("..")
    (init / "loop").symlink_to("loop")
    (init / "inner/link").symlink_to("../good")
    (init / "folder").mkdir()
    (init / "plain").write_text(echo)
    for fifo in (init / "fifo", outside / "fifo"):
        os.mkfifo(fifo, 0o755)
    for name in ("open", "theirs", "open-folder/run", "their-folder/run"):
        (init / name).parent.mkdir(exist_ok=True)
        _program(init / name, CANARY)
    (init / "open").chmod(0o777)
    (init / "open-folder").chmod(0o777)
    if os.geteuid() == 0:
        for name in ("theirs", "their-folder"):
            os.chown(init / name, 65534, 65534)
    else:
        (init / "theirs").chmod(0o775)
        (init / "their-folder").chmod(0o775)
    return init


def _program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


RUNNABLE = frozenset(tuple(name.encode().split(b"/")) for name in GOOD if name.isprintable())


def steps_of(name: str) -> tuple[bytes, ...]:
    """Return what a name is made of, as the file system sees it."""
    parts = name.encode(errors="surrogatepass").split(b"/")
    return tuple(part for part in parts if part not in {b"", b"."})


def is_runnable(name: str) -> bool:
    """Say whether a program of a place has this name, and may be run by it."""
    return steps_of(name) in RUNNABLE and not name.startswith("/") and name.isprintable()


def hostile_names(count: int, chance: random.Random) -> Iterator[str]:
    """Give names: good ones dressed up, bad ones, and pieces put together."""
    for _ in range(count):
        kind = chance.random()
        if kind < 0.3:
            name = chance.choice(GOOD)
            dress = chance.choice(("{}", "./{}", ".//{}", "././{}", "{}", "{}"))
            yield dress.format("{}").replace("{}", name)
        elif kind < 0.5:
            yield chance.choice(BAD)
        elif kind < 0.8:
            yield _text("".join(chance.choices(PIECES, k=chance.randint(1, 5))))
        else:
            letters = list(chance.choice(GOOD + BAD[:12]))
            for _ in range(chance.randint(1, 3)):
                letters.insert(chance.randint(0, len(letters)), chance.choice(PIECES))
            yield _text("".join(letters))


def hostile_text(chance: random.Random) -> str:
    """Give a text of pieces; mostly such as a program can be told."""
    pieces = PIECES if chance.random() < 0.2 else SPEAKABLE
    return _text("".join(chance.choices(pieces, k=chance.randint(0, 5))))


def hostile_arguments(most: int, chance: random.Random) -> list[str]:
    """Give some arguments; mostly such that a program can be told."""
    pieces = PIECES if chance.random() < 0.1 else SPEAKABLE
    return [
        _text("".join(chance.choices(pieces, k=chance.randint(0, 4)))[:150])
        for _ in range(chance.randint(0, most))
    ]


def _text(units: str) -> str:
    """Return a text as it is read from JSON: two halves of a character that meet become one."""
    return units.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


class Watched:
    """Every file that this program opens from now on, by where it really is."""

    def __init__(self) -> None:
        self.attempts = 0
        self.opened: list[str] = []
        self._genuine = os.open
        os.open = self._open
        sys.addaudithook(self._heard)

    def forget(self) -> None:
        self.attempts, self.opened = 0, []
        self._through = 0

    @property
    def unseen(self) -> int:
        """How many opens went another way than through the function that is watched."""
        return self.attempts - self._through

    def _heard(self, event: str, _arguments: Any) -> None:
        self.attempts += event == "open"

    def _open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        self._through += 1
        descriptor = self._genuine(path, flags, mode, dir_fd=dir_fd)
        self.opened.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        return descriptor


def find_carelessly(folder: Path, name: str, kind: str) -> Path:
    """Stand for a search with a bug: it believes what the name says, and opens it to look."""
    try:
        path = folder / name.strip()
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
    except (OSError, ValueError) as error:
        raise StartFailed(f"{kind}: {error!r}") from error
    return path


class Campaign:
    def __init__(self, folder: Path, seed: int, find: Find = find_program) -> None:
        self.folder = folder
        self._find = find
        self.init = make_place(folder)
        self.chance = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.violations: list[str] = []
        self._bytes = os.fsencode(self.init)
        self._canary = folder / "canary-ran"
        self._watched = Watched()

    def run(self, count: int, runs: int) -> dict[str, Any]:
        """Try so many names; run every program that is found until `runs` were."""
        for name in hostile_names(count, self.chance):
            most = 50 if self.counts["ran"] < runs else 3
            spec = self._through_the_house(name, hostile_arguments(most, self.chance))
            # An agent is told only what a broker lets pass, but doesn't build on that.
            found = self._found(name)
            if found is not None and spec is not None and self.counts["ran"] < runs:
                self._execute(spec, found)
        if self._canary.exists():
            self.violations.append(f"a canary ran: {self._canary.read_text()[:200]}")
        return {"counts": dict(self.counts), "violations": self.violations[:20]}

    def _through_the_house(self, name: str, arguments: list[str]) -> SessionSpec | None:
        """Return what an agent is told of a request, None where the broker refuses it."""
        asked = {"Name": "n", "Owner": "o", "Type": "VIRTUAL", "InitFile": name}
        asked["AutorunFileArguments"] = arguments  # type: ignore[assignment]
        body = json.dumps([asked]).encode()
        try:
            [item] = decode_body(body, list[CreateSessionRequestData])
        except Invalid:
            self.counts["unreadable"] += 1
            return None
        request = to_request(item)
        if isinstance(request, Refusal):
            self.counts["refused by the broker"] += 1
            return None
        spec = SessionSpec(session_id="s", generation=1, request=request)
        desired = Desired(epoch=1, serial=1, desires=(Desire(spec=spec, intent=Intent.RUN),))
        told = decode_from_broker(encode(desired))
        assert isinstance(told, Desired)
        self._same(name, arguments, told.desires[0].spec.request)
        return told.desires[0].spec

    def _same(self, name: str, arguments: list[str], request: SessionRequest) -> None:
        if (request.init_file or "") != name or list(request.autorun_file_arguments) != arguments:
            self.violations.append(f"{name!r} became {request.init_file!r} on its way")

    def _found(self, name: str) -> Path | None:
        steps = steps_of(name)
        is_good = is_runnable(name)
        self._watched.forget()
        try:
            found = self._find(self.init, name, "init file")
        except StartFailed as refusal:
            self.counts["refused by the agent"] += 1
            self._look(name)
            if is_good or not refusal.message.isprintable():
                self.violations.append(f"{name!r} was refused: {refusal.message!r}")
            return None
        self._look(name)
        self.counts["found"] += 1
        if not is_good or os.fsencode(found) != b"/".join((self._bytes, *steps)):
            self.violations.append(f"{name!r} led to {found!r}")
        return found

    def _look(self, name: str) -> None:
        """See to it that nothing was opened but the way to the folder, and what is in it."""
        inside = str(self.init)
        for path in self._watched.opened:
            on_the_way = inside == path or inside.startswith(path.rstrip("/") + "/")
            if not (on_the_way or path.startswith(inside + "/")):
                self.violations.append(f"{name!r} opened {path!r}")
        if self._watched.unseen:
            self.violations.append(f"{name!r}: {self._watched.unseen} files opened unseen")

    def _execute(self, spec: SessionSpec, program: Path) -> None:
        """Run a program as the session leader does with what it is told, and see what ran."""
        order = leader_order(
            spec,
            folders=RuntimeFolders(self.folder / "run"),
            key="0",
            xvnc="/nowhere",
            geometry="1x1",
            desktop=ICEWM,
            programs=Programs(autorun=program),
            limit_seconds=1,
        )
        argv = json.loads(json.dumps(order))["autorun"]
        said = self.folder / "said"
        environment = {
            "PATH": "/usr/bin:/bin",
            "DF_SAID": str(said),
            "DF_CANARY": str(self._canary),
        }
        os.waitpid(os.posix_spawnp(argv[0], argv, environment, setsid=True), 0)
        wanted = ["/bin/sh", str(program), *spec.request.autorun_file_arguments]
        if said.read_bytes() != b"".join(os.fsencode(one) + b"\0" for one in wanted):
            self.violations.append(f"{program!r} was run otherwise: {said.read_bytes()!r}")
        self.counts["ran"] += 1
        self.counts["arguments"] += len(spec.request.autorun_file_arguments)


if __name__ == "__main__":
    place, names, programs, seed, *careless = sys.argv[1:]
    campaign = Campaign(Path(place), int(seed), find_carelessly if careless else find_program)
    print(json.dumps(campaign.run(int(names), int(programs))))
