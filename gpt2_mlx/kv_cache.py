"""Keys and values of past tokens, in fixed slots: one sequence a slot, one length a slot.

Shapes: B rows, H n_head, T new tokens, L tokens attended to, D head_dim.
"""

import mlx.core as mx
import numpy as np

from . import device
from .config import GPT2Config

BUCKET = 64  # lengths are rounded up to a multiple, so that shapes stay few


def bucket(length: int) -> int:
    """The least multiple of `BUCKET` that is at least `length`, and at least one."""
    return max(1, -(-length // BUCKET)) * BUCKET


class KVCache:
    """The cache of a model: `n_slots` sequences of up to `block_size` tokens.

    A token takes 2 x n_layer x n_embd numbers: 74 kB for 124M in float32. There is room for as many slots and tokens as
    were needed at once so far, each rounded up to a power of two: what nobody uses takes no memory and no time.
    """

    def __init__(self, config: GPT2Config, n_slots: int, dtype: mx.Dtype = mx.float32):
        self.block_size = config.block_size
        self.lengths = np.zeros(n_slots, np.int32)  # tokens held, by slot
        self.capacity = BUCKET  # tokens a slot has room for
        shape = (1, config.n_head, self.capacity, config.head_dim)
        self.keys = [mx.zeros(shape, dtype) for _ in range(config.n_layer)]
        self.values = [mx.zeros(shape, dtype) for _ in range(config.n_layer)]

    def _reserve(self, n_slots: int, length: int) -> None:
        """Make room for `length` tokens in the first `n_slots` slots, and one place more, where padding is written."""
        n_held, H, capacity, D = self.keys[0].shape
        while capacity <= length:
            capacity = min(2 * capacity, bucket(self.block_size + 1))
        n = min(len(self.lengths), 1 << (n_slots - 1).bit_length())
        if n <= n_held and capacity == self.capacity:
            return
        for arrays in (self.keys, self.values):
            for layer, array in enumerate(arrays):
                arrays[layer] = mx.zeros((max(n, n_held), H, capacity, D), array.dtype)
                arrays[layer][:n_held, :, : self.capacity] = array
        self.capacity = capacity

    def extend(self, slots: list[int], counts: list[int], width: int, n_rows: int | None = None) -> "CacheView":
        """A view for one forward pass that appends counts[i] tokens, padded on the right to `width`, to slots[i].

        Args:
            n_rows: the rows of the pass; those beyond the slots mean nothing and are not remembered.

        Raises:
            ValueError: a slot would hold more than block_size tokens.
        """
        starts = self.lengths[slots]
        ends = starts + np.array(counts, np.int32)
        if ends.max() > self.block_size:
            raise ValueError(f"{ends.max()} tokens do not fit: this model's block_size is {self.block_size}")
        self._reserve(max(slots) + 1, int(ends.max()))
        self.lengths[slots] = ends
        return CacheView(self, slots, starts, ends, width, n_rows or len(slots))

    def copy(self, source: int, target: int, length: int) -> None:
        """Have a slot begin with the first `length` tokens of another."""
        self._reserve(max(source, target) + 1, length)
        for arrays in (self.keys, self.values):
            for array in arrays:
                array[target, :, :length] = array[source, :, :length]
        self.lengths[target] = length

    def free(self, slot: int) -> None:
        """Forget a slot's sequence; what it held is overwritten by the next."""
        self.lengths[slot] = 0

    def state(self) -> list[mx.array]:
        """All arrays, to be evaluated."""
        return [*self.keys, *self.values]


def slots_that_fit(config: GPT2Config, dtype: mx.Dtype) -> int:
    """How many slots an eighth of the memory holds; at least one, at most 32."""
    slot = 2 * config.n_layer * config.n_embd * bucket(config.block_size + 1) * dtype.size
    return min(32, max(1, device.memory() // 8 // slot))


class CacheView:
    """What one forward pass sees of a cache: its rows' positions, their past, and what may attend to what.

    Attributes:
        positions: (B, T) of the new tokens; padding has one that is in range and means nothing.
    """

    def __init__(self, cache: KVCache, slots: list[int], starts: np.ndarray, ends: np.ndarray, width: int, n_rows: int):
        self._cache, self._n_slots, self._n_padding = cache, len(slots), n_rows - len(slots)
        at = starts[:, None] + np.arange(width, dtype=np.int32)  # (S, T) for S slots
        is_padding = at >= ends[:, None]
        self.positions = mx.array(np.pad(np.where(is_padding, 0, at), ((0, self._n_padding), (0, 0))))
        self._write_to = mx.array(np.where(is_padding, cache.capacity - 1, at))
        self._rows = mx.array(slots)[:, None]  # (S, 1)
        in_order = slots == list(range(slots[0], slots[-1] + 1))
        self._slots = slice(slots[0], slots[-1] + 1) if in_order else mx.array(slots)  # a slice needs no copy
        self._length = bucket(int(ends.max()))
        self._mask = (mx.arange(self._length) <= mx.array(at)[:, :, None])[:, None]  # (S, 1, T, L)

    def attend(self, layer: int, q: mx.array, k: mx.array, v: mx.array, scale: float) -> mx.array:
        """Append a layer's new keys and values, and attend to all of them: (B, H, T, D) each, and so the result."""
        S = self._n_slots
        keys = self._append(self._cache.keys, layer, k[:S])  # (S, H, L, D)
        values = self._append(self._cache.values, layer, v[:S])
        y = self._attention(q[:S], keys, values, scale)
        return mx.pad(y, [(0, self._n_padding), (0, 0), (0, 0), (0, 0)]) if self._n_padding else y

    def _append(self, arrays: list[mx.array], layer: int, new: mx.array) -> mx.array:
        array = arrays[layer]
        array[self._rows, :, self._write_to] = new.swapaxes(1, 2)  # (S, T, H, D)
        return array[self._slots, :, : self._length]

    def _attention(self, q: mx.array, keys: mx.array, values: mx.array, scale: float) -> mx.array:
        if device.on_gpu():
            return mx.fast.scaled_dot_product_attention(q, keys, values, scale=scale, mask=self._mask)
        scores = mx.where(self._mask, (q * scale) @ keys.swapaxes(-1, -2), -mx.inf)  # (S, H, T, L)
        e = _exponentials(scores, mx.max(scores, axis=-1, keepdims=True), self._mask)
        # A product's sum is grouped by its length, and a decoded row must not feel how long others are: by buckets.
        step = BUCKET if q.shape[2] == 1 else self._length
        parts = (slice(i, i + step) for i in range(0, self._length, step))
        y = sum(e[..., part] @ values[:, :, part] for part in parts) / mx.sum(e, axis=-1, keepdims=True)
        return y.astype(q.dtype)


@mx.compile
def _exponentials(scores: mx.array, peak: mx.array, mask: mx.array) -> mx.array:
    """exp(scores - peak) in float32 where the mask holds, else 0: what a slot held before must not be felt."""
    return mx.where(mask, device.exp_of_negative((scores - peak).astype(mx.float32)), 0)
