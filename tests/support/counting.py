"""How much an action does, in steps of the interpreter: the same on every machine, however busy."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any


def steps(action: Callable[[], object]) -> int:
    """Count the steps that Python takes; what is done in C, in one call, counts for one."""
    return _monitored(action) if sys.version_info >= (3, 12) else _traced(action)


def _monitored(action: Callable[[], object]) -> int:
    """Tracing, from 3.12 on, tells no step of a function's first call."""
    count = 0

    def at_step(_code: CodeType, _offset: int) -> None:
        nonlocal count
        count += 1

    if sys.version_info >= (3, 12):
        watch, us = sys.monitoring, sys.monitoring.DEBUGGER_ID
        watch.use_tool_id(us, "counting")
        watch.register_callback(us, watch.events.INSTRUCTION, at_step)
        watch.set_events(us, watch.events.INSTRUCTION)
        try:
            action()
        finally:
            watch.set_events(us, watch.events.NO_EVENTS)
            watch.free_tool_id(us)
    return count


def _traced(action: Callable[[], object]) -> int:
    count = 0

    def in_frame(frame: FrameType, event: str, _argument: Any) -> Any:
        nonlocal count
        count += event == "opcode"
        return in_frame

    def at_call(frame: FrameType, _event: str, _argument: Any) -> Any:
        frame.f_trace_opcodes = True
        return in_frame

    before = sys.gettrace()
    sys.settrace(at_call)
    try:
        action()
    finally:
        sys.settrace(before)
    return count
