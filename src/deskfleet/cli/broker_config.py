"""`deskfleet broker check-config`: what a broker would make of a configuration file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from deskfleet.broker.main import why_exposed
from deskfleet.cli.config_report import File, Form, Output, report
from deskfleet.errors import SetupFailed
from deskfleet.keystores import listener_context, trusted
from deskfleet.settings import BrokerSettings

_DOORS = ("client", "agent", "gateway")


def check_config(file: File, output: Output = Form.text) -> None:
    """Explain a configuration file: what is used, ignored, and wrong. Nothing is started."""
    report(BrokerSettings, file, output, _wrong)


def _wrong(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Try what a start would: the state folder, certificates, keys and their passwords."""
    state: Path | None = values.get("state")
    why = None if state is None else why_exposed(state)
    if why is not None:
        yield "state", why
    serves_gateways = values.get("enable_gateway", False)
    for door in _DOORS if serves_gateways else _DOORS[:2]:
        certificate: Path | None = values.get(f"{door}_certificate_file")
        key: Path | None = values.get(f"{door}_key_file")
        if certificate is not None:
            password = values.get(f"{door}_key_password", "")
            try:
                listener_context(certificate, key, password)
            except SetupFailed as error:
                yield f"{door}_certificate_file", error.message
    trust: Path | None = values.get("gateway_trust_file")
    demands = serves_gateways and values.get("enable_tls_client_auth_gateway")
    if trust is not None and demands:
        try:
            trusted(trust, values.get("gateway_trust_password", ""))
        except SetupFailed as error:
            yield "gateway_trust_file", error.message
