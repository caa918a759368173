"""The pure pieces of the session drivers."""

from __future__ import annotations

import asyncio
import io
import os
import resource
import signal
import socket
import stat
import struct
import subprocess
import threading
import tracemalloc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from PIL import Image

from deskfleet.agent.drivers.cgroups import own_group
from deskfleet.agent.drivers.dcv_files import DcvFiles, read_picture
from deskfleet.agent.drivers.leader.display import (
    COOKIE_NAME,
    cookie_file,
    remove_dead_ice_sockets,
)
from deskfleet.agent.drivers.leader.session import Leader
from deskfleet.agent.drivers.pictures import encode, picture_format
from deskfleet.agent.drivers.processes import end_tree, identify, marked, watch
from deskfleet.agent.drivers.rfb_picture import take_picture
from deskfleet.agent.drivers.session_folders import RuntimeFolders
from deskfleet.agent.drivers.simulated import SimulatedDriver
from deskfleet.agent.drivers.xvnc_clearing import clear, mark_of
from deskfleet.agent.drivers.xvnc_launch import title
from deskfleet.agent.drivers.xvnc_record import Records
from deskfleet.core.pictures import MOST_BYTES
from deskfleet.core.records import SessionRequest, Type
from deskfleet.errors import Invalid, SetupFailed, StartFailed, Unavailable
from deskfleet.machine.posix_programs import find_program
from deskfleet.ports import SessionSpec
from deskfleet.system import SystemClock
from support.waiting import until


def test_a_cookie_file_names_every_host_and_this_one() -> None:
    content = cookie_file(b"0123456789abcdef", "host", 7)
    cookie = struct.pack(">H", len(COOKIE_NAME)) + COOKIE_NAME + b"\0\x100123456789abcdef"
    assert content == b"\xff\xff\0\0\0\x017" + cookie + b"\x01\0\0\x04host\0\x017" + cookie


def test_only_sockets_that_the_dead_have_left_are_removed(tmp_path: Path) -> None:
    """A pid above the kernel's highest is nobody's."""
    dead, alive, heard, other = (
        tmp_path / name for name in ("4194999", str(os.getpid()), "4194998", "note")
    )
    with socket.socket(socket.AF_UNIX) as listener:
        for path in (dead, alive):
            with socket.socket(socket.AF_UNIX) as left:
                left.bind(str(path))
        listener.bind(str(heard))
        listener.listen()
        other.touch()
        remove_dead_ice_sockets(str(tmp_path))
        assert set(tmp_path.iterdir()) == {alive, heard, other}
    remove_dead_ice_sockets(str(tmp_path / "missing"))


MOUNTS = b"""\
25 30 0:23 / /sys rw,nosuid - sysfs sysfs rw
31 25 0:27 / /sys/fs/cgroup/unified rw,relatime shared:4 - cgroup2 cgroup2 rw
"""


@pytest.mark.parametrize(
    ("membership", "group"),
    [
        ("1:name=systemd:/x\n0::/\n", "/sys/fs/cgroup/unified"),
        ("0::/system.slice/agent.service\n", "/sys/fs/cgroup/unified/system.slice/agent.service"),
        ("1:cpu:/\n", None),
    ],
)
def test_the_own_control_group_is_found(membership: str, group: str | None) -> None:
    assert own_group(MOUNTS, membership) == (Path(group) if group else None)
    assert own_group(b"", membership) is None


def test_a_process_is_its_pid_and_its_start() -> None:
    mine = identify(os.getpid())
    assert mine is not None
    descriptor = watch(mine)
    assert descriptor is not None
    os.close(descriptor)
    assert watch(type(mine)(pid=mine.pid, start_time=mine.start_time + 1)) is None
    assert identify(2**22 + 1) is None


def test_a_process_is_ended_whatever_the_number_of_its_descriptor() -> None:
    with many_open_files(1100), subprocess.Popen(["sleep", "600"]) as child:
        mine = identify(child.pid)
        assert mine is not None
        assert end_tree(mine, grace_seconds=5, limit_seconds=5)
        assert child.wait(timeout=5) == -signal.SIGTERM


@contextmanager
def many_open_files(count: int) -> Iterator[None]:
    """Have so many files open meanwhile that a new descriptor has a larger number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    room = count + 200
    if hard != resource.RLIM_INFINITY and hard < room:
        pytest.skip(f"no more than {hard} files may be open")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, room), hard))
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(count)]
    try:
        yield
    finally:
        for descriptor in opened:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_without_a_free_descriptor_nothing_is_proven_to_be_gone(tmp_path: Path) -> None:
    folders, records = RuntimeFolders(tmp_path), Records(tmp_path / "r")
    for inner in ("s", "d", "r"):
        (tmp_path / inner).mkdir()
    (tmp_path / "r/0123abcd.json").write_text("{}")
    mark = mark_of(folders, "0123abcd")
    name, _, value = os.fsdecode(mark).partition("=")
    with subprocess.Popen(["sleep", "600"], env={**os.environ, name: value}) as child:
        until(lambda: marked(mark) == [child.pid])
        with no_more_files():
            with pytest.raises(OSError, match="Too many open files"):
                records.read("0123abcd")
            assert not clear(folders, records, "0123abcd")
        with no_more_files(but=1), pytest.raises(OSError, match="Too many open files"):
            marked(mark)
        assert child.poll() is None
        assert clear(folders, records, "0123abcd")
        assert child.wait(timeout=5) == -signal.SIGKILL
    assert [path for part in "sdr" for path in (tmp_path / part).iterdir()] == []


@contextmanager
def no_more_files(but: int = 0) -> Iterator[None]:
    """Let this program open no more files meanwhile, but so many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + but, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_what_a_leader_writes_is_whole_or_has_failed(tmp_path: Path) -> None:
    """A disk that has room for a part of it takes that part, and says nothing."""
    leader = Leader.__new__(Leader)
    leader._folder = str(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            leader._write_file("config", bytes(1001))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_draft_that_became_no_record_is_found_and_removed(tmp_path: Path) -> None:
    records = Records(tmp_path)
    (tmp_path / "0123abcd.new").write_text("{")
    assert records.keys() == {"0123abcd"}
    assert records.read("0123abcd") is None
    records.remove("0123abcd")
    assert list(tmp_path.iterdir()) == []


def test_a_program_is_found_below_its_folder_only(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    inner = tmp_path / "folder/inner"
    inner.mkdir(mode=0o755, parents=True)
    (inner / "run").write_text("#!/bin/sh\n")
    (inner / "run").chmod(0o755)
    folder = tmp_path / "folder"
    assert find_program(folder, "inner/run", "init file") == inner / "run"
    assert find_program(folder, "./inner//run", "init file") == inner / "run"
    for name in ("", "../folder/inner/run", str(inner / "run"), "inner", "inner/run/x", "no\0"):
        with pytest.raises(StartFailed):
            find_program(folder, name, "init file")
    inner.chmod(0o777)
    with pytest.raises(StartFailed, match="can be changed by others"):
        find_program(folder, "inner/run", "init file")


def test_an_open_folder_of_programs_serves_none(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(StartFailed, match="the folder of init files can be changed"):
        find_program(tmp_path, "x", "init file")
    tmp_path.chmod(0o755)
    with pytest.raises(StartFailed, match="can't be opened"):
        find_program(tmp_path / "missing", "x", "init file")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give things away")
def test_no_session_runs_where_somebody_else_could_exchange_its_programs(tmp_path: Path) -> None:
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    theirs.mkdir()
    ours.mkdir(mode=0o700)
    (theirs / "key").symlink_to(ours)
    os.chown(theirs, 4711, 4711)
    with pytest.raises(SetupFailed, match=f"{theirs} belongs to somebody else"):
        RuntimeFolders(theirs / "key").make()
    with pytest.raises(SetupFailed, match=f"{theirs} belongs to somebody else"):
        DcvFiles(theirs / "key", tmp_path / "scripts").make(())
    assert list(ours.iterdir()) == []
    assert stat.S_IMODE(ours.stat().st_mode) == 0o700


def test_removing_a_session_follows_no_link(tmp_path: Path) -> None:
    folders = RuntimeFolders(tmp_path / "run")
    tmp_path.chmod(0o711)
    (tmp_path / "run/s").mkdir(parents=True)
    (tmp_path / "run/d").mkdir()
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").touch()
    session = folders.make_session("0123abcd", os.getuid(), os.getgid())
    (session / "link").symlink_to(kept)
    (session / "a/b/c").mkdir(parents=True)
    (session / "a/b/c/link").symlink_to(kept / "file")
    (session / "a/closed").mkdir(mode=0)
    assert folders.keys() == {"0123abcd"}
    assert folders.remove("0123abcd")
    assert folders.remove("0123abcd")
    assert not session.exists()
    assert (kept / "file").exists()


def test_only_an_owner_s_socket_is_published(tmp_path: Path) -> None:
    folders = RuntimeFolders(tmp_path / "r")
    for inner in ("s/0123abcd", "d"):
        (tmp_path / "r" / inner).mkdir(parents=True)
    with pytest.raises(StartFailed):
        folders.publish_display("0123abcd", os.getuid())
    folders.rfb_socket("0123abcd").write_text("no socket")
    with pytest.raises(StartFailed, match="not its owner's"):
        folders.publish_display("0123abcd", os.getuid())
    folders.rfb_socket("0123abcd").unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folders.rfb_socket("0123abcd")))
        with pytest.raises(StartFailed, match="not its owner's"):
            folders.publish_display("0123abcd", os.getuid() + 1)
        folders.publish_display("0123abcd", os.getuid())
        assert folders.display("0123abcd").is_socket()


def test_a_title_is_one_short_printable_line() -> None:
    assert title("Größe\n\x1b") == "Größe  "
    assert len(title("x" * 1000)) == 128


def test_pictures_keep_their_aspect_and_never_grow() -> None:
    def size(width: int, height: int) -> tuple[int, int]:
        screen = Image.new("RGB", (800, 600))
        content = encode(screen, max_width=width, max_height=height, format="png")
        return Image.open(io.BytesIO(content)).size

    assert size(9999, 9999) == (800, 600)
    assert size(400, 9999) == (400, 300)
    assert size(9999, 60) == (80, 60)
    assert size(0, 0) == (1, 1)
    assert picture_format("JPEG") == "jpeg"
    with pytest.raises(Invalid):
        picture_format("gif")


def test_a_picture_file_is_read_up_to_what_may_be_sent(tmp_path: Path) -> None:
    path = tmp_path / "picture"
    for size, reason in ((0, "empty"), (MOST_BYTES + 1, "more than"), (2 * MOST_BYTES, "more")):
        path.touch()
        os.truncate(path, size)
        with pytest.raises(Unavailable, match=reason):
            read_picture(path)
    os.truncate(path, MOST_BYTES)
    assert read_picture(path) == bytes(MOST_BYTES)
    with pytest.raises(Unavailable, match="left no picture"):
        read_picture(tmp_path / "another")


HELLO = b"RFB 003.008\n" + b"\x01\x01" + b"\0\0\0\0"
INIT = struct.pack(">HH16xI", 2, 2, 4) + b"name"
UPDATE = struct.pack(">BxH", 0, 2)


def rectangle(x: int, y: int, w: int, h: int, pixels: bytes) -> bytes:
    return struct.pack(">HHHHi", x, y, w, h, 0) + pixels


@contextmanager
def serving(folder: Path, words: Iterable[bytes], name: str = "rfb") -> Iterator[Path]:
    """Give the socket of a server that says these words once, whatever it hears."""
    path = folder / name
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection, suppress(OSError):
                for some in words:
                    connection.sendall(some)
                while connection.recv(4096):
                    pass

        server = threading.Thread(target=serve)
        server.start()
        try:
            yield path
        finally:
            server.join()


def served(
    folder: Path, *words: bytes, seconds: float = 5, large: threading.Lock | None = None
) -> Image.Image:
    with (
        serving(folder, words) as path,
        take_picture(path, seconds, large or threading.Lock()) as picture,
    ):
        return picture


def test_a_picture_is_put_together_from_rectangles(tmp_path: Path) -> None:
    red, green, blue, white = b"\xff\0\0\0", b"\0\xff\0\0", b"\0\0\xff\0", b"\xff\xff\xff\0"
    words = HELLO + INIT + b"\x02" + struct.pack(">B3xI", 3, 2) + b"hi"
    words += UPDATE + rectangle(0, 0, 1, 2, blue + red) + rectangle(1, 0, 1, 2, green + white)
    picture = served(tmp_path, words)
    assert [picture.getpixel(at) for at in ((0, 0), (1, 0), (0, 1), (1, 1))] == [
        (0, 0, 255, 0),
        (0, 255, 0, 0),
        (255, 0, 0, 0),
        (255, 255, 255, 0),
    ]
    for format in ("png", "jpeg"):
        content = encode(picture, max_width=9, max_height=9, format=format)
        assert Image.open(io.BytesIO(content)).mode == "RGB"


def test_a_rectangle_of_any_width_is_put_in_its_place(tmp_path: Path) -> None:
    """Also one of more rows than are read at once."""
    width, height = 1300, 700
    expected = Image.linear_gradient("L").resize((width, height)).convert("RGBX")
    rectangles = []
    for x, w in ((0, 1), (1, 1200), (1201, 99)):
        pixels = expected.crop((x, 0, x + w, height)).tobytes()
        rectangles.append(rectangle(x, 0, w, height, pixels))
    words = [HELLO, struct.pack(">HH16xI", width, height, 0), struct.pack(">BxH", 0, 3)]
    picture = served(tmp_path, *words, *rectangles)
    assert picture.tobytes() == expected.tobytes()


def test_a_picture_is_in_memory_once(tmp_path: Path) -> None:
    width, height = 3840, 2160
    row = bytes(width * 4)
    words = [HELLO, struct.pack(">HH16xI", width, height, 0), struct.pack(">BxH", 0, 1)]
    words += [struct.pack(">HHHHi", 0, 0, width, height, 0), *[row] * height]
    tracemalloc.start()
    try:
        served(tmp_path, *words)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert width * height * 4 < most < 1.1 * width * height * 4


def test_of_large_pictures_there_is_one_at_a_time(tmp_path: Path) -> None:
    large, words = threading.Lock(), [HELLO, struct.pack(">HH16xI", 3841, 2160, 0)]
    update = [struct.pack(">BxH", 0, 1), rectangle(0, 0, 3841, 2160, bytes(3841 * 2160 * 4))]
    with (
        serving(tmp_path, [*words, *update], "first") as first,
        take_picture(first, 5, large) as picture,
    ):
        assert picture.size == (3841, 2160)
        with pytest.raises(Unavailable, match="another large picture took too long"):
            served(tmp_path, *words, seconds=0.1, large=large)
        (tmp_path / "rfb").unlink()
        small = HELLO + INIT + struct.pack(">BxH", 0, 1) + rectangle(0, 0, 2, 2, bytes(16))
        assert served(tmp_path, small, large=large).size == (2, 2)
    assert not large.locked()


@pytest.mark.parametrize(
    "words",
    [
        b"HTTP/1.1 200",
        b"RFB 003.008\n\x01\x02",
        b"RFB 003.008\n\x01\x01\0\0\0\x01",
        HELLO + struct.pack(">HH16xI", 65535, 65535, 0),
        HELLO + struct.pack(">HH16xI", 7680, 4321, 0),
        HELLO + struct.pack(">HH16xI", 0, 2, 0),
        HELLO + struct.pack(">HH16xI", 2, 2, 2**32 - 1),
        HELLO + INIT + b"\xc8",
        HELLO + INIT + UPDATE + rectangle(1, 1, 2, 2, b""),
        HELLO + INIT + UPDATE + struct.pack(">HHHHi", 0, 0, 2, 2, 16),
        HELLO + INIT + UPDATE + rectangle(0, 0, 2, 1, bytes(8)),
    ],
)
def test_a_server_that_misbehaves_gives_no_picture(tmp_path: Path, words: bytes) -> None:
    with pytest.raises(Unavailable, match="gives no picture"):
        served(tmp_path, words, seconds=0.3)


def test_no_server_gives_no_picture(tmp_path: Path) -> None:
    with (
        pytest.raises(Unavailable),
        take_picture(tmp_path / "nothing", 1, threading.Lock()),
    ):
        pass


def simulated_spec() -> SessionSpec:
    request = SessionRequest(name="a", owner="b", type=Type.CONSOLE)
    return SessionSpec(session_id="s", generation=1, request=request)


def test_a_simulated_start_fails_or_hangs_once_when_told_to() -> None:
    async def scene() -> None:
        driver = SimulatedDriver(SystemClock())
        await driver.open(lambda *_: None)
        driver.fail_next_start("no more seats")
        with pytest.raises(StartFailed, match="no more seats"):
            await driver.start(simulated_spec())
        driver.hang_next_start()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await driver.start(simulated_spec())
        assert driver.running() == []
        await driver.start(simulated_spec())
        assert [session.type for session in driver.running()] == [Type.CONSOLE]
        driver.unhealthy = "on strike"
        assert await driver.trouble() == "on strike"

    asyncio.run(scene())


def test_a_broken_simulated_record_is_dropped(tmp_path: Path) -> None:
    (tmp_path / "0.json").write_bytes(b"\xff{")

    async def scene() -> None:
        driver = SimulatedDriver(SystemClock(), state_dir=tmp_path)
        await driver.open(lambda *_: None)
        assert driver.running() == []

    asyncio.run(scene())
    assert list(tmp_path.iterdir()) == []
