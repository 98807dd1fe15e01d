"""train.py in a process of its own, with a tiny model."""

import re
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TINY = {"n-layer": 1, "n-head": 1, "n-embd": 8, "block-size": 16, "batch-size": 2, "dropout": 0.1, "warmup-steps": 2}
TINY |= {"max-steps": 40, "log-interval": 1, "eval-interval": 20, "save-interval": 4, "sample-interval": 0}
TINY |= {"device": "cpu"}


def command(text: Path, out: Path, *switches: str, **flags) -> list[str]:
    flags = TINY | {name.replace("_", "-"): value for name, value in flags.items()}
    pairs = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    return [sys.executable, "train.py", "--data", str(text), "--out", str(out), *pairs, *switches]


def train(text: Path, out: Path, *switches: str, **flags) -> subprocess.CompletedProcess:
    return subprocess.run(command(text, out, *switches, **flags), capture_output=True, text=True, cwd=ROOT)


def begin(arguments: list[str], env: dict[str, str] | None = None) -> subprocess.Popen:
    """A process that comes a few lines further than was read of it and then waits, so that it cannot end too soon."""
    ours, its = socket.socketpair()
    its.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1024)  # a pipe would hold all that a run tells
    with ours, its:
        process = subprocess.Popen(arguments, cwd=ROOT, env=env, stdout=its, stderr=subprocess.PIPE, text=True)
        process.stdout = ours.makefile()
    return process


def read_to_step(process: subprocess.Popen, step: int = 1) -> str:
    """What it tells up to the line of this step or, if it goes on from a later one, of its first."""
    told = ""
    while line := process.stdout.readline():
        told += line
        if (found := re.match(r"step +(\d+)/", line)) and int(found[1]) >= step:
            return told
    raise AssertionError(told + process.stderr.read())


def final_bytes(run: Path) -> dict[str, bytes]:
    folder = run / "step-00000040"
    return {name: (folder / name).read_bytes() for name in ("model.safetensors", "optimizer.safetensors")}
