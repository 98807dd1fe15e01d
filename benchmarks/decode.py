"""One text at a time with GPT-2's 124M weights: tokens a second, and how long a long prompt takes to its first token.

Greedy, with random weights in the Hugging Face layout, which all contestants open. Each token reads all weights, so the
rate is told as GB/s beside what all cores reach that only read. Rates leave the first token, the prompt's, out.
"""

import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from gpt2_mlx import cli, device
from gpt2_mlx.config import PRESETS

from .common import alternate_processes, append, introduce, machine, medians, require, seconds, table
from .weights import save_random

PEERS = {"gpt2_mlx": "ours:decode", "mlx_lm": "mlx_lm:decode", "transformers": "hugging_face:decode"}


@dataclass(frozen=True)
class Settings:
    """How fast one text is generated, beside mlx_lm and transformers."""

    quick: bool = False
    """Texts up to 128 tokens and two rounds, instead of 512 and five."""
    device: Literal["auto", "gpu", "cpu"] = "auto"
    """Where to compute."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Type of weights and computation. Default: float32 on a CPU, bfloat16 on a GPU."""


def main() -> None:
    settings = cli.parse(Settings)
    require("mlx_lm", "transformers", "torch")
    on_gpu = device.select(settings.device) == "gpu"
    dtype = settings.dtype or ("bfloat16" if on_gpu else "float32")
    facts = machine("torch", "mlx-lm", "transformers")
    introduce(facts)
    rounds, length = (2, 128) if settings.quick else (5, 512)
    where = {"dtype": dtype, "device": "gpu" if on_gpu else "cpu"}
    with tempfile.TemporaryDirectory() as folder:
        where["folder"] = str(save_random(PRESETS["gpt2"], Path(folder) / "gpt2"))
        decoding = generate(rounds, 32, length - 32, where)
        prompts = generate(rounds, 900, 1, where)
    read = read_gb_per_s(on_gpu)
    print(report(decoding, prompts, length, 2 if dtype == "bfloat16" else 4, read))
    append("decode", dtype=dtype, length=length, decoding=decoding, prompts=prompts, read_gb_per_s=read, **facts)


def generate(rounds: int, n_prompt: int, n: int, where: dict) -> dict:
    prompt = np.random.default_rng(0).integers(0, 50256, n_prompt).tolist()
    results = alternate_processes(
        rounds, {name: (peer, where | {"prompt": prompt, "n": n}) for name, peer in PEERS.items()}
    )
    ours = results["gpt2_mlx"]["ids"][0]
    for result in results.values():
        texts = result.pop("ids")
        assert {len(ids) for ids in texts} == {n}
        result["same_ids"] = next((i for i, pair in enumerate(zip(ours, texts[0])) if len({*pair}) > 1), n)
    return results


def read_gb_per_s(on_gpu: bool) -> float:
    """How fast this machine reads 1 GB: the best of seven."""
    if on_gpu:
        import mlx.core as mx  # not before gpt2_mlx

        x = mx.ones(2**28, mx.float32)
        return 2**30 / min(seconds(lambda: mx.eval(mx.max(x))) for _ in range(7)) / 1e9
    parts = np.array_split(np.ones(2**28, np.float32), device.cpu_count())

    def read() -> None:
        threads = [threading.Thread(target=part.max) for part in parts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return 2**30 / min(seconds(read) for _ in range(7)) / 1e9


def report(decoding: dict, prompts: dict, length: int, itemsize: int, read: float) -> str:
    weights = (PRESETS["gpt2"].n_params - 1024 * 768) * itemsize / 1e9  # GB that a token reads
    rates = medians({name: result["tokens_per_s"] for name, result in decoding.items()})
    firsts = medians({name: result["first_s"] for name, result in prompts.items()})
    rows = [
        [
            name,
            f"{rate:.1f}",
            f"{rates['gpt2_mlx'] / rate:.2f}",
            f"{rate * weights:.1f} ({rate * weights / read:.0%})",
            f"{firsts[name]:.3f}",
            f"{firsts[name] / firsts['gpt2_mlx']:.2f}",
            f"{decoding[name]['peak_gb']:.2f}",
            str(decoding[name]["same_ids"]),
        ]
        for name, rate in rates.items()
    ]
    header = [f"32 to {length} tokens", "tokens/s", "ours to it", f"GB/s (of {read:.1f})"]
    header += ["900 to first, s", "ours to it", "GB", "ids as ours"]
    return table(header, rows)


if __name__ == "__main__":
    cli.run(main)
