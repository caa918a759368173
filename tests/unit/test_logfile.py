"""A log file: put by when it is due, with every record in exactly one file, whole."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from deskfleet.errors import SetupFailed
from deskfleet.logfile import LogFile, Rotation
from deskfleet.observe import configure_logging

if sys.platform != "win32":
    import fcntl

HOUR = 3600.0
NOON = 1_800_014_400.0 - 1_800_014_400.0 % 86_400 + 12 * HOUR


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "broker.log"


def contents(folder: Path) -> dict[str, str]:
    return {one.name: one.read_text() for one in folder.iterdir()}


class Opened:
    """Opens log files and closes them when a test is over."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self.path, self.clock = path, clock
        self.files: list[LogFile] = []

    def __call__(
        self, every: str = "daily", max_bytes: int = 10**6, keep: int = 9, mode: int = 0o640
    ) -> LogFile:
        file = LogFile(self.path, Rotation(every, max_bytes, keep), mode=mode, now=self.clock)
        self.files.append(file)
        return file


@pytest.fixture
def log_file(path: Path, clock: Clock) -> Iterator[Opened]:
    opened = Opened(path, clock)
    yield opened
    for file in opened.files:
        file.close()


class TestBySize:
    def test_a_file_is_put_by_before_it_grows_too_large(self, log_file: Opened, path: Path) -> None:
        log = log_file(max_bytes=10)
        for text in ("12345\n", "678\n", "9\n"):
            log.write(text)
        assert contents(path.parent) == {"broker.log": "9\n", "broker.log.1": "12345\n678\n"}

    def test_a_record_is_never_torn(self, log_file: Opened, path: Path) -> None:
        log = log_file(max_bytes=10)
        log.write("x" * 50 + "\n")
        log.write("y" * 50 + "\n")
        assert sorted(map(len, contents(path.parent).values())) == [51, 51]

    def test_as_many_as_wanted_are_kept(self, log_file: Opened, path: Path) -> None:
        log = log_file(max_bytes=2, keep=3)
        for number in range(9):
            log.write(f"{number}\n")
        assert contents(path.parent) == {
            "broker.log": "8\n",
            "broker.log.1": "7\n",
            "broker.log.2": "6\n",
            "broker.log.3": "5\n",
        }

    def test_none_is_kept(self, log_file: Opened, path: Path) -> None:
        log = log_file(max_bytes=2, keep=0)
        for number in range(9):
            log.write(f"{number}\n")
        assert contents(path.parent) == {"broker.log": "8\n"}

    def test_fewer_than_before_are_kept(self, log_file: Opened, path: Path) -> None:
        many = log_file(max_bytes=2, keep=9)
        for number in range(7):
            many.write(f"{number}\n")
        log_file(max_bytes=2, keep=2).write("x\n")
        assert sorted(contents(path.parent)) == ["broker.log", "broker.log.1", "broker.log.2"]

    def test_files_of_others_stay(self, log_file: Opened, path: Path) -> None:
        names = ["broker.log.20260501", "broker.log.gz", "broker.log.0", "broker.log.1.gz", "x.1"]
        for name in names:
            (path.parent / name).touch()
        log = log_file(max_bytes=2, keep=1)
        for number in range(4):
            log.write(f"{number}\n")
        assert set(names) < set(contents(path.parent))


class TestByTime:
    @pytest.mark.parametrize(("every", "hours"), [("hourly", 1), ("daily", 12)])
    def test_a_file_is_put_by_when_its_time_is_over(
        self, every: str, hours: int, log_file: Opened, path: Path, clock: Clock
    ) -> None:
        log = log_file(every)
        log.write("a\n")
        clock.now += hours * HOUR - 1
        log.write("b\n")
        clock.now += 1
        log.write("c\n")
        log.write("d\n")
        assert contents(path.parent) == {"broker.log": "c\nd\n", "broker.log.1": "a\nb\n"}

    def test_the_time_of_a_file_is_that_of_its_last_record(
        self, log_file: Opened, path: Path, clock: Clock
    ) -> None:
        path.write_text("a\n")
        os.utime(path, (NOON - 86_400, NOON - 86_400))
        log_file().write("b\n")
        assert contents(path.parent) == {"broker.log": "b\n", "broker.log.1": "a\n"}

    def test_a_restart_goes_on_in_the_same_file(self, log_file: Opened, path: Path) -> None:
        log_file().write("a\n")
        os.utime(path, (NOON, NOON))
        log_file().write("b\n")
        assert contents(path.parent) == {"broker.log": "a\nb\n"}

    def test_an_empty_file_is_not_put_by(self, log_file: Opened, path: Path, clock: Clock) -> None:
        log = log_file()
        clock.now += 86_400
        log.write("a\n")
        assert contents(path.parent) == {"broker.log": "a\n"}

    def test_a_clock_that_goes_back_puts_nothing_by(
        self, log_file: Opened, path: Path, clock: Clock
    ) -> None:
        log = log_file()
        log.write("a\n")
        clock.now -= 5 * 86_400
        log.write("b\n")
        assert contents(path.parent) == {"broker.log": "a\nb\n"}


class TestTheFile:
    @pytest.mark.parametrize("mode", [0o600, 0o640])
    def test_others_can_not_read_it(self, mode: int, log_file: Opened, path: Path) -> None:
        before = os.umask(0)
        try:
            log = log_file(max_bytes=2, mode=mode)
            log.write("a\n")
            log.write("b\n")
        finally:
            os.umask(before)
        assert {one.stat().st_mode & 0o777 for one in path.parent.iterdir()} == {mode}

    def test_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        folder = tmp_path / "logs"
        with pytest.raises(SetupFailed) as caught:
            LogFile(folder / "broker.log", Rotation())
        assert caught.value.message == (f"the folder of the log is not there; run: mkdir {folder}")

    def test_what_can_not_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "broker.log").mkdir()
        with pytest.raises(SetupFailed, match="can't be written: Is a directory"):
            LogFile(tmp_path / "broker.log", Rotation())

    def test_a_link_is_not_followed(self, tmp_path: Path) -> None:
        (tmp_path / "broker.log").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(SetupFailed, match="can't be written"):
            LogFile(tmp_path / "broker.log", Rotation())
        assert not (tmp_path / "elsewhere").exists()

    def test_one_that_another_program_puts_by_is_left(self, log_file: Opened, path: Path) -> None:
        log = log_file()
        log.write("a\n")
        path.rename(path.with_name("taken"))
        log.write("b\n")
        path.unlink()
        log.write("c\n")
        assert contents(path.parent) == {"broker.log": "c\n", "taken": "a\n"}

    def test_a_folder_that_goes_away_stops_nothing(
        self, log_file: Opened, path: Path, tmp_path: Path
    ) -> None:
        log = log_file(max_bytes=2)
        path.unlink()
        tmp_path.rename(f"{tmp_path}-gone")
        log.write("a\n")
        log.write("b\n")
        Path(f"{tmp_path}-gone").rename(tmp_path)
        log.write("c\n")
        assert path.read_text() == "c\n"

    def test_one_that_can_not_be_put_by_is_written_on(
        self, log_file: Opened, path: Path, clock: Clock
    ) -> None:
        log = log_file(max_bytes=2)
        path.with_name("broker.log.9").mkdir()
        log.write("a\n")
        log.write("b\n")
        assert path.read_text() == "a\nb\n"
        path.with_name("broker.log.9").rmdir()
        clock.now += 61
        log.write("c\n")
        assert path.read_text() == "c\n"


def records(folder: Path) -> list[str]:
    return [line for text in contents(folder).values() for line in text.splitlines()]


def test_several_threads_through_a_handler(log_file: Opened, path: Path) -> None:
    logging.getLogger().handlers[:] = []
    configure_logging("info", log_file(max_bytes=2000, keep=9999), json=True)
    log = logging.getLogger("deskfleet.tests")

    def tell(name: str) -> None:
        for number in range(300):
            log.info("x.y", extra={"number": f"{name}-{number}"})

    threads = [threading.Thread(target=tell, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    told = [json.loads(line)["number"] for line in records(path.parent)]
    assert sorted(told) == sorted(f"{name}-{i}" for name in "abcd" for i in range(300))
    assert len(contents(path.parent)) > 20


WRITER = """
import sys
from pathlib import Path
from deskfleet.logfile import LogFile, Rotation
log = LogFile(Path(sys.argv[1]), Rotation("daily", 3000, 9999))
print("ready", flush=True)
sys.stdin.readline()
for number in range(1000):
    log.write(f"{sys.argv[2]}-{number}-{'x' * 20}\\n")
"""


def test_several_programs_at_once(path: Path) -> None:
    programs = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in "abc"
    ]
    for program in programs:
        assert program.stdout is not None
        assert program.stdout.readline()
    for program in programs:
        program.communicate("go\n", timeout=60)
        assert program.returncode == 0
    told = records(path.parent)
    wanted = {f"{name}-{number}-{'x' * 20}" for name in "abc" for number in range(1000)}
    assert len(told) == len(wanted)
    assert set(told) == wanted
    assert len(contents(path.parent)) > 10


def test_records_hold_what_no_file_can(log_file: Opened, path: Path) -> None:
    log_file().write("a\ud800b\u00e4\n")
    assert path.read_text() == "a\\ud800b\u00e4\n"


def test_a_plain_stream_still_does() -> None:
    stream = io.StringIO()
    configure_logging("info", stream, json=True)
    logging.getLogger("deskfleet.tests").info("x.y")
    assert json.loads(stream.getvalue())["event"] == "x.y"


@pytest.mark.skipif(sys.platform == "win32", reason="no locks are held there")
class TestLocks:
    def test_without_locks_every_record_is_written(
        self, log_file: Opened, path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        log = log_file(max_bytes=10)

        def none_left(*_: int) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        with monkeypatch.context() as patched:
            patched.setattr(fcntl, "flock", none_left)
            for number in range(3):
                log.write(f"{number}" * 8 + "\n")
        assert contents(path.parent) == {"broker.log": "00000000\n11111111\n22222222\n"}
        clock.now += 61
        log.write("later\n")
        assert contents(path.parent)["broker.log"] == "later\n"

    def test_a_reader_that_holds_a_lock_does_not_stop_the_writer(
        self, log_file: Opened, path: Path, clock: Clock
    ) -> None:
        log = log_file(max_bytes=10)
        log.write("12345678\n")
        with path.open() as reader:
            fcntl.flock(reader, fcntl.LOCK_SH)
            writer = threading.Thread(target=log.write, args=("more\n",), daemon=True)
            writer.start()
            writer.join(5)
            assert not writer.is_alive()
        assert contents(path.parent) == {"broker.log": "12345678\nmore\n"}
        clock.now += 61
        log.write("later\n")
        assert sorted(contents(path.parent)) == ["broker.log", "broker.log.1"]


def test_a_file_that_could_not_be_opened_again_is_at_the_next_record(
    log_file: Opened, path: Path
) -> None:
    log = log_file()
    log.close()
    log.write("a\n")
    assert contents(path.parent) == {"broker.log": "a\n"}
