"""`deskfleet broker …`, run in this process: a program of its own for each would take minutes."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deskfleet.cli import main as command_line


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Return the one document that was printed."""
        return json.loads(self.out)


def broker_command(state: Path | None, *arguments: str) -> Ended:
    """Run a command on the fleet of a state folder, as the program does, up to its return code."""
    where = () if state is None else ("--state", str(state))
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = command_line._run(["broker", *arguments, *where])
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(bool(end.code))
    return Ended(code, out.getvalue(), err.getvalue())
