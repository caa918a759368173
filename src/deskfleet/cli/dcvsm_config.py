"""Where `dcvsm` finds its broker and its credentials: its options, the environment, its file.

Laws: each setting is looked for by itself, in that order. A password or a token is never an
option, and nothing that a file says is in a message, but for names of sections and keys. A wrong
value is refused by the name of the place where it stands.

Must not: speak to a broker.
"""

from __future__ import annotations

import configparser
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, TypeVar

from deskfleet.client.tokens import AccessToken, ClientPassword, Credentials
from deskfleet.errors import Invalid, SetupFailed

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")

FILE_NAME = "dcvsmcli.conf"
TOKEN_REQUEST = "/oauth2/token?grant_type=client_credentials"  # noqa: S105 (no password)
TOKEN_VARIABLE = "DCV_SM_OAUTH2_TOKEN"  # noqa: S105 (no password)
FORMATS = ("json",)

_TRUTHS = {"true": True, "yes": True, "on": True, "1": True}
_TRUTHS |= {"false": False, "no": False, "off": False, "0": False}


class FileUnusable(SetupFailed):
    """The configuration file is missing or corrupt."""

    code = "dcvsm.file"


@dataclass(frozen=True, slots=True)
class Setting:
    """One thing to be set, and the names it has in each place."""

    name: str
    """Of the member of `Options`, where it is an option."""
    section: str
    key: str
    meaning: str
    options: tuple[str, ...] = ()
    variable: str | None = None


FORMAT = Setting("output_format", "output", "output-format", "`json`", ("--output-format",))
DEBUG = Setting(
    "debug", "output", "debug", "Tell on standard error what is asked and answered", ("--debug",)
)
NO_VERIFY = Setting(
    "no_verify_ssl",
    "security",
    "no-verify-ssl",
    "Don't check the certificate of the broker",
    ("--no-verify-ssl",),
)
CA_BUNDLE = Setting(
    "ca_bundle",
    "security",
    "ca-bundle",
    "PEM file of the authorities to trust",
    ("--ca-bundle",),
)
AUTH_SERVER = Setting(
    "auth_server",
    "authentication",
    "auth-server-url",
    "Where access tokens come from, if not from the broker",
    ("--auth-server", "--auth-server-url"),
    "DCV_SM_AUTH_SERVER_URL",
)
CLIENT_ID = Setting(
    "client_id",
    "authentication",
    "client-id",
    "Id of an API client",
    variable="DCV_SM_CLIENT_ID",
)
CLIENT_PASSWORD = Setting(
    "client_password",
    "authentication",
    "client-password",
    "Its password",
    variable="DCV_SM_CLIENT_PASSWORD",
)
BROKER_URL = Setting(
    "broker_url", "broker", "url", "Client port of a broker: `https://HOST:PORT`", ("--broker-url",)
)

SETTINGS = (
    FORMAT,
    DEBUG,
    NO_VERIFY,
    CA_BUNDLE,
    AUTH_SERVER,
    CLIENT_ID,
    CLIENT_PASSWORD,
    BROKER_URL,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What was said on the command line before the command."""

    conf: str | None = None
    broker_url: str | None = None
    debug: bool = False
    no_verify_ssl: bool = False
    output_format: str | None = None
    ca_bundle: str | None = None
    auth_server: str | None = None


@dataclass(frozen=True, slots=True)
class File:
    path: Path
    values: Mapping[tuple[str, str], str]
    strangers: tuple[str, ...]
    """What to tell about sections and keys that mean nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    url: str
    credentials: Credentials
    ca_bundle: Path | None
    """None for the system's authorities."""
    verify: bool
    debug: bool
    origins: tuple[str, ...]
    """Where each setting was found, without its value."""


@dataclass(frozen=True, slots=True)
class _Found:
    text: str
    place: str
    said: bool = False
    """On the command line."""
    folder: Path = Path()
    """What a path is relative to."""

    def refused(self, reason: str) -> Invalid | SetupFailed:
        kind = Invalid if self.said else SetupFailed
        return kind(f"{self.place}: {reason}")


def places(environment: Mapping[str, str], install: PurePath) -> tuple[PurePath, ...]:
    """Return where the configuration file is looked for, the first place first.

    `install` is the folder that dcvsm is installed in; a Windows path makes it Windows.
    """
    own = _windows(environment) if isinstance(install, PureWindowsPath) else _unix(environment)
    return (*own, install / "conf" / FILE_NAME)


def _windows(environment: Mapping[str, str]) -> Iterator[PurePath]:
    for name, value in environment.items():
        if name.upper() == "USERPROFILE" and value:
            yield PureWindowsPath(value) / FILE_NAME


def _unix(environment: Mapping[str, str]) -> Iterator[PurePath]:
    """Without `XDG_CONFIG_HOME`, or with a relative one, its own standard says `~/.config`."""
    folder = PurePosixPath(environment.get("XDG_CONFIG_HOME", ""))
    home = PurePosixPath(environment.get("HOME", ""))
    if folder.is_absolute():
        yield folder / FILE_NAME
    elif home.is_absolute():
        yield home / ".config" / FILE_NAME


def find(
    options: Options,
    environment: Mapping[str, str],
    install: PurePath,
    tell: Callable[[str], None],
) -> Configuration:
    """Return what options, environment and file say together.

    `tell` is given each warning, before anything is refused: it may be the reason for that.
    Raises `FileUnusable`, `Invalid` for a wrong option, `SetupFailed` for what is wrong elsewhere.
    """
    if options.conf is None:
        file = _first(places(environment, install))
    else:
        file = read_file(Path(options.conf))
    for warning in () if file is None else file.strangers:
        tell(warning)
    search = _Search(options, environment, file)
    search.read(FORMAT, _format)
    return Configuration(
        url=search.read(BROKER_URL, _broker_url) or _lacking(BROKER_URL),
        credentials=_credentials(search),
        ca_bundle=search.read(CA_BUNDLE, _authorities),
        verify=not search.read(NO_VERIFY, _truth),
        debug=bool(search.read(DEBUG, _truth)),
        origins=tuple(search.origins),
    )


def read_file(path: Path) -> File:
    """Read a configuration file. Raises `FileUnusable`, which names a line but never quotes it."""
    # A password may hold `%`, and `[DEFAULT]` means nothing here.
    parser = configparser.ConfigParser(interpolation=None, default_section="\n")
    try:
        parser.read_string(path.read_text("utf-8-sig"))
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise FileUnusable(f"the configuration file {path} can't be read: {reason}") from error
    except ValueError:
        raise FileUnusable(f"the configuration file {path} is not UTF-8 text") from None
    except configparser.Error as error:
        raise FileUnusable(f"the configuration file {path} is corrupt: {_fault(error)}") from None
    values = {
        (section, key): value
        for section in parser.sections()
        for key, value in parser[section].items()
    }
    return File(path, values, tuple(f"warning: {path}: {text}" for text in _strangers(parser)))


def _fault(error: configparser.Error) -> str:
    match error:
        case configparser.MissingSectionHeaderError(lineno=line):
            return f"line {line} stands before the first [section]"
        case configparser.ParsingError(errors=faults):
            return f"line {faults[0][0]} is neither [section] nor key = value"
        case configparser.DuplicateSectionError(section=section, lineno=line):
            return f"line {line} begins [{section}] again"
        case configparser.DuplicateOptionError(section=section, option=key, lineno=line):
            return f"line {line} says {key} of [{section}] again"
    return "it is no INI file"


def _strangers(parser: configparser.ConfigParser) -> Iterator[str]:
    known = {(setting.section, setting.key) for setting in SETTINGS}
    for section in parser.sections():
        for key in parser[section]:
            if (section, key) not in known:
                yield f"{key} in [{section}] means nothing{_hint(key)}"


def _hint(key: str) -> str:
    homes = {setting.key: setting.section for setting in SETTINGS}
    near = get_close_matches(key, homes, n=1)
    return f"; is {near[0]} in [{homes[near[0]]}] meant?" if near else ""


def _first(candidates: Sequence[PurePath]) -> File | None:
    """Read the first file that is there; one that is there and unusable is not passed over."""
    for path in candidates:
        try:
            return read_file(Path(path))
        except FileUnusable as error:
            if not isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
                raise
    return None


class _Search:
    """Looks for one setting after the other, and notes where it was found."""

    def __init__(self, options: Options, environment: Mapping[str, str], file: File | None) -> None:
        self._options = options
        self._environment = environment
        self._file = file
        self.origins = [f"configuration file: {file.path if file else 'none'}"]

    def read(self, setting: Setting, reader: Callable[[_Found], T]) -> T | None:
        found = self._option(setting) or self._variable(setting.variable) or self._key(setting)
        return None if found is None else self._noted(setting.key, found, reader)

    def token(self) -> str | None:
        found = self._variable(TOKEN_VARIABLE)
        return None if found is None else self._noted("access token", found, _text)

    def _noted(self, name: str, found: _Found, reader: Callable[[_Found], T]) -> T:
        self.origins.append(f"{name}: {found.place}")
        return reader(found)

    def _option(self, setting: Setting) -> _Found | None:
        value = getattr(self._options, setting.name) if setting.options else None
        if value is None or value is False:
            return None
        return _Found(str(value).lower() if value is True else value, setting.options[0], said=True)

    def _variable(self, name: str | None) -> _Found | None:
        value = self._environment.get(name) if name else None
        return _Found(value, str(name)) if value else None

    def _key(self, setting: Setting) -> _Found | None:
        if self._file is None:
            return None
        path = self._file.path
        value = self._file.values.get((setting.section, setting.key))
        place = f"{path}: {setting.key} in [{setting.section}]"
        return _Found(value, place, folder=path.parent) if value else None


def _credentials(search: _Search) -> Credentials:
    token = search.token()
    if token is not None:
        return AccessToken(token)
    return ClientPassword(
        search.read(CLIENT_ID, _text) or _lacking(CLIENT_ID),
        search.read(CLIENT_PASSWORD, _text) or _lacking(CLIENT_PASSWORD),
        search.read(AUTH_SERVER, _token_url),
    )


def _lacking(setting: Setting) -> str:
    ways = [*setting.options[:1], *([setting.variable] if setting.variable else [])]
    ways.append(f"{setting.key} in [{setting.section}] of {FILE_NAME}")
    raise SetupFailed(f"{setting.name.replace('_', ' ')} is not set: give {' or '.join(ways)}")


def _text(found: _Found) -> str:
    if not found.text.isprintable():
        raise found.refused("it has line breaks or control characters, or is not UTF-8")
    return found.text


def _format(found: _Found) -> str:
    if found.text.lower() not in FORMATS:
        raise found.refused(f"there is no format but {' and '.join(FORMATS)}")
    return found.text.lower()


def _truth(found: _Found) -> bool:
    if found.text.lower() not in _TRUTHS:
        raise found.refused("it is neither true nor false")
    return _TRUTHS[found.text.lower()]


def _broker_url(found: _Found) -> str:
    url = _url(found)
    if url.query or url.fragment:
        raise found.refused("a broker's URL ends with its port or a path")
    return str(url)


def _token_url(found: _Found) -> str:
    """Return where tokens are asked for; of a host alone, where a broker is asked for them."""
    url = _url(found)
    return str(url) if url.query or url.path != "/" else f"{str(url).rstrip('/')}{TOKEN_REQUEST}"


def _url(found: _Found) -> httpx.URL:
    # httpx takes longer to load than everything else; --help does without it.
    from deskfleet.client.transport import checked  # noqa: PLC0415

    try:
        return checked(_text(found))
    except SetupFailed as error:
        raise found.refused(error.message) from None


def _authorities(found: _Found) -> Path:
    from deskfleet.client.transport import trust  # noqa: PLC0415 (as above)

    path = found.folder / _text(found)
    try:
        trust(path)
    except SetupFailed as error:
        raise found.refused(error.message) from None
    return path
