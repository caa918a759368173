"""How fast a server answers a load, and what that costs it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from support.load import Load, Result, run_load
from support.measuring import processor_seconds
from support.programs import Portal


@dataclass(frozen=True)
class Served:
    """One round of one server."""

    load: Result
    processor_seconds: float

    @property
    def rate(self) -> float:
        return self.load.answers_per_second

    @property
    def cost(self) -> float:
        """Return the processor time of one answer, in microseconds."""
        return 1e6 * self.processor_seconds / self.load.answers


def serve(port: int, pid: int, ca_file: Path, *requests: bytes) -> Served:
    """Send requests in turn, from many connections, for two seconds."""
    first, *more = requests
    before = processor_seconds(pid)
    load = run_load(Load(port, str(ca_file), first, tuple(more)))
    return Served(load, processor_seconds(pid) - before)


def port_of(portal: Portal) -> int:
    port = portal._http.base_url.port
    assert port is not None
    return port
