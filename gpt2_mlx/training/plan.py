"""The planner: what memory and time a run takes, and which micro-batches fit.

Shapes: B windows per micro-batch, T block_size, C n_embd, H n_head, L n_layer, V vocab_size; 4 bytes a number.
"""

import dataclasses
import math
import time
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np

from .. import device
from ..model import GPT2
from . import ranks
from .config import TrainConfig
from .data import TokenDataset
from .trainer import Trainer

Parts = dict[str, float]  # what holds memory, in bytes

# Measured on the CPU over models of 4 to 12 layers, 128 to 768 wide, windows of 128 to 1,024 tokens.
_KEPT_PER_CHANNEL = 38  # numbers a block keeps for the backward pass, per token and channel
_CHUNKS_IN_FLIGHT = 4  # MLX allocates for the next chunks of the loss while it computes one
_BUFFERS_PER_CHUNK = 3  # logits, their exponentials, what made them
_KEPT_IN_16_BITS = 0.6  # softmax and norms keep some in float32


def memory(config: TrainConfig, processes: int = 1) -> Parts:
    """What holds memory at the moment of a step's peak, for resolved settings: the sum is the peak.

    The peak is in the loss, where all activations are kept, at the end of the backward pass, where all gradients are
    made, or in the update, which holds them twice.
    """
    model = config.model_config()
    L, C, T, V = model.n_layer, model.n_embd, model.block_size, model.vocab_size
    blocks, table = 4 * 12 * L * C * C, 4 * V * C  # of the blocks' matrices; of wte
    weights = blocks + table + 4 * (T * C + 13 * L * C + 2 * C)
    streams = device.n_streams(config.batch_size)
    lowered = 0 if config.dtype == "float32" else streams * blocks / 2
    several = config.grad_accum_steps > processes  # micro-batches in each process: their sum is kept, too
    states = {
        "weights": weights,
        "moments": 2 * weights - (blocks if config.optimizer == "muon" else 0),
    }
    kept, scores = _activations(config)
    rows = min(device.logits_rows(V), config.batch_size // streams * T)
    chunks = min(_CHUNKS_IN_FLIGHT, math.ceil(config.batch_size // streams * T / rows))
    loss = {
        **states,
        "weights": weights + lowered,
        "gradients": weights * several + streams * table,
        "activations": L * (4 * config.batch_size * T * C if config.grad_checkpoint else kept),
        "attention scores": 0 if config.grad_checkpoint else L * scores,
        "logits": chunks * _BUFFERS_PER_CHUNK * 4 * rows * V + (chunks - 1) * table,
    }
    backward = {
        **states,
        "weights": weights + lowered,
        "gradients": weights * several + streams * (weights + table) + (table if streams > 1 else 0),
        "activations": 4 * kept,  # of the block at work, their gradients, and what is allocated ahead
        "attention scores": 4 * scores,
    }
    update = {**states, "gradients": 2 * weights + 2 * table + (weights if processes > 1 else 0)}
    return max((loss, backward, update), key=lambda parts: sum(parts.values()))


def _activations(config: TrainConfig) -> tuple[float, float]:
    """The bytes that a block keeps of a micro-batch for the backward pass, and of its attention scores."""
    tokens = config.batch_size * config.block_size
    size = 4 if config.dtype == "float32" else 4 * _KEPT_IN_16_BITS
    kept = size * _KEPT_PER_CHANNEL * tokens * config.n_embd
    scores = size * tokens * config.n_head * config.block_size
    return kept, scores * (2.25 if config.dropout else 1)  # with the dropped ones and their mask


def choices(config: TrainConfig) -> Iterator[TrainConfig]:
    """Ways to take the same step: in ever smaller micro-batches, first with activations kept, then made anew."""
    for checkpoint in sorted({config.grad_checkpoint, True}):
        for n in range(config.batch_size, 0, -1):
            if config.batch_size % n == 0:
                accum = config.grad_accum_steps * config.batch_size // n
                yield dataclasses.replace(config, batch_size=n, grad_accum_steps=accum, grad_checkpoint=checkpoint)


def fit(config: TrainConfig, given: bool, processes: int = 1) -> TrainConfig:
    """Resolved settings whose step fits this machine and those of all processes.

    Args:
        config: the settings.
        given: whether their micro-batch was asked for; else the first of `choices` that fits is taken.
        processes: how many train together.

    Raises:
        ValueError: none fits; the message shows the numbers.
    """
    budget = device.memory(ranks.here())
    ways = [config] if given else list(choices(config))
    fitting = (i for i, way in enumerate(ways) if sum(memory(way, processes).values()) <= budget)
    chosen = ranks.most(next(fitting, len(ways)))
    if chosen < len(ways):
        return ways[chosen]
    way = ways[-1]
    flags = f"--batch-size {way.batch_size}" + (" --grad-checkpoint" if way.grad_checkpoint else "")
    raise ValueError(
        f"{config.model_name()} with {flags} does not fit: it needs {describe(memory(way, processes))},"
        f" and this machine has {budget / 1e9:.1f} GB for it"
    )


def describe(parts: Parts) -> str:
    """Such as: 2.81 GB (weights 0.50, moments 1.00, gradients 1.31)."""
    held = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in parts.items() if size)
    return f"{sum(parts.values()) / 1e9:.2f} GB ({held})"


def measure(config: TrainConfig) -> tuple[float, float]:
    """The seconds and the peak in bytes of a step of one micro-batch, the step after the one that compiles."""
    model = GPT2(config.model_config(), config.seed)
    mx.eval(model.parameters())
    trainer = Trainer(config, model, TokenDataset(np.empty(0, np.uint16)), Path())
    tokens = mx.arange(config.batch_size * config.block_size).reshape(config.batch_size, -1) % model.config.vocab_size
    for _ in range(2):
        mx.reset_peak_memory()
        began = time.perf_counter()
        mx.eval(trainer.train_step([(tokens, tokens)], 0.0), model.state, trainer.optimizer.state)
    return time.perf_counter() - began, mx.get_peak_memory()


def report(config: TrainConfig, processes: int = 1) -> str:
    """What a run of settings that fit takes, by prediction and by one measured step, and the other ways to take it."""
    budget = device.memory(ranks.here())
    seconds, peak = measure(config)
    windows = config.batch_size * config.grad_accum_steps
    step = seconds / config.batch_size * windows / processes
    predicted = memory(dataclasses.replace(config, grad_accum_steps=processes), processes)
    lines = [
        f"device: {device.description()}, {budget / 1e9:.1f} GB for a run",
        f"step:   {windows} x {config.block_size} tokens, {config.model_name()}, {config.dtype}, taken as",
        "--batch-size  --grad-accum-steps  --grad-checkpoint  peak GB   s/step",
        *(_row(way, config, step, budget, processes) for way in dict.fromkeys([config, *choices(config)])),
        f"peak:   {describe(memory(config, processes))}",
        f"micro:  {seconds:.2f} s, {peak / 1e9:.2f} GB measured, {sum(predicted.values()) / 1e9:.2f} predicted",
        f"run:    {config.max_steps} steps, about {config.max_steps * step / 3600:.1f} hours",
    ]
    return "\n".join(lines)


def _row(way: TrainConfig, config: TrainConfig, step: float, budget: int, processes: int) -> str:
    size = sum(memory(way, processes).values())
    passes = 4 / 3 if way.grad_checkpoint > config.grad_checkpoint else 1  # forward, twice as much backward, forward
    remade = "yes" if way.grad_checkpoint else "no"
    note = "  this run" if way == config else "" if size <= budget else "  does not fit"
    sizes = f"{way.batch_size:>12}  {way.grad_accum_steps:>18}  {remade:>17}"
    return f"{sizes}  {size / 1e9:>7.2f}  {step * passes:>7.2f}{note}"
