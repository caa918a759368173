"""From a request to all that a start needs: found and checked, before anything is made.

Every refusal that can be known beforehand is known here: the session's type, its owner, the
administrator's programs, and what is not installed. Blocking: the name service is asked.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deskfleet.agent.drivers.owners import OwnerPolicy
from deskfleet.agent.drivers.processes import boot_id
from deskfleet.agent.drivers.session_folders import RuntimeFolders
from deskfleet.agent.drivers.xvnc_installation import XvncInstallation
from deskfleet.agent.drivers.xvnc_launch import (
    Owner,
    Programs,
    leader_order,
    rights_of,
    session_environment,
)
from deskfleet.agent.drivers.xvnc_record import SessionRecord
from deskfleet.core.records import SessionRequest, Type
from deskfleet.errors import StartFailed
from deskfleet.machine import here
from deskfleet.ports import Clock, SessionSpec

_LEADER_SHARE = 0.9
"""Of the start limit: the leader gives up first, since it can say what did not come up."""


@dataclass(frozen=True, slots=True)
class Plan:
    record: SessionRecord
    owner: Owner
    interpreter: str
    environment: dict[str, str]
    order: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Planner:
    folders: RuntimeFolders
    installation: XvncInstallation
    owners: OwnerPolicy
    clock: Clock
    init_folder: Path
    autorun_folder: Path
    geometry: str
    start_limit_seconds: float

    def plan(self, spec: SessionSpec) -> Plan:
        """Return what to start, under a fresh key; raise `StartFailed` with why it can't be."""
        request = spec.request
        if request.type is not Type.VIRTUAL:
            raise StartFailed("this server runs virtual sessions only")
        if "\0" in "".join((spec.session_id, request.owner, *request.autorun_file_arguments)):
            raise StartFailed("the request holds a character that no program can be given")
        entry = self.owners.check(request.owner)
        desktop = self.installation.desktop()
        key = secrets.token_hex(4)
        folder = self.folders.session(key)
        return Plan(
            record=SessionRecord(
                key=key,
                spec=spec,
                uid=entry.pw_uid,
                boot_id=boot_id(),
                created_at=self.clock.now(),
            ),
            owner=rights_of(entry),
            interpreter=self.installation.interpreter(),
            environment=session_environment(entry, spec.session_id, folder, desktop),
            order=leader_order(
                spec,
                folders=self.folders,
                key=key,
                xvnc=self.installation.xvnc(),
                geometry=self.geometry,
                desktop=desktop,
                programs=self._find_programs(request),
                limit_seconds=self.start_limit_seconds * _LEADER_SHARE,
            ),
        )

    def _find_programs(self, request: SessionRequest) -> Programs:
        init, autorun = request.init_file, request.autorun_file
        return Programs(
            here.find_program(self.init_folder, init, "init file") if init else None,
            here.find_program(self.autorun_folder, autorun, "autorun file") if autorun else None,
        )
