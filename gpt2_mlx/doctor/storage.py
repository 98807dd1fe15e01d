"""Checks of the folder that runs are written to: not every disk can sync, lock and link."""

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from .. import checkpoint, files
from .finding import Finding

# exits with 0 where it gets the lock of the file, with 3 where another process has it
_LOCK = """
import fcntl, sys
try:
    fcntl.flock(open(sys.argv[1], "w"), fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    sys.exit(3)
"""


def disk(out: Path) -> Finding:
    """Sync, lock and link in the folder `out` or, where it is not there, in the nearest folder above it."""
    place = next(path for path in (out.absolute(), *out.absolute().parents) if path.is_dir())
    with tempfile.TemporaryDirectory(prefix=".gpt2_mlx_doctor_", dir=place, ignore_cleanup_errors=True) as folder:
        faults = [fault for trial in (_sync, _lock, _link) if (fault := _try(trial, Path(folder)))]
    return Finding(not faults, "; ".join([f"sync, lock and link in {place}", *faults]))


def _try(trial: Callable[[Path], str | None], folder: Path) -> str | None:
    """What is wrong, if something is."""
    try:
        return trial(folder)
    except (OSError, ValueError) as error:
        return f"{trial.__name__.strip('_')} fails: {error}"


def _sync(folder: Path) -> str | None:
    content = b"what was written"
    with files.new_file(folder / "file") as file:
        file.write_bytes(content)
    with files.new_folder(folder / "checkpoint") as aside:
        (aside / "file").write_bytes(content)
    whole = all((folder / name).read_bytes() == content for name in ("file", "checkpoint/file"))
    return None if whole else "a file that was synced does not hold what was written"


def _lock(folder: Path) -> str | None:
    locked = folder / "locked"
    with files.lock(locked):
        while_held = _status_of_another(locked)
    afterwards = _status_of_another(locked)
    if while_held == 0:
        return "a second process gets a folder's lock too: two runs could write there at once"
    return None if (while_held, afterwards) == (3, 0) else "a lock is not given back"


def _status_of_another(locked: Path) -> int:
    """The status of another process that asks for the lock of a folder."""
    return subprocess.run([sys.executable, "-c", _LOCK, str(locked / ".lock")], stderr=subprocess.DEVNULL).returncode


def _link(folder: Path) -> str | None:
    for target in ("one", "two"):  # made, then replaced
        (folder / target).mkdir()
        files.link(folder / "latest", target)
        found = checkpoint.linked(folder, "latest").resolve().name
        if found != target:
            return f"a link to {target} leads to {found}"
    return None
