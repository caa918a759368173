"""The page in a real browser against a real desktop."""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import (
    BrowserContext,
    Page,
    Response,
    ViewportSize,
    async_playwright,
    expect,
)

import deskfleet.agent.desktop
from deskfleet import connections, listener
from deskfleet.agent.desktop.desktops import Desktop
from deskfleet.core.permissions import OWNER_ONLY, parse
from deskfleet.machine import here
from support import chromium
from support.entrance import RunningEntrance, entrance, run, until
from support.fault_proxy import FaultProxy
from support.vnc import XDesktop, terminal, x_desktop

BUNDLE = Path(deskfleet.agent.desktop.__file__).parent / "page" / "bundle"
ALICE, BOB = "alice", "bob"
SESSION = "5f2b5a1e-9f4e-4c52-8a35-5d1f0a2b7c11"
SET_SIZE = 251
"""The first byte of RFB's SetDesktopSize."""
WINDOW = ViewportSize(width=1000, height=672)


@asynccontextmanager
async def browser(*arguments: str, **options: Any) -> AsyncIterator[BrowserContext]:
    async with async_playwright() as playwright:
        launched = await playwright.chromium.launch(
            executable_path=chromium.executable(), args=[*chromium.ARGUMENTS, *arguments]
        )
        try:
            yield await launched.new_context(
                ignore_https_errors=True,
                reduced_motion="reduce",
                **({"viewport": WINDOW} | options),
            )
        finally:
            await launched.close()


@dataclass
class Visit:
    """A browser's window on the session, and both ends of it."""

    at: RunningEntrance
    context: BrowserContext
    page: Page
    desktop: XDesktop
    complaints: list[str]

    async def open(self, user: str = ALICE) -> None:
        await self.page.goto(self.at.link(SESSION, user))

    async def see(self, state: str) -> None:
        await expect(self.page.locator("body")).to_have_attribute("data-state", state)

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for something on the desktop; X clients block, so they run beside the loop."""
        deadline = time.monotonic() + 20
        while not await asyncio.to_thread(condition):
            assert time.monotonic() < deadline, f"waited too long for {what}"
            await asyncio.sleep(0.1)

    def count_frames(self) -> list[float]:
        """Return what will hold when each frame of the desktop's connections came."""
        frames: list[float] = []
        self.page.on(
            "websocket",
            lambda socket: socket.on("framereceived", lambda _: frames.append(time.monotonic())),
        )
        return frames

    async def be_asked_after_a_while(self) -> Response:
        """Let the page's clock pass its patience with a quiet desktop; news start that anew."""
        answered: asyncio.Future[Response] = asyncio.get_running_loop().create_future()

        def listen(answer: Response) -> None:
            if "/admission/" in answer.url and not answered.done():
                answered.set_result(answer)

        self.page.on("response", listen)
        async with asyncio.timeout(40):
            while not answered.done():
                await self.page.clock.fast_forward("00:21")
                # A second time at once would pass the page's patience with what it has asked.
                await asyncio.wait([answered], timeout=3)
        self.page.remove_listener("response", listen)
        return answered.result()

    async def type(self, text: str) -> None:
        await self.page.locator("#desktop canvas").click(position={"x": 300, "y": 250})
        await self.page.keyboard.type(text, delay=20)
        await self.page.keyboard.press("Enter")


def visit(
    scenario: Callable[[Visit], Awaitable[None]],
    folder: Path,
    groups: Callable[[str], frozenset[str]] = here.groups_of,
    **facts: Any,
) -> list[str]:
    """Run a scenario against a desktop with a terminal; return what the browser complained of."""

    async def main(desktop: XDesktop) -> list[str]:
        about: dict[str, Any] = {
            "session_id": SESSION,
            "owner": ALICE,
            "socket": desktop.socket,
            "max_clients": None,
            "name": "Alice's desk",
            "permissions": OWNER_ONLY,
        }
        complaints: list[str] = []
        desk = Desktop(**(about | facts))
        async with entrance(folder, desk, groups=groups) as at, browser() as context:
            await context.grant_permissions(["clipboard-read", "clipboard-write"], origin=at.origin)
            page = await context.new_page()
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on(
                "console",
                lambda message: (
                    complaints.append(message.text) if message.type == "error" else None
                ),
            )
            await scenario(Visit(at, context, page, desktop, complaints))
        return complaints

    with x_desktop(folder / "x") as desktop, terminal(desktop):
        return run(main(desktop))


def test_a_link_opens_a_desktop_that_fits_and_takes_what_is_typed(tmp_path: Path) -> None:
    async def scenario(at: Visit) -> None:
        await at.open()
        await at.see("live")
        assert at.page.url == f"{at.at.origin}/#{SESSION}", "the token has left the address"
        assert await at.page.title() == "Alice's desk"
        await at.until(lambda: at.desktop.size() == "1000x672", "the desktop to fit the window")
        typed = at.desktop.home / "typed"
        await at.type(f"echo Hello, $((40 + 2)) > {typed}")
        await at.until(lambda: typed.exists() and typed.read_text() == "Hello, 42\n", "the shell")
        await at.page.set_viewport_size({"width": 820, "height": 540})
        await at.until(lambda: at.desktop.size() == "820x540", "the desktop to follow")
        assert len(at.at.attendance.visitors(SESSION)) == 1
        await at.page.reload()
        await at.see("live")
        assert len(at.at.verifier.asked) == 1, "the cookie admits after a reload"

    assert visit(scenario, tmp_path) == [], "no error, no violation of the content policy"


def test_a_window_of_fractions_of_pixels_asks_for_its_size_once(tmp_path: Path) -> None:
    asked = 0

    def count(sent: bytes | str) -> None:
        nonlocal asked
        asked += sent[0] == SET_SIZE

    async def scenario(at: Visit) -> None:
        zoomed = "--force-device-scale-factor=1.25", "--window-size=1001,703"
        async with browser(*zoomed, viewport=None, no_viewport=True) as context:
            page = await context.new_page()
            page.on("websocket", lambda socket: socket.on("framesent", count))
            await page.goto(at.at.link(SESSION, ALICE))
            there = replace(at, context=context, page=page)
            await there.see("live")
            window = await page.evaluate("document.body.getBoundingClientRect().toJSON()")
            width, height = window["width"], window["height"]
            assert (width % 1, height % 1) != (0, 0), "a window without fractions shows nothing"
            size = f"{int(width)}x{int(height)}"
            await at.until(lambda: at.desktop.size() == size, "the desktop to fit the window")
            typed = at.desktop.home / "typed"
            await there.type(f"echo this takes long enough to ask again and again > {typed}")
            await at.until(typed.exists, "the shell")
        assert asked == 1

    assert visit(scenario, tmp_path) == []


def test_the_tools_open_by_mouse_and_by_key_and_no_key_stays_held(tmp_path: Path) -> None:
    async def scenario(at: Visit) -> None:
        await at.open()
        await at.see("live")
        typed = at.desktop.home / "typed"
        await at.type(f"cat > {typed}")
        await at.page.keyboard.down("Control")
        await at.page.get_by_role("button", name="Desktop tools").click()
        await at.page.keyboard.up("Control")
        await at.page.keyboard.press("Escape")
        await at.page.keyboard.type("abc", delay=20)
        await at.page.keyboard.press("Control+Alt+Shift+T")
        await expect(at.page.locator("#panel button").first).to_be_focused()
        await at.page.keyboard.press("Escape")
        await at.page.keyboard.type("def", delay=20)
        await at.page.keyboard.press("Enter")
        await at.until(lambda: typed.exists() and typed.read_text() == "abcdef\n", "the letters")

    assert visit(scenario, tmp_path) == []


def test_the_clipboard_goes_both_ways_with_all_of_unicode(tmp_path: Path) -> None:
    there = "Grüße, мир, 你好 🖥️ from the desktop"
    back = "Żółć, ελληνικά 🎉 from the browser\nline two"

    async def scenario(at: Visit) -> None:
        await at.open()
        await at.see("live")
        at.desktop.own_clipboard(there)
        await at.page.wait_for_function(
            "async (text) => (await navigator.clipboard.readText()) === text", arg=there
        )
        await at.page.evaluate("text => navigator.clipboard.writeText(text)", back)
        await at.page.evaluate("() => window.dispatchEvent(new Event('focus'))")
        await at.until(lambda: at.desktop.clipboard() == back, "the text to be pasted")
        await at.page.get_by_role("button", name="Desktop tools").click()
        box = at.page.get_by_label("Clipboard of the desktop")
        await expect(box).to_have_value(back)
        await box.fill("by hand: ½ €")
        await at.until(lambda: at.desktop.clipboard() == "by hand: ½ €", "the box's text")

    assert visit(scenario, tmp_path) == []


def test_text_that_was_there_before_arrives_whole_over_a_slow_line(tmp_path: Path) -> None:
    before = "Żółć, ελληνικά 🎉 from before"

    async def scenario(at: Visit) -> None:
        with FaultProxy(at.at.port) as line:
            line.down.latency = 0.3
            far = replace(at.at, port=line.port)
            await at.context.grant_permissions(
                ["clipboard-read", "clipboard-write"], origin=far.origin
            )
            await at.page.goto(far.origin)
            await at.page.evaluate("text => navigator.clipboard.writeText(text)", before)
            await at.page.goto(far.link(SESSION, ALICE))
            await at.see("live")
            texts: list[str] = []

            def arrived() -> bool:
                texts.append(at.desktop.clipboard())
                return texts[-1] != ""

            await at.until(arrived, "any text")
            assert texts[-1] == before

    visit(scenario, tmp_path)


def test_a_long_text_arrives_whole_and_one_that_is_too_long_not_at_all(tmp_path: Path) -> None:
    numbers = (hashlib.sha256(str(number).encode()).hexdigest() for number in range(3000))
    text = "".join(numbers)[:190_000]

    async def scenario(at: Visit) -> None:
        await at.open()
        await at.see("live")
        await at.page.get_by_role("button", name="Desktop tools").click()
        await at.page.get_by_label("Clipboard of the desktop").fill(text)
        await at.until(lambda: at.desktop.clipboard() == text, "the whole text")
        await at.page.evaluate("navigator.clipboard.writeText('x'.repeat(7_000_000))")
        await at.page.get_by_role("button", name="Fill from this computer").click()
        await expect(at.page.locator("#clipboard-note")).to_contain_text("too long")
        assert await asyncio.to_thread(at.desktop.clipboard) == text
        assert at.at.changes == [SESSION], "one connection"

    assert visit(scenario, tmp_path) == []


def test_what_this_computer_holds_goes_to_the_desktop_once(tmp_path: Path) -> None:
    picture = """async () => {
        const canvas = document.createElement("canvas");
        const blob = await new Promise((resolve) => canvas.toBlob(resolve));
        await navigator.clipboard.write([new ClipboardItem({ "image/png": blob })]);
    }"""

    async def scenario(at: Visit) -> None:
        async def focus() -> None:
            """Come back to the window; what is typed afterwards arrives after what that brings."""
            await at.page.evaluate("() => window.dispatchEvent(new Event('focus'))")
            seen = at.desktop.home / f"seen-{time.monotonic_ns()}"
            await at.type(f"touch {seen}")
            await at.until(seen.exists, "the shell")

        def copied() -> str:
            return at.desktop.run("xclip", "-o", "-selection", "clipboard", "-t", "TARGETS")

        await at.page.goto(at.at.origin)
        await at.page.evaluate(picture)
        await asyncio.to_thread(at.desktop.own_clipboard, "one\ntwo")
        its_own = await asyncio.to_thread(copied)
        await at.open()
        await at.see("live")
        await focus()
        assert await asyncio.to_thread(copied) == its_own, "a picture takes no text away"

        # What a browser on Windows makes of the text that the desktop has copied.
        await asyncio.to_thread(at.desktop.own_clipboard, "three\nfour")
        await expect(at.page.locator("#clipboard-text")).to_have_value("three\nfour")
        await at.page.evaluate("navigator.clipboard.writeText('three\\r\\nfour')")
        await focus()
        assert await asyncio.to_thread(copied) == its_own, "the desktop has that text already"

        await at.page.get_by_role("button", name="Desktop tools").click()
        await at.page.get_by_label("Clipboard of the desktop").fill("by hand")
        await at.until(lambda: at.desktop.clipboard() == "by hand", "the box's text")
        await focus()
        assert await asyncio.to_thread(at.desktop.clipboard) == "by hand"
        at.at.attendance.close_all(SESSION)
        await at.until(lambda: at.desktop.clipboard() == "", "the text to go with the connection")
        await at.until(lambda: at.desktop.clipboard() == "by hand", "the text to come back")

    visit(scenario, tmp_path)


def test_a_lost_connection_comes_back_by_itself(tmp_path: Path) -> None:
    async def scenario(at: Visit) -> None:
        await at.open()
        await at.see("live")
        await at.page.evaluate("document.body.dataset.kept = 'same page'")
        at.at.attendance.close_all(SESSION)
        await until(lambda: len(at.at.attendance.visitors(SESSION)) == 0, "the cut")
        await until(lambda: len(at.at.attendance.visitors(SESSION)) == 1, "the way back")
        await at.see("live")
        typed = at.desktop.home / "typed-after"
        await at.type(f"echo back > {typed}")
        await at.until(typed.exists, "the shell")
        assert len(at.at.verifier.asked) == 1, "no token was needed to come back"

        known = at.at.desktops.known[SESSION]
        del at.at.desktops.known[SESSION]
        at.at.attendance.close_all(SESSION)
        await expect(at.page.get_by_role("heading", name="Session ended")).to_be_visible()
        assert known.session_id == SESSION

    complaints = visit(scenario, tmp_path)
    # noVNC says the other where data was on its way when the line was cut.
    expected = ("410", "Got data while disconnected")
    assert all(any(one in complaint for one in expected) for complaint in complaints), complaints


def test_there_is_something_to_see_before_a_page_says_so(tmp_path: Path) -> None:
    look = """() => new MutationObserver(() => {
        if (document.body.dataset.state !== "live") return;
        const picture = document.querySelector("#desktop canvas").getContext("2d");
        window.corner ??= picture.getImageData(0, 0, 1, 1).data[3];
    }).observe(document.body, { attributes: true })"""

    async def scenario(at: Visit) -> None:
        with FaultProxy(at.at.port) as line:
            line.down.latency = 0.3
            far = replace(at.at, port=line.port)
            await at.page.goto(far.link(SESSION, ALICE))
            await at.page.evaluate(look)
            await at.see("live")
            opaque = 255
            assert await at.page.evaluate("window.corner") == opaque

    visit(scenario, tmp_path)


def test_a_server_that_is_away_is_waited_for(tmp_path: Path) -> None:
    async def scenario(at: Visit) -> None:
        await at.open()
        await at.see("live")
        await at.context.set_offline(True)
        at.at.attendance.close_all(SESSION)
        await expect(at.page.get_by_text("Connection lost. Reconnecting…")).to_be_visible()
        await expect(at.page.locator("#still")).to_be_visible()
        await at.context.set_offline(False)
        await at.see("live")
        await expect(at.page.locator("#still")).to_be_hidden()

    visit(scenario, tmp_path)


def test_a_connection_that_is_lost_for_good_is_found_out_though_the_network_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Otherwise an older connection, which is lost too, would be asked how things stand. Where
    # connecting takes long, Chromium keeps a second one, and says nothing on it.
    monkeypatch.setattr(connections, "IDLE_SECONDS", 0.1)
    monkeypatch.setattr(connections, "HEAD_SECONDS", 2.0)
    monkeypatch.setattr(listener, "GOODBYE_SECONDS", 0.1)

    async def scenario(at: Visit) -> None:
        with FaultProxy(at.at.port) as line:
            far = replace(at.at, port=line.port)
            frames = at.count_frames()
            await at.page.clock.install()
            await at.page.goto(far.link(SESSION, ALICE))
            await at.see("live")
            for _ in range(3):
                frames.clear()
                await at.be_asked_after_a_while()
                await until(lambda: bool(frames), "the desktop's answer")
                await until(lambda: line.connections == 1, "the desktop's connection to be alone")
            assert at.at.changes == [SESSION], "a quiet desktop's connection is kept"
            line.strand()
            for _ in range(2):
                assert (await at.be_asked_after_a_while()).ok, "the network is there"
            await until(lambda: len(at.at.changes) > 1, "the way back")
            await at.see("live")

    visit(scenario, tmp_path)


def test_a_connection_is_kept_while_the_server_can_not_tell_what_it_may(tmp_path: Path) -> None:
    rules = parse("[permissions]\nosgroup:lab allow builtin unsupervised-access\n")
    silent = False

    def groups(_user: str) -> frozenset[str]:
        if silent:
            raise TimeoutError
        return frozenset({"lab"})

    async def scenario(at: Visit) -> None:
        nonlocal silent
        await at.page.clock.install()
        await at.open(BOB)
        await at.see("live")
        silent = True
        assert (await at.be_asked_after_a_while()).status == 503
        typed = at.desktop.home / "typed"
        await at.type(f"touch {typed}")
        await at.until(typed.exists, "the shell")
        assert at.at.changes == [SESSION], "one connection"

    visit(scenario, tmp_path, groups=groups, permissions=rules)


def test_a_desktop_that_is_never_quiet_keeps_its_cookie_fresh(tmp_path: Path) -> None:
    async def scenario(at: Visit) -> None:
        frames = at.count_frames()
        await at.page.clock.install()
        await at.open()
        await at.see("live")
        await at.type("while date +%N; do sleep .1; done")
        async with at.page.expect_response("**/admission/*"):
            await at.page.clock.set_system_time(time.time() + 3600)
            frames.clear()
            await until(lambda: len(frames) > 2, "news from the desktop")
            await at.page.clock.fast_forward("00:05")

    assert visit(scenario, tmp_path) == []


def test_a_link_that_can_not_be_checked_yet_is_tried_again(tmp_path: Path) -> None:
    async def scenario(at: Visit) -> None:
        at.at.verifier.reachable = False
        await at.open()
        await expect(at.page.get_by_text("can't be checked right now")).to_be_visible()
        assert at.page.url == f"{at.at.origin}/#{SESSION}", "the token has left the address"
        at.at.verifier.reachable = True
        await at.see("live")

    visit(scenario, tmp_path)


def test_a_page_whose_script_does_not_come_says_what_to_do(tmp_path: Path) -> None:
    async def scenario(at: Visit) -> None:
        hint = at.page.get_by_text("reload this page")
        await at.page.route("**/main-*.js", lambda route: route.abort())
        await at.open()
        await expect(hint).to_be_visible()
        await at.page.unroute("**/main-*.js")
        await at.page.reload()
        await at.see("live")
        await expect(hint).to_have_count(0)

    visit(scenario, tmp_path)


def test_the_cookies_of_ended_sessions_are_given_up(tmp_path: Path) -> None:
    async def scenario(at: Visit) -> None:
        desk = at.at.desktops.known[SESSION]
        ended = [f"{SESSION[:-2]}{number:02}" for number in range(20, 80)]
        await at.open()
        await at.see("live")
        await at.page.goto("about:blank")
        for session_id in ended:
            at.at.desktops.known[session_id] = replace(desk, session_id=session_id)
            token = at.at.verifier.token(session_id, ALICE)
            swapped = await at.context.request.post(
                f"{at.at.origin}/connect",
                data={"sessionId": session_id, "authToken": token},
                headers={"Origin": at.at.origin},
            )
            assert swapped.status == 204
        for session_id in ended:
            del at.at.desktops.known[session_id]
        await at.open()
        await at.see("live")
        assert len(await at.context.cookies()) == 1

    visit(scenario, tmp_path)


def test_a_refused_link_says_so_and_leaves_no_token(tmp_path: Path) -> None:
    async def scenario(at: Visit) -> None:
        token = at.at.verifier.token(SESSION, ALICE, seconds=-5)
        answer = await at.page.goto(f"{at.at.origin}/?authToken={token}#{SESSION}")
        assert answer is not None
        assert answer.status == 403
        await expect(at.page.get_by_role("alert")).to_contain_text("This link has expired")
        await expect(at.page).to_have_url(f"{at.at.origin}/#{SESSION}")

        foreign = at.at.verifier.token(SESSION, ALICE)
        await at.page.goto(f"{at.at.origin}/?authToken={foreign}#another-session")
        await expect(at.page.get_by_role("alert")).to_contain_text("belongs to another session")
        await at.page.goto(f"{at.at.origin}/")
        await expect(at.page.get_by_role("alert")).to_contain_text("which session")

    complaints = visit(scenario, tmp_path)
    assert all("403" in complaint for complaint in complaints), complaints


def test_a_full_session_is_waited_for(tmp_path: Path) -> None:
    # The page would ask again by itself after 5 s; here only the button makes it.
    patient = """const set = setTimeout;
        window.setTimeout = (call, wait, ...more) => set(call, wait === 5000 ? 1e9 : wait, ...more);
    """

    async def scenario(at: Visit) -> None:
        await at.open()
        await at.see("live")
        second = await at.context.new_page()
        await second.add_init_script(patient)
        await second.goto(f"{at.at.origin}/#{SESSION}")
        await expect(second.get_by_role("heading", name="All seats are taken")).to_be_visible()
        assert len(at.at.attendance.visitors(SESSION)) == 1
        await at.page.close()
        await until(lambda: len(at.at.attendance.visitors(SESSION)) == 0, "the seat")
        await second.get_by_role("button", name="Try again").click()
        await expect(second.locator("body")).to_have_attribute("data-state", "live")

    visit(scenario, tmp_path, max_clients=1)


def test_the_tools_are_large_enough_for_a_finger_and_fit_a_low_window(tmp_path: Path) -> None:
    async def scenario(at: Visit) -> None:
        low = ViewportSize(width=640, height=300)
        async with browser(viewport=low, has_touch=True, is_mobile=True) as context:
            page = await context.new_page()
            await page.goto(at.at.link(SESSION, ALICE))
            grip = page.get_by_role("button", name="Desktop tools")
            await expect(grip).to_be_visible()
            box = await grip.bounding_box()
            assert box is not None
            assert min(box["width"], box["height"]) >= 24
            await grip.tap()
            name = page.get_by_role("heading", name="Alice's desk")
            await expect(name).to_be_visible()
            assert await name.evaluate("(name) => name.scrollHeight <= name.clientHeight")

    assert visit(scenario, tmp_path) == []


def test_who_may_only_look_changes_nothing(tmp_path: Path) -> None:
    rules = parse(f"[permissions]\n{BOB} allow display pointer unsupervised-access\n")

    async def scenario(at: Visit) -> None:
        await at.open(BOB)
        await at.see("live")
        typed = at.desktop.home / "typed"
        await at.type(f"touch {typed}")
        await at.page.get_by_role("button", name="Desktop tools").click()
        await expect(at.page.locator("#panel")).to_be_visible()
        await expect(at.page.get_by_role("button", name=re.compile("Ctrl"))).to_be_hidden()
        await expect(at.page.locator("#clipboard")).to_be_hidden()
        assert at.desktop.size() == "1000x700", "nor is the desktop resized for a spectator"
        assert not typed.exists()

    assert visit(scenario, tmp_path, permissions=rules) == []


def test_who_may_not_copy_gets_nothing_of_the_clipboard(tmp_path: Path) -> None:
    rules = parse(f"[permissions]\n{BOB} allow builtin\n{BOB} disallow clipboard-copy\n")

    async def scenario(at: Visit) -> None:
        await at.open(BOB)
        await at.see("live")
        at.desktop.own_clipboard("a secret of the desktop")
        await at.page.evaluate("navigator.clipboard.writeText('from the browser')")
        await at.page.evaluate("() => window.dispatchEvent(new Event('focus'))")
        # Pasting still works, and its arrival shows that the copied text has had its time.
        await at.until(lambda: at.desktop.clipboard() == "from the browser", "the paste")
        await expect(at.page.locator("#clipboard-text")).to_have_value("from the browser")
        assert await at.page.evaluate("navigator.clipboard.readText()") == "from the browser"

    assert visit(scenario, tmp_path, permissions=rules) == []
