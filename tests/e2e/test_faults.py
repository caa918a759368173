"""What must hold when the network fails or floods: real programs, real TLS, one shared fleet.

A proxy plays the network between the broker and one of its two agents. Each test heals what it
did, and leaves no session behind.
"""

from __future__ import annotations

import contextlib
import json
import random
import socket
import ssl
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from deskfleet.wire.messages import (
    VERSION,
    Heartbeat,
    Hello,
    Observation,
    Welcome,
    decode_from_broker,
    encode,
)
from support.broken_site import (
    FAR,
    FAR_SEATS,
    HEARTBEAT_SECONDS,
    MEGABYTE,
    NEAR,
    NEAR_SEATS,
    BrokenSite,
    Fleet,
    Prepared,
    memory,
    open_files,
    say,
    stopped,
)
from support.builders import some_facts
from support.fault_proxy import FaultProxy
from support.programs import Portal, trust
from support.waiting import until

NOTICED_SECONDS = 6 * HEARTBEAT_SECONDS
"""Three missed beats, and room for a busy machine."""
HEALED_SECONDS = 5.0
GIVEN_UP_SECONDS = 10.0
"""When an attempt to connect is given up of which something was lost for good."""

Undo = contextlib.AbstractContextManager[object]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, prepared: Prepared) -> Iterator[Fleet]:
    with BrokenSite(tmp_path_factory.mktemp("faults"), prepared) as site:
        broker = site.broker()
        # Left before the programs are stopped.
        with FaultProxy(site.agent_port(), seed=1) as proxy:
            near = site.agent("near", NEAR_SEATS, "--broker-url", proxy.url)
            site.agent("far", FAR_SEATS)
            ids = site.server_id("near"), site.server_id("far")
            fleet = Fleet(site, site.portal(), proxy, broker, near, *ids)
            until(fleet.is_available)
            yield fleet


@pytest.fixture
def fleet(shared: Fleet) -> Iterator[Fleet]:
    until(shared.is_available, seconds=30)
    yield shared
    shared.proxy.heal()
    shared.clear()


def hold_both(fleet: Fleet) -> Undo:
    fleet.proxy.hold()
    return contextlib.nullcontext()


def hold_up(fleet: Fleet) -> Undo:
    fleet.proxy.hold(fleet.proxy.up)
    return contextlib.nullcontext()


def hold_down(fleet: Fleet) -> Undo:
    fleet.proxy.hold(fleet.proxy.down)
    return contextlib.nullcontext()


def swallow_up(fleet: Fleet) -> Undo:
    fleet.proxy.swallow(fleet.proxy.up)
    return contextlib.nullcontext()


def half_open(fleet: Fleet) -> Undo:
    return stopped(fleet.agent)


@pytest.mark.parametrize("fault", [hold_both, hold_up, hold_down, swallow_up, half_open])
def test_silence_is_shown_and_heals(fleet: Fleet, fault: Callable[[Fleet], Undo]) -> None:
    """Silence makes sessions UNKNOWN and kills nothing; what was asked meanwhile is done later."""
    kept = [fleet.ready(f"session {number}") for number in range(3)]
    doomed = fleet.ready("deleted meanwhile")
    distant = fleet.portal.ready("far", Requirements=FAR)
    began = time.monotonic()
    with fault(fleet):
        until(fleet.is_near_lost, seconds=NOTICED_SECONDS)
        say(f"{fault.__name__} noticed after", began)
        assert fleet.server(fleet.near)["Availability"] == "UNAVAILABLE"
        assert fleet.all_are("UNKNOWN", kept)
        assert fleet.portal.state(distant) == "READY"
        granted, refused = fleet.create(1)
        assert not granted
        assert "can't be reached" in refused[0]
        fleet.portal.delete(doomed, "near")
        assert fleet.portal.state(doomed) == "DELETING"
        assert fleet.site.running("near") == {*kept, doomed}
    fleet.proxy.heal()
    began = time.monotonic()
    limit = HEALED_SECONDS + (GIVEN_UP_SECONDS if fault is swallow_up else 0)
    until(lambda: fleet.all_are("READY", kept), seconds=limit)
    fleet.portal.wait(doomed, "DELETED", seconds=HEALED_SECONDS)
    say(f"{fault.__name__} healed after", began)
    assert fleet.site.running("near") == set(kept)


def test_a_blink_of_the_network_is_not_seen_by_clients(fleet: Fleet) -> None:
    session = fleet.ready()
    epochs = fleet.near_epochs()
    fleet.proxy.hold()
    deadline = time.monotonic() + HEARTBEAT_SECONDS / 2
    while time.monotonic() < deadline:
        assert fleet.portal.state(session) == "READY"
    fleet.proxy.heal()
    late = fleet.ready("after the blink")
    assert fleet.all_are("READY", [session, late])
    assert fleet.near_epochs() == epochs


def test_crumbs_and_a_slow_line_change_nothing(fleet: Fleet) -> None:
    fleet.proxy.reset_all()
    for way in (fleet.proxy.up, fleet.proxy.down):
        way.slice_bytes = (1, 7)
    sessions = [fleet.ready(f"in crumbs {number}") for number in range(3)]
    for way in (fleet.proxy.up, fleet.proxy.down):
        way.slice_bytes, way.latency, way.bytes_per_second = None, 0.05, 50_000
    late = fleet.ready("over a slow line")
    fleet.portal.delete(sessions[0], "near")
    fleet.portal.wait(sessions[0], "DELETED")
    assert fleet.site.running("near") == {*sessions[1:], late}


def test_links_that_are_cut_anywhere_lose_nothing(fleet: Fleet) -> None:
    """Cut each new connection after a random number of bytes: in TLS, the hello, a set."""
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    fleet.proxy.cut_after(*(chance.randint(1, 9000) for _ in range(5)))
    kept, _ = fleet.create(5)
    doomed, _ = fleet.create(5)
    fleet.proxy.reset_all()
    fleet.delete(doomed)
    began = time.monotonic()
    until(lambda: fleet.all_are("READY", kept), seconds=60)
    until(lambda: fleet.all_are("DELETED", doomed), seconds=60)
    say("5 cuts survived after", began)
    assert fleet.site.running("near") == set(kept)


def test_resets_in_a_row_lose_no_command(fleet: Fleet) -> None:
    reset_links(fleet, 5)


@pytest.mark.torture
def test_many_resets_in_a_row_lose_no_command(fleet: Fleet) -> None:
    reset_links(fleet, 24)


def reset_links(fleet: Fleet, count: int) -> None:
    before = len(fleet.near_epochs())
    kept: list[str] = []
    doomed: list[str] = []
    for _ in range(count):
        created, _ = fleet.create(4)
        until(lambda: fleet.proxy.connections, seconds=10)
        fleet.delete(created[2:])
        fleet.proxy.reset_all()
        kept += created[:2]
        doomed += created[2:]
    began = time.monotonic()
    until(lambda: fleet.all_are("READY", kept), seconds=HEALED_SECONDS)
    until(lambda: fleet.all_are("DELETED", doomed), seconds=HEALED_SECONDS)
    say(f"{count} resets healed after", began)
    assert fleet.site.running("near") == set(kept)
    epochs = fleet.near_epochs()
    assert epochs == sorted(set(epochs))
    assert len(epochs) > before


def test_a_second_link_of_the_same_server_is_fenced_off(fleet: Fleet) -> None:
    """Whoever says hello last holds the link; nothing that an older link says is taken."""
    session = fleet.ready()
    with impostor(fleet) as socket:
        socket.send(encode(Hello(version=VERSION, facts=some_facts(), observed=())), text=True)
        welcome = decode_from_broker(socket.recv(timeout=10))
        assert isinstance(welcome, Welcome)
        # It asks the session to be there, since it was; an answer would end the session.
        until(lambda: fleet.near_epochs()[-1] > welcome.epoch)
        lie = Observation(epoch=welcome.epoch, serial=2**60, observed=())
        with contextlib.suppress(ConnectionClosed):
            socket.send(encode(lie), text=True)
        # What came before the end of the link may still be read.
        with pytest.raises(ConnectionClosed):
            list(iter(lambda: socket.recv(timeout=10), None))
    until(lambda: fleet.portal.state(session) == "READY")
    assert fleet.site.running("near") == {session}
    until(lambda: _seats_told(fleet) == str(NEAR_SEATS))


def _seats_told(fleet: Fleet) -> str | None:
    tags = {tag["Key"]: tag["Value"] for tag in fleet.server(fleet.near).get("Tags", ())}
    return tags.get("dcv:max-virtual-sessions")


@contextlib.contextmanager
def impostor(fleet: Fleet) -> Iterator[ClientConnection]:
    """Open a link with the credentials of the near server."""
    identity = json.loads((fleet.site.folder / "near" / "identity.json").read_bytes())
    context = trust(fleet.site.ca_file)
    url = f"https://localhost:{fleet.site.agent_port()}"
    with httpx.Client(verify=context, trust_env=False, timeout=30) as http:
        answer = http.post(
            f"{url}/oauth2/token?grant_type=client_credentials",
            auth=(identity["client_id"], identity["client_secret"]),
        )
    headers = {"Authorization": f"Bearer {answer.json()['access_token']}"}
    address = url.replace("https", "wss") + "/agent/link"
    with connect(
        address,
        ssl=context,
        additional_headers=headers,
        proxy=None,
        ping_interval=None,
        max_size=None,
    ) as socket:
        yield socket


def test_delete_right_after_create_leaves_nothing(fleet: Fleet) -> None:
    doomed = []
    for number in range(60):
        created = fleet.portal.create("near", f"short {number}", Requirements=NEAR)
        fleet.portal.delete(created, "near")
        doomed.append(created)
    until(lambda: fleet.all_are("DELETED", doomed))
    assert fleet.site.running("near") == set()
    journal = (fleet.site.folder / "near" / "journal.jsonl").read_text().splitlines()
    ended: set[str] = set()
    for line in journal:
        said = json.loads(line)["line"]
        if (said.get("entry") or {}).get("phase") == "ENDED":
            ended.add(said["id"])
        else:
            assert said.get("entry") is None or said["id"] not in ended, "begun after its end"


@pytest.mark.parametrize("enqueue", [False, True])
def test_a_thousand_creates_at_once_for_a_hundred_seats(fleet: Fleet, *, enqueue: bool) -> None:
    before = memory(fleet.broker)
    began = time.monotonic()
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda _: fleet.create(100, EnqueueRequest=enqueue), range(10)))
    say("1,000 creates answered after", began)
    granted = [id for ids, _ in answers for id in ids]
    refused = [reason for _, reasons in answers for reason in reasons]
    until(lambda: len(fleet.site.running("near")) == NEAR_SEATS)
    until(lambda: fleet.states(granted)["READY"] == NEAR_SEATS)
    say(f"{NEAR_SEATS} of them ran after", began)
    assert time.monotonic() - began < 30
    if enqueue:
        assert len(granted) == 1000
        assert fleet.states(granted) == {"READY": NEAR_SEATS, "CREATING": 900}
        freed = [id for id in granted if id in fleet.site.running("near")][:10]
        fleet.delete(freed)
        until(lambda: fleet.states(granted) == {"READY": 100, "CREATING": 890, "DELETED": 10})
    else:
        assert len(granted) == NEAR_SEATS
        assert len(refused) == 900
        assert all("full" in reason for reason in refused), set(refused)
    assert len(fleet.site.running("near")) == NEAR_SEATS
    grown = memory(fleet.broker) - before
    print(f"the broker grew by {grown / MEGABYTE:.1f} MB")
    assert grown < 64 * MEGABYTE


def a_long_permissions_file(note: str = "") -> str:
    """Return one of almost the largest size that is taken."""
    lines = [f"# {note}", "[permissions]", "%owner% allow builtin"]
    text = "\n".join(lines + ["#" + "x" * 990] * 48) + "\n"
    return b64encode(text.encode()).decode()


def _write_permissions(fleet: Fleet, session: str, number: int) -> None:
    file = a_long_permissions_file(str(number))
    item = {"SessionId": session, "Owner": "near", "PermissionsFile": file}
    answer = fleet.portal.call("/sessionPermissions", [item], method="PUT")
    assert not answer["UnsuccessfulList"]


def test_a_fleet_of_long_permissions_files_is_served(fleet: Fleet) -> None:
    """What a client may store must not make a message that ends the link, for ever."""
    file = a_long_permissions_file()
    granted, _ = [], 0
    for _ in range(3):
        created, refused = fleet.create(25, PermissionsFile=file)
        assert not refused
        granted += created
    until(lambda: fleet.all_are("READY", granted))
    fleet.delete(granted)
    until(lambda: fleet.all_are("DELETED", granted))


def test_an_agent_that_does_not_read_costs_nobody_else(fleet: Fleet) -> None:
    sessions, _ = fleet.create(20, PermissionsFile=a_long_permissions_file())
    until(lambda: fleet.all_are("READY", sessions))
    files, before, peak = open_files(fleet.broker), memory(fleet.broker), 0
    slowest = 0.0
    with stopped(fleet.agent):
        deadline = time.monotonic() + 4
        number = 0
        while time.monotonic() < deadline:
            number += 1
            began = time.monotonic()
            _write_permissions(fleet, sessions[0], number)
            slowest = max(slowest, time.monotonic() - began)
            peak = max(peak, memory(fleet.broker))
        distant = fleet.portal.ready("far", Requirements=FAR)
        assert fleet.is_near_lost()
    print(
        f"{number} sets of 1.2 MB, slowest {slowest:.3f} s, grew {(peak - before) / MEGABYTE:.1f}"
    )
    assert peak - before < 64 * MEGABYTE
    assert slowest < 2
    until(lambda: fleet.all_are("READY", [*sessions, distant]), seconds=HEALED_SECONDS)
    until(lambda: open_files(fleet.broker) <= files + 2, seconds=10)


@pytest.mark.torture
def test_a_peer_that_beats_but_never_reads_is_dropped(fleet: Fleet) -> None:
    sessions, _ = fleet.create(20, PermissionsFile=a_long_permissions_file())
    before, peak = memory(fleet.broker), 0
    with stopped(fleet.agent), impostor(fleet) as link:
        link.send(encode(Hello(version=VERSION, facts=some_facts(), observed=())), text=True)
        welcome = decode_from_broker(link.recv(timeout=10))
        assert isinstance(welcome, Welcome)
        for number in range(600):
            try:
                link.send(encode(Heartbeat(epoch=welcome.epoch)), text=True)
            except ConnectionClosed:
                break
            _write_permissions(fleet, sessions[0], number)
            peak = max(peak, memory(fleet.broker))
            time.sleep(0.1)
        else:
            pytest.fail("it was never dropped")
    assert peak - before < 64 * MEGABYTE


def test_strangers_that_dawdle_slow_nobody(fleet: Fleet) -> None:
    """Hundreds who never finish their handshake, their head or their body are shown out."""
    host = "localhost", int(fleet.site.url().rpartition(":")[2])
    context = trust(fleet.site.ca_file)
    before = memory(fleet.broker)
    with contextlib.ExitStack() as stack:

        def dawdle(begin: bytes | None) -> socket.socket:
            raw: socket.socket = socket.create_connection(host, timeout=30)
            if begin is None:
                return stack.enter_context(raw)
            tls = stack.enter_context(context.wrap_socket(raw, server_hostname="localhost"))
            tls.sendall(begin)
            return tls

        mute = [dawdle(None) for _ in range(200)]
        heads = [dawdle(b"POST /describeSessions HTTP/1.1\r\nHost: x\r\nX-") for _ in range(100)]
        began = time.monotonic()
        slowest = _slowest_answer(fleet.portal, 30)
        fleet.ready()
        print(f"slowest of 30 answers beside 300 dawdlers: {slowest:.3f} s")
        assert slowest < 1.0
        grown = memory(fleet.broker) - before
        print(f"300 dawdlers cost {grown / MEGABYTE:.1f} MB")
        assert grown < 64 * MEGABYTE
        # Shown out within seconds, not within minutes: files are few.
        for one in [*heads, *mute]:
            one.settimeout(max(0.1, 15 - (time.monotonic() - began)))
            assert _is_shown_out(one)
        say("all were shown out after", began)


def _slowest_answer(portal: Portal, count: int) -> float:
    slowest = 0.0
    for _ in range(count):
        began = time.monotonic()
        portal.call("/describeSessions")
        slowest = max(slowest, time.monotonic() - began)
    return slowest


def _is_shown_out(one: socket.socket) -> bool:
    try:
        while one.recv(4096):
            pass
    except TimeoutError:
        return False
    except (OSError, ssl.SSLError):
        return True
    return True


def test_guessing_passwords_slows_nobody(fleet: Fleet) -> None:
    ended = threading.Event()
    client_id, password = fleet.site._credentials

    def guess(number: int) -> int:
        guesses = 0
        # From an address of its own: nobody is locked out by what others guess.
        transport = httpx.HTTPTransport(trust(fleet.site.ca_file), local_address="127.0.0.2")
        with httpx.Client(base_url=fleet.site.url(), transport=transport, timeout=30) as http:
            while not ended.is_set():
                guesses += 1
                answer = http.post(
                    "/oauth2/token?grant_type=client_credentials",
                    auth=(client_id, f"{password}{number}{guesses}"),
                )
                assert answer.status_code in {401, 429}
                assert "access_token" not in answer.text
        return guesses

    with ThreadPoolExecutor(4) as pool:
        guessing = [pool.submit(guess, number) for number in range(4)]
        try:
            slowest = _slowest_answer(fleet.portal, 50)
            fleet.portal.login()
        finally:
            ended.set()
        guesses = sum(one.result() for one in guessing)
    print(f"slowest of 50 answers beside {guesses} guesses: {slowest:.3f} s")
    assert guesses > 20
    assert slowest < 1.0


def test_the_agent_is_there_again_soon_after_a_long_outage(fleet: Fleet) -> None:
    """Refused at once, again and again: the waits between attempts must not outgrow the outage."""
    session = fleet.ready()
    fleet.proxy.refuse()
    until(fleet.is_near_lost, seconds=NOTICED_SECONDS)
    accepted = fleet.proxy.accepted
    until(lambda: fleet.proxy.accepted > accepted)
    deadline = time.monotonic() + 5
    until(lambda: time.monotonic() > deadline, seconds=6)
    fleet.proxy.heal()
    began = time.monotonic()
    until(lambda: fleet.portal.state(session) == "READY", seconds=HEALED_SECONDS)
    say("healed after an outage of seconds, in", began)
