"""How much an action does, in steps of the interpreter: the same on every machine, however busy."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any


def steps(action: Callable[[], object]) -> int:
    """Count the steps that Python takes; what is done in C, in one call, counts for one."""
    count = 0

    def in_frame(frame: FrameType, event: str, _argument: Any) -> Any:
        nonlocal count
        count += event == "opcode"
        return in_frame

    def at_call(frame: FrameType, _event: str, _argument: Any) -> Any:
        frame.f_trace_opcodes = True
        return in_frame

    before = sys.gettrace()
    # From Python 3.12 on, nobody is told of steps before some frame has asked for them.
    sys._getframe().f_trace_opcodes = True
    sys.settrace(at_call)
    try:
        action()
    finally:
        sys.settrace(before)
    return count
