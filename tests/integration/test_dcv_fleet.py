"""A real broker and a real agent over a DCV server, which a stand-in plays."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from support.dcv import DcvSite, dcv_folder
from support.programs import Portal, Site, answers
from support.sessions import session_owner
from support.waiting import until

PERMISSIONS = b"[permissions]\n%owner% allow builtin\n%any% deny printer\n"
READY_SECONDS = 30.0
NOTICED_SECONDS = 30.0


@pytest.fixture
def dcv() -> Iterator[DcvSite]:
    with dcv_folder() as folder:
        yield DcvSite(folder, web_port=9443)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dcv: DcvSite) -> Iterator[Site]:
    monkeypatch.setenv("DESKFLEET_AGENT_HEARTBEAT_SECONDS", "0.5")
    with Site(tmp_path) as site:
        site.start_broker()
        site.start_agent(
            "agent", "--driver", "dcv", environment={"DESKFLEET_DCV_ROOT": str(dcv.program)}
        )
        yield site


def server(portal: Portal) -> Any:
    found = portal.call("/describeServers")["Servers"]
    return found[0] if found else None


def is_available(portal: Portal) -> bool:
    found = server(portal)
    return found is not None and found["Availability"] == "AVAILABLE"


def shown(portal: Portal) -> dict[str, Any]:
    return {one["Id"]: one for one in portal.call("/describeSessions")["Sessions"]}


def states(portal: Portal) -> dict[str, str]:
    return {id: one["State"] for id, one in shown(portal).items()}


def create(portal: Portal, **more: Any) -> str:
    asked = {"Name": "'$(id)' é", "Owner": session_owner(), "Type": "VIRTUAL", **more}
    answer = portal.call("/createSessions", [asked])
    assert not answer["UnsuccessfulList"], answer
    return str(answer["SuccessfulList"][0]["Id"])


def delete(portal: Portal, *ids: str) -> None:
    items = [{"SessionId": id, "Owner": session_owner()} for id in ids]
    assert not portal.call("/deleteSessions", items)["UnsuccessfulList"]


def by_hand(dcv: DcvSite, id: str) -> None:
    owner = session_owner()
    dcv.dcv("create-session", "--type=virtual", f"--owner={owner}", "--name=by hand", id)


def _ports_are_those_of_the_server_alone(site: Site, portal: Portal) -> None:
    found = server(portal)
    assert found["Version"] == "2024.0.19030"
    assert [(one["Port"], one["WebUrlPath"], one["Protocol"]) for one in found["Endpoints"]] == [
        (9443, "/", "HTTP"),
        (9443, "/", "QUIC"),
    ]
    assert (found["Port"], found["WebUrlPath"]) == ("9443", "/")
    assert not answers(site.desktop_ports["agent"])


def test_a_session_from_its_creation_to_its_end_beside_one_made_by_hand(
    site: Site, dcv: DcvSite
) -> None:
    by_hand(dcv, "hand-made")
    portal = site.portal()
    until(lambda: is_available(portal), READY_SECONDS)
    _ports_are_those_of_the_server_alone(site, portal)
    session = create(portal)
    until(lambda: states(portal) == {session: "READY", "hand-made": "READY"}, READY_SECONDS)
    found = shown(portal)["hand-made"]
    assert (found["Name"], found["Owner"], found["Type"]) == ("by hand", session_owner(), "VIRTUAL")
    assert dcv.sessions()[session]["name"] == "'$(id)' é"

    encoded = base64.b64encode(PERMISSIONS).decode()
    change = {"SessionId": session, "Owner": session_owner(), "PermissionsFile": encoded}
    assert portal.call("/sessionPermissions", [change], "PUT")["SuccessfulList"]
    until(lambda: dcv.sessions()[session]["permissions"] == PERMISSIONS.decode())

    dcv.change(session, **{"num-of-connections": 2})
    until(lambda: shown(portal)[session]["NumOfConnections"] == 2)

    asked = [{"SessionId": session, "MaxWidth": 320, "MaxHeight": 320}]
    (shot,) = portal.call("/getSessionScreenshots", asked)["SuccessfulList"]
    (image,) = shot["SessionScreenshot"]["Images"]
    with Image.open(io.BytesIO(base64.b64decode(image["Data"]))) as picture:
        assert picture.size == (320, 200)

    delete(portal, session, "hand-made")
    until(lambda: set(states(portal).values()) == {"DELETED"}, READY_SECONDS)
    assert dcv.sessions() == {}


def test_a_dcv_server_that_fails_is_unhealthy_and_recovers_by_itself(
    site: Site, dcv: DcvSite
) -> None:
    by_hand(dcv, "hand-made")
    portal = site.portal()
    until(lambda: is_available(portal), READY_SECONDS)
    session = create(portal)
    until(lambda: states(portal).get(session) == "READY", READY_SECONDS)
    dcv.fault("fail")
    until(lambda: not is_available(portal), NOTICED_SECONDS)
    assert server(portal)["UnavailabilityReason"] == "UNHEALTHY_DCV_SERVER"
    # An agent that comes while it is silent takes nothing for ended.
    site.stop("agent")
    site.start_agent(
        "agent", "--driver", "dcv", environment={"DESKFLEET_DCV_ROOT": str(dcv.program)}
    )
    until(lambda: states(portal) == {session: "READY", "hand-made": "READY"}, READY_SECONDS)
    assert server(portal)["UnavailabilityReason"] == "UNHEALTHY_DCV_SERVER"
    dcv.heal()
    until(lambda: is_available(portal), NOTICED_SECONDS)
    assert states(portal) == {session: "READY", "hand-made": "READY"}
    assert set(dcv.sessions()) == {session, "hand-made"}
    # A command that hangs is ended, and not left to itself, when the agent ends.
    dcv.fault("hang", "list-sessions")
    calls = len(dcv.calls("list-sessions"))
    until(lambda: len(dcv.calls("list-sessions")) > calls)
    assert site.stop("agent") == 0
    until(lambda: not dcv.calls_left(), 5)
