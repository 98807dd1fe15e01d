"""A training step: tokens a second and the most memory, beside plain MLX and PyTorch.

All take AdamW, on random tokens; where train.py's own default is Muon, that is measured too. Each contestant lives in a
process of its own and they take turns. Memory is the process's most, Python and libraries included; on a GPU that of
its arrays.
"""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from gpt2_mlx import cli, device
from gpt2_mlx.config import PRESETS
from gpt2_mlx.training import memory
from gpt2_mlx.training.config import TrainConfig
from gpt2_mlx.training.recipes import RECIPES

from .common import alternate_processes, append, introduce, machine, medians, require, table

SIZES = {"tiny": (16, 128), "baby": (8, 256), "gpt2": (1, 256)}  # batch_size, block_size on a CPU


@dataclass(frozen=True)
class Settings:
    """How fast a training step is, and the memory it takes, beside plain MLX and PyTorch."""

    quick: bool = False
    """Two rounds of one step without baby and torch.compile, instead of five of five."""
    device: Literal["auto", "gpu", "cpu"] = "auto"
    """Where to compute."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Type of the forward and backward pass. Default: float32 on a CPU, bfloat16 on a GPU."""
    presets: tuple[Literal["tiny", "baby", "gpt2"], ...] = ()
    """Sizes to measure. Default: all."""


def main() -> None:
    settings = cli.parse(Settings)
    require("torch", "mlx_lm")
    on_gpu = device.select(settings.device) == "gpu"
    dtype = settings.dtype or ("bfloat16" if on_gpu else "float32")
    facts = machine("torch", "mlx-lm")
    introduce(facts)
    for preset in settings.presets or (("tiny", "gpt2") if settings.quick else SIZES):
        shape = shape_of(preset, on_gpu)
        rounds, steps = (2, 1) if settings.quick else (5, 5)
        where = "gpu" if on_gpu else "cpu"
        results = measure(preset, shape, dtype, where, rounds, steps, compiled=not settings.quick)
        print(report(preset, shape, results))
        append("train_step", preset=preset, dtype=dtype, shape=shape, results=results, **facts)


def shape_of(preset: str, on_gpu: bool) -> tuple[int, int]:
    """batch_size and block_size: on a GPU train.py's, halved until all contestants fit beside each other."""
    if not on_gpu:
        return SIZES[preset]
    config = TrainConfig(preset=preset).resolved(on_gpu)
    while config.batch_size > 1 and 6 * memory.peak(config) > device.memory():  # three, two of which keep more
        config = dataclasses.replace(config, batch_size=config.batch_size // 2)
    return config.batch_size, config.block_size


def measure(
    preset: str, shape: tuple[int, int], dtype: str, device_name: str, rounds: int, steps: int, compiled: bool
) -> dict:
    batch_size, block_size = shape
    common = {"preset": preset, "batch_size": batch_size, "block_size": block_size, "dtype": dtype}
    common |= {"device": device_name, "steps": steps}
    contestants = {"gpt2_mlx": ("ours:train", common | {"optimizer": "adamw"})}
    if RECIPES[preset]["optimizer"] == "muon":
        contestants["gpt2_mlx, Muon"] = ("ours:train", common | {"optimizer": "muon"})
    contestants["plain MLX"] = ("plain_mlx:train", common)
    contestants["PyTorch eager"] = ("pytorch:train", common | {"compile": False})
    if compiled:
        contestants["PyTorch compiled"] = ("pytorch:train", common | {"compile": True})
    return alternate_processes(rounds, contestants)


def report(preset: str, shape: tuple[int, int], results: dict) -> str:
    speeds = medians({name: result["tokens_per_s"] for name, result in results.items()})
    ours, flops = results["gpt2_mlx"], flops_per_token(preset, shape[1])
    rows = [
        [
            name,
            f"{speed:,.0f}",
            f"{speed * flops / 1e12:.3f}",
            f"{speeds['gpt2_mlx'] / speed:.2f}",
            f"{results[name]['peak_gb']:.2f}",
            f"{ours['peak_gb'] / results[name]['peak_gb']:.2f}",
        ]
        for name, speed in speeds.items()
    ]
    title = "{}, {} x {}".format(preset, *shape)
    return table([title, "tokens/s", "TFLOP/s", "ours to it", "GB", "ours to it"], rows)


def flops_per_token(preset: str, block_size: int) -> int:
    """Forward and backward: 6 a weight, positions excepted, and attention's (Chowdhery et al. 2022, appendix B)."""
    config = PRESETS[preset]
    weights = config.n_params - config.block_size * config.n_embd
    return 6 * weights + 12 * config.n_layer * config.n_embd * block_size


if __name__ == "__main__":
    cli.run(main)
