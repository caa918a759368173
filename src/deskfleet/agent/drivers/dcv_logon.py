"""Autorun files of console sessions on Windows: run once, as soon as the owner has logged on.

Nobody can be logged on by the agent, so the file waits with its session. It is struck out before
it is run: one that fails is not tried again and again before its owner's eyes.
"""

from __future__ import annotations

import asyncio
import logging

from deskfleet.agent.drivers.dcv_platform import DcvPlatform
from deskfleet.agent.drivers.dcv_sessions import DcvSessions
from deskfleet.agent.logins import is_logged_in
from deskfleet.errors import StartFailed

log = logging.getLogger(__name__)


async def run_what_waits(sessions: DcvSessions, platform: DcvPlatform) -> None:
    """Run the autorun files whose sessions' owners are logged on now."""
    waiting = sessions.waiting_for_log_on()
    if not waiting:
        return
    users = await asyncio.to_thread(platform.logged_in)
    for session_id, owner, file in waiting:
        if not is_logged_in(owner, users):
            continue
        if not sessions.strike_out(session_id):
            # It ended while it was asked who is logged on.
            continue
        try:
            await asyncio.to_thread(platform.start_as, owner, [file], {})
        except StartFailed as error:
            reason = {"session_id": session_id, "reason": error.message}
            log.warning("session.autorun-failed", extra=reason)
        else:
            log.info("session.autorun-started", extra={"session_id": session_id})
