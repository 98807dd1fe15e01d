"""Who is measured, ours and the peers; `worker.py` runs each function in a process of its own.

Only `ours.py` imports gpt2_mlx: with its BLAS in the global scope another program would not be itself.
"""

import time
from collections.abc import Callable, Iterator

import numpy as np

VOCAB_SIZE = 50257
SHAPES = {  # n_layer, n_head, n_embd
    "tiny": (4, 4, 128),
    "baby": (6, 6, 384),
    "tiny, own vocabulary": (4, 3, 192),
    "baby, own vocabulary": (6, 6, 384),
    "gpt2": (12, 12, 768),
}


def windows(tokens: np.ndarray, batch_size: int, block_size: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Yield (batch_size, block_size + 1) int64 for ever: each epoch cuts the tokens anew and shuffles the windows."""
    random = np.random.default_rng(seed)
    epoch = iter(())
    while True:
        batch = []
        while len(batch) < batch_size:
            start = next(epoch, None)
            if start is None:
                starts = np.arange(random.integers(block_size), len(tokens) - block_size, block_size)
                epoch = iter(random.permutation(starts))
            else:
                batch.append(tokens[start : start + block_size + 1])
        yield np.stack(batch).astype(np.int64)


def random_windows(batch_size: int, block_size: int) -> Iterator[np.ndarray]:
    """As `windows`, of tokens that mean nothing."""
    return windows(np.random.default_rng(0).integers(0, VOCAB_SIZE, 1_000_000), batch_size, block_size)


def rounds_of(step: Callable[[], object], steps: int, tokens: int) -> Callable[[], dict]:
    """A round is `steps` steps of so many tokens each; two steps before the first compile and warm up."""

    def measure() -> dict:
        began = time.perf_counter()
        for _ in range(steps):
            step()
        return {"tokens_per_s": steps * tokens / (time.perf_counter() - began)}

    step(), step()
    return measure


def times(tokens: Iterator[int]) -> dict:
    """How a greedy generation went: the ids, the first one's seconds, the rest's tokens a second (0 where none is)."""
    ids, came = [], []
    began = time.perf_counter()
    for id in tokens:
        ids.append(id)
        came.append(time.perf_counter())
    rate = (len(ids) - 1) / (came[-1] - came[0]) if len(ids) > 1 else 0
    return {"ids": ids, "first_s": came[0] - began, "tokens_per_s": rate}
