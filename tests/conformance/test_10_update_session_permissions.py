"""UpdateSessionPermissions: updates the user permissions for a session."""

from __future__ import annotations

import base64
import os
import shutil
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Origin, Subprotocol

from support.conformance import UNKNOWN_ID, Api, Play, on, own_fleet
from support.programs import trust
from support.users import ordinary_user
from support.waiting import until

NO_SUCH = "The requested dcvSession does not exist"
PERMISSIONS = base64.b64encode(
    b"[groups]\nteam=ann, osgroup:staff\n[aliases]\nview=display, pointer\n"
    b"[permissions]\n%owner% allow builtin\ngroup:team allow view\n%any% deny printer\n"
).decode()


def update(api: Api, session_id: str | None, owner: str | None, file: str | None) -> Any:
    item = {"SessionId": session_id, "Owner": owner, "PermissionsFile": file}
    return api.call("sessionPermissions", [item])


class TestRequestParameters:
    def test_session_id(self, api: Api, owner: str, session: str) -> None:
        answer = update(api, session, owner, PERMISSIONS)
        assert answer["SuccessfulList"] == [{"SessionId": session}]

    def test_owner_must_be_that_of_the_session(self, api: Api, session: str) -> None:
        answer = update(api, session, "user99", PERMISSIONS)
        assert answer["SuccessfulList"] == []
        assert answer["UnsuccessfulList"][0]["SessionId"] == session

    @pytest.mark.own_broker
    def test_owner_with_a_windows_domain(self, api: Api, domain_owner: str) -> None:
        session_id = api.ready(domain_owner)
        answer = update(api, session_id, domain_owner, PERMISSIONS)
        assert answer["SuccessfulList"] == [{"SessionId": session_id}]

    @pytest.mark.own_broker
    def test_permissions_file_reaches_the_server(self, api: Api, owner: str, play: Play) -> None:
        server = play()
        session_id = api.ready(owner, **on(server))
        update(api, session_id, owner, PERMISSIONS)

        def told() -> str | None:
            desire = server.desire(session_id)
            return desire.spec.request.permissions_file if desire else None

        until(lambda: told() == PERMISSIONS)

    @pytest.mark.own_broker
    def test_permission_file_is_taken_for_permissions_file(
        self, api: Api, owner: str, session: str
    ) -> None:
        """The first is the spelling of the prose, the second that of the example."""
        item = {"SessionId": session, "Owner": owner, "PermissionFile": PERMISSIONS}
        assert api.call("sessionPermissions", [item])["SuccessfulList"] == [{"SessionId": session}]
        both = {**item, "PermissionsFile": PERMISSIONS}
        assert api.refused("sessionPermissions", [both]) == 'Duplicate field "PermissionsFile"'

    @pytest.mark.parametrize("member", ["SessionId", "Owner", "PermissionsFile"])
    def test_required(self, api: Api, owner: str, session: str, member: str) -> None:
        item = {"SessionId": session, "Owner": owner, "PermissionsFile": PERMISSIONS}
        del item[member]
        answer = api.call("sessionPermissions", [item])
        assert answer["SuccessfulList"] == []
        assert answer["UnsuccessfulList"][0]["FailureReason"]

    @pytest.mark.own_broker
    @pytest.mark.parametrize(
        ("text", "told"),
        [
            (
                b"[permissions]\n%owner% allow teleport\n",
                "Line 2: 'teleport' is neither a feature nor an alias",
            ),
            (
                b"#import other\n",
                "Line 1: #import is refused, as it would read a file of the server",
            ),
            (
                b"[permissions]\n\nuser1 permit display\n",
                "Line 3: expected: actor allow|disallow|deny feature feature ...",
            ),
            (b"\n" * 2001, "A permissions file can't have more than 2,000 lines"),
            (b"\xff\xfe", "The permissions file must be UTF-8 text"),
        ],
        ids=lambda value: str(value)[:24],
    )
    def test_permissions_file_that_is_none(
        self, api: Api, owner: str, session: str, text: bytes, told: str
    ) -> None:
        answer = update(api, session, owner, base64.b64encode(text).decode())
        assert answer["UnsuccessfulList"][0]["FailureReason"] == f"PermissionsFile: {told}"

    @pytest.mark.own_broker
    def test_permissions_file_of_64_kib_and_no_more(
        self, api: Api, owner: str, session: str
    ) -> None:
        rule = b"[permissions]\n%owner% allow builtin\n"
        largest = rule + b"#" * (64 * 1024 - len(rule))
        for content, is_taken in ((largest, True), (largest + b"#", False)):
            file = base64.b64encode(content).decode()
            answer = update(api, session, owner, file)
            assert bool(answer["SuccessfulList"]) is is_taken
            created = api.call("createSessions", [api.item(owner, PermissionsFile=file)])
            assert bool(created["SuccessfulList"]) is is_taken
        assert "65,536 bytes" in answer["UnsuccessfulList"][0]["FailureReason"]
        assert "65,536 bytes" in created["UnsuccessfulList"][0]["FailureReason"]

    @pytest.mark.own_broker
    def test_permissions_file_that_is_no_base64(self, api: Api, owner: str, session: str) -> None:
        answer = update(api, session, owner, "file_base64_encoded")
        assert "base64" in answer["UnsuccessfulList"][0]["FailureReason"]


class TestResponseParameters:
    def test_request_id_is_unique(self, api: Api) -> None:
        assert len({api.call("sessionPermissions", [])["RequestId"] for _ in range(3)}) == 3

    def test_both_lists_are_there_when_they_are_empty(self, api: Api) -> None:
        answer = api.call("sessionPermissions", [])
        assert (answer["SuccessfulList"], answer["UnsuccessfulList"]) == ([], [])

    def test_successful_list_session_id(self, api: Api, owner: str, session: str) -> None:
        assert update(api, session, owner, PERMISSIONS)["SuccessfulList"] == [
            {"SessionId": session}
        ]

    def test_unsuccessful_list_session_id(self, api: Api) -> None:
        answer = update(api, UNKNOWN_ID, "user1", PERMISSIONS)
        assert answer["UnsuccessfulList"][0]["SessionId"] == UNKNOWN_ID

    def test_unsuccessful_list_failure_reason(self, api: Api) -> None:
        answer = update(api, UNKNOWN_ID, "user1", PERMISSIONS)
        assert answer["UnsuccessfulList"][0]["FailureReason"]

    @pytest.mark.own_broker
    def test_unsuccessful_list_failure_reason_of_a_deleted_session(
        self, api: Api, owner: str, session: str
    ) -> None:
        api.delete(session, owner)
        api.wait(session, "DELETED")
        answer = update(api, session, owner, PERMISSIONS)
        assert answer["UnsuccessfulList"] == [{"SessionId": session, "FailureReason": NO_SUCH}]


class Visitor:
    """A user at the entrance of a server's desktops."""

    def __init__(self, api: Api, origin: str, session_id: str, user: str) -> None:
        self._token = api.connection_data(session_id, user)["ConnectionToken"]
        self._session_id = session_id
        self._trust = trust(api.target.ca_file)
        self._http = httpx.Client(base_url=origin, verify=self._trust, trust_env=False, timeout=30)
        self._origin = origin

    def enters(self) -> bool:
        """Show the token; say whether that opens the session, or else its permissions forbid it."""
        body = {"sessionId": self._session_id, "authToken": self._token}
        return _is_let_in(self._http.post("/connect", json=body, headers={"Origin": self._origin}))

    def is_admitted(self) -> bool:
        return _is_let_in(self._http.get(f"/admission/{self._session_id}"))

    def connect(self) -> ClientConnection:
        cookies = "; ".join(f"{name}={value}" for name, value in self._http.cookies.items())
        return connect(
            f"{self._origin.replace('https', 'wss')}/rfb/{self._session_id}?page=",
            ssl=self._trust,
            subprotocols=[Subprotocol("binary")],
            origin=Origin(self._origin),
            additional_headers={"Cookie": cookies},
            proxy=None,
        )

    def close(self) -> None:
        self._http.close()


def _is_let_in(answer: httpx.Response) -> bool:
    assert answer.status_code == 204 or answer.json()["code"] == "permissions.display"
    return answer.status_code == 204


def file_of(*rules: str) -> str:
    lines = ("[permissions]", "%owner% allow builtin", *rules, "")
    return base64.b64encode("\n".join(lines).encode()).decode()


@pytest.mark.own_broker
@pytest.mark.skipif(
    os.environ.get("CI") != "true" and shutil.which("Xvnc") is None, reason="Xvnc is not installed"
)
def test_who_is_connected_loses_a_right_and_who_was_refused_gains_it(tmp_path: Path) -> None:
    with own_fleet(tmp_path, driver="xvnc") as fleet, ExitStack() as stack:
        api = Api(fleet.target)
        stack.callback(api.close)
        user = ordinary_user("dfalice").pw_name
        stack.callback(api.delete_all_of, user)
        session_id = api.ready(
            user, PermissionsFile=file_of("bob allow display unsupervised-access")
        )
        bob, carol = (
            stack.enter_context(
                closing(Visitor(api, fleet.broker.desktops_url, session_id, visitor))
            )
            for visitor in ("bob", "carol")
        )
        assert bob.enters()
        assert not carol.enters()
        with bob.connect() as desktop:
            assert desktop.recv(timeout=30) == b"RFB 003.008\n"
            file = file_of("carol allow display unsupervised-access")
            assert update(api, session_id, user, file)["SuccessfulList"]
            with pytest.raises(ConnectionClosed):
                desktop.recv(timeout=30)
        assert not bob.is_admitted()
        until(carol.enters)
        with carol.connect() as desktop:
            assert desktop.recv(timeout=30) == b"RFB 003.008\n"


class TestExample:
    def test_a_session_that_does_not_exist(self, api: Api) -> None:
        answer = update(api, "SessionId1897", "an owner 1890", "file_base64_encoded")
        assert answer["SuccessfulList"] == []
        assert [one["SessionId"] for one in answer["UnsuccessfulList"]] == ["SessionId1897"]
