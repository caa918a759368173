"""`deskfleet broker check-config`: what a broker would make of a configuration file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import combinations
from typing import Any

from deskfleet.broker import brought
from deskfleet.broker.main import store_url
from deskfleet.broker.stores.sql import supported
from deskfleet.cli.config_report import (
    Attempt,
    File,
    Form,
    Output,
    refusals,
    report,
    unusable_folder,
)
from deskfleet.errors import SetupFailed
from deskfleet.keystores import trusted
from deskfleet.listener import bind, port_of
from deskfleet.logfile import why_unusable
from deskfleet.settings import BrokerSettings
from deskfleet.tls import empty_context

LOG_FILE = "broker.log"


def check_config(file: File, output: Output = Form.text) -> None:
    """Explain a configuration file: what is used, ignored, and wrong. Nothing is started."""
    report(BrokerSettings, file, output, _wrong)


def _wrong(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Try what a start would: folders, addresses, the store, certificates with their passwords."""
    settings = BrokerSettings(**values)
    state, logs = settings.state, settings.log_directory
    for setting, why in (
        ("state", unusable_folder(state)),
        ("log_directory", why_unusable(logs / LOG_FILE) if logs else None),
    ):
        if why is not None:
            yield setting, why
    yield from refusals(_attempts(settings))
    yield from _ports_for_two(settings)


def _attempts(settings: BrokerSettings) -> Iterator[tuple[str, Attempt]]:
    """Give what a start does with the settings, each with the one that would be to blame."""
    yield "store", partial(supported, store_url(settings))
    for door in brought.doors(settings):
        yield f"{door}_host", partial(_try_host, _host(settings, door))
        yield brought.setting_of(settings, door), partial(_try_certificate, settings, door)
    yield "enable_tls_client_auth_gateway", partial(brought.gateway_trust, settings)
    trust = settings.gateway_trust_file
    if trust is not None and settings.enable_gateway and settings.enable_tls_client_auth_gateway:
        yield "gateway_trust_file", partial(trusted, trust, settings.gateway_trust_password)


def _host(settings: BrokerSettings, door: str) -> str:
    host: str = getattr(settings, f"{door}_host")
    return host


def _try_host(host: str) -> None:
    """Take any port of an address: those of the settings may be those of the broker that runs."""
    bind(host, 0, "a trial").close()


def _try_certificate(settings: BrokerSettings, door: str) -> None:
    load = brought.shown_at(settings, door)
    if load is not None:
        load(empty_context())


def _ports_for_two(settings: BrokerSettings) -> Iterator[tuple[str, str]]:
    for one, other in combinations(brought.doors(settings), 2):
        port: int = getattr(settings, f"{one}_port")
        same = port == getattr(settings, f"{other}_port") != 0
        if same and _meet(_host(settings, one), _host(settings, other)):
            why = f"{one}_port and {other}_port are both {port}: each door needs one of its own"
            yield f"{one}_port", why
            yield f"{other}_port", why


def _meet(host: str, other: str) -> bool:
    """Say whether no port can be had on both at once, by trying it on one that is free."""
    try:
        with contextlib.closing(bind(host, 0, "a trial")) as bound:
            bind(other, port_of(bound), "another trial").close()
    except SetupFailed:
        return True
    return False
