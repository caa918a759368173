"""`deskfleet broker …`: what connection gateways need to be told and given."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from deskfleet.broker import main as broker_main
from deskfleet.broker.administration import find_state
from deskfleet.cli.over_store import (
    Config,
    Form,
    Output,
    State,
    Store,
    echo_json,
    original_json,
    settings_of,
    using,
)
from deskfleet.cli.program import failing_well
from deskfleet.configuration import broker_properties
from deskfleet.configuration.broker_properties import key_of
from deskfleet.configuration.files import content_of
from deskfleet.core.dns_names import read_mappings
from deskfleet.core.records import DnsMapping
from deskfleet.errors import Invalid, SetupFailed
from deskfleet.gateway_certificates import FOLDER, GatewayFiles, make_gateway_files
from deskfleet.settings import BrokerSettings
from deskfleet.system import SystemClock

MAX_FILE_BYTES = 16 * 1024 * 1024
"""50,000 mappings fit."""


def register_server_dns_mappings(
    file_path: Annotated[Path, typer.Option(help="JSON file with an array of mappings.")],
    only_these: Annotated[
        bool, typer.Option("--only-these", help="Forget all mappings that are not in the file.")
    ] = False,
    output: Output = Form.TEXT,
    state: State = None,
    store: Store = None,
    config: Config = None,
) -> None:
    """Tell by which DNS names gateways reach servers: all of a file, or nothing of it.

    A mapping of the same ServerIdType and ServerId is replaced; all others stay.
    """
    mappings = _read(file_path)
    using(
        broker_main.dns_mappings_only,
        state,
        store,
        config,
        lambda known: known.register(mappings, only_these=only_these),
    )
    if output is Form.JSON:
        echo_json({"loaded": len(mappings), "file": str(file_path)})
    else:
        typer.echo(
            f"Successfully loaded {len(mappings)} server id - dns name mappings"
            f" from file {file_path}"
        )


def describe_server_dns_mappings(
    output: Output = Form.TEXT,
    state: State = None,
    store: Store = None,
    config: Config = None,
) -> None:
    """List the DNS names that were registered for servers."""
    found = using(broker_main.dns_mappings_only, state, store, config, lambda known: known.listed())
    shown = [_shown(mapping) for mapping in found]
    if output is Form.JSON:
        echo_json(shown)
    else:
        typer.echo(original_json(shown))


def gen_gateway_certificates(
    output_folder: Annotated[
        Path | None,
        typer.Option(help="Where to put the files; by default resolver-creds in the state folder."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace files that are there: old gateways lose it.")
    ] = False,
    output: Output = Form.TEXT,
    state: State = None,
    config: Config = None,
) -> None:
    """Make the certificate that a connection gateway shows, and the file that trusts it."""
    with failing_well():
        settings = settings_of(state, config=config)
        in_properties = None if config is None else broker_properties.is_one(content_of(config))
        if output_folder is None:
            find_state(settings)
        folder = (output_folder or settings.state / FOLDER).absolute()
        files = make_gateway_files(folder, SystemClock().now(), force=force)
    if output is Form.JSON:
        echo_json(
            {
                "key": str(files.key),
                "certificate": str(files.certificate),
                "trust": str(files.trust),
                "ends": files.ends_at.isoformat(),
            }
        )
    else:
        typer.echo(_advice(files, settings, in_properties=in_properties))


def _read(path: Path) -> list[DnsMapping]:
    try:
        content = content_of(path, MAX_FILE_BYTES)
    except SetupFailed as error:
        raise Invalid(f"{error.message}; nothing was registered") from error
    try:
        return read_mappings(content.text)
    except Invalid as error:
        raise Invalid(f"{path}: {error.message}; nothing was registered") from error


def _shown(mapping: DnsMapping) -> dict[str, Any]:
    return {
        "serverIdType": mapping.server_id_type.value,
        "serverId": mapping.server_id,
        "dnsNames": {
            "internalDnsName": mapping.internal_name,
            "externalDnsName": mapping.external_name,
        },
    }


def _advice(files: GatewayFiles, settings: BrokerSettings, *, in_properties: bool | None) -> str:
    authority = settings.state / broker_main.AUTHORITY_FOLDER / broker_main.AUTHORITY_FILE
    return f"""\
{files.key}: the gateway's key
{files.certificate}: its certificate, good until {files.ends_at:%Y-%m-%d}
{files.trust}: what brokers trust

Set at each broker, and start it anew:
{_broker_settings(files.trust, in_properties=in_properties)}

Copy key, certificate and {authority} to the gateway, and set there:
  [resolver]
  url = "https://BROKER:{settings.gateway_port}"
  ca-file = "/etc/dcv-connection-gateway/{authority.name}"
  cert-file = "/etc/dcv-connection-gateway/{files.certificate.name}"
  cert-key-file = "/etc/dcv-connection-gateway/{files.key.name}"

BROKER must be a DNS name, not an address. The key is of no use on a broker: remove it there."""


def _broker_settings(trust: Path, *, in_properties: bool | None) -> str:
    """Return what a broker's file has to say, in the words of its kind; of both, for None."""
    own = {
        "enable_gateway": "true",
        "enable_tls_client_auth_gateway": "true",
        "gateway_trust_file": json.dumps(str(trust), ensure_ascii=False),
    }
    original = {key_of(name): value for name, value in own.items()}
    original[key_of("gateway_trust_file")] = str(trust).replace("\\", "\\\\")
    if in_properties is not None:
        return _lines(original if in_properties else own)
    return (
        f"in a TOML file\n{_lines(own)}\n"
        f"or in session-manager-broker.properties\n{_lines(original)}"
    )


def _lines(values: Mapping[str, str]) -> str:
    return "\n".join(f"  {name} = {value}" for name, value in values.items())
