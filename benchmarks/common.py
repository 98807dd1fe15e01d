"""What the benchmarks share: contestants that take turns, a table, the machine, a line in results.jsonl."""

import datetime
import importlib.metadata
import importlib.util
import json
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from gpt2_mlx import inventory

from . import ENVIRONMENT
from .worker import Worker

RESULTS = Path(__file__).parent / "results.jsonl"
Measured = TypeVar("Measured")


def alternate(rounds: int, contestants: dict[str, Callable[[], Measured]]) -> dict[str, list[Measured]]:
    """What each contestant returns, round by round: what disturbs the machine disturbs them all."""
    measured = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, contestant in contestants.items():
            measured[name].append(contestant())
    return measured


def alternate_processes(rounds: int, contestants: dict[str, tuple[str, dict]]) -> dict[str, dict]:
    """As `alternate`, each contestant ("module:function", arguments) in a process of its own, all alive at once.

    A peer that does not run on this machine is told and left out. Raises a ValueError where gpt2_mlx does not.

    Returns:
        By contestant each number's list over the rounds, and `peak_gb`, its most memory: on a GPU that of its arrays.
    """
    workers: dict[str, Worker] = {}
    try:
        for name, (function, settings) in contestants.items():
            try:
                workers[name] = Worker(function, **settings)
            except ValueError as error:
                leave_out(name, error)
        measured = alternate(rounds, workers)
    finally:
        for worker in workers.values():
            worker.close()
    results = {}
    for name, answers in measured.items():
        results[name] = {key: [answer[key] for answer in answers] for key in answers[0]}
        results[name]["peak_gb"] = max(results[name]["peak_gb"])
    return results


def leave_out(name: str, error: Exception) -> None:
    """Say that a contestant does not run on this machine; raises the error where it is gpt2_mlx."""
    if name.startswith("gpt2_mlx"):
        raise error
    print(f"NOTE: {name} is left out: {error}", file=sys.stderr)


def require(*packages: str) -> None:
    """Raise a ValueError where a peer is not installed."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"{', '.join(missing)} not found: `pip install -r requirements-bench.txt` brings the peers")


def seconds(call: Callable[[], object]) -> float:
    """How long a call takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def medians(measured: dict[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in measured.items()}


def table(header: list[str], rows: list[list[str]]) -> str:
    """Rows in Markdown, as wide as their cells."""
    widths = [max(map(len, column)) for column in zip(header, *rows)]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(f"| {' | '.join(cell.ljust(width) for cell, width in zip(line, widths))} |" for line in lines)


def machine(*packages: str) -> dict:
    """Where and with what a benchmark runs."""
    versions = {name: importlib.metadata.version(name) for name in ("mlx", *packages)}
    return {
        "device": inventory.description(),
        "system": platform.platform(),
        "versions": {"python": platform.python_version(), **versions},
        "environment": {name: value for name, value in ENVIRONMENT.items() if name.startswith(TUNING)},
        "commit": commit(),
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
    }


TUNING = ("OPENBLAS_", "OMP_", "MKL_", "MLX_", "GPT2_MLX_")  # variables that change what is measured


def commit() -> str | None:
    """The commit that is measured, with a + where the files differ from it."""
    git = ["git", "-C", str(RESULTS.parent), "describe", "--always", "--exclude=*", "--dirty=+"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def introduce(facts: dict) -> None:
    """Print what `machine` found."""
    print(f"{facts['device']}, {facts['system']}")
    for kind in ("versions", "environment"):
        print(", ".join(f"{name} {value}" for name, value in facts[kind].items()))


def append(benchmark: str, **facts: object) -> None:
    """Add a line to results.jsonl."""
    line = {"benchmark": benchmark, "time": datetime.datetime.now(datetime.timezone.utc).isoformat(), **facts}
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
