"""One training with the PyTorch GPT-2, from token ids to the test loss: `python -m benchmarks.contestants.pytorch_run`.

Linear warm-up, then a cosine to a tenth of the rate; nothing is evaluated, sampled or saved on the way.
"""

import json
import math
import sys
import time

import numpy as np
import torch

from . import VOCAB_SIZE, windows
from .pytorch import Training

TIMED_STEPS = 10


def main(
    tokens: str,
    preset: str,
    block_size: int,
    batch_size: int,
    steps: int | None,
    warmup_steps: int,
    rate: float,
    decay: float,
    compile: bool,
    dtype: str,
    device: str,
    vocab_size: int = VOCAB_SIZE,
    minutes: float = 0,
) -> None:
    """Train on the first 80 % of a .npy of token ids and print the loss of the last 10 %.

    Without `steps` there are as many as fit into the minutes; ten are timed, with a model that is thrown away.
    """
    ids = np.load(tokens)
    train, test = ids[: len(ids) * 8 // 10], ids[len(ids) * 9 // 10 :]
    model = (preset, block_size, rate, decay, compile, dtype, device, vocab_size)
    batches = windows(train, batch_size, block_size, seed=1337)
    if steps is None:
        pilot = Training(*model)
        pilot.step(next(batches), rate)
        began = time.perf_counter()
        for _ in range(TIMED_STEPS):
            pilot.step(next(batches), rate)
        steps = int(60 * minutes / (time.perf_counter() - began) * TIMED_STEPS)
    training = Training(*model)
    for step in range(steps):
        loss = training.step(next(batches), rate * share_of_rate(step, steps, warmup_steps))
        if step % 50 == 0:
            print(f"step {step}/{steps}, loss {loss:.4f}", file=sys.stderr)
    n_params = sum(p.numel() for p in training.model.parameters())
    print(json.dumps({"test_loss": evaluate(training, test, block_size), "steps": steps, "n_params": n_params}))


def share_of_rate(step: int, steps: int, warmup_steps: int) -> float:
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.1 + 0.9 * (1 + math.cos(math.pi * (step - warmup_steps + 1) / (steps - warmup_steps))) / 2


@torch.no_grad()
def evaluate(training: Training, ids: np.ndarray, block_size: int, batch_size: int = 8) -> float:
    """The mean loss of consecutive windows, the ragged last one included, each token once."""
    n = len(ids) - 1
    whole = n // block_size * block_size
    at = np.arange(0, whole, block_size)[:, None] + np.arange(block_size + 1)  # (windows, T + 1)
    batches = [at[i : i + batch_size] for i in range(0, len(at), batch_size)]
    if whole < n:
        batches.append(np.arange(whole, n + 1)[None])
    total = 0.0
    for batch in batches:
        tokens = torch.from_numpy(ids[batch].astype(np.int64)).to(training.device)
        total += training.model(tokens[:, :-1], tokens[:, 1:], reduction="sum").item()
    return total / n


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
