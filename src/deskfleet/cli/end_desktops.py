"""The end of all desktops of this machine: for when deskfleet is removed from it.

    python -m deskfleet.cli.end_desktops list     prints the id of each session that is here
    python -m deskfleet.cli.end_desktops end      ends them, and leaves nothing of them

For root, while no agent runs: an agent would start them again. Sessions of other drivers are not
touched.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from deskfleet.agent.drivers.session_folders import RuntimeFolders
from deskfleet.agent.drivers.xvnc_clearing import clear
from deskfleet.agent.drivers.xvnc_record import Records

RUNTIME = Path("/run/deskfleet")


def main(arguments: Sequence[str], runtime: Path = RUNTIME) -> int:
    (command,) = arguments
    left = 0
    for folders, records, key in _found(runtime):
        if command == "list":
            record = records.read(key)
            sys.stdout.write(f"{record.spec.session_id if record else key}\n")
        elif not clear(folders, records, key):
            sys.stderr.write(f"deskfleet: session {key} can't be removed\n")
            left += 1
    return 1 if left else 0


def _found(runtime: Path) -> Iterator[tuple[RuntimeFolders, Records, str]]:
    """Yield what is left of every session of every agent that had its sockets here."""
    for agent in sorted(runtime.iterdir()) if runtime.is_dir() else ():
        folders = RuntimeFolders(agent)
        records = Records(folders.records)
        # Agents of other drivers have no records there.
        keys = records.keys() | folders.keys() if folders.records.is_dir() else set()
        for key in sorted(keys):
            yield folders, records, key


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
