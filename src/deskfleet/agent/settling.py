"""Waiting for what must not be left half done."""

from __future__ import annotations

import asyncio
from typing import TypeVar

T = TypeVar("T")


async def settled(job: asyncio.Future[T]) -> T:
    """Wait for the end of a job, whatever is cancelled meanwhile; then be cancelled."""
    interruption: asyncio.CancelledError | None = None
    while not job.done():
        try:
            await asyncio.wait({job})
        except asyncio.CancelledError as error:
            interruption = error
    if interruption is not None:
        if not job.cancelled():
            # Asked for, or it is called lost.
            job.exception()
        raise interruption
    return job.result()
