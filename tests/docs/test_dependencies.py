"""Each package that deskfleet asks for is argued for."""

from __future__ import annotations

import re
import tomllib
from itertools import chain
from pathlib import Path

ROOT = Path(__file__).parents[2]
ARGUED = (ROOT / "docs" / "decisions" / "0002-dependencies.md").read_text()


def test_each_has_its_row() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    rows = [line.split("|")[1].lower() for line in ARGUED.splitlines() if line.startswith("| ")]
    words = set(re.split(r"[\s,;]+", " ".join(rows)))
    names = {re.split(r"[><=!~;\[ ]", each)[0].lower() for each in asked}
    missing = {name for name in names - words if not name.startswith("types-")}
    assert missing == set()
