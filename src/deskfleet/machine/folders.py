"""Where an agent's files, and DCV's program, are by default: the places that DCV's administrators
know."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Folders:
    log_folder: Path
    tags_folder: Path
    autorun_folder: Path
    init_folder: Path | None
    """None where there are no virtual sessions, and so no init files."""
    dcv_program: Path
