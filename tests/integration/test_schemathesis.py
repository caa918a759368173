"""Schemathesis against the live broker on SQLite: all of its checks, stateful, no failure, no 5xx.

Two runs share the cases. One sends what the description allows, and follows the links from
operation to operation. The other sends what the broker has to refuse; it goes by a description
that says so exactly (`openapi.without_promises`): an entry that lacks what is required of it
fails alone, and null is as good as absent, as the original has it.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from support import openapi
from support.conformance import Api, Target
from support.programs import LiveBroker

CI = os.environ.get("CI") == "true"
CASES, EXAMPLES = (5_000, 180) if CI else (300, 10)
ID, OWNER = "$response.body#/SuccessfulList/0/Id", "$response.body#/SuccessfulList/0/Owner"
PERMISSIONS = base64.b64encode(b"[permissions]\n%owner% allow builtin\n").decode()
LINKS: dict[str, dict[str, Any]] = {
    "Describe": {"operationId": "describeSessions", "requestBody": {"SessionIds": [ID]}},
    "TakePicture": {"operationId": "getSessionScreenshots", "requestBody": [{"SessionId": ID}]},
    "ChangePermissions": {
        "operationId": "updateSessionPermissions",
        "requestBody": [{"SessionId": ID, "Owner": OWNER, "PermissionsFile": PERMISSIONS}],
    },
    "Delete": {
        "operationId": "deleteSessions",
        "requestBody": [{"SessionId": ID, "Owner": OWNER}],
    },
}
"""Beside those of the description: generators of clients choke on links with bodies in it."""
CONFIG = """
tls-verify = "{ca_file}"
headers = {{ Authorization = "Bearer ${{ACCESS_TOKEN}}" }}

[[operations]]
include-path = "/oauth2/token"
headers = {{ Authorization = "Basic ${{CREDENTIALS}}" }}
"""


class Schemathesis:
    """Runs the program in a folder; secrets go by its environment."""

    def __init__(self, folder: Path, broker: LiveBroker) -> None:
        api = Api(Target.of(broker))
        pair = f"{broker.client_id}:{broker.client_password}"
        self._folder = folder
        self._environment = {
            **os.environ,
            "ACCESS_TOKEN": api.token(),
            "CREDENTIALS": base64.b64encode(pair.encode()).decode(),
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "SCHEMATHESIS_HOOKS": "support.schemathesis_hooks",
        }
        self._url = broker.url
        (folder / "config.toml").write_text(CONFIG.format(ca_file=broker.ca_file))
        api.close()

    def run(self, description: Any, mode: str, examples: int, **environment: str) -> int:
        """Run all phases with all checks; return how many cases there were.

        `examples` is for each operation, and there are more: those of the description, its
        corner cases, and what is reached by links.
        """
        (self._folder / "api.yaml").write_text(yaml.safe_dump(description))
        report = self._folder / "report.json"
        program = Path(sys.executable).with_name("schemathesis")
        done = subprocess.run(
            [
                *(str(program), "--config-file", "config.toml", "run", "api.yaml"),
                *("--url", self._url, "--mode", mode, "--checks", "all", "--no-color"),
                *("--max-examples", str(examples), "--continue-on-failure"),
                *("--report", "json", "--report-json-path", str(report)),
            ],
            cwd=self._folder,
            env={**self._environment, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return _cases(json.loads(report.read_text()))


def _cases(report: Any) -> int:
    return int(report["test_cases"]["generated"])


@pytest.fixture
def schemathesis(tmp_path: Path, live_broker: LiveBroker) -> Schemathesis:
    return Schemathesis(tmp_path, live_broker)


@pytest.mark.timeout(1200)
def test_what_is_described_is_what_happens(schemathesis: Schemathesis) -> None:
    described = openapi.description()
    answer = described["paths"]["/createSessions"]["post"]["responses"]["200"]
    answer["links"].update(LINKS)
    allowed = schemathesis.run(described, "positive", EXAMPLES, ALWAYS_CREATE="1")
    relaxed = openapi.without_promises(openapi.description())
    refused = schemathesis.run(relaxed, "negative", EXAMPLES)
    print(f"{allowed} cases were allowed, {refused} refused")
    assert allowed + refused >= CASES
