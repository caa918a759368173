"""Where a command finds its broker: flags, then the environment, then the state folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deskfleet.cli.connection import UNKNOWN_BROKER, Flags, find
from deskfleet.client.tokens import AccessToken, ClientPassword
from deskfleet.errors import SetupFailed

URL = "https://localhost:8443"


@pytest.fixture
def state(tmp_path: Path) -> Path:
    (tmp_path / "password").write_text("from-file\n")
    write(tmp_path)
    return tmp_path


def write(state: Path, **changes: Any) -> None:
    said = {
        "url": URL,
        "desktops_url": "https://localhost:8444",
        "ca_file": "tls/ca.pem",
        "client_id": "file-id",
        "client_password_file": "password",
        **changes,
    }
    (state / "client.json").write_text(json.dumps(said))


def test_the_state_folder_is_enough(state: Path) -> None:
    found = find(Flags(state=state), {})
    assert found.url == URL
    assert found.credentials == ClientPassword("file-id", "from-file")
    assert found.ca_file == state / "tls/ca.pem"
    assert found.verify


def test_the_environment_names_the_state_folder(state: Path) -> None:
    assert find(Flags(), {"DESKFLEET_STATE": str(state)}).url == URL


def test_absolute_paths_are_taken_as_they_are(state: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("other")
    write(state, client_password_file=str(elsewhere), ca_file="/etc/ca.pem")
    found = find(Flags(state=state), {})
    assert found.credentials == ClientPassword("file-id", "other")
    assert found.ca_file == Path("/etc/ca.pem")


def test_the_environment_comes_before_the_file(state: Path) -> None:
    environment = {
        "DCV_SM_CLIENT_ID": "env-id",
        "DCV_SM_CLIENT_PASSWORD": "env-password",
        "DCV_SM_AUTH_SERVER_URL": "https://login.example/token",
        "DESKFLEET_CA_FILE": "/env/ca.pem",
    }
    found = find(Flags(state=state), environment)
    assert found.credentials == (
        ClientPassword("env-id", "env-password", "https://login.example/token")
    )
    assert (found.url, found.ca_file) == (URL, Path("/env/ca.pem"))


def test_flags_come_before_the_environment(state: Path) -> None:
    environment = {
        "DESKFLEET_BROKER_URL": "https://env:8443",
        "DESKFLEET_CA_FILE": "/env/ca.pem",
        "DCV_SM_OAUTH2_TOKEN": "ready",
    }
    flags = Flags(
        broker_url="https://flag:8443",
        ca_file=Path("/flag/ca.pem"),
        no_verify_ssl=True,
        state=state,
    )
    found = find(flags, environment)
    assert (found.url, found.ca_file) == ("https://flag:8443", Path("/flag/ca.pem"))
    assert not found.verify


def test_a_ready_token_comes_before_a_password(state: Path) -> None:
    environment = {
        "DCV_SM_OAUTH2_TOKEN": "ready",
        "DCV_SM_CLIENT_ID": "id",
        "DCV_SM_CLIENT_PASSWORD": "password",
    }
    assert find(Flags(state=state), environment).credentials == AccessToken("ready")


def test_the_files_secrets_are_for_the_files_broker_alone(state: Path) -> None:
    other = Flags(broker_url="https://other.example:8443", state=state)
    with pytest.raises(SetupFailed, match="no credentials for this broker"):
        find(other, {})
    assert find(other, {"DCV_SM_OAUTH2_TOKEN": "ready"}).ca_file is None
    same = Flags(broker_url=f"{URL}/", state=state)
    assert find(same, {}).credentials == ClientPassword("file-id", "from-file")


def test_no_broker_is_one_sentence_that_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(SetupFailed) as caught:
        find(Flags(state=tmp_path), {"DCV_SM_OAUTH2_TOKEN": "ready"})
    assert caught.value.message == f"{UNKNOWN_BROKER} ({tmp_path}/client.json isn't there)"


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ("DCV_SM_CLIENT_ID", "DCV_SM_CLIENT_PASSWORD"),
        ("DCV_SM_CLIENT_PASSWORD", "DCV_SM_CLIENT_ID"),
    ],
)
def test_half_of_the_credentials_is_none(state: Path, given: str, missing: str) -> None:
    with pytest.raises(SetupFailed, match=f"^{missing} is not set"):
        find(Flags(state=state), {given: "half"})


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"url": 7}', "\udcff"])
def test_a_broken_file_is_named(state: Path, content: str) -> None:
    (state / "client.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(SetupFailed, match=r"client\.json"):
        find(Flags(state=state), {})


def test_a_missing_password_file_is_named(state: Path) -> None:
    (state / "password").unlink()
    with pytest.raises(SetupFailed) as caught:
        find(Flags(state=state), {})
    assert caught.value.message == f"{state}/password can't be read: No such file or directory"
