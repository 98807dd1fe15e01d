"""Checks of attention: the fused kernels of training, and attention to a cache, for which a GPU has a kernel each by
the number of new tokens, the length and the size of the heads."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np

from ..config import GPT2Config
from ..kv_cache import KVCache
from . import reference
from .finding import Finding, difference, worst
from .specimens import SHAPE, model
from .tolerance import tolerance

N_HEAD = 2
FUSED = [(T, head_dim, "float32") for T in (16, 128, 1024, 1040) for head_dim in (64, 32)]
FUSED += [(T, 64, "bfloat16") for T in (16, 128, 1024)]
STALE = 30.0  # what a slot held before: if it were attended to, it would draw nearly all attention
# For each row of a pass: its slot, the tokens that it holds, and the new ones.
ROWS = {
    "one token": ((0, 2, 1), (1, 63, 1), (2, 500, 1)),
    "one token, 1,024 and more": ((0, 1023, 1), (1, 9, 1), (2, 2047, 1)),
    "one token, slots out of order": ((2, 100, 1), (0, 1100, 1), (1, 7, 1)),
    "sixteen tokens, slots out of order": ((3, 70, 16), (0, 0, 9), (1, 1100, 2)),
} | {f"{n} tokens": ((1, 70, n), (0, 0, 1), (2, 1100, n - 1)) for n in range(2, 9)}


def fused(_: Path) -> Finding:
    """Attention as a training without dropout computes it, by a fused kernel on a GPU, against softmax(q k^T) v."""
    errors = {}
    for T, head_dim, dtype in FUSED:
        error = _error_of_fused(head_dim, T, getattr(mx, dtype))
        errors[f"{T:,} tokens, heads of {head_dim}, {dtype}"] = error, tolerance(dtype)
    return worst(errors)


def _error_of_fused(head_dim: int, T: int, dtype: mx.Dtype) -> float:
    config = dataclasses.replace(SHAPE, n_head=1, n_embd=head_dim)
    fast, plain = (model(config).h[0].attn for _ in range(2))  # of equal weights
    fast.set_dtype(dtype)  # the plain one stays float32
    x, weights = mx.random.normal((2, 1, T, head_dim), key=mx.random.key(0))

    def formula(x: mx.array) -> mx.array:
        q, k, v = plain.c_attn(x).split(3, axis=-1)  # each (1, T, C)
        scores = mx.where(mx.tri(T, dtype=mx.bool_), q @ k.swapaxes(-1, -2) / head_dim**0.5, -mx.inf)
        return plain.c_proj(mx.softmax(scores, axis=-1) @ v)

    def both(layer: Callable[[mx.array], mx.array], x: mx.array) -> tuple[mx.array, mx.array]:
        return layer(x), mx.grad(lambda x: mx.sum(layer(x) * weights))(x)

    results = zip(both(fast, x.astype(dtype)), both(formula, x))
    return max(difference(a.astype(mx.float32), b) for a, b in results)


def cached(_: Path) -> Finding:
    """Attention to a cache against NumPy, with rows of unequal lengths."""
    errors = {}
    for head_dim in (64, 32):
        for name, rows in ROWS.items():
            for dtype in ("float32", "float16", "bfloat16"):
                error = _error_of_cached(head_dim, rows, getattr(mx, dtype))
                errors[f"{name}, heads of {head_dim}, {dtype}"] = error, tolerance(dtype)
    return worst(errors)


def _error_of_cached(head_dim: int, rows: tuple[tuple[int, int, int], ...], dtype: mx.Dtype) -> float:
    slots, starts, counts = (list(column) for column in zip(*rows))
    S, T, random = len(rows), max(counts), np.random.RandomState(0)

    def normal(*shape: int) -> mx.array:
        return mx.array(random.standard_normal(shape)).astype(dtype)

    config = GPT2Config(block_size=4096, vocab_size=1, n_layer=1, n_head=N_HEAD, n_embd=N_HEAD * head_dim)
    cache = KVCache(config, max(slots) + 1, dtype)
    past = [normal(2, N_HEAD, start, head_dim) for start in starts]
    for slot, (keys, values) in zip(slots, past):
        stale = mx.full((N_HEAD, max(starts) + 100, head_dim), STALE, dtype)
        cache.write(slot, 0, [stale, stale])
        cache.write(slot, 0, [keys, values])
    q, k, v = normal(3, S, N_HEAD, T, head_dim)
    y = cache.extend(slots, starts, counts, T).layers[0].attend(q, k, v, head_dim**-0.5)  # (S, H, T, D)
    errors = []
    for row, n in enumerate(counts):
        keys, values = (np.concatenate([_64(old), _64(new[row, :, :n])], 1) for old, new in zip(past[row], (k, v)))
        expected = reference.attend(_64(q[row, :, :n]), keys, values)
        errors.append(difference(_64(y[row, :, :n]), expected))
    return max(errors)


def _64(array: mx.array) -> np.ndarray:
    return np.array(array.astype(mx.float32), np.float64)
