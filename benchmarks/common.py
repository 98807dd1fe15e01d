"""What the benchmarks share: contestants that take turns, a table, the machine, a line in results.jsonl."""

import datetime
import importlib.metadata
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from gpt2_mlx import device

RESULTS = Path(__file__).parent / "results.jsonl"


def alternate(rounds: int, contestants: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
    """What each contestant returns, round by round: what disturbs the machine disturbs them all."""
    measured = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, contestant in contestants.items():
            measured[name].append(contestant())
    return measured


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
        "device": device.description(),
        "system": platform.platform(),
        "versions": {"python": platform.python_version(), **versions},
    }


def append(benchmark: str, **facts: object) -> None:
    """Add a line to results.jsonl."""
    line = {"benchmark": benchmark, "time": datetime.datetime.now(datetime.timezone.utc).isoformat(), **facts}
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
