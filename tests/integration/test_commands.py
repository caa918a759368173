"""Programs that the agent runs: what they say, and what is left of them."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from deskfleet.agent.drivers import commands
from deskfleet.errors import Unavailable
from deskfleet.machine import here
from support.waiting import soon, until

PYTHON = [sys.executable, "-ISc"]
STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen(["/bin/sleep", "300"])
open(sys.argv[1], "w").write(f"{os.getpid()} {child.pid}\\n")
time.sleep(300)
"""
ORPHANS = """
import os, subprocess, sys
child = subprocess.Popen(["/bin/sleep", "300"], start_new_session="session" in sys.argv,
    stdout=None if "holds" in sys.argv else subprocess.DEVNULL, stderr=subprocess.STDOUT)
open(sys.argv[1], "w").write(f"{os.getpid()} {child.pid}\\n")
print("the last word")
sys.exit(3)
"""
RUNAWAYS = """
import os, subprocess, sys, time
if os.fork() == 0:
    os.setsid()
    if "twice" in sys.argv and os.fork():
        os._exit(0)
    null = os.open(os.devnull, os.O_RDWR)
    [os.dup2(null, number) for number in (0, 1, 2)]
    open(sys.argv[1] + ".new", "w").write(f"{os.getppid()} {os.getpid()}\\n")
    os.rename(sys.argv[1] + ".new", sys.argv[1])
    time.sleep(300)
time.sleep(300)
"""
FLOOD = """
import sys
while True:
    getattr(sys, sys.argv[1]).write("x" * 65536)
"""


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def gone(noted: Path) -> None:
    pids = [int(pid) for pid in noted.read_text().split()]
    assert len(pids) == 2
    until(lambda: not any(lives(pid) for pid in pids))


def ended(program: str, *arguments: str, seconds: float = 20.0) -> commands.Answer:
    return asyncio.run(commands.run([*PYTHON, program, *arguments], limit_seconds=seconds))


def test_both_outputs_and_the_status() -> None:
    answer = ended(
        "import sys; print('out'); sys.stderr.write('err\\nlast \\x07 words\\n\\n'); sys.exit(3)"
    )
    assert (answer.code, answer.output) == (3, b"out\n")
    assert answer.last_words() == "last   words"
    assert ended("print('only this')").last_words() == "only this"
    assert ended("import sys; sys.exit(4)").last_words() == "it ended with status 4"


def test_arguments_are_bytes_whatever_the_locale() -> None:
    odd = ["-x", "", "$(id)", "a b", "'", "\u00e9", "\U0001d51e"]
    answer = ended("import os, sys; os.write(1, b'|'.join(map(os.fsencode, sys.argv[1:])))", *odd)
    assert answer.output == "|".join(odd).encode()


def test_it_reads_nothing_and_starts_at_the_root() -> None:
    answer = ended("import os, sys; print(repr(sys.stdin.read()), os.getcwd())")
    assert answer.output == b"'' /\n"


def test_what_takes_too_long_is_killed_with_its_children(tmp_path: Path) -> None:
    noted = tmp_path / "pids"
    started = time.monotonic()
    with pytest.raises(Unavailable, match="did not answer within 2 seconds"):
        ended(STUBBORN, str(noted), seconds=2.0)
    assert time.monotonic() - started < 10
    gone(noted)


@pytest.mark.parametrize("how", [["holds"], [], ["holds", "session"]])
@pytest.mark.parametrize("uvloop", [True, False])
def test_what_a_program_leaves_behind_neither_delays_its_answer_nor_outlives_it(
    how: list[str], uvloop: bool, tmp_path: Path
) -> None:
    noted = tmp_path / "pids"
    started = time.monotonic()
    loop = here.new_event_loop if uvloop else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=loop) as runner:
        answer = runner.run(commands.run([*PYTHON, ORPHANS, str(noted), *how], limit_seconds=60))
    assert (answer.code, answer.output) == (3, b"the last word\n")
    assert time.monotonic() - started < 20
    until(lambda: not any(lives(int(pid)) for pid in noted.read_text().split()))


@pytest.mark.parametrize("how", ["once", "twice"])
def test_what_has_left_its_group_does_not_survive_a_time_limit(how: str, tmp_path: Path) -> None:
    """In a session of its own, and even without a parent that is known."""
    noted = tmp_path / "pids"
    with pytest.raises(Unavailable, match="did not answer"):
        ended(RUNAWAYS, str(noted), how, seconds=2.0)
    runaway = int(noted.read_text().split()[1])
    until(lambda: not lives(runaway))


def test_cancelling_leaves_nothing(tmp_path: Path) -> None:
    noted = tmp_path / "pids"

    async def story() -> None:
        running = asyncio.create_task(
            commands.run([*PYTHON, STUBBORN, str(noted)], limit_seconds=60)
        )
        await asyncio.to_thread(until, lambda: noted.exists() and noted.read_text().endswith("\n"))
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(story())
    gone(noted)


def children() -> set[int]:
    """Return our children, among which may be those of other tests' libraries."""
    return {child.pid for child in psutil.Process().children()}


def test_cancelling_at_once_leaves_nothing() -> None:
    before = children()

    async def story() -> None:
        running = asyncio.create_task(commands.run(["/bin/sleep", "300"], limit_seconds=60))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(story())
    until(lambda: not children() - before)


def test_cancelling_once_more_does_not_leave_it_half_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before, kill = children(), commands._kill_all
    begun, may_end = threading.Event(), threading.Event()

    def slowly(call: commands._Call) -> None:
        begun.set()
        may_end.wait(20)
        kill(call)

    monkeypatch.setattr(commands, "_kill_all", slowly)

    async def story() -> None:
        running = asyncio.create_task(commands.run(["/bin/sleep", "300"], limit_seconds=60))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        running.cancel()
        await soon(begun.is_set)
        running.cancel()
        for _ in range(100):
            await asyncio.sleep(0)
        assert not running.done()
        may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert not children() - before

    asyncio.run(story())


@pytest.mark.parametrize("output", ["stdout", "stderr"])
def test_a_flood_is_stopped(output: str) -> None:
    before = children()
    with pytest.raises(Unavailable, match="printed more than 1,000,000 bytes"):
        ended(FLOOD, output)
    assert not children() - before


def test_what_cannot_be_run(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("x")
    for path, why in (("none", "No such file"), ("text", "Permission denied")):
        with pytest.raises(Unavailable, match=f"{path} can't be run: {why}"):
            asyncio.run(commands.run([str(tmp_path / path)], limit_seconds=5))
    with pytest.raises(Unavailable, match="can't be given such arguments"):
        asyncio.run(commands.run([sys.executable, "a\0b"], limit_seconds=5))
    with pytest.raises(Unavailable, match="can't be run: Argument list too long"):
        asyncio.run(commands.run([sys.executable, "x" * 200_000], limit_seconds=5))
