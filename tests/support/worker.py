"""Which of the workers that run tests side by side this one is; there may be no other."""

from __future__ import annotations

import os

NAME = os.environ.get("PYTEST_XDIST_WORKER", "")
COUNT = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
INDEX = int(NAME.removeprefix("gw") or 0)
