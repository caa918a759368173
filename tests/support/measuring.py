"""What benches share: medians, memory, and how a figure is told."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from statistics import median, quantiles

MB = 2**20


def told(title: str, **figures: float | str) -> None:
    """Print a figure and what it was made from, for whoever runs the benches."""
    parts = [
        f"{name.replace('_', ' ')} {_short(value) if isinstance(value, float) else value}"
        for name, value in figures.items()
    ]
    print(f"\n{title}: {', '.join(parts)}")


def spread(values: Iterable[float]) -> str:
    """Return the median with the quartiles around it."""
    low, middle, high = quantiles(sorted(values), n=4)
    return f"{_short(middle)} ({_short(low)} to {_short(high)})"


def _short(value: float) -> str:
    """Print three digits, or all that stand before the point."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def ratio(above: Iterable[float], below: Iterable[float]) -> float:
    """Return the median of the ratios of pairs that were measured side by side."""
    return median(one / other for one, other in zip(above, below, strict=True))


def processor_seconds(pid: int) -> float:
    """Return what a process has used of the processors, its own work and the system's for it."""
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")


def resident(pid: int) -> float:
    """Return the memory that a process holds, in MB, all that it shares with others included."""
    return _rollup(pid, "Rss:")


def proportional(pid: int) -> float:
    """Return the memory of a process in MB, of shared pages only its part."""
    return _rollup(pid, "Pss:")


def _rollup(pid: int, field: str) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / MB for line in lines if line.startswith(field))
