"""The number of rows to decode at once, and the number of slots to have."""

import mlx.core as mx
import numpy as np

from .. import blas, device
from ..config import GPT2Config
from ..kv_cache import bucket
from ..model import GPT2
from .scheduler import CHUNK

ROW_COUNTS = (1, 2, 4, 8, 16, 32)  # the numbers of rows, padding included, that one decoding pass may have


def slots_that_fit(dtype: mx.Dtype, *configs: GPT2Config) -> int:
    """The number of slots that an eighth of the memory holds, each for all of these models; at least 1, at most 32."""
    slot = sum(_size(config, dtype, bucket(config.block_size + 1)) for config in configs)
    return min(32, max(1, device.memory() // 8 // slot))


def prefixes_that_fit(config: GPT2Config, dtype: mx.Dtype, mb: int | None = None) -> int:
    """The number of blocks of prompts that so many MB of 10^6 bytes hold; by default 1 GB or a 32nd of the memory."""
    limit = min(10**9, device.memory() // 32) if mb is None else mb * 10**6
    return limit // _size(config, dtype, CHUNK)


def _size(config: GPT2Config, dtype: mx.Dtype, n_tokens: int) -> int:
    """The bytes of so many tokens' keys and values."""
    return 2 * config.n_layer * config.n_embd * n_tokens * dtype.size


def equal_row_counts(model: GPT2) -> tuple[int, ...]:
    """The numbers in `ROW_COUNTS` with which a pass gives a row the same bits, in rising order.

    A BLAS takes other kernels for few rows and for the last rows of a product, so each number is tried with equal rows.
    If several groups of numbers agree among themselves, the group with the largest number is returned.
    """
    if not device.pads_rows():
        return tuple(range(1, ROW_COUNTS[-1] + 1))
    if device.on_gpu():
        return ROW_COUNTS
    block, C = model.h[-1], model.config.n_embd  # adapters change the last blocks, if not all
    layers = [(block.attn.c_attn, C), (block.attn.c_proj, C), (block.mlp.c_fc, C), (block.mlp.c_proj, 4 * C)]
    layers.append((model.wte.as_linear, C))
    x = mx.random.normal((1, 1, 4 * C), key=mx.random.key(0)).astype(model.dtype)
    equal: list[int] = []
    expected: list[np.ndarray] = []  # each layer's result for a row
    for n in reversed(ROW_COUNTS):
        results = [np.array(layer(mx.repeat(x[..., :width], n, axis=0)).astype(mx.float32)) for layer, width in layers]
        rows = expected or [result[0] for result in results]
        if all((result == row).all() for result, row in zip(results, rows)):
            equal.append(n)
            expected = rows
    return tuple(reversed(equal))


def alike_rows(model: GPT2) -> int:
    """Up to how many rows a pass on a CPU gives each the bits that it has alone; 0 where that is not known."""
    return 0 if model.quantization or model.dtype != mx.float32 else blas.alike_rows()
