"""How well a small model knows a text after some minutes, by its vocabulary: bits per byte of the last tenth.

Ours is `train.py --minutes` with the defaults of its preset and vocabulary; it also validates, saves, shows samples and
draws its curve in this time. The peer is PyTorch with the same vocabulary and shape (AdamW at a rate of 2e-3, without
dropout, not tuned), which only trains, for as long, and tests after that. What nanoGPT's README tells of its characters
on the same tenth, which it validates on, stands below the table.
"""

import json
import math
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from gpt2_mlx import cli, device, files, metrics
from gpt2_mlx.corpus import vocabularies
from gpt2_mlx.corpus.dataset import TokenDataset
from gpt2_mlx.corpus.source import Source, find
from gpt2_mlx.training.config import TrainConfig

from . import ENVIRONMENT
from .common import append, introduce, machine, require, table

NANOGPT = """nanoGPT's README, characters of the same text (validation loss, nats a character, which is a byte):
1.47 by a model of 10.6M parameters in 3 minutes of an A100, 1.88 by one of 0.8M in 3 minutes of a laptop's CPU."""
PEER = {"rate": 2e-3, "warmup_steps": 100, "decay": 0.1, "compile": False, "dtype": "float32"}


@dataclass(frozen=True)
class Settings:
    """Bits per byte after some minutes of training on Tiny Shakespeare, by vocabulary, beside PyTorch."""

    runs: tuple[str, ...] = ("gpt2:10", "bytes:10", "1024:10", "1024:30")
    """What train.py is given, each as --vocab and --minutes with a colon between them."""
    peer: str = "1024:10"
    """What PyTorch is given; nothing: no peer."""
    preset: Literal["tiny", "baby"] = "tiny"
    """The preset of all runs."""
    device: Literal["auto", "gpu", "cpu"] = "auto"
    """Where to compute."""
    data: str = "tinyshakespeare"
    """The text, as train.py's --data."""


def main() -> None:
    settings = cli.parse(Settings)
    where = device.select(settings.device)
    source = find(settings.data)
    if source.note:
        print(f"NOTE: {source.note}")
    if settings.peer:
        require("torch")
    facts = machine(*["torch"] * bool(settings.peer))
    introduce(facts)
    results = {}
    for run in settings.runs:
        results[f"train.py, {run}"] = ours(source, *_parts(run), settings.preset, where)
    if settings.peer:
        results[f"PyTorch, {settings.peer}"] = peer(source, *_parts(settings.peer), settings.preset, where)
    print(report(results))
    print(NANOGPT)
    append("learning", text=source.name, peer=PEER, results=results, **facts)


def _parts(run: str) -> tuple[str, float]:
    vocab, minutes = run.split(":")
    return vocab, float(minutes)


def ours(source: Source, vocab: str, minutes: float, preset: str, where: str) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        flags = {"--data": source.files[0], "--vocab": vocab, "--preset": preset, "--minutes": minutes}
        flags |= {"--device": where, "--out": run}
        command = [sys.executable, "train.py", *(str(part) for flag in flags.items() for part in flag)]
        began = time.perf_counter()
        subprocess.run(command, env=ENVIRONMENT, check=True)
        seconds = time.perf_counter() - began
        events = {event["event"]: event for event in metrics.read(run / "metrics.jsonl")}
        steps = files.read_json(run / "train.json")["config"]["max_steps"]
    told = {"nats_per_token": events["test"]["loss"], "bits_per_byte": events["test"]["bits_per_byte"]}
    return {"seconds": seconds, "steps": steps, "n_params": events["start"]["n_params"]} | told


def peer(source: Source, vocab: str, minutes: float, preset: str, where: str) -> dict:
    vocabulary = vocabularies.find(vocab, source)
    dataset = TokenDataset.open(source, vocabulary=vocabulary)
    config = TrainConfig(preset=preset, vocab=vocab).resolved(False)
    shape = {"preset": preset if vocab == "gpt2" else f"{preset}, own vocabulary", "block_size": config.block_size}
    shape |= {"batch_size": config.batch_size, "vocab_size": vocabulary.size}
    with tempfile.TemporaryDirectory() as folder:
        ids = Path(folder) / "ids.npy"
        np.save(ids, np.asarray(dataset.split("all")))
        given = PEER | shape | {"tokens": str(ids), "steps": None, "minutes": minutes, "device": where}
        command = [sys.executable, "-m", "benchmarks.contestants.pytorch_run", json.dumps(given)]
        began = time.perf_counter()
        done = subprocess.run(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, check=True)
        seconds = time.perf_counter() - began
    told = json.loads(done.stdout)
    predicted = np.asarray(dataset.split("test"))[1:]
    nats_per_byte = told["test_loss"] * len(predicted) / vocabulary.n_bytes[predicted].sum()
    scores = {"nats_per_token": told.pop("test_loss"), "bits_per_byte": nats_per_byte / math.log(2)}
    return {"seconds": seconds} | told | scores


def report(results: dict[str, dict]) -> str:
    header = [
        "vocabulary:minutes",
        "seconds",
        "steps",
        "parameters",
        "nats per token",
        "nats per byte",
        "bits per byte",
    ]
    rows = [
        [
            name,
            f"{r['seconds']:.0f}",
            f"{r['steps']:,}",
            f"{r['n_params'] / 1e6:.2f}M",
            f"{r['nats_per_token']:.3f}",
            f"{r['bits_per_byte'] * math.log(2):.3f}",
            f"{r['bits_per_byte']:.3f}",
        ]
        for name, r in results.items()
    ]
    return table(header, rows)


if __name__ == "__main__":
    cli.run(main)
