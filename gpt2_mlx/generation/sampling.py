"""Sampling: logits and each row's parameters and random numbers -> token ids. Pure functions over rows.

Shapes: B rows, V vocab_size, K candidates. What a row gets does not depend on the other rows.
"""

from collections import Counter

import mlx.core as mx
import numpy as np

from .scheduler import SamplingParams, Sequence

FEW = 128  # rows whose top_k is at most this need no more candidates


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that is a function of the two alone, today and in any later version: Philox4x64-10."""
    bits = np.random.Philox(key=seed, counter=position).random_raw()
    return (int(bits) >> 40) * 2.0**-24  # as many bits as float32 holds


def penalised(logits: mx.array, sequences: list[Sequence]) -> mx.array:
    """Logits (B, V) after each row's penalties and biases; rows without any are as they were."""
    rows, ids, factors, offsets = [], [], [], []
    for row, sequence in enumerate(sequences):
        for token, (divide, add) in _changes(sequence).items():
            rows.append(row)
            ids.append(token)
            factors.append(divide)
            offsets.append(add)
    if not rows:
        return logits
    at = (mx.array(rows), mx.array(ids))
    old, factor = logits[at], mx.array(factors, mx.float32)
    logits[at] = mx.where(old > 0, old / factor, old * factor) + mx.array(offsets, mx.float32)
    return logits


def _changes(sequence: Sequence) -> dict[int, tuple[float, float]]:
    """token -> (what its logit is divided or multiplied by, what is added)."""
    params, changes = sequence.params, {}
    if params.repetition_penalty != 1:  # Keskar et al. 2019, section 4.1: tokens of prompt and text alike
        for token in {*sequence.prompt[-sequence.block_size :], *sequence.generated}:
            changes[token] = (params.repetition_penalty, 0.0)
    if params.presence_penalty or params.frequency_penalty:  # OpenAI's API: tokens of the text
        for token, count in Counter(sequence.generated).items():
            factor, add = changes.get(token, (1.0, 0.0))
            changes[token] = (factor, add - params.presence_penalty - params.frequency_penalty * count)
    for token, bias in params.logit_bias.items():
        factor, add = changes.get(token, (1.0, 0.0))
        changes[token] = (factor, add + bias)
    return changes


def sample(logits: mx.array, sequences: list[Sequence], draws: list[float]) -> mx.array:
    """Draw a token for each row of logits (B, V) with the row's temperature, top_k, top_p and min_p.

    Temperature divides the logits; top_k cuts; of the probabilities of what is left, top_p and min_p cut; what passes
    is drawn from in proportion. The likeliest token always passes.

    Args:
        draws: a number in [0, 1) for each row.

    Returns:
        (B,) int32.
    """
    tokens = mx.argmax(logits, axis=-1).astype(mx.int32)
    for way in (_from_few, _from_all, _from_sorted):
        rows = [i for i, s in enumerate(sequences) if _way(s.params) is way]
        if rows:
            drawn = way(logits[mx.array(rows)], [sequences[i].params for i in rows], [draws[i] for i in rows])
            tokens[mx.array(rows)] = drawn.astype(mx.int32)
    return tokens


def _way(params: SamplingParams):
    """The cheapest way to draw; what is drawn is the same. None: the likeliest token, without a draw."""
    if params.temperature == 0:
        return None
    if 0 < params.top_k <= FEW:
        return _from_few
    return _from_all if params.top_k == 0 and params.top_p == 1 else _from_sorted


def _from_few(logits: mx.array, params: list[SamplingParams], draws: list[float]) -> mx.array:
    k = min(FEW, logits.shape[-1])
    candidates = mx.argpartition(-logits, k - 1, axis=-1)[:, :k]  # (B, K)
    order = mx.argsort(-mx.take_along_axis(logits, candidates, axis=-1), axis=-1)
    return _draw(logits, mx.take_along_axis(candidates, order, axis=-1), params, draws)


def _from_sorted(logits: mx.array, params: list[SamplingParams], draws: list[float]) -> mx.array:
    return _draw(logits, mx.argsort(-logits, axis=-1), params, draws)


def _from_all(logits: mx.array, params: list[SamplingParams], draws: list[float]) -> mx.array:
    p = mx.softmax(logits / _column(params, "temperature"), axis=-1, precise=True)  # (B, V)
    keep = p >= _column(params, "min_p") * mx.max(p, axis=-1, keepdims=True)
    return _pick(mx.where(keep, p, 0), draws)[:, 0]


def _draw(logits: mx.array, candidates: mx.array, params: list[SamplingParams], draws: list[float]) -> mx.array:
    """Apply each row's top_k, then top_p and min_p, to candidates (B, K) in falling order; draw one: (B,)."""
    V, K = logits.shape[-1], candidates.shape[-1]
    rank = mx.arange(K)[None]
    in_top_k = rank < mx.array([p.top_k or V for p in params])[:, None]
    scaled = mx.take_along_axis(logits, candidates, axis=-1) / _column(params, "temperature")
    p = mx.softmax(mx.where(in_top_k, scaled, -mx.inf), axis=-1, precise=True)
    likelier = mx.cumsum(p, axis=-1) - p  # the sum before each
    keep = in_top_k & (likelier < _column(params, "top_p")) & (p >= _column(params, "min_p") * p[:, :1])
    chosen = _pick(mx.where(keep | (rank == 0), p, 0), draws)
    return mx.take_along_axis(candidates, chosen, axis=-1)[:, 0]


def _pick(p: mx.array, draws: list[float]) -> mx.array:
    """The column of each row of weights p (B, K) at which the row's share of the total is passed: (B, 1)."""
    cumulated = mx.cumsum(p, axis=-1)
    target = mx.array(draws)[:, None] * cumulated[:, -1:]
    # the least column whose sum is past the target has a weight of its own: never one that was dropped
    return mx.argmax(cumulated > target, axis=-1, keepdims=True)


def _column(params: list[SamplingParams], name: str) -> mx.array:
    return mx.array([float(getattr(p, name)) for p in params])[:, None]  # (B, 1)
