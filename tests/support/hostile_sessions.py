"""Hostile names, owners, paths and arguments, thrown at the whole way from a request's body through
the driver of DCV servers to the programs that run: the DCV server's, and those of its sessions.

`python -m support.hostile_sessions FOLDER COUNT SEED` prints as JSON what came of so many requests.
The server is a few lines of shell that note how they were called, start what they are told to, as a
DCV server does, and refuse the session: a stand-in in Python would take minutes for as many.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shlex
import sys
import unicodedata
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from deskfleet.agent.drivers import dcv_plan
from deskfleet.agent.drivers.dcv import DcvDriver
from deskfleet.agent.drivers.dcv_files import DcvFiles
from deskfleet.agent.drivers.dcv_platform import DcvPlatform
from deskfleet.agent.drivers.dcv_server import DcvServer
from deskfleet.broker.web.bodies import decode_body, to_request
from deskfleet.broker.web.shapes import CreateSessionRequestData
from deskfleet.core.placement import Refusal
from deskfleet.core.records import SessionRequest, Type
from deskfleet.errors import Invalid, StartFailed
from deskfleet.ports import SessionSpec
from deskfleet.system import SystemClock
from support.hostile_programs import (
    hostile_arguments,
    hostile_names,
    hostile_text,
    is_runnable,
    make_place,
    steps_of,
)

AT_ONCE = 8
LIMIT_SECONDS = 60.0
SERVER = """\
#!/bin/sh
case $1 in
create-session)
  for id; do :; done
  printf '%s\\0' "$@" >{said}/"$id"
  for one; do
    case $one in
    --init=*) DF_SAID={said}/"$id" DF_CANARY={canary} PATH=/nowhere "${{one#--init=}}" ;;
    esac
  done
  exit 1 ;;
list-sessions) printf '[]' ;;
*) exit 1 ;;
esac
"""
"""Notes its arguments, each with a NUL behind it. All but the shell's own words is paid for."""
INIT = """\
#!/bin/sh
printf '%s\\0' "$0" "$@" >"$DF_SAID.init"
if [ -p "$DF_SAID.fifo" ]; then read -r _ <"$DF_SAID.fifo"; fi
"""
"""Waits for the autorun file, if there is one: with the session all of it would end."""
AUTORUN = """\
#!/bin/sh
printf '%s\\0' "$0" "$@" >"$DF_SAID.autorun"
: >"$DF_SAID.fifo"
"""


@dataclass(frozen=True)
class Case:
    id: str
    request: SessionRequest

    @property
    def is_good(self) -> bool:
        """Say whether a program can be told all of it, and its files are there."""
        asked = self.request
        texts = [asked.name, asked.owner, asked.storage_root or "", *asked.autorun_file_arguments]
        files = [file for file in (asked.init_file, asked.autorun_file) if file]
        return (
            bool(asked.owner)
            and len(asked.name) <= 256
            and all(is_speakable(text) and len(text.encode()) <= 4096 for text in texts)
            and all(is_runnable(file) for file in files)
        )


def is_speakable(text: str) -> bool:
    return not any(unicodedata.category(one) in {"Cc", "Cs", "Zl", "Zp"} for one in text)


def cases(count: int, chance: random.Random) -> list[Case]:
    """Make requests, each with something hostile in it, most with other things that are good."""
    names = hostile_names(2 * count, chance)
    found = []
    for number in range(count):
        asked: dict[str, Any] = {"name": "a name", "owner": "owner", "init_file": "good"}
        for what in chance.sample(range(5), chance.randint(1, 3)):
            if what == 0:
                asked["name"] = hostile_text(chance)
            elif what == 1:
                asked["owner"] = hostile_text(chance)
            elif what == 2:
                asked["storage_root"] = hostile_text(chance)
            elif what == 3:
                asked["init_file"] = next(names) if chance.random() < 0.8 else None
            else:
                asked["autorun_file"] = next(names) if chance.random() < 0.3 else "good"
                asked["autorun_file_arguments"] = tuple(hostile_arguments(6, chance))
        found.append(Case(f"s{number}", SessionRequest(type=Type.VIRTUAL, **asked)))
    return found


class Campaign:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.init = make_place(folder / "place-of-init", INIT)
        self.autorun = make_place(folder / "place-of-autorun", AUTORUN)
        self.said, self.scripts = folder / "said", folder / "scripts"
        self.said.mkdir()
        self.canary, self.default = folder / "canary-ran", folder / "default-init"
        server = folder / "dcv"
        quoted = {name: shlex.quote(str(getattr(self, name))) for name in ("said", "canary")}
        for path, text in ((server, SERVER.format(**quoted)), (self.default, INIT)):
            path.write_text(text)
            path.chmod(0o755)
        self.counts: Counter[str] = Counter()
        self.violations: list[str] = []
        self.driver = DcvDriver(
            DcvServer(server, create_seconds=LIMIT_SECONDS, answer_seconds=LIMIT_SECONDS),
            folder / "known",
            DcvFiles(folder / "run", self.scripts),
            platform=DcvPlatform(
                types=(Type.VIRTUAL,),
                # Whoever there is: what is asked here is what a program is told of them.
                check_owner=lambda _owner: None,
                init_folder=self.init,
                autorun_folder=self.autorun,
                default_init=self.default,
            ),
            clock=SystemClock(),
            poll_seconds=3600.0,
        )

    async def run(self, all_of_them: list[Case]) -> dict[str, Any]:
        await self.driver.open(lambda *_: None)
        waiting = iter(all_of_them)
        try:
            await asyncio.gather(*(self._work(waiting) for _ in range(AT_ONCE)))
        finally:
            await self.driver.close()
        if self.canary.exists():
            self.violations.append(f"a canary ran: {self.canary.read_text()[:200]}")
        left = [*self.scripts.iterdir(), *(self.folder / "known").iterdir()]
        if left:
            self.violations.append(f"{len(left)} files were left")
        return {"counts": dict(self.counts), "violations": self.violations[:20]}

    async def _work(self, waiting: Any) -> None:
        for case in waiting:
            await self._try(case)

    async def _try(self, case: Case) -> None:
        passed = self._through_the_broker(case)
        if case.request.autorun_file:
            os.mkfifo(self.said / f"{case.id}.fifo")
        try:
            # An agent is told only what a broker lets pass, but doesn't build on that.
            await self.driver.start(SessionSpec(case.id, 1, case.request))
            self.violations.append(f"{case.request} was started by a server that refuses all")
        except StartFailed as refusal:
            if not refusal.message.isprintable():
                self.violations.append(f"{refusal.message!r} is no sentence")
        except Exception as error:  # noqa: BLE001 - whatever it is, it is found
            self.violations.append(f"{case.request} ended with {error!r}")
        self._judge(case, passed=passed)

    def _through_the_broker(self, case: Case) -> bool:
        """Return whether a broker lets a request pass; it has to be the same one then."""
        asked = case.request
        body: dict[str, Any] = {"Name": asked.name, "Owner": asked.owner, "Type": "VIRTUAL"}
        body |= {"StorageRoot": asked.storage_root, "InitFile": asked.init_file}
        body |= {"AutorunFile": asked.autorun_file}
        body |= {"AutorunFileArguments": list(asked.autorun_file_arguments)}
        try:
            [item] = decode_body(json.dumps([body]).encode(), list[CreateSessionRequestData])
        except Invalid:
            return False
        told = to_request(item)
        if isinstance(told, Refusal):
            return False
        if [_plain(told)] != [_plain(asked)]:
            self.violations.append(f"{asked} became {told}")
        return True

    def _judge(self, case: Case, *, passed: bool) -> None:
        called = self._noted(case.id)
        if called is None:
            self.counts["refused"] += 1
            if case.is_good:
                self.violations.append(f"{case.request} was refused")
            return
        self.counts["called"] += 1
        self.counts["passed by the broker"] += passed
        if not case.is_good:
            self.violations.append(f"{case.request} was not refused")
            return
        init = [one for one in called if one.startswith(b"--init=")]
        if [one for one in called if one not in init] != wanted(case):
            self.violations.append(f"{case.request} was asked for as {called}")
        self._judge_programs(case, init)

    def _judge_programs(self, case: Case, init: list[bytes]) -> None:
        asked = case.request
        file = asked.init_file and _below(self.init, asked.init_file)
        begun = self._noted(f"{case.id}.init")
        if asked.autorun_file:
            self.counts["autorun"] += 1
            self.counts["arguments"] += len(asked.autorun_file_arguments)
            given = [one.encode() for one in asked.autorun_file_arguments]
            ran = self._noted(f"{case.id}.autorun")
            if ran != [_below(self.autorun, asked.autorun_file), *given]:
                self.violations.append(f"{asked} ran {ran}")
            if begun != [file or os.fsencode(self.default)]:
                self.violations.append(f"{asked} began with {begun}")
            if [Path(os.fsdecode(one[7:])).parent for one in init] != [self.scripts]:
                self.violations.append(f"{asked} was begun by {init}")
        elif (init, begun) != (([b"--init=" + file], [file]) if file else ([], None)):
            self.violations.append(f"{asked} was begun by {init}, and ran {begun}")

    def _noted(self, name: str) -> list[bytes] | None:
        try:
            return (self.said / name).read_bytes().split(b"\0")[:-1]
        except FileNotFoundError:
            return None


def wanted(case: Case) -> list[bytes]:
    """Return the arguments of the server's program, but for the init file."""
    asked = case.request
    valued = [("--name", asked.name), ("--owner", asked.owner), ("--user", asked.owner)]
    valued.append(("--storage-root", asked.storage_root or ""))
    given = [f"{option}={value}" for option, value in valued if value]
    return [one.encode() for one in ("create-session", "--type=virtual", *given, case.id)]


def _plain(request: SessionRequest) -> tuple[Any, ...]:
    return (
        *(request.name, request.owner, request.storage_root or None, request.init_file or None),
        *(request.autorun_file or None, request.autorun_file_arguments),
    )


def _below(folder: Path, name: str) -> bytes:
    return b"/".join((os.fsencode(folder), *steps_of(name)))


def be_careless() -> None:
    """Give the driver two small bugs: a value loses its last blanks, empty arguments get lost."""
    valued = dcv_plan._valued

    def lossy(option: str, value: str, what: str) -> list[str]:
        return [one.rstrip() for one in valued(option, value, what)]

    cast(Any, dcv_plan)._valued = lossy
    cast(Any, shlex).join = lambda words: " ".join(shlex.quote(word) for word in words if word)


if __name__ == "__main__":
    place, count, seed, *careless = sys.argv[1:]
    if careless:
        be_careless()
    campaign = Campaign(Path(place))
    # Python's own loop starts programs in a quarter of the time that uvloop takes.
    told = asyncio.run(campaign.run(cases(int(count), random.Random(int(seed)))))
    print(json.dumps(told))
