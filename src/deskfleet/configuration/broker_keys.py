"""The keys of `session-manager-broker.properties`, each with what becomes of it: one table.

A key is honoured (it has a setting), or it has words for what deskfleet does in its place. What
can't be given, and would be missed, is refused (`refused`). A test holds the table to the settings,
and the page `docs/reference/configuration-files.md` to the table.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from deskfleet.configuration.values import MOST, number, truth

Values = Mapping[str, str]
"""All values of a file, by the names of this table."""

STATE = "/var/lib/dcvsmbroker"
"""Where the original's packages put `session-manager-working-path`."""
LOG_FOLDER = "/var/log/dcv-session-manager-broker"
LEAST_UNREACHABLE_SECONDS = 60


def _never(_: str) -> bool:
    return False


def _always(_: str) -> bool:
    return True


def _yes(text: str) -> bool:
    try:
        return truth(text)
    except ValueError:
        return False


def _elsewhere(text: str) -> bool:
    """Say whether discovery addresses may name another machine: a DNS name may name many."""
    return any(not _is_here(one.strip()) for one in text.split(",") if one.strip())


def _is_here(address: str) -> bool:
    host = re.sub(r":\d+$", "", address) if address.count(":") == 1 or "]" in address else address
    host = host.strip("[]").lower()
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        return host in {"localhost", socket.gethostname().lower()}
    if found.is_loopback:
        return True
    family = socket.AF_INET if found.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as trial:
        try:
            trial.bind((host, 0))
        except OSError:
            return False
    return True


@dataclass(frozen=True, slots=True)
class Key:
    """One key: `setting` says that it is honoured, else `instead` what is done in its place."""

    name: str
    setting: str = ""
    instead: str = ""
    convert: Callable[[str], Any] = str
    """Raises `ValueError` with words for an administrator."""
    secret: bool = False
    any_case: bool = False
    refused: Callable[[Values], str | None] | None = None
    """Says why a file with this key can't be had, where it can't."""
    urgent: Callable[[str], bool] = _never
    """Says whether a value asks for something that would be missed."""
    check: Callable[[str], Any] | None = None
    """Raises `ValueError` for a value that can't be meant, where no setting says it."""


def _hours(text: str) -> int:
    try:
        hours = int(text)
    except ValueError:
        raise ValueError(f"{text[:100]!r} is not a whole number") from None
    number(0, MOST // 3600)(hours)
    return hours * 3600


def _unreachable(text: str) -> str:
    if text.isascii() and text.isdigit() and int(text[:20]) < LEAST_UNREACHABLE_SECONDS:
        raise ValueError(
            f"{text} is too small: {LEAST_UNREACHABLE_SECONDS} is the least in this file"
            " (the original does not start below it either)"
        )
    return text


def _is_true(values: Values, name: str) -> bool:
    return _yes(values.get(name, ""))


def _no_such_store(values: Values) -> str | None:
    if not _is_true(values, "enable-persistence"):
        return None
    wanted = values.get("persistence-db", "").strip().lower()
    if wanted == "dynamodb":
        return (
            "deskfleet doesn't store in DynamoDB; set enable-persistence = false, and it keeps"
            " everything, over restarts too, in SQLite below session-manager-working-path"
        )
    if wanted == "mysql":
        return (
            "deskfleet can't store in MySQL or MariaDB yet; set enable-persistence = false, and it"
            " keeps everything, over restarts too, in SQLite below session-manager-working-path"
        )
    return f"{wanted!r} is not a store: dynamodb and mysql are known here, and neither can be had"


def _persistence(values: Values) -> str | None:
    if _is_true(values, "enable-persistence") and not values.get("persistence-db", "").strip():
        return "persistence-db is missing; set enable-persistence = false to store in SQLite"
    return None


_MEETING = (
    "brokers meet in their store, and need neither ports nor addresses of each other; a broker with"
    " a store of its own is a fleet of its own"
)
_BETWEEN = "brokers speak to each other over the agent port, with keys from their store"
_METRICS = "nothing is sent to CloudWatch"
_NO_DYNAMODB = "only read where enable-persistence asks for DynamoDB, which can't be had"
_NO_MYSQL = "only read where enable-persistence asks for MySQL, which can't be had yet"

_REPLACED = (
    Key("broker-java-home", instead="no Java is needed"),
    Key(
        "enable-persistence",
        instead="state is always kept, in SQLite below session-manager-working-path",
        refused=_persistence,
        check=truth,
    ),
    Key(
        "persistence-db",
        instead="only read where enable-persistence is true",
        refused=_no_such_store,
    ),
    Key("dynamodb-region", instead=_NO_DYNAMODB),
    Key("dynamodb-table-rcu", instead=_NO_DYNAMODB),
    Key("dynamodb-table-wcu", instead=_NO_DYNAMODB),
    Key("dynamodb-table-name-prefix", instead=_NO_DYNAMODB),
    Key("jdbc-connection-url", instead=_NO_MYSQL, secret=True),
    Key("jdbc-user", instead=_NO_MYSQL),
    Key("jdbc-password", instead=_NO_MYSQL, secret=True),
    Key("broker-to-broker-port", instead=_MEETING),
    Key("broker-to-broker-bind-host", instead=_MEETING),
    Key("broker-to-broker-discovery-port", instead=_MEETING),
    Key("broker-to-broker-discovery-addresses", instead=_MEETING, urgent=_elsewhere),
    Key("broker-to-broker-discovery-multicast-group", instead=_MEETING, urgent=_always),
    Key("broker-to-broker-discovery-multicast-port", instead=_MEETING),
    Key("broker-to-broker-discovery-aws-region", instead=_MEETING, any_case=True),
    Key(
        "broker-to-broker-discovery-aws-alb-target-group-arn",
        instead=_MEETING,
        any_case=True,
        urgent=_always,
    ),
    Key(
        "broker-to-broker-distributed-memory-max-size-mb",
        instead="there is no grid memory; 10,000 sessions take a broker less than 250 MB",
    ),
    Key("broker-to-broker-key-store-file", instead=_BETWEEN),
    Key("broker-to-broker-key-store-pass", instead=_BETWEEN, secret=True),
    Key("broker-to-broker-connection-login", instead=_BETWEEN),
    Key("broker-to-broker-connection-pass", instead=_BETWEEN, secret=True),
    Key(
        "cli-to-broker-port",
        instead="the broker's commands work on the store, whether a broker runs or not",
    ),
    Key(
        "enable-cloud-watch-metrics",
        instead=_METRICS,
        urgent=_yes,
        check=truth,
    ),
    Key("cloud-watch-region", instead=_METRICS),
    Key("metrics-fleet-name-dimension", instead=_METRICS),
)

_HONOURED = (
    # Where the original has /tmp or its package's folder, this is the package's.
    Key("session-manager-working-path", "state"),
    Key("enable-authorization-server", "enable_authorization_server"),
    Key("enable-authorization", "enable_authorization"),
    Key("enable-api-yaml", "enable_api_yaml"),
    # The older one first: where both are given, the seconds win.
    Key(
        "delete-session-duration-hours",
        "delete_session_duration_seconds",
        "deprecated: delete-session-duration-seconds takes its place",
        convert=_hours,
    ),
    Key("delete-session-duration-seconds", "delete_session_duration_seconds"),
    Key("connect-session-token-duration-minutes", "connect_session_token_duration_minutes"),
    Key("session-screenshot-max-width", "session_screenshot_max_width"),
    Key("session-screenshot-max-height", "session_screenshot_max_height"),
    Key("session-screenshot-format", "session_screenshot_format", convert=str.lower),
    Key("create-sessions-queue-max-size", "create_sessions_queue_max_size"),
    Key("create-sessions-queue-max-time-seconds", "create_sessions_queue_max_time_seconds"),
    Key(
        "create-sessions-number-of-retries-on-failure",
        "create_sessions_number_of_retries_on_failure",
    ),
    Key("autorun-file-arguments-max-size", "autorun_file_arguments_max_size"),
    Key("autorun-file-arguments-max-argument-length", "autorun_file_arguments_max_argument_length"),
    Key("max-api-requests-per-second", "max_api_requests_per_second"),
    Key("enable-throttling-forwarded-for-header", "enable_throttling_forwarded_for_header"),
    Key(
        "seconds-before-deleting-unreachable-dcv-server",
        "seconds_before_deleting_unreachable_dcv_server",
        convert=_unreachable,
    ),
    Key(
        "seconds-before-deleting-sessions-unreachable-server",
        "seconds_before_deleting_sessions_unreachable_server",
    ),
    Key("client-to-broker-connector-https-port", "client_port"),
    Key("client-to-broker-connector-bind-host", "client_host"),
    Key("client-to-broker-connector-key-store-file", "client_certificate_file"),
    Key("client-to-broker-connector-key-store-pass", "client_key_password", secret=True),
    Key("agent-to-broker-connector-https-port", "agent_port"),
    Key("agent-to-broker-connector-bind-host", "agent_host"),
    Key("agent-to-broker-connector-key-store-file", "agent_certificate_file"),
    Key("agent-to-broker-connector-key-store-pass", "agent_key_password", secret=True),
    Key("enable-agent-authorization", "enable_agent_authorization"),
    Key("single-use-connection-token", "single_use_connection_token"),
    Key("enable-gateway", "enable_gateway"),
    Key("gateway-to-broker-connector-https-port", "gateway_port"),
    Key("gateway-to-broker-connector-bind-host", "gateway_host"),
    Key("gateway-to-broker-connector-key-store-file", "gateway_certificate_file"),
    Key("gateway-to-broker-connector-key-store-pass", "gateway_key_password", secret=True),
    Key("enable-tls-client-auth-gateway", "enable_tls_client_auth_gateway"),
    Key("gateway-to-broker-connector-trust-store-file", "gateway_trust_file"),
    Key("gateway-to-broker-connector-trust-store-pass", "gateway_trust_password", secret=True),
)

KEYS: tuple[Key, ...] = (*_HONOURED, *_REPLACED)
