"""Checks of sampling from the whole vocabulary, where a GPU sorts, searches and adds up in parts."""

from pathlib import Path

import mlx.core as mx
import numpy as np

from ..generation.params import SamplingParams
from ..generation.rows import Row
from ..generation.sampling import sample
from ..generation.scheduler import Sequence
from ..tokenizer import VOCAB_SIZE
from . import reference
from .finding import Finding, within

LIMIT = 1e-4  # of the sum of all weights: a float32 sum of 50,257 of them may be off by this
WAYS = {
    "from all": {"top_k": 0},
    "with min_p": {"top_k": 0, "min_p": 0.02},
    "with top_k 50": {"top_k": 50},
    "with top_k 1,000": {"top_k": 1000, "min_p": 0.01},
    "with top_p": {"top_k": 0, "top_p": 0.9},
    "with top_p of nearly all": {"top_k": 0, "top_p": 0.999, "temperature": 3.0},
}


def draws(_: Path) -> Finding:
    """Draws against NumPy, most of them where removed tokens follow, over which a sum must not grow."""
    logits = np.random.RandomState(0).standard_normal(VOCAB_SIZE).astype(np.float32) * 3
    worst, n = 0.0, 0
    for name, changes in WAYS.items():
        params = SamplingParams(**{"temperature": 1.0, **changes})
        low, high = reference.shares(
            logits.astype(np.float64), params.temperature, params.top_k, params.top_p, params.min_p
        )
        points = _points(high)
        tokens = _sample(logits, params, points)
        distances = np.maximum(low[tokens] - points, points - high[tokens])
        if removed := int((distances == np.inf).sum()):
            return Finding(False, f"{removed} of {len(points)} draws {name} gave a token that was removed")
        worst, n = max(worst, distances.max()), n + len(points)
    return within(worst, LIMIT, f"{n} draws gave no removed token; distance from the token's share")


def _points(high: np.ndarray) -> np.ndarray:
    """Numbers in [0, 1) with the 24 bits of a draw: 8 at random, and 16 just where a token's share ends."""
    random = np.random.RandomState(1)
    ends = random.choice(high[(high > 0.5) & (high < 1 - LIMIT)], 16)  # whether the last token is kept may be close
    return np.rint(np.concatenate([random.random_sample(8), ends]) * 2**24) / 2**24


def _sample(logits: np.ndarray, params: SamplingParams, points: np.ndarray) -> np.ndarray:
    """The token that each draw gives: (B,)."""
    B = len(points)
    rows = [Row(Sequence(i, [0], params, block_size=1)) for i in range(B)]
    return np.array(sample(mx.repeat(mx.array(logits)[None], B, axis=0), rows, points.tolist()))
