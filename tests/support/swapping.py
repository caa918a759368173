"""Somebody who exchanges two names in a loop: `swapping.py UID GID ONE OTHER`.

It goes on until it is killed, or whoever began it has ended. It becomes that user before it begins.
The exchange is one system call (renameat2), so that there is always something under both names,
and half of the time it is the other thing. Prints a line once it has begun.
"""

from __future__ import annotations

import ctypes
import os
import sys

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2

if __name__ == "__main__":
    uid, gid, one, other = (text.encode() for text in sys.argv[1:])
    os.setgroups([])
    os.setgid(int(gid))
    os.setuid(int(uid))
    exchange = ctypes.CDLL(None, use_errno=True).renameat2
    began_by = os.getppid()
    failed = exchange(_AT_FDCWD, one, _AT_FDCWD, other, _RENAME_EXCHANGE)
    print("can't" if failed else "begun", flush=True)
    while os.getppid() == began_by:
        exchange(_AT_FDCWD, one, _AT_FDCWD, other, _RENAME_EXCHANGE)
