"""The operating system under a program: every call that POSIX and Windows don't share.

`here` is one of two modules with the same functions, `posix` or `windows`; the type checker holds
both to one interface, as each caller is checked for each of them. Law: what isn't in here runs on
both. A module that has to be POSIX only (the xvnc driver, `deskfleet up`) is imported by nothing
on the way of `deskfleet agent run --driver dcv`, which is what runs on Windows.
"""

from __future__ import annotations

import sys

if sys.platform == "win32":
    from deskfleet.machine import windows as here
else:
    from deskfleet.machine import posix as here

__all__ = ["here"]
