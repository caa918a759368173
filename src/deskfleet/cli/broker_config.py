"""`deskfleet broker check-config`: what a broker would make of a configuration file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from deskfleet.broker import brought
from deskfleet.broker.main import store_url, why_exposed
from deskfleet.broker.stores.sql import supported
from deskfleet.cli.config_report import File, Form, Output, report
from deskfleet.errors import SetupFailed
from deskfleet.keystores import trusted
from deskfleet.settings import BrokerSettings
from deskfleet.tls import empty_context


def check_config(file: File, output: Output = Form.text) -> None:
    """Explain a configuration file: what is used, ignored, and wrong. Nothing is started."""
    report(BrokerSettings, file, output, _wrong)


def _wrong(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Try what a start would: the state folder, the store, certificates, keys, their passwords."""
    settings = BrokerSettings(**values)
    why = why_exposed(settings.state) if "state" in values else None
    if why is not None:
        yield "state", why
    for setting, attempt in _attempts(settings):
        try:
            attempt()
        except SetupFailed as error:
            yield setting, error.message


def _show(settings: BrokerSettings, door: str) -> None:
    load = brought.shown_at(settings, door)
    if load is not None:
        load(empty_context())


def _attempts(settings: BrokerSettings) -> Iterator[tuple[str, Callable[[], object]]]:
    """Give what a start does with the settings, each with the one that would be to blame."""
    yield "store", partial(supported, store_url(settings))
    for door in brought.doors(settings):
        yield brought.setting_of(settings, door), partial(_show, settings, door)
    yield "enable_tls_client_auth_gateway", partial(brought.gateway_trust, settings)
    trust = settings.gateway_trust_file
    if trust is not None and settings.enable_gateway and settings.enable_tls_client_auth_gateway:
        yield "gateway_trust_file", partial(trusted, trust, settings.gateway_trust_password)
