"""The end of an xvnc session, however much of it is left.

Law: what `clear` reports as gone is gone: every process, the X socket and lock, the RFB socket,
the folder, the control group, and last the record. First the leader is asked, then the kernel
(by control group), then whatever carries the session's mark in its environment is killed.
Blocking; it belongs into a thread. Clearing twice, or what is half gone, is no error.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from deskfleet.agent.drivers.cgroups import end_group, find_group
from deskfleet.agent.drivers.processes import boot_id, end_marked, end_tree, marked, reap
from deskfleet.agent.drivers.session_folders import RuntimeFolders, remove_x_traces
from deskfleet.agent.drivers.xvnc_record import Records, SessionRecord
from deskfleet.observe import seldom

log = logging.getLogger(__name__)

MARK = "DESKFLEET_SESSION"
LEADER_GRACE_SECONDS = 1.5
"""Longer than the leader's own grace and the killing that follows it."""
LIMIT_SECONDS = 10.0


def mark_of(folders: RuntimeFolders, key: str) -> bytes:
    return os.fsencode(f"{MARK}={folders.session(key)}")


def group_name(key: str) -> str:
    return f"deskfleet-{key}"


def clear(folders: RuntimeFolders, records: Records, key: str) -> bool:
    """End and remove all that has a key; return whether nothing is left.

    Goes by what is written of the session, which is all that outlives a broken start. Whatever
    goes wrong means that something is left: it is logged, and this is to be called again.
    """
    about = {"session_key": key}
    try:
        record = records.read(key)
        if record is None:
            log.warning("session.record-missing", extra=about | seldom(key))
            gone = _clear_unrecorded(folders, records, key)
        else:
            about["session_id"] = record.spec.session_id
            gone = _clear_recorded(folders, records, record)
    except Exception:
        # What an owner can bring about must end neither the agent nor its trying again.
        log.exception("session.clearing-failed", extra=about | seldom(key))
        return False
    if not gone:
        log.error("session.residue", extra=about | seldom(key))
    return gone


def _clear_recorded(folders: RuntimeFolders, records: Records, record: SessionRecord) -> bool:
    gone = record.boot_id != boot_id() or _end_leader(record)
    if record.cgroup is not None:
        gone = end_group(Path(record.cgroup), LIMIT_SECONDS) and gone
    else:
        gone = end_marked(mark_of(folders, record.key), LIMIT_SECONDS) and gone
    if record.leader is not None and gone:
        gone = remove_x_traces({record.leader.pid}, record.uid)
    if gone and folders.remove(record.key):
        records.remove(record.key)
        return True
    return False


def _clear_unrecorded(folders: RuntimeFolders, records: Records, key: str) -> bool:
    """End and remove what has no record that can be read: all that is known is its folder."""
    mark, group = mark_of(folders, key), find_group(group_name(key))
    owner, processes = folders.owner(key), marked(mark)
    if group is not None and not end_group(group, LIMIT_SECONDS):
        return False
    if not end_marked(mark, LIMIT_SECONDS):
        return False
    if owner is not None and not remove_x_traces(processes, owner):
        return False
    if not folders.remove(key):
        return False
    records.remove(key)
    return True


def _end_leader(record: SessionRecord) -> bool:
    if record.leader is None:
        return True
    gone = end_tree(record.leader, LEADER_GRACE_SECONDS, LIMIT_SECONDS)
    reap(record.leader)
    return gone
