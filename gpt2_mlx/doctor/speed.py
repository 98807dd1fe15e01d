"""How fast this machine trains and generates, and how much memory that takes, measured now."""

import statistics
import time
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from .. import checkpoint, device, inventory
from ..config import PRESETS
from ..generation.engine import Engine
from ..generation.params import SamplingParams
from ..model import GPT2
from ..training import step
from ..training.config import TrainConfig
from .chips import share_of_bandwidth, share_of_tflops
from .finding import Finding

SECONDS = 2  # how long training is measured, after it is compiled


def preset() -> str:
    """The preset to measure: gpt2 on a GPU, tiny on a CPU."""
    return "gpt2" if device.on_gpu() else "tiny"


def training(_: Path) -> Finding:
    """The median time of a step of the preset with its defaults, in float32; on a GPU one window per step."""
    batch_size = 1 if device.on_gpu() else None
    config = TrainConfig(preset=preset(), batch_size=batch_size, dtype="float32").resolved(device.on_gpu())
    model = GPT2(config.model_config())
    take_step = step.build(config, model)
    shape = (config.batch_size, config.block_size)
    batch = tuple(mx.random.randint(0, 50257, shape, key=mx.random.key(i)) for i in range(2))

    def seconds() -> float:
        began = time.perf_counter()
        mx.eval(take_step([batch], 1e-4), take_step.state)
        return time.perf_counter() - began

    first, _ = seconds(), seconds()  # the first step compiles, the second warms up
    times = [seconds()]
    while len(times) < 3 or (sum(times) < SECONDS and len(times) < 50):
        times.append(seconds())
    speed = config.batch_size * config.block_size / statistics.median(times)
    tflops = speed * flops_per_token(model) / 1e12
    words, share = share_of_tflops(inventory.chip(), tflops)
    text = f"{preset()}, {shape[0]} x {shape[1]} tokens: {speed:,.0f} tokens/s, {tflops:.3f} TFLOP/s ({words})"
    return Finding(True, text, {"tokens_per_s": speed, "tflops": tflops, "share_of_peak": share, "first_step_s": first})


def flops_per_token(model: GPT2) -> int:
    """6 per weight, positions excepted, plus attention: forward and backward (Chowdhery et al. 2022, appendix B)."""
    c = model.config
    return 6 * (model.n_params - model.wpe.weight.size) + 12 * c.n_layer * c.n_embd * c.block_size


def decoding(folder: Path) -> Finding:
    """The median speed of the engine's steps with one text, each of which reads all weights, and with 16 texts.

    The model is saved and loaded again: a GPU multiplies one row with another kernel, at a fraction of the speed, where
    weights lie in the file's order, (in, out).
    """
    fresh = GPT2(PRESETS[preset()])
    checkpoint.save(folder / "decoding", fresh)
    loaded = checkpoint.load(folder / "decoding")
    alone, crowd, of_fresh = _tokens_per_s(loaded, 1), _tokens_per_s(loaded, 16), _tokens_per_s(fresh, 1)
    gb_per_s = alone * (loaded.n_params - loaded.wpe.weight.size) * loaded.wte.weight.itemsize / 1e9
    words, share = share_of_bandwidth(inventory.chip(), gb_per_s)
    text = f"{preset()}, loaded, float32: {alone:,.0f} tokens/s alone, {gb_per_s:.1f} GB/s ({words}); 16 at once:"
    text += f" {crowd:,.0f}; not loaded, alone: {of_fresh:,.0f}"
    views = [name for name, p in tree_flatten(loaded.parameters()) if not is_in_rows(p)] if device.on_gpu() else []
    text += f"; {len(views)} weights lie in columns, which a GPU reads slowly, such as {views[0]}" if views else ""
    numbers = {"tokens_per_s": alone, "gb_per_s": gb_per_s, "share_of_peak": share, "tokens_per_s_of_16": crowd}
    return Finding(not views, text, {**numbers, "tokens_per_s_not_loaded": of_fresh})


def is_in_rows(weight: mx.array) -> bool:
    """Whether a float32 array lies in memory row after row."""
    return np.array(weight, copy=False).flags.c_contiguous


def _tokens_per_s(model: GPT2, n_slots: int) -> float:
    engine = Engine(model, n_slots)
    for seed in range(n_slots):
        engine.add([50256, *range(7)], SamplingParams(max_tokens=40, seed=seed))
    rates = []
    while engine.has_work:
        began = time.perf_counter()
        outputs = engine.step()
        rates.append(sum(len(output.tokens) for output in outputs) / (time.perf_counter() - began))
    return statistics.median(rates[2:])
