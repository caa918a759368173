"""Fuzzing campaigns, each a program of its own, beside the tests that run meanwhile.

They are begun when the tests are known, and asked for what came of them at the end. As they are
nobody's hurry they give way to all else; what they measure is their own processor time.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

SECONDS = float(os.environ.get("FUZZ_SECONDS", "60" if os.environ.get("CI") == "true" else "3"))
SEED = os.environ.get("FUZZ_SEED") or str(random.randrange(2**32))
START_SECONDS = 60.0
PROGRAM = Path(__file__).parents[1] / "fuzz" / "campaign.py"


class Campaigns:
    def __init__(self, targets: Collection[str], at_once: int) -> None:
        self._programs: set[subprocess.Popen[str]] = set()
        self._pool = ThreadPoolExecutor(at_once, "campaign")
        self._results: dict[str, Future[dict[str, Any]]] = {
            target: self._pool.submit(self._run, target) for target in targets
        }

    def result(self, target: str) -> dict[str, Any]:
        """Wait for the end of a campaign, and return what came of it."""
        return self._results[target].result()

    def close(self) -> None:
        """End what still runs."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        for program in list(self._programs):
            program.kill()

    def _run(self, target: str) -> dict[str, Any]:
        command = ["nice", sys.executable, str(PROGRAM), target, str(SECONDS), SEED]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as program:
            self._programs.add(program)
            try:
                said, errors = program.communicate(timeout=SECONDS + START_SECONDS)
            finally:
                program.kill()
                self._programs.discard(program)
        assert program.returncode == 0, errors
        return dict(json.loads(said))
