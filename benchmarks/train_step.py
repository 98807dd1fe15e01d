"""A training step: tokens a second and the most memory, beside plain MLX and PyTorch.

All take AdamW, on random tokens; where train.py's own default is Muon, that is measured too. Each contestant lives in a
process of its own and they take turns. Memory is the process's most, Python and libraries included; on a GPU that of
its arrays.
"""

from dataclasses import dataclass
from typing import Literal

from gpt2_mlx import cli, device
from gpt2_mlx.config import PRESETS
from gpt2_mlx.training.config import DEFAULTS

from .common import alternate_processes, append, introduce, machine, medians, require, table

SIZES = {"tiny": (16, 128), "baby": (8, 256), "gpt2": (1, 256)}  # batch_size, block_size


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
        results = measure(preset, dtype, "gpu" if on_gpu else "cpu", settings.quick)
        print(report(preset, results))
        append("train_step", preset=preset, dtype=dtype, shape=SIZES[preset], results=results, **facts)


def measure(preset: str, dtype: str, device_name: str, quick: bool) -> dict:
    batch_size, block_size = SIZES[preset]
    common = {"preset": preset, "batch_size": batch_size, "block_size": block_size, "dtype": dtype}
    common |= {"device": device_name, "steps": 1 if quick else 5}
    contestants = {"gpt2_mlx": ("ours:train", common | {"optimizer": "adamw"})}
    if DEFAULTS[preset]["optimizer"] == "muon":
        contestants["gpt2_mlx, Muon"] = ("ours:train", common | {"optimizer": "muon"})
    contestants["plain MLX"] = ("plain_mlx:train", common)
    contestants["PyTorch eager"] = ("pytorch:train", common | {"compile": False})
    if not quick:
        contestants["PyTorch compiled"] = ("pytorch:train", common | {"compile": True})
    return alternate_processes(2 if quick else 5, contestants)


def report(preset: str, results: dict) -> str:
    speeds = medians({name: result["tokens_per_s"] for name, result in results.items()})
    ours, flops = results["gpt2_mlx"], flops_per_token(preset)
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
    title = "{}, {} x {}".format(preset, *SIZES[preset])
    return table([title, "tokens/s", "TFLOP/s", "ours to it", "GB", "ours to it"], rows)


def flops_per_token(preset: str) -> int:
    """Forward and backward: 6 a weight, positions excepted, and attention's (Chowdhery et al. 2022, appendix B)."""
    config, block_size = PRESETS[preset], SIZES[preset][1]
    weights = config.n_params - config.block_size * config.n_embd
    return 6 * weights + 12 * config.n_layer * config.n_embd * block_size


if __name__ == "__main__":
    cli.run(main)
