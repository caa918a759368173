"""TLS settings of listeners and clients, and the certificates that listeners show.

Laws: TLS 1.2 or better, forward-secret suites only. What a listener shows is looked at again as
long as its program runs: one that was issued anew, or that the administrator has replaced, is
shown to whoever connects next; one that can't be used does not take the place of one that can.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from deskfleet.certificates import explained, refuse_exposed
from deskfleet.errors import SetupFailed

log = logging.getLogger(__name__)

FORWARD_SECRET_SUITES = "ECDHE+AESGCM:ECDHE+CHACHA20"  # noqa: S105  (no password)
"""For TLS 1.2; every suite of TLS 1.3 is forward-secret."""

LOOK_SECONDS = 3600.0
"""How often what is shown is looked at again."""

Pair = tuple[Path, Path]
"""A certificate and its key."""
Load = Callable[[ssl.SSLContext], None]
"""Loads what is to be shown now. Raises `SetupFailed`, and may have loaded a part of it then."""


def server_context(certificate: Path, key: Path, password: str = "") -> ssl.SSLContext:
    """Return TLS for a listener that shows one certificate. See `show`."""
    context = empty_context()
    show(context, certificate, key, password)
    return context


def show(context: ssl.SSLContext, certificate: Path, key: Path, password: str = "") -> None:
    """Let a listener show a certificate to whoever connects from now on. Raises `SetupFailed`.

    The key may be readable by its group (as Debian's ssl-cert), not by others.
    """
    with explained(key):
        refuse_exposed(key, 0o037)
        try:
            # Empty where there is none: OpenSSL would ask the terminal for that of a sealed key.
            context.load_cert_chain(certificate, key, password=password)
        except OSError as error:  # OpenSSL's errors are of that kind, and name no file
            raise SetupFailed(f"{certificate} with {key} can't be used: {error}") from error


def client_context(ca_file: Path | None) -> ssl.SSLContext:
    """Return TLS that verifies peers: against `ca_file` alone, or against the system's trust."""
    with explained(ca_file or Path("the system's certificates")):
        try:
            context = ssl.create_default_context(cafile=ca_file)
        except ssl.SSLError as error:
            raise SetupFailed(f"{ca_file} holds no certificates: {error}") from error
    _harden(context)
    return context


class Shown:
    """What the listeners of one program show."""

    def __init__(self, own: Callable[[], Pair]) -> None:
        """`own` gives the program's own pair, issued anew where that is due; it may take a while.

        Raises `SetupFailed`.
        """
        self._own = own
        self._pair = own()
        self._following: list[tuple[ssl.SSLContext, Load]] = []

    def context(self, load: Load | None = None) -> ssl.SSLContext:
        """Return TLS for a listener that shows what `load` loads, by default the own pair."""
        context = empty_context()
        self.follow(context, load or self._load_own)
        return context

    def follow(self, context: ssl.SSLContext, load: Load) -> None:
        """Load into a context, now and whenever what is shown is looked at again."""
        load(context)
        self._following.append((context, load))

    async def keep(self) -> None:
        """Look again at what is shown, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await self.look()

    async def look(self) -> None:
        """Show what is to be shown by now. What can't be had leaves what is shown as it is."""
        with _attempted():
            self._pair = await asyncio.to_thread(self._own)
        for context, load in self._following:
            with _attempted():
                await asyncio.to_thread(load, empty_context())
                # Here: no other thread may make connections of a context while it changes.
                load(context)

    def _load_own(self, context: ssl.SSLContext) -> None:
        show(context, *self._pair)


@contextmanager
def _attempted() -> Iterator[None]:
    """Let a program run on without what can't be had in here: it will be tried again."""
    try:
        yield
    except (SetupFailed, OSError) as error:
        log.error("certificate.not-renewed", extra={"reason": str(error)})  # noqa: TRY400 - the reason says it all


def empty_context() -> ssl.SSLContext:
    """Return TLS for a listener that shows nothing yet."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _harden(context)
    return context


def _harden(context: ssl.SSLContext) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.set_ciphers(FORWARD_SECRET_SUITES)
