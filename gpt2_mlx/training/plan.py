"""The planner: the memory and time that a run takes, and the micro-batches that fit."""

import dataclasses
import time
from collections.abc import Iterator

import mlx.core as mx

from .. import device, inventory
from ..model import GPT2
from . import adapting, memory, ranks, step
from .config import TrainConfig


def ways(config: TrainConfig) -> Iterator[TrainConfig]:
    """The ways to take the same step: in smaller and smaller micro-batches, with activations kept, then recomputed."""
    for checkpoint in sorted({config.grad_checkpoint, True}):
        for n in range(config.batch_size, 0, -1):
            if config.batch_size % n == 0:
                accum = config.grad_accum_steps * config.batch_size // n
                yield dataclasses.replace(config, batch_size=n, grad_accum_steps=accum, grad_checkpoint=checkpoint)


def choose(config: TrainConfig, given: bool) -> TrainConfig:
    """Resolved settings whose step fits the machines of all processes.

    These are `config` itself where its micro-batch was `given`, else the first of its `ways` that fits. Raises a
    ValueError that shows the numbers where none fits.
    """
    budget = _budget()
    allowed = [config] if given else list(ways(config))
    fitting = (i for i, way in enumerate(allowed) if memory.peak(way, ranks.size()) <= budget)
    chosen = ranks.largest(next(fitting, len(allowed)))
    if chosen < len(allowed):
        return allowed[chosen]
    way = allowed[-1]
    flags = f"--batch-size {way.batch_size}" + (" --grad-checkpoint" if way.grad_checkpoint else "")
    needed = memory.describe(memory.predict(way, ranks.size()))
    raise ValueError(
        f"{config.model_name()} with {flags} does not fit: it needs {needed}, and this machine has {budget / 1e9:.1f}"
        " GB for it"
    )


def _budget() -> int:
    """The bytes that a step may take. A GPU's driver keeps some for itself, and other programs draw windows."""
    memory = device.memory(ranks.here())
    return int(0.8 * memory) if device.on_gpu() else memory


def measure(config: TrainConfig) -> tuple[float, float]:
    """The seconds and the peak memory in bytes of a step of one micro-batch, after a step that compiles it."""
    model = GPT2(config.model_config(), config.seed)
    adapting.lower_base(model, config)
    adapting.adapt(model, config)
    take_step = step.build(config, model)
    tokens = mx.arange(config.batch_size * config.block_size).reshape(config.batch_size, -1) % model.config.vocab_size
    for _ in range(2):
        mx.reset_peak_memory()
        began = time.perf_counter()
        mx.eval(take_step([(tokens, tokens)], 0.0), take_step.state)
    return time.perf_counter() - began, mx.get_peak_memory()


def report(config: TrainConfig) -> str:
    """The memory and time of a run, from a prediction and one measured step, and the other ways to take its steps."""
    budget, processes = _budget(), ranks.size()
    seconds, peak = measure(config)
    windows = config.batch_size * config.grad_accum_steps
    per_step = seconds / config.batch_size * windows / processes
    predicted = memory.peak(dataclasses.replace(config, grad_accum_steps=processes), processes)

    def row(way: TrainConfig) -> str:
        size = memory.peak(way, processes)
        passes = (
            4 / 3 if way.grad_checkpoint > config.grad_checkpoint else 1
        )  # one more forward pass; a backward pass takes two
        note = "  this run" if way == config else "" if size <= budget else "  does not fit"
        sizes = f"{way.batch_size:>12}  {way.grad_accum_steps:>18}  {'yes' if way.grad_checkpoint else 'no':>17}"
        return f"{sizes}  {size / 1e9:>7.2f}  {per_step * passes:>7.2f}{note}"

    lines = [
        f"device: {inventory.description()}, {budget / 1e9:.1f} GB for a run",
        f"step:   {windows} x {config.block_size} tokens, {config.model_name()}, {config.dtype}, taken as",
        "--batch-size  --grad-accum-steps  --grad-checkpoint  peak GB   s/step",
        *map(row, dict.fromkeys([config, *ways(config)])),
        f"peak:   {memory.describe(memory.predict(config, processes))}",
        f"micro:  {seconds:.2f} s, {peak / 1e9:.2f} GB measured, {predicted / 1e9:.2f} predicted",
        f"run:    {config.max_steps} steps, about {config.max_steps * per_step / 3600:.1f} hours",
    ]
    return "\n".join(lines)
