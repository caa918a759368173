"""Init and autorun files that somebody tries to trick an agent with: by their names, and in races.

The names go through the whole way from a request's body to the program that runs. In the races
another user of the machine, with rights in some place on the way, exchanges what is there for a
canary as fast as the system lets them, while the agent looks for the program and runs it.
"""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deskfleet.errors import StartFailed
from deskfleet.machine import posix_programs
from deskfleet.machine.posix_programs import find_program
from support import hostile_programs, swapping
from support.sessions import xvnc_folder
from support.users import need_root, ordinary_user

NAMES = 10_000
RACES = 10_000
CARELESS_RACES = 20_000
"""In which a search without its checks has to lose at least once."""


def campaign(folder: Path, names: int, runs: int, *careless: str, seed: int = 1) -> dict[str, Any]:
    arguments = [str(folder), str(names), str(runs), str(seed), *careless]
    done = subprocess.run(
        [sys.executable, "-m", hostile_programs.__name__, *arguments],
        env={**os.environ, "PYTHONPATH": str(Path(hostile_programs.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.fixture
def folder() -> Iterator[Path]:
    with xvnc_folder() as folder:
        yield folder


class TestNames:
    def test_what_runs_is_what_was_asked_and_nothing_outside_is_opened(self, folder: Path) -> None:
        told = campaign(folder / "place", NAMES, runs=450)
        assert told["violations"] == []
        counts = told["counts"]
        assert counts["found"] + counts["refused by the agent"] == NAMES
        assert counts["found"] > NAMES / 10
        assert counts["ran"] == 450
        assert counts["arguments"] > 9_000

    def test_a_careless_search_is_found_out(self, folder: Path) -> None:
        told = campaign(folder / "place", 300, 20, "careless")
        said = "\n".join(told["violations"])
        assert "opened" in said
        assert "led to" in said

    @pytest.mark.torture
    @pytest.mark.parametrize("seed", range(2, 12))
    def test_again_with_other_names(self, folder: Path, seed: int) -> None:
        assert campaign(folder / "place", NAMES, 2000, seed=seed)["violations"] == []

    def test_a_locale_that_can_not_write_a_name_refuses_it(self, folder: Path) -> None:
        (folder / "init/é").write_text("#!/bin/sh\n")
        (folder / "init/é").chmod(0o755)
        text = (
            "from pathlib import Path; from deskfleet.machine.posix_programs import find_program;"
            f"print(find_program(Path({str(folder / 'init')!r}), '\\u00e9', 'init file'))"
        )
        environment = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
        done = subprocess.run(
            [sys.executable, "-c", text],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert "StartFailed" in done.stderr
        assert "UnicodeEncodeError" not in done.stderr.splitlines()[-1]


@dataclass(frozen=True)
class Race:
    """Who may change what: a program to look for, and two names that are exchanged meanwhile."""

    folder: Path
    name: str
    swapped: tuple[Path, Path]


class Place:
    """A folder of programs, an outside with a canary, and somebody with rights in between."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.stranger = ordinary_user("dfbob")
        self.ran = top / "canary-ran"
        self.outside = self.admins(top / "outside")
        self.canary = self.program(self.outside / "run", f'#!/bin/sh\necho x >> "{self.ran}"\n')

    def admins(self, path: Path, mode: int = 0o755) -> Path:
        path.mkdir(exist_ok=True)
        path.chmod(mode)
        return path

    def theirs(self, path: Path) -> Path:
        path.mkdir(exist_ok=True)
        os.chown(path, self.stranger.pw_uid, self.stranger.pw_gid)
        return path

    def program(self, path: Path, text: str = "#!/bin/sh\n") -> Path:
        path.write_text(text)
        path.chmod(0o755)
        return path

    def link(self, path: Path, target: Path) -> Path:
        path.symlink_to(target)
        os.chown(path, self.stranger.pw_uid, self.stranger.pw_gid, follow_symlinks=False)
        return path

    def pair(self, folder: Path) -> tuple[Path, Path]:
        """Put a program and a link to the canary into a folder."""
        return self.program(folder / "run"), self.link(folder / "link", self.canary)


def their_own_folder(place: Place) -> Race:
    init = place.top / "init"
    return Race(init, "theirs/run", place.pair(place.theirs(init / "theirs")))


def a_folder_open_to_all(place: Place) -> Race:
    init = place.top / "init"
    folder = place.admins(init / "open")
    race = Race(init, "open/run", place.pair(folder))
    folder.chmod(0o777)
    return race


def a_folder_open_to_a_group(place: Place) -> Race:
    init = place.top / "init"
    folder = place.admins(init / "shared")
    race = Race(init, "shared/run", place.pair(folder))
    os.chown(folder, 0, place.stranger.pw_gid)
    folder.chmod(0o775)
    return race


def the_folder_itself_open(place: Place) -> Race:
    init = place.top / "init"
    race = Race(init, "run", place.pair(init))
    init.chmod(0o777)
    return race


def the_folder_within_theirs(place: Place) -> Race:
    """They move the administrator's whole folder away and put their own there."""
    around = place.theirs(place.top / "around")
    init, other = place.admins(around / "init"), place.theirs(around / "other")
    place.program(init / "run")
    place.link(other / "run", place.canary)
    return Race(init, "run", (init, other))


def a_folder_far_above_theirs(place: Place) -> Race:
    around = place.theirs(place.top / "around")
    for name in ("one", "two"):
        place.admins(around / name)
        place.admins(around / name / "init")
    place.program(around / "one/init/run")
    place.program(around / "two/init/run", place.canary.read_text())
    return Race(around / "one/init", "run", (around / "one", around / "two"))


def a_link_to_the_folder_theirs(place: Place) -> Race:
    """They choose between two folders of the administrator's; one was never meant for owners."""
    around = place.theirs(place.top / "around")
    init = place.top / "init"
    place.program(init / "run")
    links = place.link(around / "here", init), place.link(around / "there", place.outside)
    return Race(links[0], "run", links)


REFUSED = [
    their_own_folder,
    a_folder_open_to_all,
    a_folder_open_to_a_group,
    the_folder_itself_open,
    the_folder_within_theirs,
    a_folder_far_above_theirs,
    a_link_to_the_folder_theirs,
]


@contextmanager
def swapped(race: Race, stranger: pwd.struct_passwd, *, begins: bool = True) -> Iterator[None]:
    """Let the stranger exchange the two names for as long as the context is entered."""
    with subprocess.Popen(
        [
            *(sys.executable, "-I", swapping.__file__),
            *(str(stranger.pw_uid), str(stranger.pw_gid), *map(str, race.swapped)),
        ],
        stdout=subprocess.PIPE,
        text=True,
    ) as swapper:
        try:
            assert swapper.stdout is not None
            assert swapper.stdout.readline() == ("begun\n" if begins else "can't\n")
            yield
        finally:
            swapper.kill()


def run(program: Path) -> int | None:
    """Run a program as a session's leader does, by its path; return what it ended with."""
    try:
        argv, environment = [str(program)], {"PATH": "/usr/bin:/bin"}
        _, status = os.waitpid(os.posix_spawnp(argv[0], argv, environment, setsid=True), 0)
    except OSError:
        return None  # it has been taken away meanwhile
    return os.waitstatus_to_exitcode(status)


def find_naively(folder: Path, name: str, kind: str) -> Path:
    """Stand for a search that looks at a path, and then believes that it stays what it was."""
    path = folder / name
    if path.is_symlink() or path.stat().st_uid not in {0, os.geteuid()}:
        raise StartFailed(f"the {kind} is a link")
    return path


def races(
    race: Race,
    place: Place,
    count: int,
    *,
    enough: Callable[[], bool],
    find: Callable[[Path, str, str], Path] = find_program,
) -> int:
    """Look for the program so often, and run what is found; return how often it was found."""
    found = 0
    for _ in range(count):
        try:
            program = find(race.folder, race.name, "init file")
        except StartFailed:
            continue
        found += 1
        run(program)
        if enough():
            break
    return found


@pytest.fixture
def place(folder: Path) -> Place:
    need_root("a second user")
    return Place(folder)


class TestRaces:
    @pytest.mark.parametrize("layout", REFUSED)
    def test_whoever_may_change_something_on_the_way_wins_none(
        self, place: Place, layout: Callable[[Place], Race]
    ) -> None:
        race = layout(place)
        with swapped(race, place.stranger):
            found = races(race, place, RACES // len(REFUSED) + 1, enough=place.ran.exists)
        assert found == 0
        assert not place.ran.exists()

    @pytest.mark.parametrize("layout", REFUSED)
    def test_without_the_checks_they_would(
        self,
        place: Place,
        layout: Callable[[Place], Race],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Prove that these are races that can be lost."""
        monkeypatch.setattr(posix_programs, "_trusted", lambda _status: True)
        monkeypatch.setattr(posix_programs, "_WRITABLE", 0)
        race = layout(place)
        with swapped(race, place.stranger):
            races(race, place, CARELESS_RACES, enough=place.ran.exists)
        assert place.ran.exists()

    def test_in_a_good_folder_what_is_good_runs_and_what_they_swap_does_not(
        self, place: Place
    ) -> None:
        """Ten thousand times each: nothing that they do beside it keeps a program from running."""
        race = their_own_folder(place)
        good = place.program(race.folder / "good", "#!/bin/sh\nexit 7\n")
        with swapped(race, place.stranger):
            for _ in range(RACES):
                assert find_program(race.folder, "good", "init file") == good
                assert run(good) == 7
                with pytest.raises(StartFailed):
                    find_program(race.folder, race.name, "init file")
        assert not place.ran.exists()

    def test_a_naive_search_loses_there(self, place: Place) -> None:
        race = their_own_folder(place)
        with swapped(race, place.stranger):
            found = races(race, place, CARELESS_RACES, enough=place.ran.exists, find=find_naively)
        assert found > 0
        assert place.ran.exists()

    def test_a_sticky_folder_on_the_way_gives_nobody_a_chance(self, place: Place) -> None:
        """As /tmp is: others may put things there, and not move the administrator's away."""
        around = place.admins(place.top / "around", 0o1777)
        init, other = place.admins(around / "init"), place.theirs(around / "other")
        place.program(init / "run")
        place.link(other / "run", place.canary)
        race = Race(init, "run", (init, other))
        with swapped(race, place.stranger, begins=False):
            assert races(race, place, 100, enough=place.ran.exists) == 100
        assert not place.ran.exists()

    def test_a_link_that_is_swapped_in_is_never_followed(self, place: Place) -> None:
        """Not even when it is the administrator who exchanges the two."""
        init = place.top / "init"
        race = Race(init, "run", place.pair(init))
        root = pwd.getpwuid(0)
        refused = 0
        with swapped(race, root):
            for _ in range(2_000):
                try:
                    assert find_program(race.folder, race.name, "init file") == init / "run"
                except StartFailed as refusal:
                    assert "is a link" in refusal.message  # noqa: PT017 - both ends are right
                    refused += 1
        assert 0 < refused < 2_000

    @pytest.mark.torture
    @pytest.mark.parametrize("layout", REFUSED)
    def test_ten_thousand_races_of_each_kind(
        self, place: Place, layout: Callable[[Place], Race]
    ) -> None:
        race = layout(place)
        with swapped(race, place.stranger):
            assert races(race, place, RACES, enough=place.ran.exists) == 0
        assert not place.ran.exists()
