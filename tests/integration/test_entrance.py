"""The entrance over real TLS, HTTP and WebSockets, in front of a small RFB server."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import httpx
import jwt
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from deskfleet import connections
from deskfleet.agent.broker_door import BrokerDoor
from deskfleet.agent.desktop import groups as desktop_groups
from deskfleet.agent.desktop.admission import cookie_name
from deskfleet.agent.desktop.attendance import Close
from deskfleet.agent.desktop.desktops import Desktop
from deskfleet.broker.service.access import Audience
from deskfleet.core.permissions import OWNER_ONLY, Permissions, parse
from deskfleet.observe import RepeatsFilter
from deskfleet.system import SystemClock
from support.builders import a_link, a_server, a_session, some_facts
from support.entrance import RunningEntrance, entrance, run, until
from support.running_broker import running_broker

ALICE = "alice"
SESSION = "5f2b5a1e-9f4e-4c52-8a35-5d1f0a2b7c11"
OTHER = "0a8e1d3c-2b4f-4f6a-9c7d-8e1f2a3b4c5d"
HELLO = b"RFB 003.008\n\x01\x01"
KEY = b"\x04\x01\x00\x00\x00\x00\x00\x61"


@dataclass
class RfbServer:
    """Says its version, takes everything down, and sends what it is told to."""

    path: Path
    heard: bytearray = field(default_factory=bytearray)
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        writer.write(b"RFB 003.008\n")
        try:
            while data := await reader.read(65536):
                self.heard += data
        except ConnectionError:
            pass
        finally:
            writer.close()

    def desktop(self, session_id: str = SESSION, **changes: Any) -> Desktop:
        facts: dict[str, Any] = {
            "session_id": session_id,
            "owner": ALICE,
            "socket": self.path,
            "max_clients": None,
            "name": "Alice's desk",
            "permissions": OWNER_ONLY,
        }
        return Desktop(**(facts | changes))


@asynccontextmanager
async def rfb_server(folder: Path) -> AsyncIterator[RfbServer]:
    served = RfbServer(folder / "rfb.sock")
    server = await asyncio.start_unix_server(served.serve, served.path)
    try:
        yield served
    finally:
        server.close()
        for writer in served.writers:
            writer.close()
        await server.wait_closed()


@dataclass
class Browser:
    """The network side of a page."""

    at: RunningEntrance
    http: httpx.AsyncClient

    async def swap(self, session_id: str, token: str, **headers: str) -> httpx.Response:
        body = {"sessionId": session_id, "authToken": token}
        return await self.http.post(
            "/connect", json=body, headers={"Origin": self.at.origin, **headers}
        )

    async def admit(self, user: str = ALICE, session_id: str = SESSION) -> None:
        answer = await self.swap(session_id, self.at.verifier.token(session_id, user))
        assert answer.status_code == 204, answer.text

    def socket(self, session_id: str = SESSION, *, page: str = "", **options: Any) -> connect:
        cookies = "; ".join(f"{name}={value}" for name, value in self.http.cookies.items())
        options = {"origin": self.at.origin, "additional_headers": {"Cookie": cookies}} | options
        return connect(
            f"wss://localhost:{self.at.port}/rfb/{session_id}?page={page}",
            ssl=self.at.trust(),
            subprotocols=["binary"],  # type: ignore[list-item]
            proxy=None,
            max_queue=1,
            **options,
        )


@asynccontextmanager
async def browser(at: RunningEntrance) -> AsyncIterator[Browser]:
    async with httpx.AsyncClient(
        base_url=at.origin, verify=at.trust(), trust_env=False, timeout=30
    ) as http:
        yield Browser(at, http)


async def close_code(connection: ClientConnection) -> int:
    async with asyncio.timeout(10):
        with suppress(ConnectionClosed):
            while True:
                await connection.recv()
    assert connection.close_code is not None
    return connection.close_code


async def status_of(attempt: connect) -> int:
    with pytest.raises(InvalidStatus) as refused:
        await attempt
    return refused.value.response.status_code


def test_a_token_becomes_a_cookie_and_the_cookie_a_desktop(tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            rfb_server(tmp_path) as rfb,
            entrance(tmp_path, rfb.desktop()) as at,
            browser(at) as page,
        ):
            token = at.verifier.token(SESSION, ALICE)
            answer = await page.swap(SESSION, token)
            assert (answer.status_code, answer.content) == (204, b"")
            name, _, rest = answer.headers["set-cookie"].partition("=")
            assert name == cookie_name(SESSION)
            assert name.startswith("__Host-deskfleet-")
            flags = {flag.strip().lower() for flag in rest.split(";")[1:]}
            assert flags == {"secure", "httponly", "samesite=strict", "path=/"}
            assert token not in answer.headers["set-cookie"]

            about = (await page.http.get(f"/admission/{SESSION}")).json()
            assert about["name"] == "Alice's desk"
            assert "keyboard" in about["features"]

            async with page.socket() as connection:
                assert connection.subprotocol == "binary"
                assert connection.protocol.extensions == [], "no permessage-deflate"
                assert await connection.recv() == b"RFB 003.008\n"
                await connection.send(HELLO)
                await connection.send(KEY[:3])
                await connection.send(KEY[3:])
                await until(lambda: rfb.heard == HELLO + KEY, "the key to arrive")
            assert at.verifier.asked == [(SESSION, "127.0.0.1")]

    run(main())


def test_the_page_is_one_bundle_with_strict_headers(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "index.html").write_text("<title>page</title>")
    (bundle / "refused.html").write_text("<title>$title</title>$message")
    (bundle / "main-AB.js").write_text("const page = 1;" * 100)

    async def main() -> None:
        async with entrance(tmp_path, bundle=bundle) as at, browser(at) as page:
            index = await page.http.get("/")
            assert (index.status_code, index.text) == (200, "<title>page</title>")
            assert index.headers["cache-control"] == "no-store"
            assert index.headers["referrer-policy"] == "no-referrer"
            assert index.headers["x-content-type-options"] == "nosniff"
            assert index.headers["cross-origin-opener-policy"] == "same-origin"
            assert "default-src 'none'" in index.headers["content-security-policy"]
            assert "unsafe" not in index.headers["content-security-policy"]
            assert f"'self' wss://localhost:{at.port};" in index.headers["content-security-policy"]
            odd = await page.http.get("/", headers={"Host": "x; script-src *"})
            assert "script-src *" not in odd.headers["content-security-policy"]
            script = await page.http.get("/bundle/main-AB.js")
            assert script.text == "const page = 1;" * 100
            assert script.headers["content-encoding"] == "gzip"
            assert "immutable" in script.headers["cache-control"]
            plain = await page.http.get(
                "/bundle/main-AB.js", headers={"Accept-Encoding": "identity"}
            )
            assert plain.text == script.text
            for path in ("/bundle/nothing.js", "/bundle/..%2fentrance.pem", "/bundle/index.html"):
                assert (await page.http.get(path)).status_code == 404
            assert (await page.http.get("/health")).json() == {"status": "ok"}
            # A redirect would name whatever host was asked.
            for path in ("/health/", "/bundle/main-AB.js/", "/admission/x/"):
                assert (await page.http.get(path)).status_code == 404

    run(main())


def refused_tokens(at: RunningEntrance) -> dict[str, str]:
    make = at.verifier.token
    return {
        "token.refused": make(
            SESSION, ALICE, key="somebody else's key of more than thirty-two bytes"
        ),
        "token.expired": make(SESSION, ALICE, seconds=-5),
        "session.missing": make("a session of another server", ALICE),
        "nonsense": "nonsense",
        "too long": "a." * 5000 + "b",
    }


def test_a_wrong_expired_or_foreign_token_gets_a_403_page(tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            rfb_server(tmp_path) as rfb,
            entrance(tmp_path, rfb.desktop()) as at,
            browser(at) as page,
        ):
            for token in refused_tokens(at).values():
                answer = await page.http.get("/", params={"authToken": token})
                assert answer.status_code == 403
                assert answer.headers["content-type"].startswith("text/html")
                assert "does not open a desktop" in answer.text
                assert token not in answer.text
            good = await page.http.get("/", params={"authToken": at.verifier.token(SESSION, ALICE)})
            assert good.status_code in {200, 503}, "503 where the page was not built"
            assert "does not open" not in good.text
            assert not page.http.cookies, "a navigation consumes and grants nothing"

    run(main())


def test_a_refused_swap_says_why(tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            rfb_server(tmp_path) as rfb,
            entrance(tmp_path, rfb.desktop()) as at,
            browser(at) as page,
        ):
            for code in ("token.refused", "token.expired"):
                answer = await page.swap(SESSION, refused_tokens(at)[code])
                assert (answer.status_code, answer.json()["code"]) == (403, code)
            foreign = await page.swap(SESSION, at.verifier.token(OTHER, ALICE))
            assert (foreign.status_code, foreign.json()["code"]) == (403, "token.foreign")
            stranger = await page.swap(SESSION, at.verifier.token(SESSION, "mallory"))
            assert (stranger.status_code, stranger.json()["code"]) == (403, "permissions.display")
            good = at.verifier.token(SESSION, ALICE)
            elsewhere = await page.swap(SESSION, good, Origin="https://evil.example")
            assert (elsewhere.status_code, elsewhere.json()["code"]) == (403, "origin.foreign")
            for content in (b"{", b"[]", b'{"sessionId":1}', b"x" * 20_000):
                answer = await page.http.post(
                    "/connect",
                    content=content,
                    headers={"Origin": at.origin, "Content-Type": "application/json"},
                )
                assert answer.status_code == 400
            at.verifier.reachable = False
            away = await page.swap(SESSION, good)
            assert (away.status_code, away.json()["code"]) == (503, "broker.unreachable")
            assert (await page.http.get("/", params={"authToken": good})).status_code == 503
            assert not page.http.cookies

    run(main())


def test_a_swap_that_never_arrives_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with entrance(tmp_path) as at:
            head = (
                f"POST /connect HTTP/1.1\r\nHost: localhost:{at.port}\r\nOrigin: {at.origin}\r\n"
                "Content-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
            ).encode()
            reader, writer = await asyncio.open_connection("localhost", at.port, ssl=at.trust())
            writer.write(head)
            assert (await reader.readline()).startswith(b"HTTP/1.1 400 ")
            monkeypatch.setattr(connections, "BODY_SECONDS", 30)
            writer.transport.abort()
            _, writer = await asyncio.open_connection("localhost", at.port, ssl=at.trust())
            writer.write(head)
            await until(lambda: at.gate.taken == 1, "the swap to begin")
            writer.transport.abort()
            await until(lambda: at.gate.taken == 0, "its end")

    monkeypatch.setattr(connections, "BODY_SECONDS", 0.1)
    run(main())
    assert not [one for one in caplog.records if one.levelno >= logging.WARNING and one.exc_info]


def test_who_is_admitted_is_no_stranger(tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            rfb_server(tmp_path) as rfb,
            entrance(tmp_path, rfb.desktop()) as at,
            browser(at) as alice,
        ):
            await alice.http.get("/")
            assert at.gate.strangers.total() == 1
            await alice.admit()
            async with alice.socket():
                assert (at.gate.taken, at.gate.strangers.total()) == (2, 0)

    run(main())


def test_a_socket_needs_the_cookie_of_its_session_and_its_own_origin(tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            rfb_server(tmp_path) as rfb,
            entrance(tmp_path, rfb.desktop(), rfb.desktop(OTHER)) as at,
            browser(at) as page,
        ):
            assert await status_of(page.socket()) == 403
            await page.admit()
            foreign = "https://evil.example", f"http://localhost:{at.port}", "https://[", None
            for origin in foreign:
                assert await status_of(page.socket(origin=origin)) == 403
            assert await status_of(page.socket(OTHER)) == 403
            stolen = page.http.cookies[cookie_name(SESSION)]
            renamed = {"Cookie": f"{cookie_name(OTHER)}={stolen}"}
            assert await status_of(page.socket(OTHER, additional_headers=renamed)) == 403
            assert not rfb.writers, "nobody has reached a desktop"

    run(main())


def test_the_port_of_https_makes_no_other_origin(tmp_path: Path) -> None:
    """As nginx sends it with `proxy_set_header Host $host:$server_port`, and browsers don't."""

    async def main() -> None:
        async with (
            rfb_server(tmp_path) as rfb,
            entrance(tmp_path, rfb.desktop()) as at,
            browser(at) as page,
        ):
            for host, origin, status in (
                ("desk1.example.org:443", "https://desk1.example.org", 204),
                ("desk1.example.org", "https://desk1.example.org:443", 204),
                ("desk1.example.org:444", "https://desk1.example.org", 403),
                ("desk1.example.org:443", "https://desk1.example.org:444", 403),
                ("desk1.example.org:443", "http://desk1.example.org", 403),
                (":443", "https://:443", 403),
            ):
                token = at.verifier.token(SESSION, ALICE)
                answer = await page.swap(SESSION, token, Host=host, Origin=origin)
                assert answer.status_code == status, (host, origin)

    run(main())


def test_connections_are_counted_and_limited(tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            rfb_server(tmp_path) as rfb,
            entrance(tmp_path, rfb.desktop(max_clients=2)) as at,
            browser(at) as page,
        ):
            await page.admit()
            assert len(at.attendance.visitors(SESSION)) == 0
            assert at.attendance.last_disconnection_at(SESSION) is None
            async with page.socket(page="1"), page.socket(page="2") as second:
                await until(lambda: len(at.attendance.visitors(SESSION)) == 2, "two connections")
                async with page.socket(page="3") as third:
                    assert await close_code(third) == Close.FULL
                assert len(rfb.writers) == 2
                await second.close()
                await until(lambda: len(at.attendance.visitors(SESSION)) == 1, "one to leave")
                left = at.attendance.last_disconnection_at(SESSION)
                assert left is not None
                async with page.socket(page="4"):
                    await until(lambda: len(at.attendance.visitors(SESSION)) == 2, "the next one")
            await until(lambda: len(at.attendance.visitors(SESSION)) == 0, "all to leave")
            last = at.attendance.last_disconnection_at(SESSION)
            assert last is not None
            assert last > left
            assert at.changes == [SESSION] * 6

    run(main())


def test_a_page_that_comes_back_takes_its_own_seat(tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            rfb_server(tmp_path) as rfb,
            entrance(tmp_path, rfb.desktop(max_clients=1)) as at,
            browser(at) as page,
        ):
            await page.admit()
            async with page.socket(page="same") as lost:
                assert await lost.recv() == b"RFB 003.008\n"
                async with page.socket(page="same") as back:
                    assert await back.recv() == b"RFB 003.008\n"
                    assert await close_code(lost) == Close.REPLACED
                    assert len(at.attendance.visitors(SESSION)) == 1

    run(main())


def test_a_cut_connection_is_noticed_and_the_cookie_still_admits(tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            rfb_server(tmp_path) as rfb,
            entrance(tmp_path, rfb.desktop()) as at,
            browser(at) as page,
        ):
            await page.admit()
            connection = await page.socket()
            await until(lambda: len(at.attendance.visitors(SESSION)) == 1, "the connection")
            connection.transport.abort()
            await until(lambda: len(at.attendance.visitors(SESSION)) == 0, "the loss")
            assert at.attendance.last_disconnection_at(SESSION) is not None
            async with page.socket() as again:
                assert await again.recv() == b"RFB 003.008\n"
            assert len(at.verifier.asked) == 1

    run(main())


def test_deleting_a_session_ends_its_sockets_and_says_so(tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            rfb_server(tmp_path) as rfb,
            entrance(tmp_path, rfb.desktop(), rfb.desktop(OTHER)) as at,
            browser(at) as page,
        ):
            await page.admit()
            await page.admit(session_id=OTHER)
            async with page.socket() as first, page.socket(OTHER) as other:
                await until(lambda: len(at.attendance.visitors(SESSION)) == 1, "the connection")
                del at.desktops.known[SESSION]
                at.attendance.close_all(SESSION)
                assert await close_code(first) == Close.RECHECK
                await other.recv()
                assert len(at.attendance.visitors(OTHER)) == 1, "others stay"
            gone = await page.http.get(f"/admission/{SESSION}")
            assert (gone.status_code, gone.json()["code"]) == (410, "session.ended")

    run(main())


def test_an_admission_outlives_the_agent(tmp_path: Path) -> None:
    async def main() -> None:
        async with rfb_server(tmp_path) as rfb:
            async with entrance(tmp_path, rfb.desktop()) as at, browser(at) as page:
                await page.admit()
                cookies = dict(page.http.cookies)
            # A new agent on the same machine: the same key, another life.
            async with entrance(tmp_path, rfb.desktop()) as at, browser(at) as page:
                page.http.cookies.update(cookies)
                assert (await page.http.get(f"/admission/{SESSION}")).status_code == 200
            async with entrance(tmp_path, rfb.desktop()) as at, browser(at) as page:
                forged = {name: value[:-4] + "AAAA" for name, value in cookies.items()}
                page.http.cookies.update(forged)
                assert (await page.http.get(f"/admission/{SESSION}")).status_code == 403

    run(main())


def only(text: str) -> Permissions:
    return parse(f"[permissions]\n%owner% allow builtin\n{text}\n")


def test_permissions_are_asked_at_each_connection(tmp_path: Path) -> None:
    async def main() -> None:
        watcher = only("bob allow display unsupervised-access")
        async with (
            rfb_server(tmp_path) as rfb,
            entrance(tmp_path, rfb.desktop(permissions=watcher)) as at,
            browser(at) as page,
        ):
            await page.admit("bob")
            async with page.socket() as connection:
                await connection.send(HELLO + KEY + b"\x05\x01\x00\x00\x00\x00")
                await connection.send(b"\x00" * 20)
                await until(lambda: bytes(20) in rfb.heard, "what may pass")
                assert KEY not in rfb.heard
                at.desktops.known[SESSION] = rfb.desktop()
                at.attendance.close_all(SESSION)
                assert await close_code(connection) == Close.RECHECK
            now = await page.http.get(f"/admission/{SESSION}")
            assert (now.status_code, now.json()["code"]) == (403, "permissions.display")

    run(main())


def test_operating_system_groups_count(tmp_path: Path) -> None:
    async def main() -> None:
        rules = only("osgroup:lab allow display unsupervised-access")
        groups = {"carol": frozenset({"lab"})}
        async with (
            rfb_server(tmp_path) as rfb,
            entrance(
                tmp_path,
                rfb.desktop(permissions=rules),
                groups=lambda user: groups.get(user, frozenset()),
            ) as at,
            browser(at) as page,
        ):
            await page.admit("carol")
            refused = await page.swap(SESSION, at.verifier.token(SESSION, "dave"))
            assert refused.status_code == 403

    run(main())


def test_a_silent_user_directory_holds_up_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desktop_groups, "LIMIT_SECONDS", 0.1)
    answering = threading.Event()
    asked: list[str] = []

    def groups(user: str) -> frozenset[str]:
        asked.append(user)
        answering.wait(30)
        return frozenset({"lab"})

    async def main() -> None:
        async with (
            rfb_server(tmp_path) as rfb,
            entrance(
                tmp_path,
                rfb.desktop(permissions=only("osgroup:lab allow display unsupervised-access")),
                rfb.desktop(session_id=OTHER),
                groups=groups,
            ) as at,
            browser(at) as page,
        ):
            users = [f"user{number}" for number in range(40)]
            tokens = [at.verifier.token(SESSION, user) for user in (*users, "carol", "carol")]
            for refused in await asyncio.gather(*(page.swap(SESSION, token) for token in tokens)):
                assert (refused.status_code, refused.json()["code"]) == (503, "groups.unknown")
            link = at.link(SESSION, users[0]).partition("#")[0]
            assert (await page.http.get(link)).status_code == 503
            assert len(asked) == len(set(asked)) == desktop_groups.THREADS
            # Where groups don't count nobody is asked, and what else needs a thread has one.
            await page.admit(session_id=OTHER)
            assert await asyncio.wait_for(asyncio.to_thread(lambda: "done"), 10) == "done"
            answering.set()
            with monkeypatch.context() as patient:
                patient.setattr(desktop_groups, "LIMIT_SECONDS", 30)
                await page.admit("carol")
            answering.clear()
            assert (await page.http.get(f"/admission/{SESSION}")).status_code == 503
            assert await status_of(page.socket()) == 503
            answering.set()

    try:
        run(main())
    finally:
        answering.set()


@pytest.mark.parametrize("meanwhile", ["shut out", "ended"])
def test_who_waits_for_a_user_directory_is_judged_by_what_holds_then(
    meanwhile: str, tmp_path: Path
) -> None:
    asked, answering = threading.Event(), threading.Event()
    answering.set()

    def groups(_user: str) -> frozenset[str]:
        asked.set()
        answering.wait(30)
        return frozenset({"lab"})

    async def main() -> None:
        async with (
            rfb_server(tmp_path) as rfb,
            entrance(
                tmp_path,
                rfb.desktop(permissions=only("osgroup:lab allow display unsupervised-access")),
                groups=groups,
            ) as at,
            browser(at) as page,
        ):
            await page.admit("carol")
            asked.clear()
            answering.clear()
            coming = asyncio.create_task(status_of(page.socket()))
            await until(asked.is_set, "the question")
            # As the loop does it: what holds is changed, and all who are there are sent away.
            if meanwhile == "ended":
                del at.desktops.known[SESSION]
            else:
                at.desktops.known[SESSION] = rfb.desktop(permissions=OWNER_ONLY)
            at.attendance.close_all(SESSION)
            answering.set()
            assert await coming == (410 if meanwhile == "ended" else 403)

    try:
        run(main())
    finally:
        answering.set()


def test_a_guest_without_unsupervised_access_is_there_only_with_the_owner(tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            rfb_server(tmp_path) as rfb,
            entrance(tmp_path, rfb.desktop(permissions=only("bob allow display mouse"))) as at,
            browser(at) as owner,
            browser(at) as guest,
        ):
            await owner.admit()
            await guest.admit("bob")
            assert await status_of(guest.socket()) == 403
            async with owner.socket() as supervising:
                await supervising.recv()
                async with guest.socket() as guested:
                    await guested.recv()
                    await supervising.close()
                    assert await close_code(guested) == Close.REFUSED

    run(main())


def test_what_breaks_the_protocol_is_cut_off(tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            rfb_server(tmp_path) as rfb,
            entrance(tmp_path, rfb.desktop()) as at,
            browser(at) as page,
        ):
            await page.admit()
            for message in (HELLO + b"\xfa", "text", b"GET / HTTP/1.1\r\n"):
                async with page.socket() as connection:
                    await connection.send(message)
                    assert await close_code(connection) == Close.PROTOCOL
            async with page.socket() as connection:
                await connection.send(bytes(2 << 20))
                assert await close_code(connection) == 1009, "too big"
            await until(lambda: len(at.attendance.visitors(SESSION)) == 0, "all to be gone")

    run(main())


def test_a_desktop_that_does_not_answer_is_no_connection(tmp_path: Path) -> None:
    async def main() -> None:
        async with rfb_server(tmp_path) as rfb:
            dead = rfb.desktop(socket=tmp_path / "nobody.sock")
            async with entrance(tmp_path, dead) as at, browser(at) as page:
                await page.admit()
                async with page.socket() as connection:
                    assert await close_code(connection) == Close.UNREACHABLE
                assert at.changes == []
                assert at.attendance.last_disconnection_at(SESSION) is None

    run(main())


def test_a_desktop_that_ends_ends_its_connections(tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            rfb_server(tmp_path) as rfb,
            entrance(tmp_path, rfb.desktop()) as at,
            browser(at) as page,
        ):
            await page.admit()
            async with page.socket() as connection:
                await connection.recv()
                rfb.writers[0].transport.abort()
                assert await close_code(connection) == Close.UNREACHABLE

    run(main())


def narrow_socket(port: int) -> socket.socket:
    """A connection with small buffers, so that what isn't read soon stops the sender."""
    narrow = socket.socket()
    narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
    narrow.connect(("127.0.0.1", port))
    narrow.setblocking(False)
    return narrow


def test_a_browser_that_does_not_read_stops_its_desktop(tmp_path: Path) -> None:
    """And nothing is lost: it gets every byte once it reads again."""
    total = 64 << 20

    async def flood(writer: asyncio.StreamWriter, sent: list[int]) -> None:
        block = bytes(range(256)) * 1024
        for _ in range(total // len(block)):
            writer.write(block)
            await writer.drain()
            sent.append(len(block))

    async def stalled(sent: list[int]) -> int:
        """Return how much has been taken when no more is taken for a second."""
        async with asyncio.timeout(20):
            while True:
                before = len(sent)
                await asyncio.sleep(1.0)
                if sent and len(sent) == before:
                    return sum(sent)

    async def main() -> None:
        async with (
            rfb_server(tmp_path) as rfb,
            entrance(tmp_path, rfb.desktop()) as at,
            browser(at) as page,
        ):
            await page.admit()
            options: dict[str, Any] = {
                "sock": narrow_socket(at.port),
                "server_hostname": "localhost",
            }
            async with page.socket(**options) as connection:
                await until(lambda: bool(rfb.writers), "the desktop to be reached")
                sent: list[int] = []
                flooding = asyncio.create_task(flood(rfb.writers[0], sent))
                assert await stalled(sent) < 16 << 20, "the entrance must not hoard"
                got = 0
                async with asyncio.timeout(60):
                    while got < len(b"RFB 003.008\n") + total:
                        got += len(await connection.recv())
                await flooding

    run(main())


def test_no_token_and_no_cookie_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    async def main() -> list[str]:
        async with (
            rfb_server(tmp_path) as rfb,
            entrance(tmp_path, rfb.desktop()) as at,
            browser(at) as page,
        ):
            token = at.verifier.token(SESSION, ALICE)
            await page.swap(SESSION, token)
            async with page.socket() as connection:
                await connection.recv()
            # The client under test logs what it sends; only the server's logs are its own.
            return [token, *page.http.cookies.values()]

    secrets = run(main())
    ours = [
        f"{record.getMessage()} {record.__dict__}"
        for record in caplog.records
        if record.name.startswith(("deskfleet", "uvicorn.access"))
    ]
    assert any("connection.opened" in line for line in ours)
    assert not [line for line in ours for secret in secrets if secret in line]


def test_refusals_are_told_seldom(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with entrance(tmp_path) as at, browser(at) as page:
            for _ in range(5):
                await page.http.get("/", params={"authToken": "nonsense"})
                await page.swap(SESSION, at.verifier.token(SESSION, ALICE))

    caplog.set_level(logging.INFO)
    repeats = RepeatsFilter(lambda: 0.0)
    caplog.handler.addFilter(repeats)
    try:
        run(main())
    finally:
        caplog.handler.removeFilter(repeats)
    refused = [one for one in caplog.records if one.getMessage() == "admission.refused"]
    reasons = [one.__dict__["reason"] for one in refused]
    assert reasons == ["token.refused", "session.missing"]


NEVER_AT_ALL = 10**400
"""More seconds than a float can count."""


def test_what_strangers_make_up_is_a_refusal(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    odd = jwt.encode({"dcvSessionId": SESSION, "exp": NEVER_AT_ALL}, "x" * 32)

    async def main() -> None:
        async with (
            rfb_server(tmp_path) as rfb,
            entrance(tmp_path, rfb.desktop()) as at,
            browser(at) as page,
        ):
            assert (await page.http.get("/", params={"authToken": odd})).status_code == 403
            assert (await page.swap(SESSION, odd)).status_code == 403
            answer = await page.swap(SESSION, odd, Origin="https://[")
            assert (answer.status_code, answer.json()["code"]) == (403, "origin.foreign")
            assert not at.verifier.asked

    run(main())
    assert not [one for one in caplog.records if one.levelno >= logging.WARNING]


def test_what_breaks_unforeseen_is_one_answer_and_told_seldom(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def breaks(_: object) -> NoReturn:
        raise LookupError("it broke")

    async def main() -> None:
        async with (
            rfb_server(tmp_path) as rfb,
            entrance(tmp_path, rfb.desktop()) as at,
            browser(at) as page,
        ):
            await page.admit()
            at.attendance.arrive = breaks  # type: ignore[method-assign, assignment]
            async with page.socket() as connection:
                assert await close_code(connection) == 1011
            at.desktops.find = breaks  # type: ignore[method-assign, assignment]
            for _ in range(3):
                answer = await page.swap(SESSION, at.verifier.token(SESSION, ALICE))
                assert (answer.status_code, answer.json()["code"]) == (500, "internal")
                assert "frame-ancestors" in answer.headers["content-security-policy"]
                assert await status_of(page.socket()) == 500

    repeats = RepeatsFilter(lambda: 0.0)
    caplog.handler.addFilter(repeats)
    try:
        run(main())
    finally:
        caplog.handler.removeFilter(repeats)
    [told] = [one for one in caplog.records if one.levelno >= logging.WARNING]
    assert told.getMessage() == "request.failed"
    assert told.exc_info is not None


def test_a_page_asks_the_broker_once_and_so_can_spend_a_token_of_single_use(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        async with (
            rfb_server(tmp_path) as rfb,
            entrance(tmp_path, rfb.desktop()) as at,
            browser(at) as page,
        ):
            at.verifier.single_use = True
            token = at.verifier.token(SESSION, ALICE)
            for _ in range(2):
                opened = await page.http.get("/", params={"authToken": token})
                assert "does not open" not in opened.text
            assert (await page.swap(SESSION, token)).status_code == 204
            assert len(at.verifier.asked) == 1
            async with page.socket() as connection:
                assert await connection.recv() == b"RFB 003.008\n"
            again = await page.swap(SESSION, token)
            assert (again.status_code, again.json()["code"]) == (403, "token.refused")
            reopened = await page.http.get("/", params={"authToken": token})
            assert reopened.status_code == 403

    run(main())


def test_a_token_of_single_use_by_a_real_broker(tmp_path: Path) -> None:
    with running_broker(tmp_path / "broker", single_use_connection_token=True) as broker:
        session = a_session(SESSION, server="n1", owner=ALICE)
        broker.write(a_server(), some_facts(), a_link(broker_id=broker.broker_id), session)
        token = broker.sign(
            Audience.CONNECT,
            dcvSessionId=SESSION,
            dcvSessionUser=ALICE,
            dcvSessionGeneration=session.generation,
        )

        async def main() -> None:
            url = f"https://localhost:{broker.doors.agent_port}"
            door = BrokerDoor([url], broker.context, SystemClock())
            async with (
                rfb_server(tmp_path) as rfb,
                entrance(tmp_path, rfb.desktop(), check=door.check_token) as at,
                browser(at) as page,
                browser(at) as thief,
            ):
                opened = await page.http.get("/", params={"authToken": token})
                assert "does not open" not in opened.text
                assert (await page.swap(SESSION, token)).status_code == 204
                stolen = await thief.swap(SESSION, token)
                assert (stolen.status_code, stolen.json()["code"]) == (403, "token.refused")
                async with page.socket() as connection:
                    assert await connection.recv() == b"RFB 003.008\n"
            await door.close()

        run(main())
