"""Schemathesis against the live broker on SQLite: all of its checks, stateful, no failure, no 5xx.

Two runs at once share the cases, and go by the description that the broker serves. One sends what
is allowed, and follows links from operation to operation. The other sends what has to be refused.
"""

from __future__ import annotations

import base64
import copy
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

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

[checks.negative_data_rejection]
expected-statuses = [400, 401, 404, 405, 413]

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
        self.served = yaml.safe_load(api.send("GET", "/dcv-session-manager-api.yaml").content)
        (folder / "config.toml").write_text(CONFIG.format(ca_file=broker.ca_file))
        api.close()

    def run(self, description: Any, mode: str, examples: int, **environment: str) -> int:
        """Run all phases with all checks; return how many cases there were.

        `examples` is for each operation, and there are more: those of the description, its
        corner cases, and what is reached by links.
        """
        described = self._folder / f"{mode}.yaml"
        described.write_text(yaml.safe_dump(description))
        report = self._folder / f"{mode}.json"
        program = Path(sys.executable).with_name("schemathesis")
        done = subprocess.run(
            [
                *(str(program), "--config-file", "config.toml", "run", described.name),
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


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_what_is_described_is_what_happens(schemathesis: Schemathesis) -> None:
    linked = copy.deepcopy(schemathesis.served)
    answer = linked["paths"]["/createSessions"]["post"]["responses"]["200"]
    answer["links"].update(LINKS)
    with ThreadPoolExecutor() as pool:
        positive = pool.submit(schemathesis.run, linked, "positive", EXAMPLES, ALWAYS_CREATE="1")
        negative = pool.submit(schemathesis.run, schemathesis.served, "negative", EXAMPLES)
        allowed, refused = positive.result(), negative.result()
    print(f"{allowed} cases were allowed, {refused} refused")
    assert allowed + refused >= CASES
