"""Sampling: logits, the parameters of each row and its random number -> token ids. Pure functions.

Shapes: B rows, V vocab_size, n candidate tokens. The result of a row does not depend on the other rows.
"""

from collections import Counter, defaultdict

import mlx.core as mx
import numpy as np

from .. import elementwise
from .params import SamplingParams
from .rows import Row

FEW, MANY = 64, 1024  # only this many of the likeliest tokens are sorted, which is enough for nearly all rows
TINY = 2.0**-126  # a temperature below it is 0 in float32
FORBIDDEN = 1e30  # is taken from a logit that a constraint forbids; 0 is taken from the others
RULED_OUT = 2.0**-45  # `elementwise` makes e^-32 of e^-1e30: in a row with a constraint less than this is 0
GROUP = 32  # tokens per group: the likeliest tokens are searched only in the groups with the largest logits


def uniform(seed: int, position: int) -> float:
    """A random number in [0, 1) that follows from seed and position alone, in any version: Philox4x64-10."""
    bits = np.random.Philox(key=seed, counter=position).random_raw()
    return (int(bits) >> 40) * 2.0**-24  # 24 bits, which float32 holds exactly


def penalised(logits: mx.array, rows: list[Row]) -> mx.array:
    """Logits (B, V) after each row's penalties and biases; rows without any do not change."""
    changes = [(i, *change) for i, row in enumerate(rows) for change in _changes(row)]
    if not changes:
        return logits
    places, ids, factors, offsets = zip(*changes)
    at = (mx.array(places), mx.array(ids))
    old, factor = logits[at], mx.array(factors, mx.float32)
    logits[at] = mx.where(old > 0, old / factor, old * factor) + mx.array(offsets, mx.float32)
    return logits


def _changes(row: Row) -> list[tuple[int, float, float]]:
    """(token, factor, offset): a positive logit is divided by the factor, another multiplied; the offset is added."""
    params, factors, offsets = row.params, {}, defaultdict(float)
    if params.repetition_penalty != 1:  # Keskar et al. 2019, section 4.1: tokens of prompt and text alike
        tokens = {*row.sequence.prompt, *row.generated}
        factors = dict.fromkeys(tokens, params.repetition_penalty)
    if params.presence_penalty or params.frequency_penalty:  # OpenAI's API: tokens of the text
        for token, count in Counter(row.generated).items():
            offsets[token] = -params.presence_penalty - params.frequency_penalty * count
    for token, bias in params.logit_bias.items():
        offsets[token] += bias
    return [(token, factors.get(token, 1.0), offsets.get(token, 0.0)) for token in {*factors, *offsets}]


def constrained(logits: mx.array, rows: list[Row]) -> mx.array:
    """Logits (B, V), FORBIDDEN less where a row's constraint forbids; rows without a constraint do not change."""
    bound = [i for i, row in enumerate(rows) if row.allowed is not None]
    if not bound:
        return logits
    allowed = np.ones(logits.shape, np.uint8)  # of all rows: to gather some and put them back takes longer
    for i in bound:
        allowed[i] = rows[i].allowed
    return _lowered(logits, mx.array(allowed))


@mx.compile
def _lowered(logits: mx.array, allowed: mx.array) -> mx.array:
    """Logits, FORBIDDEN less where `allowed` is 0, not 1. On a CPU bool takes four times as long as uint8."""
    return logits + (allowed.astype(mx.float32) - 1) * FORBIDDEN


def sample(logits: mx.array, rows: list[Row], draws: list[float]) -> mx.array:
    """Draw a token for each row of logits (B, V) with the row's temperature, top_k, top_p and min_p.

    Temperature divides the logits. top_k removes tokens, then top_p and min_p remove more by the probabilities of those
    that are left. A token is drawn from the rest in proportion to its probability. The likeliest one is never removed.

    Args:
        draws: a random number in [0, 1) for each row.

    Returns:
        The ids, (B,) int32.
    """
    tokens = mx.argmax(logits, axis=-1).astype(mx.int32)
    places_by_way: dict[tuple, list[int]] = {}
    for i, row in enumerate(rows):
        if row.params.temperature >= TINY:
            places_by_way.setdefault(_way(row.params, logits.shape[-1]), []).append(i)
    for (way, *n), places in places_by_way.items():
        drawn = way(logits[mx.array(places)], [rows[i].params for i in places], [draws[i] for i in places], *n)
        tokens[mx.array(places)] = drawn.astype(mx.int32)
    return tokens


def _way(params: SamplingParams, V: int) -> tuple:
    """The cheapest function that draws as the parameters ask, and the number of likeliest tokens that it sorts."""
    if params.top_k:
        return _from_top_k, next(n for n in (FEW, MANY, V) if n >= min(params.top_k, V))
    return (_from_all,) if params.top_p == 1 else (_from_top_p, MANY)


def _from_all(logits: mx.array, params: list[SamplingParams], draws: list[float]) -> mx.array:
    e = _relative(logits, mx.max(logits, axis=-1, keepdims=True), _column(params, "temperature"))  # (B, V)
    return _pick(mx.where(e >= _least(params), e, 0), draws)[:, 0]


def _from_top_k(logits: mx.array, params: list[SamplingParams], draws: list[float], n: int) -> mx.array:
    ids, e = _likeliest(logits, params, n)  # (B, n)
    e = mx.where(mx.arange(ids.shape[-1]) < _column(params, "top_k"), e, 0)
    return _draw(ids, e, mx.sum(e, axis=-1, keepdims=True), params, draws)


def _from_top_p(logits: mx.array, params: list[SamplingParams], draws: list[float], n: int) -> mx.array:
    ids, e = _likeliest(logits, params, n)  # (B, n)
    every = _relative(logits, mx.max(logits, axis=-1, keepdims=True), _column(params, "temperature"))  # (B, V)
    total = mx.sum(every, axis=-1, keepdims=True)
    drawn = _draw(ids, e, total, params, draws)
    is_enough = mx.sum(e, axis=-1, keepdims=True) >= _column(params, "top_p") * total
    if n < logits.shape[-1] and not mx.all(is_enough).item():
        rows = [i for i, (enough,) in enumerate(is_enough.tolist()) if not enough]
        own = logits[mx.array(rows)], [params[i] for i in rows], [draws[i] for i in rows]
        drawn[mx.array(rows)] = _from_top_p(*own, logits.shape[-1])
    return drawn


def _likeliest(logits: mx.array, params: list[SamplingParams], n: int) -> tuple[mx.array, mx.array]:
    """The ids of each row's n likeliest tokens, the likeliest first, and their probabilities divided by its: (B, n).

    Of equally likely tokens the one with the smaller id comes first, whatever n is.
    """
    B, V = logits.shape
    ids, values = mx.broadcast_to(mx.arange(V), (B, V)), logits
    if n * GROUP < V:  # they lie in the n groups with the largest maxima, and this takes a sixth of the time
        groups = mx.pad(logits, [(0, 0), (0, -V % GROUP)], constant_values=-mx.inf).reshape(B, -1, GROUP)
        peaks = mx.max(groups, axis=-1)  # (B, V / GROUP)
        best = mx.argpartition(_order(peaks, mx.arange(peaks.shape[-1])), n - 1, axis=-1)[:, :n]  # (B, n)
        ids = (best[..., None] * GROUP + mx.arange(GROUP)).reshape(B, -1)  # (B, n * GROUP)
        values = groups[mx.arange(B)[:, None], best].reshape(B, -1)
    order = _order(values, ids)
    if n < V:
        few = mx.argpartition(order, n - 1, axis=-1)[:, :n]
        ids, values, order = (mx.take_along_axis(a, few, axis=-1) for a in (ids, values, order))
    places = mx.argsort(order, axis=-1)
    ids, values = mx.take_along_axis(ids, places, axis=-1), mx.take_along_axis(values, places, axis=-1)
    return ids, _relative(values, values[:, :1], _column(params, "temperature"))


@mx.compile
def _order(values: mx.array, ids: mx.array) -> mx.array:
    """Whole numbers that are all different and rise as float32 values fall; of equal values, as their ids rise."""
    bits = values.view(mx.int32)
    rising = mx.where(bits < 0, bits ^ 0x7FFFFFFF, bits)  # in the order of the floats
    return ids.astype(mx.int64) - rising.astype(mx.int64) * 2**24


def _draw(ids: mx.array, e: mx.array, total: mx.array, params: list[SamplingParams], draws: list[float]) -> mx.array:
    """Apply each row's top_p and min_p to tokens (B, n) of falling probability e / total, and draw one: (B,)."""
    likelier = mx.cumsum(e, axis=-1) - e  # for each token, the sum over the likelier ones
    keep = (likelier < _column(params, "top_p") * total) & (e >= _least(params))
    chosen = _pick(mx.where(keep | (mx.arange(ids.shape[-1]) == 0), e, 0), draws)
    return mx.take_along_axis(ids, chosen, axis=-1)[:, 0]


@mx.compile
def _relative(logits: mx.array, peak: mx.array, temperature: mx.array) -> mx.array:
    """Each token's probability divided by that of the likeliest one, whose logit is the peak (B, 1)."""
    return elementwise.exp_of_negative((logits - peak) / temperature)


def _pick(p: mx.array, draws: list[float]) -> mx.array:
    """The first column of each row of weights p (B, n) where their sum passes the draw's share of the total: (B, 1)."""
    # A removed token has no weight and is never picked: on a GPU a sum may grow over it all the same.
    cumulated = mx.where(p > 0, mx.cumsum(p, axis=-1), 0)
    target = mx.array(draws)[:, None] * mx.max(cumulated, axis=-1, keepdims=True)
    return mx.argmax(cumulated > target, axis=-1, keepdims=True)


def _least(params: list[SamplingParams]) -> mx.array:
    """The probability that a token must have, divided by that of the likeliest: (B, 1)."""
    return mx.array([max(p.min_p, RULED_OUT if p.constraint else 0.0) for p in params])[:, None]


def _column(params: list[SamplingParams], name: str) -> mx.array:
    return mx.array([float(getattr(p, name)) for p in params])[:, None]  # (B, 1)
