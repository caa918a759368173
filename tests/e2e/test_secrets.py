"""No secret that a live run mints, or is shown by mistake, is found where it has no business.

Real programs run a desktop and everything that leads to it, at the level of logs that says most,
and are shown secrets in all the wrong places. Afterwards each secret is looked for, in the forms
that it may take, in every log, in the store, in every other file, and in the arguments of every
process that there was.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import httpx
import psutil
import pytest

from support.programs import Site
from support.users import ordinary_user
from support.waiting import until

pytestmark = [
    pytest.mark.skipif(
        shutil.which("Xvnc") is None and os.environ.get("CI") != "true",
        reason="Xvnc is not installed",
    ),
    pytest.mark.skipif(os.geteuid() != 0, reason="desktops of other users take root"),
]

DEBUG = ("--log-level", "debug")
TRIED = "a-password-that-was-tried-by-mistake"


@dataclass
class Secrets:
    """What must not be found, each with the files that may hold it."""

    known: dict[str, str] = field(default_factory=dict)
    places: dict[str, set[Path]] = field(default_factory=dict)

    def add(self, name: str, secret: str, *places: Path) -> str:
        assert len(secret) >= 16, name
        self.known[name] = secret
        self.places[name] = set(places)
        return secret

    def forms(self, name: str) -> list[bytes]:
        """Return the bytes that would give a secret away: it may be wrapped, or cut off."""
        secret = self.known[name]
        forms = {
            secret,
            quote(secret, safe=""),
            base64.b64encode(secret.encode()).decode().rstrip("="),
            json.dumps(secret)[1:-1],
        }
        if secret.count(".") == 2:
            forms.add(secret.rpartition(".")[2])
        return [form.encode() for form in forms]

    def found_in(self, content: bytes) -> list[str]:
        return [name for name in self.known if any(form in content for form in self.forms(name))]


class Watch:
    """Collects the arguments of all processes for as long as it is entered."""

    def __init__(self) -> None:
        self.arguments: set[str] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(0.02):
            for process in psutil.process_iter(["cmdline"]):
                self.arguments.add("\0".join(process.info["cmdline"] or []))


class Run:
    """A broker and an agent with desktops, and all that was answered to mistakes."""

    def __init__(self, site: Site, secrets: Secrets) -> None:
        self.site = site
        self.secrets = secrets
        self.answers: list[str] = []
        self.session_id = self.server_id = ""

    def begin(self) -> None:
        site, secrets = self.site, self.secrets
        (site.folder / "agent.toml").write_text("driver = 'xvnc'\n")
        site.start_broker("broker", *DEBUG)
        site.start_agent("agent", "--config", str(site.folder / "agent.toml"), *DEBUG)
        self.portal = site.portal()
        until(self.portal.available)
        statement = site.folder / "statement"
        text = statement.read_text().splitlines()[-1]
        secrets.add("software statement", text, statement)
        secrets.add("its secret", json.loads(base64.b64decode(text))["secret"])
        secrets.add("client password", site.credentials[1])
        identity = site.folder / "agent" / "identity.json"
        known = json.loads(identity.read_text())
        secrets.add("agent password", known["client_secret"], identity)
        self._agent = known["client_id"], known["client_secret"]
        self.server_id = known["client_id"]
        for path in (*site.folder.rglob("*.key"), *site.folder.rglob("*key.pem")):
            self._add_key(path)

    def _add_key(self, path: Path) -> None:
        content = path.read_bytes()
        text = content.decode("latin-1")
        if "PRIVATE KEY" in text:
            self.secrets.add(f"key {path.name}", text.splitlines()[2], path)
        else:
            for form in (content.hex(), base64.b64encode(content).decode()):
                self.secrets.add(f"key {path} {len(form)}", form)

    def use(self, owner: str) -> None:
        """Do what portals, agents and browsers do with secrets."""
        http, secrets = self.portal.http, self.secrets
        secrets.add("access token", http.headers["Authorization"].partition(" ")[2])
        answer = http.post(
            f"{self.site.agent_url()}/oauth2/token",
            data={"grant_type": "client_credentials"},
            auth=self._agent,
        )
        secrets.add("agent token", answer.json()["access_token"])
        self.session_id = self.portal.ready(owner)
        link = self.portal.link(self.session_id, owner)
        self._token = secrets.add("connection token", link.partition("authToken=")[2].split("#")[0])
        self._entrance = link.partition("/?")[0]
        body = {"sessionId": self.session_id, "authToken": self._token}
        origin = {"Origin": self._entrance}
        with httpx.Client(verify=False, trust_env=False, timeout=30) as browser:
            assert browser.get(f"{self._entrance}/?authToken={self._token}").status_code == 200
            granted = browser.post(f"{self._entrance}/connect", json=body, headers=origin)
            assert granted.status_code == 204, granted.text
            for name, value in granted.cookies.items():
                secrets.add(f"cookie {name}", value)
            assert browser.get(f"{self._entrance}/admission/{self.session_id}").status_code == 200

    def mistake(self) -> None:
        """Show secrets in all the wrong places, and keep what is answered."""
        http, known = self.portal.http, self.secrets.known
        client_id, password = self.site.credentials
        self.secrets.add("tried password", TRIED)
        access, connection = known["access token"], self._token
        agents = self.site.agent_url()
        other = "00000000-0000-4000-8000-000000000000"
        tries: list[tuple[str, str, dict[str, Any]]] = [
            ("POST", "/oauth2/token?grant_type=client_credentials", {"auth": (client_id, TRIED)}),
            ("POST", "/oauth2/token?grant_type=client_credentials", {"auth": (password, "x" * 20)}),
            ("POST", f"/oauth2/token?grant_type={access}", {"auth": (client_id, password)}),
            ("POST", f"/oauth2/token?client_secret={password}", {}),
            ("GET", f"/sessionConnectionData/{other}/{connection}?authToken={connection}", {}),
            ("GET", f"/sessionConnectionData/{access}/user1", {}),
            ("GET", f"/{access}", {}),
            ("POST", "/describeServers", {"json": {access: 1}}),
            ("POST", "/describeServers", {"json": {"NextToken": connection}}),
            ("POST", "/describeServers", {"json": {"ServerIds": {"x": password}}}),
            ("POST", "/createSessions", {"json": [{"Name": 1, "Owner": password}]}),
            ("POST", "/describeServers", {"headers": {"Authorization": f"Bearer {access}x"}}),
            ("POST", "/describeServers", {"headers": {"Authorization": f"Bearer {connection}"}}),
            ("POST", "/describeServers", {"headers": {"Authorization": f"Token {access}"}}),
            ("POST", "/describeServers", {"content": f'{{"x": "{password}'.encode()}),
            ("POST", f"{agents}/register", {"json": {"software_statement": TRIED}}),
            ("POST", f"{agents}/register", {"content": known["software statement"].encode()}),
            ("POST", f"{agents}/oauth2/token", {"auth": self._agent[::-1]}),
            (
                "POST",
                f"{agents}/agent/validate-authentication-token",
                {"data": {"sessionId": other, "authenticationToken": connection}},
            ),
            ("GET", f"{agents}/agent/link?token={known['agent token']}", {}),
            ("GET", f"{self._entrance}/?authToken={connection}x", {}),
            ("GET", f"{self._entrance}/?authToken={access}", {}),
            ("GET", f"{self._entrance}/rfb/{other}?authToken={connection}", {}),
            ("POST", f"{self._entrance}/connect", {"json": {"authToken": connection}}),
        ]
        with httpx.Client(
            base_url=str(http.base_url),
            headers=http.headers,
            verify=False,
            trust_env=False,
            timeout=30,
        ) as clumsy:
            for method, url, request in tries:
                answer = clumsy.request(method, url, **request)
                is_verdict = "validate" in url and "no" in answer.text
                assert is_verdict or 400 <= answer.status_code < 500, (method, url[:60])
                self.answers.append(f"{answer.headers} {answer.text}")

    def files(self) -> Iterator[Path]:
        for folder in (self.site.folder, Path("/run/deskfleet")):
            yield from (path for path in folder.rglob("*") if path.is_file())


@pytest.mark.timeout(240)
def test_no_secret_is_found_where_it_has_no_business(tmp_path: Path) -> None:
    owner, secrets = ordinary_user("dfalice").pw_name, Secrets()
    with Watch() as watch, Site(tmp_path) as site:
        run = Run(site, secrets)
        run.begin()
        run.use(owner)
        run.mistake()
        _check_files(run)
        run.portal.delete_all()
        site.kill("agent")
        site.stop("broker")
        _check_files(run)
        assert any("Xvnc" in text for text in watch.arguments), "nothing was watched"
    for text in (*watch.arguments, *run.answers):
        assert secrets.found_in(text.encode()) == [], text[:200]


def _check_files(run: Run) -> None:
    held: dict[str, set[Path]] = {name: set() for name in run.secrets.known}
    seen: set[str] = set()
    for path in run.files():
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            continue
        if any(id.encode() in content for id in (run.session_id, run.server_id)):
            seen.add(path.name)
        for name in run.secrets.found_in(content):
            held[name].add(path)
    # What is looked into is what there is: ids that everybody knows are found there.
    assert {"broker.log", "agent.log"} <= seen
    assert any(name.startswith("fleet.db") for name in seen)
    for name, places in held.items():
        assert places <= run.secrets.places[name], name


def test_a_secret_that_is_there_is_found() -> None:
    secrets = Secrets()
    secrets.add("it", "a/secret+of=some/length")
    secrets.add("token", "head12.payload12.signature12")
    for text, found in (
        ("... a/secret+of=some/length ...", ["it"]),
        ("x=a%2Fsecret%2Bof%3Dsome%2Flength", ["it"]),
        (base64.b64encode(b"a/secret+of=some/length").decode(), ["it"]),
        ("cut off: signature12", ["token"]),
        ("a/secret, of=some/length", []),
    ):
        assert secrets.found_in(text.encode()) == found
