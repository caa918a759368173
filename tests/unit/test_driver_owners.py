"""Who may own a session."""

from __future__ import annotations

import pwd

import pytest

from deskfleet.agent.drivers.owners import OwnerPolicy
from deskfleet.errors import StartFailed

ORDINARY = next((entry for entry in pwd.getpwall() if 1000 <= entry.pw_uid < 60000), None)


def refusal(policy: OwnerPolicy, owner: str) -> str:
    with pytest.raises(StartFailed) as caught:
        policy.check(owner)
    return caught.value.message


@pytest.mark.parametrize("owner", ["", "no-such-user", "EXAMPLE\\nobody-there", "a\0b", "0", "-"])
def test_an_unknown_user_is_refused(owner: str) -> None:
    assert refusal(OwnerPolicy(0), owner).startswith("there is no user")


def test_root_needs_permission() -> None:
    assert "not allowed" in refusal(OwnerPolicy(0), "root")
    assert OwnerPolicy(0, allow_root_sessions=True).check("root").pw_uid == 0
    assert "root" not in OwnerPolicy(0).ordinary_users()
    assert "root" in OwnerPolicy(0, allow_root_sessions=True).ordinary_users()


@pytest.mark.parametrize("owner", ["daemon", "nobody"])
def test_system_accounts_are_refused_even_with_root_allowed(owner: str) -> None:
    policy = OwnerPolicy(0, allow_root_sessions=True)
    assert "system account" in refusal(policy, owner)
    assert owner not in policy.ordinary_users()


def test_an_agent_of_an_ordinary_user_serves_that_user_alone() -> None:
    policy = OwnerPolicy(pwd.getpwnam("daemon").pw_uid, allow_root_sessions=True)
    assert policy.check("daemon").pw_name == "daemon"
    assert policy.ordinary_users() == ["daemon"]
    assert "another user" in refusal(policy, "root")


@pytest.mark.skipif(ORDINARY is None, reason="this machine has no ordinary user")
def test_root_serves_ordinary_users() -> None:
    assert ORDINARY is not None
    assert OwnerPolicy(0).check(ORDINARY.pw_name) == ORDINARY
    assert ORDINARY.pw_name in OwnerPolicy(0).ordinary_users()
