"""`deskfleet agent check-config`: what an agent would make of a configuration file.

A module of its own: it loads all of an agent, which `agent run` leaves to another program.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from deskfleet.agent import identity
from deskfleet.agent.main import DRIVERS, build_driver, read_statement
from deskfleet.cli.agent_program import LOG_FILE
from deskfleet.cli.config_report import (
    Attempt,
    File,
    Output,
    refusals,
    report,
    unusable_folder,
)
from deskfleet.listener import bind
from deskfleet.logfile import why_unusable
from deskfleet.ports import ServesClients
from deskfleet.settings import AgentSettings
from deskfleet.tls import client_context


def explain(file: File, output: Output) -> None:
    report(AgentSettings, file, output, _wrong)


def _wrong(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Try what a start would: folders, the driver, its address, whom to trust, how to enrol."""
    settings = AgentSettings(**values)
    logs = settings.log_directory
    for setting, why in (
        ("state", unusable_folder(settings.state)),
        ("log_directory", why_unusable(logs / LOG_FILE) if logs else None),
    ):
        if why is not None:
            yield setting, why
    yield from refusals(_attempts(settings))


def _attempts(settings: AgentSettings) -> Iterator[tuple[str, Attempt]]:
    """Give what a start does with the settings, each with the one that would be to blame."""
    yield "driver", partial(build_driver, settings)
    yield "desktop_host", partial(_try_host, settings)
    if settings.tls_strict:
        yield "ca_file", partial(client_context, settings.ca_file)
    yield "software_statement_path", partial(_try_statement, settings)


def _try_host(settings: AgentSettings) -> None:
    """Take any port: that of the settings may be that of the agent that runs."""
    if settings.driver in DRIVERS and not isinstance(build_driver(settings), ServesClients):
        bind(settings.desktop_host, 0, "a trial").close()


def _try_statement(settings: AgentSettings) -> None:
    """Read the statement, which is of no more use once an agent is enrolled."""
    if identity.read(settings.state) is None:
        read_statement(settings.software_statement_path)
