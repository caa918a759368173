"""One campaign as a program: `campaign.py TARGET SECONDS SEED`; prints one JSON object."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> None:
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from fuzz.targets import TARGETS  # noqa: PLC0415  the path is set above
    from support.fuzzing import Campaign  # noqa: PLC0415

    name, seconds, seed = sys.argv[1:]
    campaign = Campaign(TARGETS[name](), int(seed))
    campaign.go_on(float(seconds))
    said = {
        "runs": campaign.runs,
        "lines": len(campaign.lines),
        "slowest_ms": round(campaign.slowest * 1000, 1),
        "failure": campaign.failure,
    }
    print(json.dumps(said))


if __name__ == "__main__":
    main()
