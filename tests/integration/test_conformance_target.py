"""The conformance suite can be pointed at a broker that it has not started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.programs import LiveBroker

SUITE = Path(__file__).parents[1] / "conformance"


@pytest.mark.parametrize("is_trusted", [True, False])
def test_its_certificate_is_named_or_trusted_by_the_system(
    live_broker: LiveBroker, is_trusted: bool
) -> None:
    """`make conformance` without `CA=` leaves that empty."""
    ca_file = str(live_broker.ca_file)
    trusted = {"SSL_CERT_FILE": ca_file} if is_trusted else {}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", "-p", "no:cacheprovider"),
            *(str(SUITE / "test_01_getting_started.py"), "-k", "TestHealth"),
        ],
        cwd=SUITE.parents[1],
        env={
            **os.environ,
            "CONFORMANCE_URL": live_broker.url,
            "CONFORMANCE_CLIENT_ID": live_broker.client_id,
            "CONFORMANCE_CLIENT_PASSWORD_FILE": str(live_broker.client_password_file),
            "CONFORMANCE_CA": "" if is_trusted else ca_file,
            **trusted,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
