"""An event loop whose time stands still until a test lets it pass.

Everything that runs in it is deterministic: there are no threads and no sockets, a timer goes off
when the test has moved the time to it, and nothing happens while the test doesn't run the loop.

Laws: `settle` runs all that can run at this instant, and fails where that never comes to an end;
`advance` stops at every timer on its way. Tasks belong to the node in whose name they were begun,
so that a node can be killed with all that it was about to do.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from typing import Any

BEGIN = datetime(2030, 1, 1, tzinfo=UTC)
MOST_ROUNDS = 5000
"""Of callbacks at one instant, before the machine is said to spin."""


class Spinning(AssertionError):
    """Something goes on and on without any time passing."""


class _NoFiles(selectors.SelectSelector):
    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        return []


node: ContextVar[str] = ContextVar("node", default="test")
"""In whose name the running code runs."""


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        super().__init__(_NoFiles())
        self.seconds = 1000.0
        self.connect: Callable[..., Any] | None = None
        """How what runs in it reaches others."""
        self.tasks: dict[str, dict[asyncio.Task[Any], None]] = {}
        self._failed: list[tuple[str, asyncio.Task[Any]]] = []
        self.set_task_factory(self._task_of_node)  # type: ignore[arg-type]  # 3.11 gives no name
        self.failures: list[str] = []
        self.set_exception_handler(self._unexpected)

    def time(self) -> float:
        return self.seconds

    def settle(self) -> None:
        """Run all that can run without any time passing."""
        if self._ready or self._is_due():  # type: ignore[attr-defined]
            self.run_until_complete(self._quiet())

    def advance(self, seconds: float) -> None:
        until = self.seconds + seconds
        self.settle()
        while (due := self._next()) is not None and due <= until:
            self.seconds = max(self.seconds, due)
            self.settle()
        self.seconds = until
        self.settle()

    def begin(self, name: str, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Begin a task in the name of a node."""
        token = node.set(name)
        try:
            return self.create_task(work)
        finally:
            node.reset(token)

    def kill(self, name: str) -> None:
        """End all tasks of a node; whoever kills it has cut its ties to the world before."""
        for _ in range(50):
            alive = [task for task in self.tasks.pop(name, {}) if not task.done()]
            for task in alive:
                task.cancel()
            if not alive:
                self._failed = [failed for failed in self._failed if failed[0] != name]
                return
            self.settle()
        raise Spinning(f"{name} can't be ended")

    def unheard(self) -> list[str]:
        """Return the failures of tasks that nobody has asked for."""
        return [
            f"{name}: {task._exception!r}" for name, task in self._failed if task._log_traceback
        ]

    async def _quiet(self) -> None:
        for _ in range(MOST_ROUNDS):
            await asyncio.sleep(0)
            if not self._ready and not self._is_due():  # type: ignore[attr-defined]
                return
        raise Spinning(f"the instant {self.seconds} does not end: {self._ready}")  # type: ignore[attr-defined]

    def _next(self) -> float | None:
        timers = self._scheduled  # type: ignore[attr-defined]
        return timers[0].when() if timers else None

    def _is_due(self) -> bool:
        due = self._next()
        return due is not None and due <= self.seconds

    def _task_of_node(
        self, loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any], context: Any = None
    ) -> asyncio.Task[Any]:
        task = asyncio.Task(work, loop=loop, context=context)
        name = node.get() if context is None else context.get(node, "test")
        self.tasks.setdefault(name, {})[task] = None
        task.add_done_callback(lambda done: self._done(name, done))
        return task

    def _done(self, name: str, task: asyncio.Task[Any]) -> None:
        self.tasks.get(name, {}).pop(task, None)
        if task._exception is not None:
            self._failed.append((name, task))

    def _unexpected(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        message = str(context.get("message"))
        # Asked for by `unheard`, for this comes whenever the garbage is collected.
        if "never retrieved" not in message:
            self.failures.append(f"{message}: {context.get('exception')!r}")


class VirtualClock:
    """The clock of one machine.

    Its wall clock may go wrong, the time it feels does not; but on a slow machine each look at the
    clock comes a `tick` after the one before.
    """

    def __init__(self, loop: VirtualLoop, skew: float = 0.0, tick: float = 0.0) -> None:
        self._loop = loop
        self._skew = skew
        self._tick = tick
        self._felt = 0.0

    def now(self) -> datetime:
        return BEGIN + timedelta(seconds=self._loop.seconds + self._skew)

    def monotonic(self) -> float:
        self._felt = max(self._felt + self._tick, self._loop.seconds)
        return self._felt
