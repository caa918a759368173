"""Both sides of the seam to the operating system; the Windows side is asked through fakes."""

from __future__ import annotations

import ast
import asyncio
import inspect
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import psutil
import pytest

import deskfleet
from deskfleet.agent import main as agent_main
from deskfleet.agent.logins import foreign_user
from deskfleet.errors import SetupFailed, StartFailed
from deskfleet.machine import here, posix, windows
from deskfleet.settings import AgentSettings
from support.sessions import xvnc_folder
from support.users import ordinary_user
from support.waiting import until

SOURCES = Path(deskfleet.__file__).parent
SIDES = pytest.mark.parametrize("side", [posix, windows], ids=["posix", "windows"])


def public(side: ModuleType) -> dict[str, Any]:
    """Return what a side of the seam offers: its constants and its functions."""
    own = {
        name: value
        for name, value in vars(side).items()
        if not name.startswith("_")
        and (name.isupper() or getattr(value, "__module__", "").startswith("deskfleet.machine"))
    }
    return {name: value for name, value in own.items() if name not in {"Folders", "Run"}}


def required(function: Any) -> list[str]:
    return [
        parameter.name
        for parameter in inspect.signature(function).parameters.values()
        if parameter.default is parameter.empty
    ]


def _listen(one: socket.socket, address: tuple[str, int]) -> None:
    one.bind(address)
    one.listen()


class TestBothSides:
    def test_they_offer_the_same(self) -> None:
        ours, theirs = public(posix), public(windows)
        assert set(ours) == set(theirs) - {"run", "registry"}
        for name in ours:
            if callable(ours[name]):
                assert required(ours[name]) == required(theirs[name]), name

    def test_here_is_the_side_of_this_system(self) -> None:
        assert here.__name__ == f"deskfleet.machine.{os.name.replace('nt', 'windows')}"

    @SIDES
    def test_a_file_is_replaced_whether_it_is_there_or_not(self, side: Any, tmp_path: Path) -> None:
        path, fresh = tmp_path / "file", tmp_path / "fresh"
        for text in ("first", "second"):
            fresh.write_text(text)
            side.replace(fresh, path)
            assert path.read_text() == text
        assert [one.name for one in tmp_path.iterdir()] == ["file"]

    @SIDES
    def test_content_and_folders_are_synchronised(self, side: Any, tmp_path: Path) -> None:
        with (tmp_path / "file").open("wb") as file:
            side.sync_content(file.fileno())
        side.sync_folder(tmp_path)

    @SIDES
    def test_a_stop_signal_is_heard_in_the_loop(self, side: Any) -> None:
        async def story() -> None:
            stopped = asyncio.Event()
            side.on_stop(asyncio.get_running_loop(), stopped.set)
            signal.raise_signal(signal.SIGTERM)
            await asyncio.wait_for(stopped.wait(), 5)

        kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            loop = side.new_event_loop()
            loop.run_until_complete(story())
            loop.close()
        finally:
            for number, before in kept.items():
                signal.signal(number, before)

    @SIDES
    def test_a_whole_tree_of_programs_is_killed(self, side: Any, tmp_path: Path) -> None:
        text = (
            "import subprocess, sys; c = subprocess.Popen(['sleep', '100']); print(c.pid);"
            " sys.stdout.flush(); c.wait()"
        )
        group = posix.OWN_GROUP
        with subprocess.Popen(
            [sys.executable, "-c", text], stdout=subprocess.PIPE, text=True, **group
        ) as parent:
            assert parent.stdout is not None
            child = psutil.Process(int(parent.stdout.readline()))
            side.kill_group(parent.pid)
            assert parent.wait(10) == -signal.SIGKILL
            until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
        side.kill_group(2**22 + 1)

    @SIDES
    def test_two_listeners_never_share_a_port(self, side: Any) -> None:
        with socket.socket() as first, socket.socket() as second:
            for one in (first, second):
                side.claim_address(one)
            first.bind(("127.0.0.1", 0))
            first.listen()
            with pytest.raises(OSError, match="in use"):
                _listen(second, first.getsockname())

    @SIDES
    def test_nobody_answers_at_a_socket_that_is_not_there(self, side: Any, tmp_path: Path) -> None:
        with pytest.raises(OSError):  # noqa: PT011 - whatever the system calls it
            asyncio.run(side.open_local(tmp_path / "none", 1024))

    @SIDES
    def test_a_private_folder_is_made_once(
        self, side: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = tmp_path / "a/b"
        arguments = [] if side is posix else [lambda _argv: 0]
        for _ in range(2):
            side.make_private_folder(folder, *arguments)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give things away")


class TestSafeFolders:
    """Nobody else can put something in the place of what a program keeps."""

    def refused(self, folder: Path, why: str, **user: int) -> None:
        with pytest.raises(SetupFailed) as caught:
            posix.refuse_unsafe_folder(folder, **user)
        assert why in caught.value.message

    def test_one_that_is_ours_alone(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir(mode=0o770)
        (tmp_path / "link").symlink_to("a")
        for inner in (".", "a", "link", "link/../a", "a/to/be/made"):
            posix.refuse_unsafe_folder(tmp_path / inner)

    @pytest.mark.parametrize(("mode", "on_the_way"), [(0o777, False), (0o1777, True)])
    def test_one_that_everybody_can_write_to(
        self, mode: int, tmp_path: Path, *, on_the_way: bool
    ) -> None:
        where = tmp_path / "open"
        (where / "inner").mkdir(parents=True)
        where.chmod(mode)
        told = f"{where} can be written to by everybody (mode {mode:o})"
        self.refused(where, told)
        (tmp_path / "link").symlink_to(where)
        self.refused(tmp_path / "link", told)
        for inner in ("inner", "to-be-made"):
            if on_the_way:
                posix.refuse_unsafe_folder(where / inner)
            else:
                self.refused(where / inner, told)

    @AS_ROOT
    def test_one_of_somebody_else(self, tmp_path: Path) -> None:
        theirs, ours = tmp_path / "theirs", tmp_path / "ours"
        (theirs / "inner").mkdir(parents=True)
        ours.mkdir()
        (tmp_path / "link").symlink_to(ours)
        for one in (theirs, tmp_path / "link"):
            os.chown(one, 4711, 4711, follow_symlinks=False)
        for folder, place in {
            theirs: theirs,
            theirs / "inner": theirs,
            theirs / "missing": theirs,
            tmp_path / "link": tmp_path / "link",
        }.items():
            self.refused(folder, f"{place} belongs to somebody else (user 4711)")
            posix.refuse_unsafe_folder(folder, user=4711)

    def test_one_that_is_no_folder(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        (tmp_path / "loop").symlink_to("loop")
        for name, why in (("file", "Not a directory"), ("loop", "Too many levels")):
            with pytest.raises(SetupFailed, match=f"{name} can't be used: {why}"):
                posix.make_private_folder(tmp_path / name)

    def test_one_that_is_made_has_its_mode(self, tmp_path: Path) -> None:
        before = os.umask(0o077)
        try:
            posix.make_folder(tmp_path / "made", 0o711)
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "made").stat().st_mode) == 0o711
        posix.make_folder(tmp_path / "made", 0o700)
        assert stat.S_IMODE((tmp_path / "made").stat().st_mode) == 0o711

    def test_no_agent_has_its_state_where_others_can_exchange_it(self, tmp_path: Path) -> None:
        async def scene() -> None:
            async with agent_main.running(AgentSettings(state=tmp_path / "state")):
                pass

        tmp_path.chmod(0o777)
        with pytest.raises(SetupFailed, match="can be written to by everybody"):
            asyncio.run(scene())
        assert list(tmp_path.iterdir()) == []


class TestPosix:
    def test_exposure_is_the_mode(self, tmp_path: Path) -> None:
        path = tmp_path / "key"
        path.touch()
        path.chmod(0o640)
        assert posix.exposure(path.stat(), 0o077) == "640"
        assert posix.exposure(path.stat(), 0o037) is None
        assert not posix.belongs_to_others(path.stat())

    def test_the_places_are_those_of_the_field(self) -> None:
        found = posix.folders({})
        assert str(found.dcv_program) == "/usr/bin/dcv"
        assert str(found.init_folder) == "/var/lib/dcv-session-manager-agent/init"
        assert str(found.autorun_folder) == "/var/lib/dcv-session-manager-agent/autorun"
        assert str(found.tags_folder) == "/etc/dcv-session-manager-agent/tags"
        assert str(found.log_folder) == "/var/log/dcv-session-manager-agent"

    def test_groups_are_those_of_the_system(self) -> None:
        assert posix.groups_of("no-such-user-here") == frozenset()
        assert posix.groups_of("root") >= {"root"}

    def test_there_are_load_averages(self) -> None:
        averages = posix.load_averages()
        assert averages is not None
        assert len(averages) == 3

    def test_a_program_starts_as_its_user(self) -> None:
        user = ordinary_user("dfalice")
        argv = ["/bin/sh", "-c", 'echo "$@" "$X" "$HOME" $(id -u) > "$P.n"; mv "$P.n" "$P"']
        with xvnc_folder() as folder:
            os.chown(folder, user.pw_uid, user.pw_gid)
            said = folder / "said"
            posix.start_as(user.pw_name, [*argv, "sh", "a b", "-c"], {"X": "y", "P": str(said)})
            until(said.exists)
            assert said.read_text() == f"a b -c y {user.pw_dir} {user.pw_uid}\n"
        with pytest.raises(StartFailed, match="there is no user"):
            posix.start_as("no-such-user-here", argv, {})
        with pytest.raises(StartFailed, match="could not be run"):
            posix.start_as(user.pw_name, ["/nowhere/program"], {})


class Ran:
    """Stands for the programs of a Windows: remembers what was run, and answers with a code."""

    def __init__(self, *codes: int) -> None:
        self.argvs: list[list[str]] = []
        self._codes: Iterator[int] = iter(codes)

    def __call__(self, argv: Sequence[str]) -> int:
        self.argvs.append(list(argv))
        return next(self._codes, 0)


class TestWindows:
    def test_the_places_are_those_of_the_field(self) -> None:
        found = windows.folders({"ProgramFiles": "P:", "ProgramData": "D:"})
        assert str(found.dcv_program) == "P:/NICE/DCV/Server/bin/dcv.exe"
        assert str(found.tags_folder) == "P:/NICE/DCVSessionManagerAgent/conf/tags"
        assert str(found.log_folder) == "D:/NICE/DCVSessionManagerAgent/log"
        assert str(found.autorun_folder) == "D:/NICE/DcvSessionManagerAgent/autorun"
        assert found.init_folder is None
        assert str(windows.folders({}).tags_folder).startswith("C:\\Program Files/")

    def test_a_new_folder_is_closed_to_others_and_an_old_one_left_alone(
        self, tmp_path: Path
    ) -> None:
        ran = Ran()
        windows.make_private_folder(tmp_path / "state", ran)
        assert ran.argvs == [
            [
                *("icacls", str(tmp_path / "state"), "/inheritance:r", "/grant:r"),
                *("*S-1-5-18:(OI)(CI)F", "*S-1-5-32-544:(OI)(CI)F", "*S-1-3-4:(OI)(CI)F"),
            ]
        ]
        windows.make_private_folder(tmp_path / "state", ran)
        assert len(ran.argvs) == 1

    def test_a_folder_that_can_not_be_closed_is_not_used(self, tmp_path: Path) -> None:
        with pytest.raises(SetupFailed, match="can't be closed to others"):
            windows.make_private_folder(tmp_path / "state", Ran(5))
        assert not (tmp_path / "state").exists()
        assert windows.run(["no-such-program-here"]) == -1

    def test_a_file_that_is_read_just_now_is_replaced_a_little_later(self, tmp_path: Path) -> None:
        class Busy:
            tries = 0

            def replace(self, _target: Path) -> None:
                self.tries += 1
                if self.tries < 4:
                    raise PermissionError(13, "used by another program")

        busy: Any = Busy()
        waited: list[float] = []
        windows.replace(busy, tmp_path / "file", waited.append)
        assert (busy.tries, len(waited)) == (4, 3)
        busy.tries = -100
        with pytest.raises(PermissionError):
            windows.replace(busy, tmp_path / "file", waited.append)

    def test_modes_say_nothing(self, tmp_path: Path) -> None:
        assert windows.exposure(tmp_path.stat(), 0o777) is None
        assert not windows.belongs_to_others(tmp_path.stat())
        assert windows.load_averages() is None
        assert windows.groups_of("root") == frozenset()

    @pytest.mark.parametrize(
        ("version", "product", "told"),
        [
            (
                ("2016Server", "10.0.14393", "SP0", "Multiprocessor Free"),
                "Windows Server 2016 Datacenter",
                ("Windows Server 2016 Datacenter", "10.0.14393", "14393"),
            ),
            (
                ("10", "10.0.22631", "SP0", ""),
                "Windows 10 Pro",
                ("Windows 11 Pro", "10.0.22631", "22631"),
            ),
            (
                ("10", "10.0.19045", "SP0", ""),
                "Windows 10 Pro",
                ("Windows 10 Pro", "10.0.19045", "19045"),
            ),
            (("11", "10.0.26100", "", ""), None, ("Windows 11", "10.0.26100", "26100")),
            (("", "", "", ""), None, ("Windows", None, None)),
        ],
    )
    def test_the_system_is_told_as_the_field_tells_it(
        self, version: Any, product: str | None, told: tuple[str | None, ...]
    ) -> None:
        def registry(_key: str, name: str) -> str | None:
            return product if name == "ProductName" else None

        found = windows.operating_system(Path("/"), registry, lambda: version)
        assert found.family == "windows"
        assert (found.name, found.version, found.build_number) == told
        assert found.kernel_version is None

    def test_hardware_is_in_the_registry(self) -> None:
        said = {
            ("CentralProcessor\\0", "VendorIdentifier"): "GenuineIntel",
            ("CentralProcessor\\0", "ProcessorNameString"): "Xeon",
            ("\\0001", "DriverDesc"): "NVIDIA T4",
            ("\\0001", "ProviderName"): "NVIDIA",
        }

        def registry(key: str, name: str) -> str | None:
            return next(
                (v for (end, n), v in said.items() if key.endswith(end) and n == name), None
            )

        cpu = windows.processor(registry, lambda: "AMD64")
        assert (cpu.vendor, cpu.model_name, cpu.architecture) == ("GenuineIntel", "Xeon", "x86_64")
        [gpu] = windows.display_adapters(registry)
        assert (gpu.vendor, gpu.model_name) == ("NVIDIA", "NVIDIA T4")
        assert windows.registry("SOFTWARE", "nothing") is None

    def test_interfaces_are_named_in_any_case(self) -> None:
        names = ["Loopback", "Ethernet 4"]
        assert windows.interface_named("ethernet 4", names) == "Ethernet 4"
        assert windows.interface_named("none", names) == "none"
        assert posix.interface_named("ETH0", ["eth0"]) == "ETH0"

    def test_who_is_logged_in_is_told_once(self) -> None:
        people = [SimpleNamespace(name=name) for name in ("eve", "", "bob", "eve")]
        assert windows.logged_in_users(users=lambda: people) == ("bob", "eve")

    def test_a_program_runs_as_its_user_by_a_task_that_goes_again(self) -> None:
        ran = Ran()
        windows.start_as("CORP\\eve", [r"C:\a b\run.exe"], {}, ran, lambda: "t")
        created, run, deleted = ran.argvs
        assert created[:7] == ["schtasks", "/Create", "/TN", "t", "/TR", r'"C:\a b\run.exe"', "/RU"]
        assert created[7:10] == ["CORP\\eve", "/IT", "/F"]
        assert run == ["schtasks", "/Run", "/TN", "t"]
        assert deleted == ["schtasks", "/Delete", "/TN", "t", "/F"]
        ran = Ran()
        windows.start_as("eve", ["C:\\x.PS1"], {}, ran, lambda: "t")
        assert ran.argvs[0][5].startswith("powershell.exe -NoProfile")

    @pytest.mark.parametrize(
        ("argv", "environment", "codes", "reason"),
        [
            (["x.exe", "argument"], {}, [], "arguments or variables"),
            (["x.exe"], {"A": "b"}, [], "arguments or variables"),
            (['x".exe'], {}, [], "no path"),
            (["x.exe"], {}, [1], "could not be prepared"),
            (["x.exe"], {}, [0, 1], "could not be run as"),
        ],
    )
    def test_a_program_that_does_not_start_is_told(
        self, argv: list[str], environment: dict[str, str], codes: list[int], reason: str
    ) -> None:
        ran = Ran(*codes)
        with pytest.raises(StartFailed, match=reason):
            windows.start_as("eve", argv, environment, ran, lambda: "t")
        assert len(ran.argvs) == (0 if not codes else 1 if codes == [1] else 3)

    def test_a_module_takes_over_in_place(self, tmp_path: Path) -> None:
        (tmp_path / "taking.py").write_text("import sys; print(sys.argv[1:])")
        text = "from deskfleet.machine import windows as w; w.become('taking', ['x'])"
        done = subprocess.run(
            [sys.executable, "-c", text],
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout == "['x']\n"


@pytest.mark.parametrize(
    ("logged_in", "owners", "foreign"),
    [
        ([], [], None),
        (["eve"], [], "eve"),
        (["eve"], ["eve"], None),
        (["EVE"], ["CORP\\eve"], None),
        (["eve"], ["eve@corp.example"], None),
        (["eve"], ["eva"], "eve"),
        (["zoe", "bob", "eve"], ["eve"], "bob"),
        (["Straße"], ["STRASSE"], None),
    ],
)
def test_who_owns_no_session_here_is_foreign(
    logged_in: list[str], owners: list[str], foreign: str | None
) -> None:
    assert foreign_user(logged_in, owners) == foreign


POSIX_MODULES = {
    *("fcntl", "grp", "pty", "pwd", "resource", "spwd", "syslog", "termios", "tty", "uvloop"),
    "posix",
}
POSIX_NAMES = {
    "os": {
        *("O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "O_PATH", "WNOHANG", "chown"),
        *("execve", "fchmod", "fchown", "fdatasync", "fork", "getegid", "geteuid", "getgid"),
        *("getgrouplist", "getloadavg", "getuid", "killpg", "mkfifo", "pidfd_open", "pipe2"),
        *("posix_spawn", "posix_spawnp", "set_blocking", "setsid", "setuid", "statvfs", "uname"),
        "lchown",
    },
    "signal": {"SIGCHLD", "SIGHUP", "SIGKILL", "SIGPIPE", "pidfd_send_signal"},
    "socket": {"AF_UNIX", "SO_REUSEADDR", "SO_REUSEPORT"},
    "asyncio": {"open_unix_connection", "start_unix_server"},
}
POSIX_METHODS = {"add_signal_handler", "add_reader", "connect_read_pipe", "rename"}
ROOTS = (
    "cli.main",
    "cli.agent",
    "cli.agent_program",
    "agent.drivers.simulated",
    "agent.drivers.dcv",
)


def path_of(module: str) -> Path | None:
    base = SOURCES.joinpath(*module.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.exists():
            return path
    return None


ON_POSIX = "sys.platform != 'win32'"


def on_windows(node: ast.AST) -> Iterator[ast.AST]:
    """Yield a module's nodes, without what a question for the system keeps from Windows."""
    yield node
    if isinstance(node, ast.BoolOp) and ast.unparse(node).startswith(f"{ON_POSIX} and "):
        return
    for _field, value in ast.iter_fields(node):
        for child in statements(value) if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from on_windows(child)


def statements(block: list[Any]) -> Iterator[Any]:
    for one in block:
        question = ast.unparse(one.test) if isinstance(one, ast.If) else ""
        if question == ON_POSIX:
            yield from statements(one.orelse)
        elif question == "sys.platform == 'win32'":
            yield from statements(one.body)
            if isinstance(one.body[-1], ast.Return | ast.Raise):
                return
        else:
            yield one


def imports_of(tree: ast.AST) -> Iterator[str]:
    """Yield every module that is imported anywhere in a module, in functions, too."""
    for node in on_windows(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def way_of_windows() -> dict[str, ast.AST]:
    """Return all modules that an agent with the dcv or the simulated driver may ever import."""
    found: dict[str, ast.AST] = {}
    pending = [root for root in ROOTS if path_of(root)]
    while pending:
        module = pending.pop()
        path = path_of(module)
        if path is None or module in found:
            continue
        found[module] = ast.parse(path.read_text())
        ours = [name for name in imports_of(found[module]) if name.startswith("deskfleet.")]
        pending += [name.removeprefix("deskfleet.") for name in ours]
    return found


def test_nothing_on_the_way_of_windows_is_posix_only() -> None:
    way = way_of_windows()
    assert {"agent.main", "agent.loop", "machine.windows", "certificates", "listener"} <= set(way)
    assert not {"machine.posix", "agent.drivers.xvnc", "agent.drivers.owners"} & set(way)
    assert not any(name.startswith("broker") for name in way)
    offences = set()
    for module, tree in way.items():
        imported = set(imports_of(tree)) & POSIX_MODULES
        offences |= {f"{module}: import {name}" for name in imported}
        for node in on_windows(tree):
            if isinstance(node, ast.Attribute):
                of = node.value.id if isinstance(node.value, ast.Name) else ""
                if node.attr in POSIX_NAMES.get(of, ()) or node.attr in POSIX_METHODS:
                    offences.add(f"{module}: {of}.{node.attr}")
    assert offences == set()


@pytest.mark.parametrize(
    ("text", "imports"),
    [
        ("import fcntl", {"fcntl"}),
        ("def f():\n  import pwd", {"pwd"}),
        ("if sys.platform != 'win32':\n  import pwd\nelse:\n  import winreg", {"winreg"}),
        ("if sys.platform == 'win32':\n  import winreg\nelse:\n  import pwd", {"winreg"}),
        ("def f():\n  if sys.platform == 'win32':\n    return 1\n  import pwd", set()),
        ("def f():\n  if sys.platform == 'win32':\n    x = 1\n  import pwd", {"pwd"}),
        ("if sys.platform != 'linux':\n  import pwd", {"pwd"}),
        ("sys.platform != 'win32' and [x for x in __import__('a')]\nimport pwd", {"pwd"}),
    ],
)
def test_the_check_knows_what_windows_never_reaches(text: str, imports: set[str]) -> None:
    assert set(imports_of(ast.parse(text))) == imports
