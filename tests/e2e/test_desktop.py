"""The user's story: a link from the API, a browser, a terminal in a Linux desktop."""

from __future__ import annotations

import base64
import contextlib
import io
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from PIL import Image, ImageChops
from playwright.sync_api import Page, ViewportSize, expect, sync_playwright

from support import chromium
from support.programs import LiveBroker, Portal, up
from support.sessions import need_xvnc
from support.users import ordinary_user
from support.waiting import until

WINDOW = ViewportSize(width=1100, height=700)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[LiveBroker]:
    need_xvnc()
    with up(tmp_path / "state", driver="xvnc") as (_program, broker):
        yield broker
        portal = Portal.of(broker)
        portal.delete_all()
        portal.close()


@pytest.fixture
def portal(broker: LiveBroker) -> Iterator[Portal]:
    portal = Portal.of(broker)
    yield portal
    portal.close()


@pytest.fixture
def owner() -> str:
    return ordinary_user("dfalice").pw_name


@pytest.fixture
def page() -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium.executable(), args=chromium.ARGUMENTS
        )
        context = browser.new_context(ignore_https_errors=True, viewport=WINDOW)
        yield context.new_page()
        browser.close()


def _open(page: Page, link: str) -> None:
    page.goto(link)
    expect(page.locator("body")).to_have_attribute("data-state", "live", timeout=30_000)


def _screenshot(portal: Portal, session: str) -> Image.Image:
    wish = {"SessionId": session, "MaxWidth": 1920, "MaxHeight": 1200}
    answer = portal.call("/getSessionScreenshots", [wish])
    assert not answer["UnsuccessfulList"], answer
    image = answer["SuccessfulList"][0]["SessionScreenshot"]["Images"][0]
    return Image.open(io.BytesIO(base64.b64decode(image["Data"]))).convert("RGB")


def _light(picture: Image.Image) -> int:
    """Count the pixels that are nearly white: those of a terminal's sheet."""
    return sum(picture.convert("L").histogram()[230:])


def _has_task_bar(picture: Image.Image) -> bool:
    """Tell by its lowest lines: a desktop that nobody has drawn yet has one colour."""
    low = picture.crop((0, picture.height - 10, *picture.size))
    return len(low.getcolors(low.width * low.height) or ()) > 2


SHEET = 50_000
"""Pixels of less than half of an xterm of 80 by 24."""
RED_CELLS = 20_000
"""Pixels of well under a thousand cells of the smallest font."""


def _open_terminal(page: Page, screenshot: Callable[[], Image.Image]) -> None:
    """Return once a terminal has mapped its light sheet; only then does it take keys.

    A window manager that has just begun may not hear of the first time that it is asked.
    """
    for _ in range(4):
        page.keyboard.press("Control+Alt+t")
        with contextlib.suppress(AssertionError):
            until(lambda: _light(screenshot()) > SHEET, seconds=10)
            return
    raise AssertionError("there is no terminal")


def _red(picture: Image.Image) -> int:
    red, green, blue = (band.point(lambda value: 255 * (value > 127)) for band in picture.split())
    others = ImageChops.lighter(green, blue)
    return ImageChops.subtract(red, others).histogram()[255]


def test_what_is_typed_in_the_browser_is_in_the_home_and_in_the_screenshot(
    portal: Portal, owner: str, page: Page
) -> None:
    typed = Path(f"~{owner}").expanduser() / "typed-in-the-browser"
    typed.unlink(missing_ok=True)
    session = portal.ready(owner, "the first desktop")
    _open(page, portal.link(session, owner))
    assert "authToken" not in page.url
    assert page.title() == "the first desktop"
    until(lambda: _screenshot(portal, session).size == (WINDOW["width"], WINDOW["height"]))
    until(lambda: portal.session(session)["NumOfConnections"] == 1)
    # READY needs a window manager that answers; it takes keys once its task bar is there.
    until(lambda: _has_task_bar(_screenshot(portal, session)))

    page.locator("#desktop canvas").click(position={"x": 550, "y": 300})
    _open_terminal(page, lambda: _screenshot(portal, session))
    page.keyboard.type("printf 'Hello' > ~/typed-in-the-browser\n", delay=5)
    until(lambda: typed.exists() and typed.read_text() == "Hello")
    assert typed.owner() == owner

    # A thousand red cells of the terminal, and the API's picture of them.
    assert _red(_screenshot(portal, session)) < RED_CELLS
    page.keyboard.type(r"printf '\e[41m%1000s\e[0m'" + "\n", delay=5)
    until(lambda: _red(_screenshot(portal, session)) > RED_CELLS)
    page.close()
    until(lambda: portal.session(session)["NumOfConnections"] == 0)
    assert portal.session(session)["LastDisconnectionTime"]


def test_a_link_is_good_for_its_own_session_only(portal: Portal, owner: str, page: Page) -> None:
    mine, other = portal.ready(owner, "mine"), portal.ready(owner, "other")
    link, _, _ = portal.link(mine, owner).partition("#")
    page.goto(f"{link}#{other}")
    expect(page.locator("body")).not_to_have_attribute("data-state", "live")
    expect(page.locator("body")).to_contain_text("link")
    answer = page.request.get(link.replace("authToken=", "authToken=x"))
    assert answer.status == 403
    assert "text/html" in answer.headers["content-type"]


def test_a_stranger_gets_a_page_that_says_no(portal: Portal, owner: str, page: Page) -> None:
    """Any user name gets a token; the session's permissions say that this one may not enter."""
    session = portal.ready(owner)
    answer = page.goto(portal.link(session, "somebody-else"))
    assert answer is not None
    assert answer.status == 403


@pytest.mark.skipif(os.geteuid() != 0, reason="a second user takes root")
def test_a_second_user_reaches_neither_socket_nor_display(portal: Portal, owner: str) -> None:
    other = ordinary_user("dfbob")
    session = portal.ready(owner)
    server = _x_server(session)
    arguments = server.cmdline()
    rfb = arguments[arguments.index("-rfbunixpath") + 1]
    display = server.environ()["DISPLAY"] if "DISPLAY" in server.environ() else _display(session)

    reached = _as(other.pw_uid, other.pw_gid, _PROBE, rfb, display)
    assert reached == "", f"the second user reached {reached}"
    # The probe can tell: the owner does reach both.
    account = ordinary_user("dfalice")
    mine = _as(account.pw_uid, account.pw_gid, _PROBE, rfb, display)
    assert "rfb" in mine
    assert not [
        connection
        for connection in server.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    ]


_PROBE = """
import os, socket, struct, sys
rfb, display = sys.argv[1:3]
number = display.lstrip(":")
for name, address in (
    ("rfb", rfb),
    ("x", f"/tmp/.X11-unix/X{number}"),
    ("abstract", f"\\0/tmp/.X11-unix/X{number}"),
):
    probe = socket.socket(socket.AF_UNIX)
    try:
        probe.connect(address)
        if name == "rfb":
            greeted = probe.recv(12).startswith(b"RFB")
        else:
            # Set up an X connection without a cookie: 1 is the server's yes.
            probe.sendall(struct.pack("<BxHHHHxx", 0x6C, 11, 0, 0, 0))
            greeted = probe.recv(1) == b"\\x01"
        if greeted:
            print(name, end=" ")
    except OSError:
        pass
"""


def _as(uid: int, gid: int, program: str, *arguments: str) -> str:
    done = subprocess.run(
        ["/usr/bin/python3", "-ISE", "-c", program, *arguments],
        user=uid,
        group=gid,
        extra_groups=[],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        cwd="/",
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def _x_server(session: str) -> psutil.Process:
    return next(
        process
        for process in psutil.process_iter(["name", "environ"])
        if process.info["name"] == "Xvnc"
        and (process.info["environ"] or {}).get("DCV_SESSION_ID") == session
    )


def _display(session: str) -> str:
    return next(
        str((process.info["environ"] or {})["DISPLAY"])
        for process in psutil.process_iter(["name", "environ"])
        if (process.info["environ"] or {}).get("DCV_SESSION_ID") == session
        and "DISPLAY" in (process.info["environ"] or {})
    )
