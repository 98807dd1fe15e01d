"""How long it takes to a test loss of 5.865 nats on Tiny Shakespeare with a `tiny` model, from a process's start.

Both sides get about the fewest steps that bring them under the mark, found by trying; their schedules end there, and
the table tells whether they got there. Ours is
`train.py` with its defaults, which also validates once, saves and shows samples; its clock stops when it tells the test
loss. The peer is PyTorch, which only trains and tests, from token ids; its settings are the best of those tried. Test
losses after 102,400 tokens, decay 0.1, a tenth of the steps warm-up:

| batch size | rate 1e-3 | 2e-3  | 4e-3  |
|------------|-----------|-------|-------|
| 2          | 6.016     | 6.192 |       |
| 4          | 6.129     | 6.229 | 6.462 |
| 8          |           | 6.276 | 6.453 |

A batch of 2 with a rate of 1.5e-3 comes to 5.607 after 256,000 tokens.
"""

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from gpt2_mlx import cli, device, metrics
from gpt2_mlx.corpus.dataset import TokenDataset
from gpt2_mlx.corpus.source import Source, find
from gpt2_mlx.training.config import TrainConfig

from . import ENVIRONMENT
from .common import alternate, append, introduce, machine, medians, require, table

MARK = 5.865
OUR_STEPS = 86
PEER = {"batch_size": 2, "rate": 1e-3, "steps": 580, "warmup_steps": 50, "decay": 0.1, "compile": False}


@dataclass(frozen=True)
class Settings:
    """How long it takes to a test loss of 5.865 on Tiny Shakespeare, beside PyTorch."""

    quick: bool = False
    """20 steps of each, once: tells that it runs, not how long the mark takes."""
    device: Literal["auto", "gpu", "cpu"] = "auto"
    """Where to compute."""
    data: str = "tinyshakespeare"
    """The text, as train.py's --data."""
    steps: int = OUR_STEPS
    """Steps of ours."""
    peer_steps: int = PEER["steps"]
    """Steps of the peer's."""


def main() -> None:
    settings = cli.parse(Settings)
    require("torch")
    where = device.select(settings.device)
    source = find(settings.data)
    if source.note:
        print(f"NOTE: {source.note}")
    facts = machine("torch")
    introduce(facts)
    if settings.quick:
        settings = replace(settings, steps=20, peer_steps=20)
    dataset = TokenDataset.open(source)  # from here on in the cache that train.py reads
    with tempfile.TemporaryDirectory() as folder:
        ids = Path(folder) / "ids.npy"
        np.save(ids, np.asarray(dataset.tokens[: len(dataset.tokens)]))
        contestants = {
            f"train.py, {settings.steps} steps": lambda: ours(source, settings.steps, where),
            f"PyTorch, {settings.peer_steps} steps": lambda: peer(ids, settings.peer_steps, where),
        }
        results = alternate(1 if settings.quick else 3, contestants)
    print(report(results))
    append("time_to_loss", mark=MARK, text=source.name, peer=PEER, results=results, **facts)


def ours(source: Source, steps: int, where: str) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        flags = {"--data": source.files[0], "--preset": "tiny", "--device": where, "--out": run, "--max-steps": steps}
        flags |= {"--eval-interval": steps}
        command = [sys.executable, "train.py", *(str(part) for flag in flags.items() for part in flag)]
        began = time.perf_counter()
        with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as process:
            told = next((time.perf_counter() for line in process.stdout if line.startswith("test loss")), None)
            process.stdout.read()
        if told is None:
            raise ValueError("train.py ended early; what it wrote to stderr stands above")
        loss = next(event["loss"] for event in metrics.read(run / "metrics.jsonl") if event["event"] == "test")
    return {"seconds": told - began, "test_loss": loss}


def peer(ids: Path, steps: int, where: str) -> dict:
    config = TrainConfig(preset="tiny").resolved(False)
    settings = PEER | {"tokens": str(ids), "preset": "tiny", "block_size": config.block_size, "steps": steps}
    settings |= {"warmup_steps": min(PEER["warmup_steps"], steps // 10), "dtype": "float32", "device": where}
    command = [sys.executable, "-m", "benchmarks.contestants.pytorch_run", json.dumps(settings)]
    began = time.perf_counter()
    done = subprocess.run(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise ValueError("PyTorch's run ended early; what it wrote to stderr stands above")
    return json.loads(done.stdout) | {"seconds": seconds}


def report(results: dict[str, list[dict]]) -> str:
    times = medians({name: [r["seconds"] for r in rounds] for name, rounds in results.items()})
    ours = next(iter(times.values()))
    rows = []
    for name, seconds in times.items():
        loss = max(r["test_loss"] for r in results[name])
        rows.append([name, f"{seconds:.1f}", f"{ours / seconds:.2f}", f"{loss:.3f}", "yes" if loss <= MARK else "no"])
    return table(["", "seconds", "ours to it", "test loss", f"under {MARK}"], rows)


if __name__ == "__main__":
    cli.run(main)
