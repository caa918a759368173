"""What an agent does where it can't keep what it has to know."""

from __future__ import annotations

from pathlib import Path

from support.mounts import read_only
from support.programs import Program, Site
from support.waiting import until


def test_a_folder_that_nothing_can_be_kept_in_enrols_nobody(tmp_path: Path) -> None:
    """Started again and again, it would else be another server each time."""
    with Site(tmp_path) as site, read_only(tmp_path / "agent"):
        site.start_broker()
        for _ in range(2):
            agent = site.start_agent("agent", "--driver", "simulated")
            assert agent.process.wait(60) == site.stop("agent") == 1
            said = site.log("agent")
            assert "Traceback" not in said
            assert f"deskfleet: the state folder {tmp_path / 'agent'} can't be used: " in said
        assert site.command("describe-agent-clients").endswith("\n[ ]\n")


def test_a_state_folder_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "agent").write_text("")
    with Site(tmp_path) as site:
        site.start_broker()
        agent = site.start_agent("agent", "--driver", "simulated")
        assert agent.process.wait(60) == 1
        assert "can't be used: Not a directory" in site.log("agent").splitlines()[-1]


def test_two_agents_are_not_one_server(tmp_path: Path) -> None:
    with Site(tmp_path) as site:
        site.start_broker()
        first = site.start_agent("agent", "--driver", "simulated")
        portal = site.portal()
        until(portal.available)
        second = Program(
            ["agent", "run", "--state", str(tmp_path / "agent"), "--driver", "simulated"],
            tmp_path / "second.log",
        )
        assert second.wait() == 1
        said = (tmp_path / "second.log").read_text()
        assert said.startswith(f"deskfleet: an agent already runs with the state folder {tmp_path}")
        assert said.count("\n") == 1
        assert portal.available()
        # The folder is free again as soon as its agent is dead, however it died.
        first.kill()
        site.start_agent("agent", "--driver", "simulated")
        until(lambda: site.log("agent").count('"link.opened"') == 2)
