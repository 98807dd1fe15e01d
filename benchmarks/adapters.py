"""Fine-tuning of all weights, beside an adapter (LoRA) and an adapter on a base in 4 bits (QLoRA).

The base is a 124M model of random weights, in the hub's layout; the text is Tiny Shakespeare. Each run is one of
train.py's, in a process of its own, one after the other. Then peft, transformers and mlx_lm open what it left, and
their logits are compared with ours.
"""

import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

import numpy as np

from gpt2_mlx import checkpoint, cli, device, metrics, pretrained
from gpt2_mlx.config import PRESETS
from gpt2_mlx.training import memory, run
from gpt2_mlx.training.config import TrainConfig
from gpt2_mlx.training.settle import settle

from .common import append, introduce, machine, require, table
from .weights import save_random
from .worker import peak_gb

KINDS = {"all weights": {}, "LoRA": {"lora_rank": 8}, "QLoRA, 4 bits": {"lora_rank": 8, "quantize": 4}}


@dataclass(frozen=True)
class Settings:
    """Memory, time and files of fine-tuning 124M weights or an adapter of them; whether other programs agree."""

    steps: int = 10
    """Steps of each run, of 1 x 256 tokens; the first, which compiles, does not count."""
    preset: Literal["tiny", "gpt2", "gpt2-medium"] = "gpt2"
    """Size of the base."""
    data: str = "tinyshakespeare"
    """The text, as train.py's --data."""


def main() -> None:
    settings = cli.parse(Settings)
    if settings.steps < 2:
        raise ValueError(f"--steps is {settings.steps}; it must be at least 2")
    require("torch", "transformers", "peft", "mlx_lm")
    facts = machine("torch", "transformers", "peft", "mlx-lm")
    introduce(facts)
    results, logits = {}, {}
    with tempfile.TemporaryDirectory() as scratch, get_context("spawn").Pool(1, maxtasksperchild=1) as process:
        base = Path(scratch) / "base"
        process.apply(save_random, (PRESETS[settings.preset], base))
        for kind, fields in KINDS.items():
            out = Path(scratch) / kind
            results[kind] = process.apply(train, (settings, base, out, fields))
            logits[kind] = process.apply(differences, (base, out / "latest", Path(scratch) / "fused"))
    print(report(results))
    print(agreement(logits))
    append("adapters", preset=settings.preset, steps=settings.steps, results=results, logits=logits, **facts)


def train(settings: Settings, base: Path, out: Path, fields: dict) -> dict:
    """Train as train.py does, but for the curve that it draws. Returns what it took."""
    often = {"max_steps": settings.steps, "log_interval": 1, "eval_tokens": 256, "sample_interval": 0, "patience": 0}
    shape = {"batch_size": 1, "block_size": min(256, pretrained.read_config(base).block_size)}
    flags = TrainConfig(data=settings.data, init_from=str(base), out=str(out), **shape, **often, **fields)
    settled = settle(flags, lambda default: default)
    with run.opened(settled) as trainer:
        trainer.fit()
    logged = [event for event in metrics.read(out / "metrics.jsonl") if event["event"] == "train"]
    files = (out / "latest").resolve().iterdir()
    return {
        "trained": trainer.model.n_trained,
        "seconds": statistics.median(shape["block_size"] / event["tokens_per_s"] for event in logged[1:]),
        "peak_gb": peak_gb(),
        "arrays_gb": device.peak_memory_gb(),
        "predicted_gb": memory.peak(settled.config) / 1e9,
        "checkpoint_mb": sum(file.stat().st_size for file in files) / 1e6,
    }


def differences(base: Path, folder: Path, fused: Path) -> dict[str, float]:
    """How far the logits of other programs are at most from ours for a checkpoint, and, as one model, for `fused`.

    An adapter that learned beside a rounded base is compared as one model alone: the others do not round the base.
    """
    import mlx_lm
    import peft
    import transformers

    device.select("cpu")
    ours = pretrained.load(folder)
    tokens = np.random.default_rng(0).integers(0, ours.config.vocab_size, (1, min(256, ours.config.block_size)))
    want = _logits(ours, tokens)
    checkpoint.save(fused, ours)
    in_torch = transformers.AutoModelForCausalLM.from_pretrained
    found = {"the base": _logits(pretrained.load(base), tokens)}
    config = folder / "adapter_config.json"
    if config.exists() and '"quantize": null' in config.read_text():
        found["peft"] = _torch_logits(peft.PeftModel.from_pretrained(in_torch(base), folder), tokens)
        found["mlx_lm, adapter"] = _logits(mlx_lm.load(str(base), adapter_path=str(folder))[0], tokens)
    found["transformers"] = _torch_logits(in_torch(fused), tokens)
    found["mlx_lm"] = _logits(mlx_lm.load(str(fused))[0], tokens)
    return {name: float(np.abs(got - want).max()) for name, got in found.items()}


def _logits(model: Callable, tokens: np.ndarray) -> np.ndarray:
    import mlx.core as mx  # not before gpt2_mlx

    return np.array(model(mx.array(tokens)))


def _torch_logits(model, tokens: np.ndarray) -> np.ndarray:
    import torch

    with torch.no_grad():
        return model.eval()(torch.tensor(tokens)).logits.numpy()


def report(results: dict[str, dict]) -> str:
    rows = [
        [
            kind,
            f"{result['trained']:,}",
            f"{result['seconds']:.2f}",
            f"{result['peak_gb']:.2f}",
            f"{result['arrays_gb']:.2f}",
            f"{result['predicted_gb']:.2f}",
            f"{result['checkpoint_mb']:,.1f}",
        ]
        for kind, result in results.items()
    ]
    return table(["what learns", "numbers", "s/step", "process, GB", "arrays, GB", "predicted", "checkpoint, MB"], rows)


def agreement(logits: dict[str, dict[str, float]]) -> str:
    names = list(max(logits.values(), key=len))
    cells = [[f"{found[name]:.1e}" if name in found else "" for name in names] for found in logits.values()]
    return table(["logits differ from ours in", *names], [[kind, *row] for kind, row in zip(logits, cells)])


if __name__ == "__main__":
    cli.run(main)
