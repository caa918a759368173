"""The copies of the session leader below a runtime folder: where owners can read it, and run it.

A copy is compiled for its interpreter. Its name has its content's hash, so that agents of two
versions don't get in each other's way, and it is there as a whole or not at all: it is made under
a draft's name, which nobody else chooses. A leader reads its copy as it starts, and never again:
running sessions need none. Blocking.
"""

from __future__ import annotations

import hashlib
import secrets
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

from deskfleet.agent.drivers import leader

COPIES = "leader-*"
"""What they are called, and their drafts."""
COMPILATION_SECONDS = 30.0
_PACKAGE = "session_leader"
_START = "start.py"
_START_TEXT = f"""\
import sys
sys.path.insert(0, __file__.rpartition("/")[0])
from {_PACKAGE}.session import main
main()
"""


def install_leader(runtime: Path, interpreter: str | None) -> Path:
    """Put the leader where owners can read it, compiled for the interpreter; return what to run."""
    sources = _sources()
    folder = runtime / _name(sources)
    if not folder.exists():
        draft = folder.with_suffix(f".{secrets.token_hex(4)}")
        try:
            _write_package(draft, sources)
            if interpreter is not None:
                _compile(draft, interpreter)
            draft.rename(folder)
        except OSError:
            shutil.rmtree(draft, ignore_errors=True)
            if not folder.exists():
                raise
            # Another agent was faster.
    return folder / _START


def remove_other_copies(runtime: Path) -> None:
    """Remove what agents of other versions made, and drafts that became nothing.

    Takes away what another agent that runs would need for its next start.
    """
    own = _name(_sources())
    for folder in runtime.glob(COPIES):
        if folder.name != own:
            shutil.rmtree(folder, ignore_errors=True)


def _sources() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(leader.__file__).parent.glob("*.py")}


def _name(sources: dict[str, bytes]) -> str:
    content = b"".join(name.encode() + text for name, text in sorted(sources.items()))
    return f"leader-{hashlib.blake2b(content, digest_size=6).hexdigest()}"


def _write_package(folder: Path, sources: dict[str, bytes]) -> None:
    package = folder / _PACKAGE
    for made in (folder, package):
        made.mkdir()
        made.chmod(0o755)
    for path, text in {
        folder / _START: _START_TEXT.encode(),
        **{package / name: text for name, text in sources.items()},
    }.items():
        path.write_bytes(text)
        path.chmod(0o644)


def _compile(folder: Path, interpreter: str) -> None:
    # Where it fails, or takes too long, each leader does it anew for itself.
    with suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run(
            [interpreter, "-ISE", "-m", "compileall", "-q", str(folder)],
            check=False,
            umask=0o022,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=COMPILATION_SECONDS,
        )
