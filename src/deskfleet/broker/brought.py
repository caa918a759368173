"""The certificates that an administrator brings for the doors of a broker, as settings name them.

A start and `check-config` both ask here. Law: nothing that was asked for is left out in silence.
"""

from __future__ import annotations

from pathlib import Path

from deskfleet.errors import SetupFailed
from deskfleet.keystores import show_file
from deskfleet.settings import BrokerSettings
from deskfleet.tls import Load


def doors(settings: BrokerSettings) -> tuple[str, ...]:
    """Return the doors that are open, by what their settings begin with."""
    return ("client", "agent", "gateway") if settings.enable_gateway else ("client", "agent")


def setting_of(settings: BrokerSettings, door: str) -> str:
    """Return the setting that says what a door shows."""
    certificate = f"{door}_certificate_file"
    return certificate if getattr(settings, certificate) is not None else f"{door}_key_file"


def shown_at(settings: BrokerSettings, door: str) -> Load | None:
    """Return what loads what is brought for a door; None where nothing is. Raises `SetupFailed`."""
    certificate: Path | None = getattr(settings, f"{door}_certificate_file")
    key: Path | None = getattr(settings, f"{door}_key_file")
    if certificate is not None:
        password: str = getattr(settings, f"{door}_key_password")
        return lambda context: show_file(context, certificate, key, password)
    if key is not None:
        raise SetupFailed(
            f"{door}_key_file needs {door}_certificate_file: a key alone shows nobody"
        )
    return None


def gateway_trust(settings: BrokerSettings) -> Path | None:
    """Return whom gateways' certificates have to be of; None: they need none.

    Raises `SetupFailed` where they need one and nothing says of whom.
    """
    if not (settings.enable_gateway and settings.enable_tls_client_auth_gateway):
        return None
    if settings.gateway_trust_file is None:
        raise SetupFailed(
            "enable_tls_client_auth_gateway needs gateway_trust_file, which"
            " `deskfleet broker gen-gateway-certificates` makes"
        )
    return settings.gateway_trust_file
