"""Where a text comes from: it ships with the project, is fetched once, or is the user's own."""

import hashlib
import http.client
import re
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from .. import folders
from ..files import new_file
from . import shards
from .documents import SUFFIXES

TINYSHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
TINYSHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"


@dataclass(frozen=True)
class Source:
    """The files of a text in the order in which they are read, or the one folder of its token shards."""

    name: str  # a part of the run folder's name
    files: tuple[Path, ...]
    note: str = ""  # what the user must know about it


def find(data: str) -> Source:
    """The text that --data names. Raises a ValueError where there is no such text."""
    if data == "tinyshakespeare":
        return _tinyshakespeare()
    if data == "shakespeare":
        return Source("shakespeare", (folders.shipped() / "shakespeare" / "input.txt",))
    path = Path(data)
    if data and path.is_dir():
        if (path / shards.INDEX).exists():
            return Source(path.resolve().name, (path,))
        files = tuple(sorted(file for file in path.rglob("*") if file.name.lower().endswith(SUFFIXES)))
        if not files:
            raise ValueError(f"--data is the folder {data}, which holds no file in {' '.join(SUFFIXES)}")
        return Source(path.resolve().name, files)
    if path.is_file():
        whole = path.resolve()  # many texts are called input.txt; then the folder's name tells more
        stem = Path(re.sub(r"\.gz$", "", whole.name, flags=re.IGNORECASE)).stem
        return Source(whole.parent.name if stem == "input" else stem, (path,))
    raise ValueError(
        f"--data is {data!r}, which is no file or folder; allowed: tinyshakespeare, shakespeare, a text file,"
        f" a folder of files in {' '.join(SUFFIXES)}, a folder of token shards"
    )


def _tinyshakespeare() -> Source:
    path = folders.data() / "tinyshakespeare" / "input.txt"
    if not path.exists():
        try:
            _fetch_tinyshakespeare(path)
        except (OSError, ValueError, http.client.HTTPException) as error:
            note = f"Tiny Shakespeare could not be fetched ({error}); training on the text `shakespeare` instead"
            return Source("shakespeare", find("shakespeare").files, note)
    return Source("tinyshakespeare", (path,))


def _fetch_tinyshakespeare(path: Path) -> None:
    """Download Tiny Shakespeare to `path`. Nothing is written where the content is not the expected one."""
    with urllib.request.urlopen(TINYSHAKESPEARE_URL, timeout=5) as response:
        content = response.read()
    if hashlib.sha256(content).hexdigest() != TINYSHAKESPEARE_SHA256:
        raise ValueError(f"what {TINYSHAKESPEARE_URL} sent is not the expected file")
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path) as aside:
        aside.write_bytes(content)
