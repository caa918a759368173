"""What must hold when programs are killed, stopped or robbed of their disk: each in its own fleet.

Clients go on writing meanwhile, and a ledger outside of the programs keeps what was answered.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from support.broken_site import BrokenSite, Prepared, on_server_of, say, stopped
from support.ledger import Ledger, at_rest, audit, described, writers
from support.programs import Portal, Program, trust
from support.users import ordinary_user
from support.waiting import until

API_BACK_SECONDS = 10.0
"""With the start of the program, on a busy machine."""
HEALED_SECONDS = 10.0
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")


def answering(portal: Portal) -> bool:
    try:
        portal.call("/describeSessions")
    except httpx.TransportError:
        return False
    return True


def states(portal: Portal) -> Counter[str]:
    return Counter(one["State"] for one in described(portal).values())


def chance(what: str) -> random.Random:
    """Return dice whose seed is printed, so that a failure can be played again."""
    seed = int(os.environ.get("FAULT_SEED", random.randrange(2**32)))
    print(f"{what}: FAULT_SEED={seed}")
    return random.Random(seed)


# Brokers


def kill_brokers(site: BrokenSite, cycles: int, longest_life: float) -> None:
    dice = chance("kill -9 of the broker")
    site.broker()
    seats = {"left": 5, "right": 6}
    for name, count in seats.items():
        site.agent(name, count)
    limits = {site.server_id(name): count for name, count in seats.items()}
    portal = site.portal()
    until(lambda: len(portal.available()) == len(limits))
    ledger, slowest = Ledger(), 0.0
    with contextlib.ExitStack() as stack:
        clients = writers(ledger, portal, site.ca_file, [site.url()], 4)
        for client in clients:
            stack.enter_context(client)
        for _ in range(cycles):
            time.sleep(dice.uniform(0.05, longest_life))
            site.kill("broker")
            began = time.monotonic()
            site.broker()
            until(lambda: answering(portal), seconds=API_BACK_SECONDS)
            slowest = max(slowest, time.monotonic() - began)
            with at_rest(clients):
                audit(ledger, portal, limits)
    # Half of what is done is deleting: without servers nothing is ready, and nothing is deleted.
    until(lambda: set(states(portal)) <= {"READY", "DELETED"}, seconds=HEALED_SECONDS)
    shown = audit(ledger, portal, limits)
    ready = {id for id, one in shown.items() if one["State"] == "READY"}
    assert site.running("left") | site.running("right") == ready
    assert not site.running("left") & site.running("right")
    print(
        f"{cycles} kills: {len(ledger.created)} created, {len(ledger.deleted)} deleted,"
        f" {dict(ledger.errors)}, {sum(ledger.refused.values())} refused,"
        f" API back after at most {slowest:.2f} s"
    )
    assert len(ledger.created) > 3 * cycles
    assert len(ledger.deleted) > 2 * cycles


def test_kill_9_of_the_broker_loses_nothing_that_was_answered(broken_site: BrokenSite) -> None:
    kill_brokers(broken_site, 5, 1.2)


@pytest.mark.torture
@pytest.mark.timeout(3600)
def test_a_hundred_kills_of_the_broker_lose_nothing(broken_site: BrokenSite) -> None:
    kill_brokers(broken_site, 120, 4.0)


def test_a_paused_broker_comes_back_to_a_fleet_that_went_on(broken_site: BrokenSite) -> None:
    """It holds the link, sleeps past its death, and wakes: nothing of it counts any more."""
    site = broken_site
    site.broker("first")
    second = site.broker("second")
    site.agent("agent", 10, brokers=["second", "first"])
    portal = site.portal("first")
    until(portal.available)
    kept, doomed = portal.ready("owner", "kept"), portal.ready("owner", "doomed")
    assert len(site.logged("second", "link.opened")) == 1
    with contextlib.ExitStack() as stack:
        began = time.monotonic()
        with stopped(second):
            until(lambda: portal.state(kept) == "UNKNOWN")
            say("the paused broker counted as dead after", began)
            until(lambda: portal.state(kept) == "READY", seconds=30)
            say("its agent was back, at the other broker, after", began)
            portal.delete(doomed, "owner")
            portal.wait(doomed, "DELETED")
            fresh = portal.ready("owner", "fresh")
            # Clients that wait for the sleeper, and are answered when it wakes.
            clients = writers(Ledger(), portal, site.ca_file, [site.url("second")], 4)
            for client in clients:
                stack.enter_context(client)
        other = site.portal("second")
        assert other.state(doomed) == "DELETED"
        until(lambda: site.logged("second", "link.lost") or site.logged("second", "link.refused"))
    until(lambda: set(states(portal)) <= {"READY", "DELETED"})
    assert described(portal) == described(other)
    ready = {id for id, one in described(portal).items() if one["State"] == "READY"}
    assert {kept, fresh} <= ready
    assert site.running() == ready
    epochs = {
        name: [int(one["epoch"]) for one in site.logged(name, "link.opened")]
        for name in ("first", "second")
    }
    assert max(epochs["first"]) > max(epochs["second"])
    started = Counter(one["session_id"] for one in site.logged("agent", "session.started"))
    assert set(started.values()) == {1}


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    folder.mkdir(exist_ok=True)
    options = f"size={size},mode=700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def sentence(site: BrokenSite, name: str) -> str:
    """Return the last line that a program left for people; there must be no traceback."""
    log = site.log(name)
    assert "Traceback" not in log, log[-4000:]
    return log.strip().splitlines()[-1]


LONG = b64encode(b"[permissions]\n%owner% allow builtin\n" + b"#x\n" * 900).decode()


def create_until_refused(site: BrokenSite, portal: Portal, broker: Program) -> tuple[set[str], str]:
    """Create until the broker can't any more; return what it has acknowledged, and its answer."""
    acked: set[str] = set()
    item = {"Name": "n", "Owner": "owner", "Type": "VIRTUAL", "PermissionsFile": LONG}
    with httpx.Client(
        base_url=site.url(),
        verify=trust(site.ca_file),
        headers={"Authorization": portal._http.headers["Authorization"]},
        timeout=20,
        trust_env=False,
    ) as http:
        for _ in range(3000):
            try:
                answer = http.post("/createSessions", json=[item] * 5)
            except httpx.TransportError as error:
                return acked, repr(error)
            if answer.status_code != 200:
                return acked, f"{answer.status_code} {answer.text}"
            acked |= {one["Id"] for one in answer.json()["SuccessfulList"]}
    raise AssertionError(f"never refused; broker {broker.process.poll()}")


@needs_root
def test_a_full_disk_ends_the_broker_and_loses_nothing(tmp_path: Path, prepared: Prepared) -> None:
    with small_disk(tmp_path / "broker", "3m") as disk, BrokenSite(tmp_path, prepared) as site:
        broker = site.broker()
        site.agent("agent", 10_000)
        portal = site.portal()
        until(portal.available)
        acked, answer = create_until_refused(site, portal, broker)
        print(f"{len(acked)} created before the disk was full; then: {answer}")
        assert answer.startswith("503"), answer
        assert broker.process.wait(20) == 1
        print(sentence(site, "broker"))
        assert "full" in sentence(site, "broker")
        site.kill("broker")
        # It says so again as long as there is no room, and goes on as soon as there is.
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        site.broker()
        until(lambda: answering(portal), seconds=API_BACK_SECONDS)
        assert acked <= set(described(portal))
        until(lambda: set(states(portal)) == {"READY"}, seconds=30)
        assert site.running() == set(described(portal)) >= acked


def damage(file: Path) -> None:
    """Overwrite all but the first page."""
    with file.open("r+b") as opened:
        opened.seek(4096)
        opened.write(b"\xa5" * (file.stat().st_size - 4096))


def replace_by_copy(file: Path) -> None:
    """Do what a restore from a backup does, which nobody may do under a running broker."""
    copy = file.with_suffix(".copy")
    shutil.copy2(file, copy)
    copy.rename(file)


def remove_log(file: Path) -> None:
    file.with_name("fleet.db-wal").unlink()


@pytest.mark.parametrize("fault", [damage, replace_by_copy, remove_log])
def test_a_store_that_is_tampered_with_ends_the_broker(
    broken_site: BrokenSite, fault: Callable[[Path], None]
) -> None:
    """What is acknowledged after the fault is there after a restart, or isn't acknowledged."""
    site = broken_site
    broker = site.broker()
    portal = site.portal()
    file = site.broker_state / "fleet.db"
    with contextlib.closing(sqlite3.connect(file)) as raw:
        raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    fault(file)
    item = {"Name": "n", "Owner": "owner", "Type": "VIRTUAL", "EnqueueRequest": True}
    acked: set[str] = set()
    deadline = time.monotonic() + 20
    while broker.process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError, AssertionError):
            answer = portal.call("/createSessions", [item])
            acked |= {one["Id"] for one in answer["SuccessfulList"]}
    assert broker.process.wait(5) == 1
    print(sentence(site, "broker"))
    site.kill("broker")
    if fault in {replace_by_copy, remove_log}:
        site.broker()
        assert acked <= set(described(portal))
    else:
        assert not acked


# Agents


def test_kill_9_of_the_agent_starts_nothing_twice(broken_site: BrokenSite) -> None:
    site, dice = broken_site, chance("kill -9 of the agent")
    site.broker()
    site.agent("agent", 1000)
    portal = site.portal()
    until(portal.available)
    limits = {site.server_id(): 1000}
    ledger = Ledger()
    with contextlib.ExitStack() as stack:
        clients = writers(ledger, portal, site.ca_file, [site.url()], 4)
        for client in clients:
            stack.enter_context(client)
        for _ in range(6):
            time.sleep(dice.uniform(0.0, 0.6))
            site.kill("agent")
            _linked_again(site)
    began = time.monotonic()
    until(lambda: set(states(portal)) <= {"READY", "DELETED"}, seconds=HEALED_SECONDS)
    say("all settled after the last kill, in", began)
    shown = audit(ledger, portal, limits)
    assert site.running() == {id for id, one in shown.items() if one["State"] == "READY"}
    started = Counter(one["session_id"] for one in site.logged("agent", "session.started"))
    assert set(started.values()) == {1}
    print(f"{len(ledger.created)} created, {len(ledger.deleted)} deleted, {dict(ledger.errors)}")


def _linked_again(site: BrokenSite) -> None:
    before = len(site.logged("agent", "link.opened"))
    site.agent("agent", 1000)
    until(lambda: len(site.logged("agent", "link.opened")) > before, seconds=15)


def flip_a_generation(journal: bytes) -> bytes:
    return journal.replace(b'"generation":1', b'"generation":3')


def flip_bits(journal: bytes) -> bytes:
    dice, flipped = chance("bit flips"), bytearray(journal)
    for _ in range(40):
        flipped[dice.randrange(len(flipped))] ^= 1 << dice.randrange(8)
    return bytes(flipped)


def empty(_journal: bytes) -> bytes:
    return b""


def rubbish(_journal: bytes) -> bytes:
    return random.Random(1).randbytes(5000)


def test_a_corrupt_journal_is_rebuilt_from_what_runs(broken_site: BrokenSite) -> None:
    site = broken_site
    site.broker()
    site.agent("agent", 1000)
    portal = site.portal()
    until(portal.available)
    journal = site.folder / "agent" / "journal.jsonl"
    kept = [portal.ready("owner", f"kept {number}") for number in range(5)]
    for corrupt in (flip_a_generation, flip_bits, empty, rubbish):
        doomed = portal.ready("owner", f"doomed, {corrupt.__name__}")
        ended = portal.ready("owner", f"ended, {corrupt.__name__}")
        site.kill("agent")
        portal.delete(doomed, "owner")
        for file in (site.folder / "agent" / "simulated").glob("*.json"):
            if json.loads(file.read_bytes())["session_id"] == ended:
                file.unlink()
        journal.write_bytes(corrupt(journal.read_bytes()))
        fresh = portal.create("owner", f"fresh, {corrupt.__name__}")
        site.agent("agent", 1000)
        for id in (doomed, ended):
            portal.wait(id, "DELETED", seconds=HEALED_SECONDS)
        assert portal.session(ended)["StateReason"], corrupt
        portal.wait(fresh, "READY", seconds=HEALED_SECONDS)
        kept.append(fresh)
        until(lambda: all(portal.state(id) == "READY" for id in kept))
        assert site.running() == set(kept), corrupt
    started = Counter(one["session_id"] for one in site.logged("agent", "session.started"))
    assert set(started.values()) == {1}
    portal.delete_all()
    assert site.running() == set()


@pytest.mark.parametrize("corrupt", [b"", b'{"client_id": "\xff\xfe"}'])
def test_a_corrupt_identity_is_told_in_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, prepared: Prepared, corrupt: bytes
) -> None:
    folder = tmp_path_factory.mktemp("identity")
    with BrokenSite(folder, prepared) as site:
        site._ports["broker"] = 1, 1
        (folder / "agent").mkdir()
        (folder / "agent" / "identity.json").write_bytes(corrupt)
        agent = site.agent("agent", 10)
        assert agent.process.wait(20) == 1
        assert "identity.json" in sentence(site, "agent")


@needs_root
def test_a_full_disk_of_an_agent_delays_and_loses_nothing(
    tmp_path: Path, prepared: Prepared
) -> None:
    with small_disk(tmp_path / "agent", "2m") as disk, BrokenSite(tmp_path, prepared) as site:
        site.broker()
        site.agent("agent", 1000)
        portal = site.portal()
        until(portal.available)
        kept = [portal.ready("owner", f"kept {number}") for number in range(3)]
        doomed = portal.ready("owner", "doomed")
        ballast = disk / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        portal.delete(doomed, "owner")
        delayed = [
            portal.create("owner", f"delayed {number}", PermissionsFile=LONG) for number in range(3)
        ]
        until(lambda: "No space left" in site.log("agent"))
        assert {portal.state(id) for id in kept} <= {"READY", "UNKNOWN"}
        # Nobody is left to wonder, and nothing more is placed there.
        until(lambda: not portal.available())
        [server] = portal.call("/describeServers")["Servers"]
        assert server["UnavailabilityReason"] == "UNHEALTHY_DCV_SERVER"
        reasons = [described(portal)[id].get("StateReason", "") for id in delayed]
        assert all("No space left" in reason for reason in reasons), reasons
        assert {portal.state(id) for id in delayed} == {"CREATING"}
        ballast.unlink()
        until(portal.available)
        for id in delayed:
            portal.wait(id, "READY", seconds=20)
        portal.wait(doomed, "DELETED", seconds=20)
        assert site.running() == {*kept, *delayed}
        # What it wrote with little room can be read again.
        site.kill("agent")
        site.agent("agent", 1000)
        until(lambda: len(site.logged("agent", "agent.started")) == 2)
        assert not site.logged("agent", "journal.line-passed-over")
        until(lambda: set(states(portal)) == {"READY", "DELETED"})
        assert site.running() == {*kept, *delayed}


# Sessions


@pytest.mark.skipif(
    shutil.which("Xvnc") is None and os.environ.get("CI") != "true", reason="Xvnc is not installed"
)
def test_a_desktop_that_is_killed_is_told_and_frees_its_seat(broken_site: BrokenSite) -> None:
    site = broken_site
    owner = ordinary_user("dfalice").pw_name
    site.broker()
    config = site.folder / "agent.toml"
    config.write_text("driver = 'xvnc'\nmax_virtual_sessions = 1\n")
    site.start_agent("agent", "--config", str(config))
    portal = site.portal()
    until(portal.available)
    try:
        for _ in range(2):
            session = portal.ready(owner, Requirements=on_server_of(1))
            (desktop,) = _desktops(session)
            began = time.monotonic()
            desktop.send_signal(signal.SIGKILL)
            ended = portal.wait(session, "DELETED", seconds=5)
            say("a killed desktop was told after", began)
            assert ended["StateReason"]
            _gone(session)
    finally:
        portal.delete_all()


def _gone(session: str) -> None:
    until(lambda: not _desktops(session))


def _desktops(session: str) -> list[psutil.Process]:
    return [
        process
        for process in psutil.process_iter(["name", "environ"])
        if process.info["name"] == "Xvnc"
        and (process.info["environ"] or {}).get("DCV_SESSION_ID") == session
        and process.status() != psutil.STATUS_ZOMBIE
    ]
