"""Where dcvsm finds its settings: options, then the environment, then the first file there is."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any

import pytest

from deskfleet.certificates import ensure_authority
from deskfleet.cli import dcvsm_config as config
from deskfleet.cli.dcvsm_config import Configuration, FileUnusable, Options, places, read_file
from deskfleet.client.tokens import AccessToken, ClientPassword
from deskfleet.errors import Invalid, SetupFailed
from deskfleet.system import SystemClock

URL = "https://broker:8443"
INSTALL = PurePosixPath("/opt/dcvsm")
CREDENTIALS = {"DCV_SM_CLIENT_ID": "id", "DCV_SM_CLIENT_PASSWORD": "guarded"}
OWN_INSTALLATION = PurePosixPath("/opt/dcvsm/conf/dcvsmcli.conf")


def find(
    options: Options,
    environment: Mapping[str, str],
    install: PurePath,
    told: list[str] | None = None,
) -> Configuration:
    """Find the configuration; without a list for warnings there must be none."""
    warnings: list[str] = [] if told is None else told
    found = config.find(options, environment, install, warnings.append)
    assert told is not None or not warnings
    return found


def paths(*texts: str) -> tuple[PurePath, ...]:
    return (*map(PurePosixPath, texts), OWN_INSTALLATION)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"XDG_CONFIG_HOME": "/x", "HOME": "/h"}, paths("/x/dcvsmcli.conf")),
        ({"HOME": "/h"}, paths("/h/.config/dcvsmcli.conf")),
        ({"XDG_CONFIG_HOME": "", "HOME": "/h"}, paths("/h/.config/dcvsmcli.conf")),
        ({"XDG_CONFIG_HOME": "rel", "HOME": "/h"}, paths("/h/.config/dcvsmcli.conf")),
        ({"HOME": "rel"}, paths()),
        ({}, paths()),
        ({"UserProfile": "C:\\Users\\ada"}, paths()),
    ],
)
def test_places_on_unix(environment: Mapping[str, str], expected: tuple[PurePath, ...]) -> None:
    assert places(environment, INSTALL) == expected


@pytest.mark.parametrize("name", ["UserProfile", "USERPROFILE"])
def test_places_on_windows(name: str) -> None:
    install = PureWindowsPath("C:\\Program Files\\dcvsm")
    environment = {name: "C:\\Users\\ada", "HOME": "/h", "XDG_CONFIG_HOME": "/x"}
    assert [str(each) for each in places(environment, install)] == [
        "C:\\Users\\ada\\dcvsmcli.conf",
        "C:\\Program Files\\dcvsm\\conf\\dcvsmcli.conf",
    ]
    assert [str(each) for each in places({}, install)] == [
        "C:\\Program Files\\dcvsm\\conf\\dcvsmcli.conf"
    ]


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "dcvsmcli.conf"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


FULL = f"""\
# As the documentation shows it
[output]
output-format = json
debug = true

[security]
no-verify-ssl = true

[authentication]
auth-server-url = https://tokens:1/oauth2/token?grant_type=client_credentials
client-id = file-id
client-password = 100%-guarded=#:

[broker]
url = {URL}\t
"""


def test_the_file_alone_is_enough(tmp_path: Path) -> None:
    found = find(Options(conf=str(write(tmp_path, FULL))), {}, INSTALL)
    assert found.url == URL
    assert found.credentials == ClientPassword(
        "file-id",
        "100%-guarded=#:",
        "https://tokens:1/oauth2/token?grant_type=client_credentials",
    )
    assert (found.debug, found.verify, found.ca_bundle) == (True, False, None)
    assert "guarded" not in " ".join(found.origins)


def test_the_first_file_that_is_there_counts(tmp_path: Path) -> None:
    own, install = tmp_path / "own", tmp_path / "install"
    environment = {"XDG_CONFIG_HOME": str(own), **CREDENTIALS}
    (install / "conf").mkdir(parents=True)
    write(install / "conf", "[broker]\nurl = https://second\n")
    assert find(Options(), environment, install).url == "https://second"
    own.mkdir()
    write(own, "[broker]\nurl = https://first\n")
    assert find(Options(), environment, install).url == "https://first"
    third = tmp_path / "third"
    third.write_text("[broker]\nurl = https://third\n")
    assert find(Options(conf=str(third)), environment, install).url == "https://third"


def test_without_any_file_options_and_environment_are_enough(tmp_path: Path) -> None:
    found = find(Options(broker_url=URL), {"HOME": str(tmp_path), **CREDENTIALS}, tmp_path)
    assert found.origins[0] == "configuration file: none"
    assert found.credentials == ClientPassword("id", "guarded")
    assert found.verify


# Each setting, as an option, in the environment, and in the file; None where it can't be there.
MATRIX: list[tuple[str, str | None, str | None, str | None]] = [
    ("broker_url", "https://o", None, "url"),
    ("auth_server", "https://o/t", "DCV_SM_AUTH_SERVER_URL", "auth-server-url"),
    ("client_id", None, "DCV_SM_CLIENT_ID", "client-id"),
    ("client_password", None, "DCV_SM_CLIENT_PASSWORD", "client-password"),
]
SECTIONS = {setting.name: setting.section for setting in config.SETTINGS}


def value(found: config.Configuration, name: str) -> Any:
    assert isinstance(found.credentials, ClientPassword)
    return {
        "broker_url": found.url,
        "auth_server": found.credentials.token_url,
        "client_id": found.credentials.client_id,
        "client_password": found.credentials.password,
    }[name]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (row, said)
        for row in MATRIX
        for said in itertools.product([True, False], repeat=3)
        if any(there and place is not None for there, place in zip(said, row[1:], strict=True))
    ],
    ids=lambda each: "-".join(map(str, each)),
)
def test_option_before_environment_before_file(
    row: tuple[str, str | None, str | None, str | None], said: tuple[bool, ...], tmp_path: Path
) -> None:
    name, option, variable, key = row
    values = {"broker_url": URL}
    environment = dict(CREDENTIALS)
    environment.pop(variable or "", None)
    values.pop(name, None)
    expected = None
    text = "\n"
    if key and said[2]:
        text = f"[{SECTIONS[name]}]\n{key} = https://f/t\n"
        expected = "https://f/t"
    if variable and said[1]:
        environment[variable] = expected = "https://e/t"
    if option and said[0]:
        values[name] = expected = option
    path = write(tmp_path, text)
    found = find(Options(conf=str(path), **values), environment, INSTALL)  # type: ignore[arg-type]
    assert value(found, name) == expected


def test_an_empty_variable_or_key_is_not_set(tmp_path: Path) -> None:
    path = write(tmp_path, FULL.replace("file-id", ""))
    with pytest.raises(
        SetupFailed, match="client id is not set: give DCV_SM_CLIENT_ID or client-id"
    ):
        find(Options(conf=str(path)), {"DCV_SM_CLIENT_ID": ""}, INSTALL)


def test_a_ready_token_needs_no_client(tmp_path: Path) -> None:
    found = find(Options(broker_url=URL), {"DCV_SM_OAUTH2_TOKEN": "guarded"}, tmp_path)
    assert found.credentials == AccessToken("guarded")
    both = {**CREDENTIALS, "DCV_SM_OAUTH2_TOKEN": "guarded"}
    assert find(Options(broker_url=URL), both, tmp_path).credentials == AccessToken("guarded")


@pytest.mark.parametrize(
    ("said", "url"),
    [
        ("https://tokens", "https://tokens/oauth2/token?grant_type=client_credentials"),
        ("https://tokens:9/", "https://tokens:9/oauth2/token?grant_type=client_credentials"),
        ("https://tokens/own", "https://tokens/own"),
        ("https://tokens/?a=b", "https://tokens/?a=b"),
    ],
)
def test_a_host_alone_is_asked_for_tokens_as_a_broker_is(
    said: str, url: str, tmp_path: Path
) -> None:
    found = find(Options(broker_url=URL, auth_server=said), CREDENTIALS, tmp_path)
    assert found.credentials == ClientPassword("id", "guarded", url)


def test_a_bundle_in_the_file_is_beside_the_file(tmp_path: Path, monkeypatch: Any) -> None:
    path = write(tmp_path, FULL.replace("no-verify-ssl = true", "ca-bundle = ca.pem"))
    authority = ensure_authority(tmp_path / "tls", SystemClock()).certificate_path
    monkeypatch.chdir("/")
    with pytest.raises(SetupFailed, match=str(tmp_path / "ca.pem")) as refused:
        find(Options(conf=str(path)), {}, INSTALL)
    assert "ca-bundle in [security]" in refused.value.message
    with pytest.raises(Invalid, match=r"--ca-bundle: .*missing"):
        find(Options(conf=str(path), ca_bundle="missing"), {}, INSTALL)
    (tmp_path / "ca.pem").write_bytes(authority.read_bytes())
    assert find(Options(conf=str(path)), {}, INSTALL).ca_bundle == tmp_path / "ca.pem"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("client-password guarded", "line 1 stands before the first [section]"),
        ("[broker]\nguarded\n", "line 2 is neither [section] nor key = value"),
        ("[broker]\nurl = a\nurl = guarded\n", "line 3 says url of [broker] again"),
        ("[broker]\n[broker]\n", "line 2 begins [broker] again"),
        ("[broker\nurl = a\n", "line 1 stands before"),
        (b"\xff\xfe\x00", "is not UTF-8 text"),
        (b"[broker]\nurl = \x80", "is not UTF-8 text"),
    ],
)
def test_a_corrupt_file_is_told_by_its_line(text: str | bytes, reason: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    with pytest.raises(FileUnusable) as refused:
        find(Options(conf=str(path)), {}, INSTALL)
    assert reason in refused.value.message
    assert str(path) in refused.value.message
    assert "guarded" not in refused.value.message


def test_a_named_file_must_be_there(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path, tmp_path / "a" / "b"):
        with pytest.raises(FileUnusable, match="can't be read"):
            find(Options(conf=str(path), broker_url=URL), CREDENTIALS, INSTALL)


def test_a_file_that_is_there_is_not_passed_over(tmp_path: Path) -> None:
    write(tmp_path, "nonsense")
    environment = {"XDG_CONFIG_HOME": str(tmp_path), **CREDENTIALS}
    with pytest.raises(FileUnusable):
        find(Options(broker_url=URL), environment, INSTALL)
    (tmp_path / "dcvsmcli.conf").unlink()
    (tmp_path / "dcvsmcli.conf").mkdir()
    with pytest.raises(FileUnusable):
        find(Options(broker_url=URL), environment, INSTALL)


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_files_of_windows_editors_are_read(newline: str, mark: str, tmp_path: Path) -> None:
    path = write(tmp_path, mark + FULL.replace("\n", newline))
    assert read_file(path).values["broker", "url"] == URL


@pytest.mark.parametrize(
    ("text", "note"),
    [
        (
            "[security]\nca-bundel = x\n",
            "ca-bundel in [security] means nothing; is ca-bundle in [security] meant?",
        ),
        (
            "[broker]\nclient-id = x\n",
            "client-id in [broker] means nothing; is client-id in [authentication] meant?",
        ),
        ("[DEFAULT]\nurl = x\n", "url in [DEFAULT] means nothing; is url in [broker] meant?"),
        ("[auth]\nzzzz = guarded\n", "zzzz in [auth] means nothing"),
    ],
)
def test_an_unknown_key_is_told_with_the_nearest_one(text: str, note: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    told: list[str] = []
    find(Options(conf=str(path), broker_url=URL), CREDENTIALS, INSTALL, told)
    assert told == [f"warning: {path}: {note}"]
    # Also where something is refused: it may be the reason for that.
    with pytest.raises(SetupFailed):
        find(Options(conf=str(path)), {}, INSTALL, told := [])
    assert told == [f"warning: {path}: {note}"]


@pytest.mark.parametrize(
    ("key", "wrong", "reason"),
    [
        ("debug = true", "debug = maybe", "neither true nor false"),
        ("no-verify-ssl = true", "no-verify-ssl = 2", "neither true nor false"),
        ("output-format = json", "output-format = text", "no format but json"),
        (f"url = {URL}", "url = http://broker:8443", "is not an https URL"),
        (f"url = {URL}", "url = broker:8443", "is not an https URL"),
        (f"url = {URL}", f"url = {URL}?x=y", "ends with its port or a path"),
        (f"url = {URL}", f"url = {URL}#x", "ends with its port or a path"),
        (f"url = {URL}", "url = https://ada:guarded@broker", "no place for a password"),
        (f"url = {URL}", "url = https://broker:99999999", "has a port that there is not"),
        ("client-id = file-id", "client-id = a\n b", "line breaks"),
    ],
)
def test_a_wrong_value_is_told_by_its_place(
    key: str, wrong: str, reason: str, tmp_path: Path
) -> None:
    text = FULL.replace(key, wrong)
    assert text != FULL
    path = write(tmp_path, text)
    with pytest.raises(SetupFailed) as refused:
        find(Options(conf=str(path)), {}, INSTALL)
    assert not isinstance(refused.value, FileUnusable)
    assert reason in refused.value.message
    assert f"{path}: {wrong.partition(' =')[0]} in [" in refused.value.message
    assert "guarded" not in refused.value.message


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"broker_url": "http://broker"}, "--broker-url: http://broker is not an https URL"),
        ({"broker_url": URL, "auth_server": "ftp://x"}, "--auth-server: ftp://x is not"),
        ({"broker_url": URL, "output_format": "xml"}, "--output-format: "),
        ({"broker_url": f"{URL}?token=guarded"}, "--broker-url: "),
        ({"broker_url": "http://x?token=guarded"}, "--broker-url: "),
        ({"broker_url": "\udcff"}, "--broker-url: "),
    ],
)
def test_a_wrong_option_is_told_by_its_name(
    options: dict[str, str], named: str, tmp_path: Path
) -> None:
    with pytest.raises(Invalid) as refused:
        find(Options(**options), CREDENTIALS, tmp_path)  # type: ignore[arg-type]
    assert refused.value.message.startswith(named)
    assert "guarded" not in refused.value.message


@pytest.mark.parametrize("variable", ["DCV_SM_CLIENT_PASSWORD", "DCV_SM_OAUTH2_TOKEN"])
def test_a_secret_with_strange_characters_is_not_quoted(variable: str, tmp_path: Path) -> None:
    environment = {**CREDENTIALS, variable: os.fsdecode(b"guarded\xff")}
    with pytest.raises(SetupFailed) as refused:
        find(Options(broker_url=URL), environment, tmp_path)
    assert refused.value.message.startswith(f"{variable}: ")
    assert "guarded" not in refused.value.message


def test_no_broker_is_told_with_all_ways_to_name_one(tmp_path: Path) -> None:
    with pytest.raises(SetupFailed) as refused:
        find(Options(), CREDENTIALS, tmp_path)
    assert refused.value.message == (
        "broker url is not set: give --broker-url or url in [broker] of dcvsmcli.conf"
    )


def test_plain_http_is_for_this_machine(tmp_path: Path) -> None:
    found = find(Options(broker_url="http://127.0.0.1:8443"), CREDENTIALS, tmp_path)
    assert found.url == "http://127.0.0.1:8443"
