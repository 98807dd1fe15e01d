"""gpt2_mlx, driven as its own doors drive it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import gpt2_mlx  # isort: skip  # before mlx
import mlx.core as mx
import numpy as np

from gpt2_mlx import checkpoint
from gpt2_mlx.corpus.loader import DataLoader
from gpt2_mlx.generation.engine import Engine
from gpt2_mlx.generation.params import SamplingParams
from gpt2_mlx.model import GPT2
from gpt2_mlx.training import step
from gpt2_mlx.training.config import TrainConfig

from . import VOCAB_SIZE, rounds_of, times


def train(
    preset: str, batch_size: int, block_size: int, optimizer: str, dtype: str, device: str, steps: int
) -> Callable[[], dict]:
    on_gpu = gpt2_mlx.device.select(device) == "gpu"
    recipe = {"optimizer": optimizer, "dtype": dtype, "dropout": 0.0}  # the peers drop nothing
    flags = TrainConfig(preset=preset, batch_size=batch_size, block_size=block_size, device=device, **recipe)
    config = flags.resolved(on_gpu)
    tokens = np.random.default_rng(0).integers(0, VOCAB_SIZE, 1_000_000).astype(np.uint16)
    model = GPT2(config.model_config(), config.seed)
    take_step = step.build(config, model)
    loader = DataLoader(tokens, batch_size, block_size, config.seed)
    number = 0

    def read() -> list:
        return [tuple(map(mx.array, loader.micro_batch(number)))]

    batches = read()

    def one_step() -> None:  # as Trainer.fit takes it
        nonlocal batches, number
        state = (*take_step(batches, 1e-4, number), *take_step.state)
        mx.async_eval(state)
        number += 1
        batches = read()
        mx.eval(state)

    measure = rounds_of(one_step, steps, batch_size * block_size)
    return lambda: measure() | ({"peak_gb": gpt2_mlx.device.peak_memory_gb()} if on_gpu else {})


def decode(folder: str, prompt: list[int], n: int, dtype: str, device: str) -> Callable[[], dict]:
    on_gpu = gpt2_mlx.device.select(device) == "gpu"
    model = checkpoint.load(Path(folder), dtype)

    def generate(n: int) -> Iterator[int]:
        engine = Engine(model, n_slots=1)  # as gpt2_mlx.stream has it
        engine.add(prompt, SamplingParams(temperature=0, max_tokens=n, seed=0))
        while engine.has_work:
            for output in engine.step():
                yield from (token.id for token in output.tokens)

    times(generate(2))
    return lambda: times(generate(n)) | ({"peak_gb": gpt2_mlx.device.peak_memory_gb()} if on_gpu else {})
