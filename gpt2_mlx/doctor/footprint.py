"""Checks of memory: what a step takes against the planner's prediction, a cache that is not copied, the peak."""

import gc
from pathlib import Path

import mlx.core as mx

from .. import device
from ..config import GPT2Config
from ..generation.engine import Engine
from ..generation.params import SamplingParams
from ..training import memory, plan
from ..training.config import TrainConfig
from .finding import Finding
from .specimens import model

LEAST, MOST = 0.6, 1.2  # of the prediction; beyond it the planner lets through what does not fit, or refuses what does


def step(_: Path) -> Finding:
    """The peak of a step on windows of 1,024 tokens, whose attention scores the planner must know of."""
    config = _step_to_measure()
    _forget()
    before = mx.get_active_memory()
    peak = plan.measure(config)[1] - before
    share = peak / memory.peak(config)
    text = (
        f"{config.batch_size} x {config.block_size:,} tokens in {config.dtype}: {peak / 1e9:.2f} GB, {share:.2f} times"
    )
    text += f" what is predicted, allowed {LEAST} to {MOST}; that is {memory.describe(memory.predict(config))}"
    return Finding(LEAST <= share <= MOST, text, {"peak_gb": peak / 1e9, "share_of_predicted": share})


def _step_to_measure() -> TrainConfig:
    """On a GPU a window of gpt2 in a GPU's dtype, on a CPU a smaller model in float32."""
    if device.on_gpu():
        return TrainConfig(preset="gpt2", batch_size=1).resolved(on_gpu=True)
    shape = {"n_layer": 4, "n_head": 2, "n_embd": 128, "block_size": 1024}
    return TrainConfig(preset="tiny", batch_size=2, **shape).resolved(on_gpu=False)


def cache(_: Path) -> Finding:
    """What a decoding step takes beside weights and cache. A cache that another array still holds is copied."""
    _forget()
    elsewhere, n_slots = mx.get_active_memory(), 16
    config = GPT2Config(block_size=512, vocab_size=211, n_layer=4, n_head=2, n_embd=128)
    engine = Engine(model(config), n_slots)
    for _ in range(n_slots):
        engine.add([7] * 100, SamplingParams(max_tokens=20, temperature=0))
    for _ in range(10):  # by then all have read
        engine.step()
    mx.clear_cache()
    mx.reset_peak_memory()
    engine.step()
    array = 4 * n_slots * config.n_embd * 128  # bytes of a layer's keys: (16, H, 128, D) in float32
    weights = engine.model.n_params * 4
    more = mx.get_peak_memory() - elsewhere - weights - 2 * config.n_layer * array
    text = f"{more / 1e6:.1f} MB beside the weights and the cache's {2 * config.n_layer} arrays of {array / 1e6:.1f} MB"
    copied = "" if more < array else "; it copies at least one of them"
    return Finding(more < array, text + copied, {"more_mb": more / 1e6, "array_mb": array / 1e6})


def peak(_: Path) -> Finding:
    """The peak since the last check of memory, hence that of the speeds, against what arrays may take."""
    peak, allowed = mx.get_peak_memory() / 1e9, device.memory() / 1e9
    text = f"{peak:.2f} GB in MLX's arrays, which may take {allowed:.1f} of the machine's"
    text += f" {device.total_memory() / 1e9:.1f} GB"
    return Finding(peak <= allowed, text, {"peak_gb": peak, "allowed_gb": allowed})


def _forget() -> None:
    """Let go of what earlier checks have left."""
    gc.collect()
    mx.clear_cache()
