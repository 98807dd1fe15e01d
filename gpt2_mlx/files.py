"""Files and folders that appear whole or not at all: written under another name, synced, renamed. JSON. Checksums."""

import errno
import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

# What a network disk, FUSE or exFAT answers when it is asked for something that it cannot do.
_UNABLE = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTTY, errno.ENOLCK}


def sync(path: Path) -> None:
    """Wait until a file, or the list of a folder's files, is on the disk. Raises an OSError where the disk fails.

    A disk that cannot sync a folder is let off: it keeps the list of its files in its own way.
    """
    is_folder = path.is_dir()
    if is_folder and not fcntl:  # Windows opens no folder
        return
    descriptor = os.open(path, os.O_RDONLY if fcntl else os.O_RDWR)  # Windows syncs only what may be written
    try:
        _sync(descriptor)
    except OSError as error:
        if not (is_folder and error.errno in _UNABLE):
            raise
    finally:
        os.close(descriptor)


def _sync(descriptor: int) -> None:
    if hasattr(fcntl, "F_FULLFSYNC"):  # macOS: fsync alone stops at the drive's own cache
        try:
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
            return
        except OSError as error:  # a network disk (ENOTSUP), FUSE (EINVAL)
            if error.errno not in _UNABLE:
                raise
    os.fsync(descriptor)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a path to write to; when the block ends without an error, that file takes the place of `path`."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield aside
        sync(aside)
        aside.replace(path)
        sync(path.parent)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """The same for a folder that holds only files. A folder that was there before is replaced."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        for file in aside.iterdir():
            sync(file)
        sync(aside)
        remove_folder(path)  # a folder cannot be replaced in one call
        aside.rename(path)
        sync(path.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def link(path: Path, target: str) -> None:
    """Point the symbolic link `path` to `target`; the link is never missing in between."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    aside.unlink(missing_ok=True)
    try:
        if not fcntl:
            raise OSError("Windows cannot replace a link to a folder")
        aside.symlink_to(target)
    except OSError:  # a disk without links: a file that holds the name
        aside.write_text(target, encoding="utf-8")
    if path.is_dir() and not path.is_symlink():  # a copy that followed the links
        remove_folder(path)
    aside.replace(path)
    sync(path.parent)


def remove_folder(path: Path) -> None:
    """Delete a folder, if it is there. It is renamed first, so that nobody finds half of it under its name."""
    if path.exists():
        doomed = path.with_name(f".{path.name}.{os.getpid()}.old.tmp")
        path.rename(doomed)
        shutil.rmtree(doomed)


def lock(folder: Path, wait: bool = False) -> TextIO:
    """Lock a folder, which is made if need be, until the returned file is closed or the process ends.

    Unfinished files and folders that a killed process left in it are deleted. Where another process has locked it: wait
    for that process if `wait`, else raise a ValueError. On a disk without locks, say so and go on without.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / ".lock").open("a")
    try:
        _lock(file, wait)
    except BlockingIOError:
        file.close()
        raise ValueError(f"{folder} is in use by another process") from None
    except OSError as error:
        if error.errno not in _UNABLE:
            file.close()
            raise
        print(f"NOTE: the disk of {folder} has no locks ({error.strerror}): use the folder in one process", flush=True)
        return file  # what looks left over may be another process's
    _remove_leftovers(folder)
    return file


def _lock(file: TextIO, wait: bool) -> None:
    """Lock an open file. Raises a BlockingIOError where another process has locked it, unless that is waited for."""
    if fcntl:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        return
    import msvcrt

    while True:
        try:
            return msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except PermissionError:
            if not wait:
                raise BlockingIOError from None
        time.sleep(0.2)


def _remove_leftovers(folder: Path) -> None:
    for aside in folder.glob(".*.tmp"):
        if aside.is_dir() and not aside.is_symlink():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.unlink(missing_ok=True)


def read_json(path: Path) -> dict:
    """The JSON object that a file holds. Raises a ValueError that names the file where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object")
    return content


def write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def finite(value: object) -> object:
    """The value, or None for a number that JSON cannot hold: nan or an infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def sha256_of_each(paths: Iterable[Path]) -> list[str]:
    """The SHA-256 of each file in hexadecimal digits; several files are read at once, each block by block."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(_sha256, paths))


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
