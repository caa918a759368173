"""One request of `dcvsm`, from the settings to the printed answer and the return code.

Law: the answer is printed whole before anything that it refuses ends the command.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import msgspec
import typer

from deskfleet.cli import dcvsm_config as config
from deskfleet.cli.connection import UNCHECKED
from deskfleet.cli.dcvsm_output import failures, members, printed
from deskfleet.cli.dcvsm_report import Report
from deskfleet.client.tokens import AccessToken
from deskfleet.errors import DeskfleetError, Invalid

TIMEOUT = 30.0
"""Seconds, for each network step."""


class ReturnCode(IntEnum):
    OK = 0
    FILE = 1
    """The configuration file is missing or corrupt."""
    OPTIONS = 2
    """The command line can't be parsed."""
    INTERRUPTED = 130
    VALUE = 252
    """A value on the command line is wrong."""
    SETUP = 253
    """Environment, configuration or credentials are no good, or missing."""
    SERVICE = 254
    """The broker answered with an error, for the whole request or a part of it."""
    OTHER = 255
    """Anything else: above all, a broker that can't be reached."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one command."""

    report: Report
    options: config.Options


def ask(run: Run, operation: str, asked: Any, kind: type[msgspec.Struct]) -> None:
    """Send one request and print its answer; its refusals end the command."""
    content = None if asked is None else _encoded(asked)
    method, _, path = operation.partition(" ")
    told = members(_sent(run, method, path, content), kind)
    _print(printed(told))
    refusals = list(failures(told))
    for refusal in refusals:
        run.report.tell(refusal)
    if refusals:
        raise typer.Exit(ReturnCode.SERVICE)


def _sent(run: Run, method: str, path: str, content: bytes | None) -> bytes:
    # httpx takes longer to load than everything else; --help does without it.
    from deskfleet.client.transport import Transport  # noqa: PLC0415

    found = _configuration(run)
    transport = Transport(
        found.url,
        credentials=found.credentials,
        ca_file=found.ca_bundle,
        verify=found.verify,
        timeout=TIMEOUT,
        monotonic=time.monotonic,
        sleep=time.sleep,
        watcher=run.report,
    )
    try:
        return transport.send(method, path, content)
    finally:
        transport.close()


def _configuration(run: Run) -> config.Configuration:
    found = config.find(run.options, os.environ, Path(sys.prefix), run.report.tell)
    known = found.credentials
    run.report.learn(known.token if isinstance(known, AccessToken) else known.password)
    run.report.debug = found.debug
    if not found.verify:
        run.report.tell(UNCHECKED)
    for origin in found.origins:
        run.report.detail(origin)
    return found


def _print(text: str) -> None:
    try:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
    except OSError as error:
        # What is left in the buffer would be tried again at the end, and change the return code.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise DeskfleetError(f"the answer can't be printed: {error.strerror}") from error


def _encoded(asked: Any) -> bytes:
    try:
        return msgspec.json.encode(asked)
    except UnicodeEncodeError:
        raise Invalid("a value on the command line is not UTF-8 text") from None
