"""Every command about clients, statements, servers of tokens and brokers: what it prints, byte for
byte, and what it ends with, while a broker runs and while none does.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, fields
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest

from deskfleet.broker import main as broker_main
from deskfleet.broker.main import own_pair
from deskfleet.broker.service.access import Access
from deskfleet.broker.service.clients import Clients
from deskfleet.cli.broker import COMMANDS
from deskfleet.core.records import SoftwareStatement
from deskfleet.settings import BrokerSettings
from support import commands_reference
from support.broker_commands import Ended, broker_command
from support.builders import NOON, a_broker
from support.played_server import PlayedServer, some_facts
from support.running_broker import RunningBroker, running_broker
from support.waiting import until

T = TypeVar("T")

UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
BASE64 = r"[A-Za-z0-9+/]+={0,2}"
INSTANT = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+\+00:00"
WIZARD = re.compile(r"client-id: (.*?)\n.*?client-password: (.*?)\n", re.DOTALL)
"""What a wizard of the field looks for."""

CLIENT = r'\{\n  "name" : ".*",\n  "id" : ".*",\n  "active" : (?:true|false)\n\}'
STATEMENT = (
    r'\{\n  "software-statement" : ".*",\n  "issued-at" : ".*",\n'
    r'  "is-active" : "(?:true|false)"\n\}'
)
LIFE = timedelta(hours=1)
BEAT = 0.3

NOBODY = "https://127.0.0.1:1/jwks.json"
OTHER = "https://127.0.0.1:1/other.json"


@dataclass(frozen=True)
class Seed:
    """What each command is tried on, fresh each time."""

    client: str
    restricted: str
    agent: str
    statement: str
    statement_id: str


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@dataclass
class Place:
    state: Path

    def run(self, *arguments: str) -> Ended:
        return broker_command(self.state, *arguments)

    def with_access(self, use: Callable[[Access], Awaitable[T]]) -> T:
        async def whole() -> T:
            settings = BrokerSettings(state=self.state)
            async with broker_main.access_only(settings) as access:
                return await use(access)

        return asyncio.run(whole())

    def api_token(self, id: str, password: str) -> str:
        async def asked(access: Access) -> str:
            await access.catch_up()
            return access.api_token(id, password, life=LIFE)

        return self.with_access(asked)

    def seed(self) -> Seed:
        async def sown(access: Access) -> Seed:
            client = await access.register_api_client("portal é \\ \"'")
            restricted = await access.register_api_client("second")
            statement = await access.generate_software_statement()
            agent = await access.register_agent(statement, "host-1")
            id = json.loads(base64.b64decode(statement))["id"]
            return Seed(client.client_id, restricted.client_id, agent.client_id, statement, id)

        return self.with_access(sown)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBroker]:
    """Yield a broker that beats and polls so often that a test needn't wait."""
    state = tmp_path_factory.mktemp("running") / "state"
    with running_broker(state, broker_beat_seconds=BEAT, poll_seconds=0.05) as running:
        yield running


@pytest.fixture(scope="module", params=["running", "stopped"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Return a fleet with a broker that runs, and one where none does."""
    if request.param == "stopped":
        stopped = Place(tmp_path_factory.mktemp("stopped") / "state")
        # A broker has run there once.
        stopped.with_access(lambda access: access.ensure_signing_key())
        return stopped
    return Place(state_of(request.getfixturevalue("broker")))


def state_of(broker: RunningBroker) -> Path:
    return broker.doors.ca_file.parents[1]


CREDENTIALS = f"client-id: (?P<id>{UUID})\nclient-password: (?P<password>{BASE64})\n"
ACTIVE, INACTIVE = {"active": True}, {"active": False}

Row = tuple[str, str, Any]
"""The command, the whole of what it prints as a regular expression, and some of its JSON."""

ROWS: list[Row] = [
    ("unregister-api-client --client-id {client}", "Client {client} unregistered\\.\n", INACTIVE),
    ("activate-api-client --client-id {client}", "Client {client} activated\\.\n", ACTIVE),
    (
        "restrict-api-client --client-id {restricted} --scope create,delete --owner ada",
        "Client {restricted} may do: create, delete; on sessions of ada\\.\n",
        {"scopes": ["create", "delete"], "owner": "ada"},
    ),
    (
        "restrict-api-client --client-id {restricted} --all-scopes --any-owner",
        "Client {restricted} may do: everything; on everybody's sessions\\.\n",
        {"scopes": None, "owner": None},
    ),
    (
        "unregister-agent-client --client-id {agent}",
        "agent client {agent} unregistered\n",
        INACTIVE,
    ),
    ("activate-agent-client --client-id {agent}", "agent client {agent} activated\n", ACTIVE),
    (
        "deactivate-software-statement --software-statement {statement}",
        "Software statement {statement} deactivated\n",
        {"is-active": False},
    ),
    (
        "deactivate-software-statement --software-statement {statement_id}",
        "Software statement {statement_id} deactivated\n",
        {"is-active": False},
    ),
    (
        "activate-software-statement --software-statement {statement}",
        "Software statement {statement} activated\n",
        {"is-active": True},
    ),
    (
        "renew-api-client-password --client-id {client}",
        CREDENTIALS.replace("{", "{{").replace("}", "}}"),
        None,
    ),
    ("renew-auth-server-api-key", "Keys renewed\\.\n", {"renewed": True}),
    (
        f"register-auth-server --url {NOBODY} --allow-private",
        "Jwk url registered\\.\n",
        None,
    ),
    (
        f"register-auth-server --url {OTHER} --allow-private",
        "Jwk url registered\\.\n",
        None,
    ),
    ("list-auth-servers", f'Urls: \\[ "{NOBODY}", "{OTHER}" \\]\n', None),
    (f"unregister-auth-server --url {OTHER}", f"Jwk url{OTHER} unregistered\n", None),
    ("list-auth-servers", f'Urls: \\[ "{NOBODY}" \\]\n', None),
]


def is_list(said: str, title: str, item: str) -> bool:
    """Tell whether all of what was printed is a title and a list in the layout of the original."""
    return re.fullmatch(rf"{title}\n\[ {item}(?:, {item})* \]\n", said) is not None


class TestWhatIsPrinted:
    def test_the_rows_of_the_table(self, place: Place) -> None:
        seed = place.seed()
        known = {field.name: str(getattr(seed, field.name)) for field in fields(seed)}
        literal = {name: re.escape(value) for name, value in known.items()}
        for command, text, document in ROWS:
            arguments = [word.format(**known) for word in command.split()]
            ended = place.run(*arguments)
            assert ended.code == 0, ended.err
            assert re.fullmatch(text.format(**literal), ended.out), (command, ended.out)
            if document is not None:
                ended = place.run(*arguments, "--output", "json")
                assert ended.code == 0, ended.err
                assert document.items() <= ended.json.items(), command
        place.run("unregister-auth-server", "--url", NOBODY)
        assert place.run("list-auth-servers").out == "Urls: [ ]\n"

    def test_a_client_that_is_registered(self, place: Place) -> None:
        for option in ("--client-name", "-cn", "--name"):
            said = place.run("register-api-client", option, "a portal").out
            assert re.fullmatch(CREDENTIALS, said)
            [(id, password)] = WIZARD.findall(said)
            assert re.fullmatch(UUID, base64.b64decode(password).decode())
            assert place.api_token(id, password)
        told = place.run("register-api-client", "-cn", "x", "--output", "json").json
        assert re.fullmatch(UUID, told["client-id"])
        assert re.fullmatch(BASE64, told["client-password"])
        assert told.keys() == {"client-id", "client-password"}

    def test_a_password_that_is_renewed(self, place: Place) -> None:
        [(id, old)] = WIZARD.findall(place.run("register-api-client", "-cn", "a").out)
        [(same, new)] = WIZARD.findall(
            place.run("renew-api-client-password", "--client-id", id).out
        )
        assert (same, new != old) == (id, True)
        told = place.run("renew-api-client-password", "--client-id", id, "--output", "json").json
        assert told.keys() == {"client-id", "client-password"}
        new = told["client-password"]
        assert place.api_token(id, new)

    def test_a_statement_that_is_made(self, place: Place) -> None:
        said = place.run("generate-software-statement").out
        found = re.fullmatch(f"software-statement:\n({BASE64})\n", said)
        assert found is not None
        text = base64.b64decode(found[1]).decode()
        shape = (
            rf'\{{\n  "id" : "{UUID}",\n  "active" : true,\n'
            r'  "issuedAt" : (\d{10}\.\d{6}000),\n'
            r'  "brokerVersion" : "\d+\.\d+\.\d+",\n  "secret" : ".+"\n\}'
        )
        stated = re.fullmatch(shape, text)
        assert stated is not None
        assert abs(float(stated[1]) - time.time()) < 60
        assert json.loads(text)["active"] is True
        told = place.run("generate-software-statement", "--output", "json").json
        assert told.keys() == {"software-statement"}
        assert place.with_access(lambda one: one.register_agent(told["software-statement"], "n"))

    def test_api_clients(self, place: Place) -> None:
        seed = place.seed()
        place.run("unregister-api-client", "--client-id", seed.restricted)
        place.run("restrict-api-client", "--client-id", seed.restricted, "--owner", "ada")
        said = place.run("describe-api-clients").out
        assert is_list(said, "Api clients", CLIENT)
        assert said.endswith(
            '{\n  "name" : "portal é \\\\ \\"\'",\n'
            f'  "id" : "{seed.client}",\n'
            '  "active" : true\n'
            '}, {\n  "name" : "second",\n'
            f'  "id" : "{seed.restricted}",\n'
            '  "active" : false\n'
            "} ]\n"
        )
        *_, first, second = place.run("describe-api-clients", "--output", "json").json
        assert re.fullmatch(INSTANT, first.pop("created-at"))
        assert first == {
            "name": "portal é \\ \"'",
            "id": seed.client,
            "active": True,
            "scopes": None,
            "owner": None,
        }
        assert (second["active"], second["scopes"], second["owner"]) == (False, None, "ada")

    def test_agent_clients(self, place: Place) -> None:
        seed = place.seed()
        said = place.run("describe-agent-clients").out
        assert is_list(said, "Session manager agent clients", CLIENT)
        assert said.endswith(
            f'{{\n  "name" : "host-1",\n  "id" : "{seed.agent}",\n  "active" : true\n}} ]\n'
        )
        *_, last = place.run("describe-agent-clients", "--output", "json").json
        assert re.fullmatch(INSTANT, last.pop("created-at"))
        assert last == {"name": "host-1", "id": seed.agent, "active": True}

    def test_nothing_that_an_agent_calls_itself_reaches_the_terminal(self, place: Place) -> None:
        evil = "a\x1b[2J\x9b31m\u202eb\n\x7f"
        place.with_access(lambda one: one.register_any_agent(evil))
        for form in ("text", "json"):
            said = place.run("describe-agent-clients", "--output", form).out
            assert all(sign == "\n" or sign.isprintable() for sign in said)
            listed = json.loads(said[said.index("[") :])
            assert evil in [one["name"] for one in listed]

    def test_software_statements(self, place: Place) -> None:
        seed = place.seed()
        place.run("deactivate-software-statement", "--software-statement", seed.statement_id)
        said = place.run("describe-software-statements").out
        assert is_list(said, "Software Statements", STATEMENT)
        [shown] = re.findall(
            re.escape(f'{{\n  "software-statement" : "{seed.statement}",\n')
            + r'  "issued-at" : "(\d{4}\.\d\d\.\d\d \d\d:\d\d:\d\d \+0000)",\n'
            r'  "is-active" : "false"\n',
            said,
        )
        [told] = [
            one
            for one in place.run("describe-software-statements", "--output", "json").json
            if one["id"] == seed.statement_id
        ]
        assert told["software-statement"] == seed.statement
        assert told["is-active"] is False
        assert told["issued-at"].replace("-", ".").replace("T", " ").startswith(shown[:19])

    def test_auth_servers(self, place: Place) -> None:
        ended = place.run("register-auth-server", "--url", NOBODY, "--output", "json")
        assert (ended.code, ended.out) == (255, "")
        asked = ("--url", NOBODY, "--allow-private", "--issuer", "me", "--algorithm", "ES256")
        ended = place.run("register-auth-server", *asked, "--output", "json")
        # The document stands alone on standard output; what is to be warned of doesn't.
        warnings = ended.err.splitlines()
        assert len(warnings) == 2
        assert all(one.startswith("deskfleet: warning: ") for one in warnings)
        registered = ended.json
        assert (registered["url"], registered["issuer"]) == (NOBODY, "me")
        assert place.run("list-auth-servers", "--output", "json").json == [registered]
        ended = place.run("unregister-auth-server", "--url", NOBODY, "--output", "json")
        assert ended.json == {"url": NOBODY, "registered": False}
        assert place.run("list-auth-servers", "--output", "json").json == []


class TestAnEmptyFleet:
    """The whole of what is printed where nobody is registered."""

    @pytest.mark.parametrize(
        ("command", "text"),
        [
            ("describe-api-clients", "Api clients\n[ ]\n"),
            ("describe-agent-clients", "Session manager agent clients\n[ ]\n"),
            ("describe-software-statements", "Software Statements\n[ ]\n"),
            ("describe-brokers", "Brokers\n[ ]\n"),
            ("list-auth-servers", "Urls: [ ]\n"),
        ],
    )
    def test_lists(self, tmp_path: Path, command: str, text: str) -> None:
        assert broker_command(tmp_path, command) == Ended(0, text, "")
        assert broker_command(tmp_path, command, "--output", "json").json == []


NEEDED: dict[str, tuple[str, ...]] = {
    "register-api-client": ("-cn", "x"),
    "register-auth-server": ("--url", NOBODY, "--allow-private"),
    "unregister-auth-server": ("--url", NOBODY),
    "restrict-api-client": ("--client-id", "x", "--any-owner"),
    "deactivate-software-statement": ("--software-statement", "x"),
    "activate-software-statement": ("--software-statement", "x"),
    **dict.fromkeys(
        (
            "unregister-api-client",
            "activate-api-client",
            "renew-api-client-password",
            "unregister-agent-client",
            "activate-agent-client",
        ),
        ("--client-id", "x"),
    ),
}
"""What a command can't do without."""
ON_A_FLEET = [
    *(one.__name__.replace("_", "-") for one in COMMANDS if one.__name__ != "check_config"),
    "describe-brokers",
]


class TestWhereThereIsNoFleet:
    """None is made by accident."""

    @pytest.mark.parametrize("command", ON_A_FLEET)
    def test_every_command_refuses(
        self, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if command == "register-server-dns-mappings":
            (tmp_path / "mappings").write_text("[]")
            needed: tuple[str, ...] = ("--file-path", str(tmp_path / "mappings"))
        else:
            needed = NEEDED.get(command, ())
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
        for state in (tmp_path / "wrong" / "folder", None):
            ended = broker_command(state, command, *needed)
            assert (ended.code, ended.out) == (1, "")
            place = state or tmp_path / "deskfleet"
            assert ended.err.startswith(f"deskfleet: there is no fleet in {place} ({place}")
            assert ended.err.count("\n") == 1
        assert {path.name for path in tmp_path.iterdir()} <= {"mappings"}

    def test_a_new_fleet_may_have_its_store_elsewhere(self, tmp_path: Path) -> None:
        (tmp_path / "state").mkdir(0o700)
        store = ("--store", f"sqlite:///{tmp_path / 'elsewhere.db'}")
        for command in ("list-auth-servers", "generate-software-statement"):
            assert broker_command(tmp_path / "state", command, *store).code == 0

    def test_the_first_start_of_a_broker_may_be_under_way(self, tmp_path: Path) -> None:
        """Installers start it and register the first client in the next line."""
        own_pair(tmp_path)
        (tmp_path / ".fleet.db.1.draft").touch()
        assert broker_command(tmp_path, "register-api-client", "-cn", "x").code == 0
        (tmp_path / "keys" / "store.key").unlink()
        assert broker_command(tmp_path, "describe-api-clients").code == 0

    def test_a_folder_of_something_else_is_not_taken(self, tmp_path: Path) -> None:
        (tmp_path / "journal.jsonl").write_text("")
        ended = broker_command(tmp_path, "register-api-client", "-cn", "x")
        assert ended.code == 1
        assert f"({tmp_path / 'fleet.db'} is missing)" in ended.err
        assert len(list(tmp_path.iterdir())) == 1

    def test_a_store_without_its_key_is_not_either(self, tmp_path: Path) -> None:
        """The password of a client would be hashed with another key than the broker's."""
        (tmp_path / "state").mkdir()
        assert broker_command(tmp_path / "state", "describe-api-clients").code == 0
        (tmp_path / "other").mkdir()
        store = ("--store", f"sqlite:///{tmp_path / 'state' / 'fleet.db'}")
        ended = broker_command(tmp_path / "other", "register-api-client", "-cn", "x", *store)
        assert ended.code == 1
        assert "store.key is missing" in ended.err
        assert list((tmp_path / "other").iterdir()) == []

    def test_an_empty_folder_is_the_place_of_a_new_one(self, tmp_path: Path) -> None:
        """As containers do it: who may call is registered before the first start."""
        state = tmp_path / "state"
        state.mkdir(0o700)
        assert broker_command(state, "gen-gateway-certificates").code == 0
        registered = broker_command(
            state, "register-auth-server", "--url", NOBODY, "--allow-private"
        )
        assert (registered.code, registered.out) == (0, "Jwk url registered.\n")
        [(id, password)] = WIZARD.findall(
            broker_command(state, "register-api-client", "-cn", "a").out
        )
        with (
            running_broker(state) as broker,
            broker.http(broker.doors.client_port) as http,
        ):
            given = http.post("/oauth2/token?grant_type=client_credentials", auth=(id, password))
            assert given.status_code == 200
            assert broker_command(state, "list-auth-servers").out == f'Urls: [ "{NOBODY}" ]\n'


class TestRefusals:
    @pytest.mark.parametrize(
        ("command", "told"),
        [
            ("unregister-api-client --client-id x", "there is no API client with the id x"),
            ("activate-api-client --client-id x", "there is no API client with the id x"),
            ("renew-api-client-password --client-id x", "there is no API client with the id x"),
            ("restrict-api-client --client-id x --owner a", "there is no API client with the id x"),
            ("unregister-agent-client --client-id x", "there is no agent client with the id x"),
            ("activate-agent-client --client-id x", "there is no agent client with the id x"),
            (
                "deactivate-software-statement --software-statement x",
                "there is no software statement of this text or id",
            ),
            (
                "activate-software-statement --software-statement x",
                "there is no software statement of this text or id",
            ),
            (f"unregister-auth-server --url {NOBODY}", f"{NOBODY} is not registered"),
        ],
    )
    def test_what_is_not_there(self, place: Place, command: str, told: str) -> None:
        for form in ("text", "json"):
            ended = place.run(*command.split(), "--output", form)
            assert ended == Ended(255, "", f"deskfleet: {told}\n")

    @pytest.mark.parametrize(
        ("command", "told"),
        [
            (["register-api-client", "-cn", "x", "--scope", "fly"], "'fly' is not a scope"),
            (["register-api-client", "-cn", "x", "--scope", ""], "--scope is empty"),
            (["register-api-client", "-cn", "x", "--owner", ""], "an owner is a name"),
            (["register-api-client", "-cn", ""], "a client's name has"),
            (["restrict-api-client", "--client-id", "x"], "one of --scope, --owner"),
            (
                ["restrict-api-client", "--client-id", "x", "--owner", "a", "--any-owner"],
                "lift what --scope and --owner restrict to",
            ),
        ],
    )
    def test_values_that_are_wrong(self, place: Place, command: list[str], told: str) -> None:
        ended = place.run(*command)
        assert (ended.code, ended.out) == (252, "")
        assert told in ended.err
        assert ended.err.count("\n") == 1

    @pytest.mark.parametrize("command", COMMANDS, ids=lambda one: one.__name__)
    def test_every_command_explains_itself(self, command: Callable[..., None]) -> None:
        name = command.__name__.replace("_", "-")
        ended = broker_command(None, name, "--help")
        assert ended.code == 0
        assert ended.out.startswith(f"Usage: deskfleet broker {name} ")
        assert "--output" in ended.out

    def test_its_return_codes_are_those_of_the_page(self, place: Place, tmp_path: Path) -> None:
        page = commands_reference.PAGE.read_text()
        about = page.partition("## The broker's commands")[2]
        known = commands_reference.return_codes(about.partition(commands_reference.BEGIN)[0])
        ended = [
            place.run("list-auth-servers"),
            broker_command(tmp_path / "none", "list-auth-servers"),
            place.run("list-auth-servers", "--such-an-option"),
            place.run("register-api-client", "-cn", ""),
            place.run("unregister-api-client", "--client-id", "x"),
        ]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Clients, "listed", interrupt)
            ended.append(place.run("describe-api-clients"))
        assert {one.code for one in ended} == known.keys()

    def test_options_that_are_none(self) -> None:
        for options in (["--such-an-option"], ["--output", "xml"], ["--client-id"], []):
            ended = broker_command(None, "unregister-api-client", *options)
            assert (ended.code, ended.out) == (2, "")

    def test_all_fourteen_of_the_original_are_there(self) -> None:
        names = {one.__name__.replace("_", "-") for one in COMMANDS}
        assert names >= {
            *("register-auth-server", "list-auth-servers", "unregister-auth-server"),
            *("register-api-client", "describe-api-clients", "unregister-api-client"),
            *("renew-auth-server-api-key", "generate-software-statement"),
            *("describe-software-statements", "deactivate-software-statement"),
            *("describe-agent-clients", "unregister-agent-client"),
            *("register-server-dns-mappings", "describe-server-dns-mappings"),
        }


class TestBesideARunningBroker:
    """What a command writes holds for a broker that runs, within moments."""

    def token(self, http: httpx.Client, id: str, password: str) -> httpx.Response:
        return http.post("/oauth2/token?grant_type=client_credentials", auth=(id, password))

    def status(self, http: httpx.Client, token: str) -> int:
        headers = {"Authorization": f"Bearer {token}"}
        return http.post("/describeSessions", json={}, headers=headers).status_code

    def test_a_client_is_let_in_and_out_and_in(self, broker: RunningBroker) -> None:
        state = state_of(broker)
        with broker.http(broker.doors.client_port) as http:
            [(id, old)] = WIZARD.findall(
                broker_command(state, "register-api-client", "-cn", "a").out
            )
            first = self.token(http, id, old).json()["access_token"]
            assert self.status(http, first) == 200
            assert broker_command(state, "unregister-api-client", "--client-id", id).code == 0
            until(lambda: self.status(http, first) == 401)
            assert self.token(http, id, old).status_code == 401
            assert broker_command(state, "activate-api-client", "--client-id", id).code == 0
            second = self.token(http, id, old).json()["access_token"]
            assert [self.status(http, token) for token in (first, second)] == [401, 200]
            said = broker_command(state, "renew-api-client-password", "--client-id", id).out
            [(_, new)] = WIZARD.findall(said)
            assert self.token(http, id, old).status_code == 401
            until(lambda: self.status(http, second) == 401)
            third = self.token(http, id, new).json()["access_token"]
            kept = ("renew-api-client-password", "--client-id", id, "--keep-tokens")
            [(_, newest)] = WIZARD.findall(broker_command(state, *kept).out)
            assert self.token(http, id, new).status_code == 401
            assert self.token(http, id, newest).status_code == 200
            assert self.status(http, third) == 200

    def test_an_agent_loses_its_link_and_comes_back(self, broker: RunningBroker) -> None:
        state, url = state_of(broker), f"https://localhost:{broker.doors.agent_port}"
        facts = some_facts("revoked")
        server = PlayedServer(url, broker.doors.ca_file, broker.statement, facts)
        with server:
            until(lambda: broker.house.links.of(server.id))
            said = broker_command(state, "unregister-agent-client", "--client-id", server.id)
            assert said.out == f"agent client {server.id} unregistered\n"
            until(lambda: broker.house.links.of(server.id) is None)
            # Nothing is placed on it any more, without the grace of a link that is merely lost.
            fleet = broker.house.replica.fleet
            until(lambda: not getattr(fleet.link(server.id), "up", True))
            with broker.http(broker.doors.agent_port) as http:
                assert self.token(http, *server._credentials).status_code == 401
                broker_command(state, "activate-agent-client", "--client-id", server.id)
                assert self.token(http, *server._credentials).status_code == 200
        with server:
            until(lambda: broker.house.links.of(server.id))

    def test_a_statement_enrols_only_while_it_is_active(self, broker: RunningBroker) -> None:
        state = state_of(broker)
        option = ("--software-statement", broker.statement)
        body = {"software_statement": broker.statement, "client_name": "n"}
        with broker.http(broker.doors.agent_port) as http:
            assert broker_command(state, "deactivate-software-statement", *option).code == 0
            assert http.post("/register", json=body).status_code == 400
            assert broker_command(state, "activate-software-statement", *option).code == 0
            assert http.post("/register", json=body).status_code == 201

    def test_who_lives(self, broker: RunningBroker, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DESKFLEET_BROKER_BEAT_SECONDS", str(BEAT))
        state, url = state_of(broker), broker.house.housekeeping._broker.url
        mine = {"id": broker.broker_id, "url": url, "alive": True}
        said = broker_command(state, "describe-brokers").out
        assert said == (
            f'Brokers\n[ {{\n  "id" : "{broker.broker_id}",\n'
            f'  "url" : "{url}",\n  "alive" : true\n}} ]\n'
        )
        # One that was killed: nothing but its record is left.
        broker.write(a_broker("0-killed", url="https://gone:8445", beat=7))
        told = broker_command(state, "describe-brokers", "--output", "json").json
        assert told == [{"id": "0-killed", "url": "https://gone:8445", "alive": False}, mine]
        told = broker_command(state, "describe-brokers", "--seconds", "0", "--output", "json").json
        assert [one["alive"] for one in told] == [None, None]

    @pytest.mark.parametrize("seconds", ["nan", "inf", "-1"])
    def test_listening_has_to_end(self, seconds: str, tmp_path: Path) -> None:
        ended = broker_command(tmp_path / "new", "describe-brokers", "--seconds", seconds)
        assert (ended.code, ended.out) == (2, "")

    def test_a_statement_from_before_texts_were_kept_shows_its_id(
        self, broker: RunningBroker
    ) -> None:
        broker.write(SoftwareStatement(id="old-one", statement_hash=b"x", issued_at=NOON))
        state = state_of(broker)
        assert (
            '{\n  "software-statement" : "old-one",\n'
            '  "issued-at" : "2030.06.01 12:00:00 +0000",\n'
            '  "is-active" : "true"\n}'
        ) in broker_command(state, "describe-software-statements").out
        told = broker_command(state, "describe-software-statements", "--output", "json").json
        assert [one["software-statement"] for one in told if one["id"] == "old-one"] == [None]
        option = ("--software-statement", "old-one")
        assert broker_command(state, "deactivate-software-statement", *option).code == 0
        fleet = broker.house.replica.fleet
        until(lambda: not getattr(fleet.get(SoftwareStatement, "old-one"), "active", True))
