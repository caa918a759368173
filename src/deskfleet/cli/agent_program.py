"""What `deskfleet agent run` becomes: the agent, with nothing around it.

Law: no library is loaded that an agent at rest has no use for, so that it stays below 60 MB;
`tests/bench` looks.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from deskfleet.cli.program import configured, run
from deskfleet.settings import AgentSettings

LOG_FILE = "agent.log"


def main(arguments: Sequence[str]) -> None:
    """Run an agent until it is interrupted.

    `arguments` are the configuration file, empty for none, and options as `name=value`.
    """
    file, *options = arguments
    config = Path(file) if file else None
    flags = dict(option.split("=", 1) for option in options)
    # httpx has a command line of its own, which brings rich and pygments: it takes this for "not
    # installed", and does without.
    cast(Any, sys.modules)["httpx._main"] = None
    from deskfleet.agent import main as agent_main  # noqa: PLC0415 - after the line above

    async def serve(stop: asyncio.Event) -> None:
        settings = configured(AgentSettings, config, flags, LOG_FILE)
        async with agent_main.running(settings) as agent:
            port = agent.desktop_port
            where = f"desktops on port {port}" if port else "its driver lets clients in"
            sys.stderr.write(f"agent ready: server {agent.server_id}, {where}\n")
            await stop.wait()

    run(serve)


if __name__ == "__main__":
    main(sys.argv[1:])
