"""What the service and its processes tell each other: dataclasses, pickled, each after its length."""

import asyncio
import os
import pickle
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from .. import folders
from ..generation.outputs import Output
from ..generation.params import SamplingParams
from ..generation.prefixes import PrefixCounts

LENGTH = struct.Struct(">I")  # of a message in bytes


# To the engine's process.


@dataclass(frozen=True)
class Add:
    """A sequence to draw. Those of one request share the slots with those of others."""

    id: int
    prompt: list[int]
    params: SamplingParams
    request: int
    checkpoint: Path


@dataclass(frozen=True)
class Cancel:
    id: int


@dataclass(frozen=True)
class Swap:
    """Let another checkpoint answer, once it is loaded."""

    checkpoint: Path


# From the engine's process.


@dataclass(frozen=True)
class Loaded:
    """This checkpoint answers from now on."""

    checkpoint: Path


@dataclass(frozen=True)
class NotLoaded:
    """A checkpoint cannot be loaded. The first one ends the process; the others change nothing."""

    checkpoint: Path
    reason: str


@dataclass(frozen=True)
class Pass:
    """A forward pass begins. If the process dies or hangs before it says more, one of these sequences may be why."""

    ids: tuple[int, ...]
    n_tokens: int


@dataclass(frozen=True)
class Step:
    """What a step brought, how many sequences have a slot after it, and what the prefix cache did since the last."""

    outputs: list[Output]
    n_running: int
    prefixes: PrefixCounts


@dataclass(frozen=True)
class NotTaken:
    """A sequence is not taken, and why; `for_now` if that may change."""

    id: int
    reason: str
    for_now: bool = False


def process(module: str) -> tuple[list[str], dict[str, Any]]:
    """The command of a process that runs a module's `main`, and how to start it. It ends when its stdin does."""
    path = os.pathsep.join(filter(None, [str(folders.PACKAGE.parent), os.environ.get("PYTHONPATH")]))
    return [sys.executable, "-c", f"from {module} import main; main()"], {
        "stdin": subprocess.PIPE,
        "stdout": subprocess.PIPE,
        "env": {**os.environ, "PYTHONPATH": path},
        "start_new_session": True,  # Ctrl-C in the terminal is for the service, which lets texts end
    }


def own_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Where such a process reads messages and where it writes them."""
    source, sink = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no message
    return source, sink


def pack(message: Any) -> bytes:
    content = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    return LENGTH.pack(len(content)) + content


def unpack(content: bytes) -> Any:
    """The message behind the bytes that follow its length."""
    return pickle.loads(content)


def read(file: BinaryIO) -> Any | None:
    """The next message; None where the file ends."""
    length = file.read(LENGTH.size)
    if len(length) < LENGTH.size:
        return None
    content = file.read(*LENGTH.unpack(length))
    return unpack(content) if len(content) == LENGTH.unpack(length)[0] else None


async def receive(reader: asyncio.StreamReader) -> Any | None:
    """The next message of a process; None where it has ended."""
    try:
        (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
        return unpack(await reader.readexactly(length))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
