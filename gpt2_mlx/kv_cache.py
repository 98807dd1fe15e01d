"""Keys and values of past tokens, in fixed slots, one sequence per slot. The caller knows each slot's length in tokens.

Shapes: S slots, B rows, H n_head, T new tokens, L tokens attended to, D head_dim.
"""

from dataclasses import dataclass
from functools import partial

import mlx.core as mx
import numpy as np

from . import blas, device, elementwise
from .config import GPT2Config

BUCKET = 64  # lengths are rounded up to a multiple of this, so that there are few different shapes


def bucket(length: int) -> int:
    """`length` rounded up to a multiple of `BUCKET`, at least one."""
    return max(1, -(-length // BUCKET)) * BUCKET


class KVCache:
    """The cache of a model: `n_slots` sequences of up to `block_size` tokens.

    A token takes 2 x n_layer x n_embd numbers: 74 kB for 124M in float32. The arrays have room for the largest numbers
    of slots and of tokens that were needed so far, each rounded up to a power of two, so that unused room takes little
    memory and no time.
    """

    def __init__(self, config: GPT2Config, n_slots: int, dtype: mx.Dtype = mx.float32):
        self.block_size, self.n_slots = config.block_size, n_slots
        self.capacity = BUCKET  # tokens that each slot has room for
        shape = (1, config.n_head, self.capacity, config.head_dim)
        self.keys = [mx.zeros(shape, dtype) for _ in range(config.n_layer)]
        self.values = [mx.zeros(shape, dtype) for _ in range(config.n_layer)]

    def _reserve(self, n_slots: int, length: int) -> None:
        """Make room for `length` tokens in the first `n_slots` slots, and for one more, where padding is written."""
        n_held, H, capacity, D = self.keys[0].shape
        while capacity <= length:
            capacity = min(2 * capacity, bucket(self.block_size + 1))
        n = min(self.n_slots, 1 << (n_slots - 1).bit_length())
        if n <= n_held and capacity == self.capacity:
            return
        for arrays in (self.keys, self.values):
            for layer, array in enumerate(arrays):
                arrays[layer] = mx.zeros((max(n, n_held), H, capacity, D), array.dtype)
                arrays[layer][:n_held, :, : self.capacity] = array
        self.capacity = capacity

    def extend(
        self, slots: list[int], starts: list[int], counts: list[int], width: int, n_rows: int | None = None
    ) -> "CacheView":
        """A view for one forward pass that appends new tokens to slots.

        Raises a ValueError where a slot would hold more than block_size tokens.

        Args:
            slots: (S,) the slots. Where T is 1 a slot may stand here several times in a row, for tokens that follow
                each other; each gets the bits that it would get in a pass of its own.
            starts: (S,) the number of tokens that each slot holds.
            counts: (S,) the number of new tokens for each slot.
            width: T; the new tokens are padded on the right to this length.
            n_rows: B, the rows of the pass; rows beyond the slots are padding, and nothing is stored for them.
        """
        ends = np.array(starts, np.int32) + np.array(counts, np.int32)
        if ends.max() > self.block_size:
            raise ValueError(f"{ends.max()} tokens do not fit: this model's block_size is {self.block_size}")
        self._reserve(max(slots) + 1, int(ends.max()))
        n_padding, length = (n_rows or len(slots)) - len(slots), bucket(int(ends.max()))
        at = np.array(starts, np.int32)[:, None] + np.arange(width, dtype=np.int32)  # (S, T)
        is_padding = at >= ends[:, None]
        positions = np.pad(np.where(is_padding, 0, at), ((0, n_padding), (0, 0)))
        runs, places = _runs(slots, counts) if len(set(slots)) < len(slots) else (None, None)
        is_range = runs is not None or slots == list(range(slots[0], slots[-1] + 1))
        return CacheView(
            self,
            slice(slots[0], slots[-1] + 1) if is_range else mx.array(slots),
            len(slots),
            n_padding,
            length,
            mx.array(positions),
            mx.array(np.where(is_padding, self.capacity - 1, at)),
            mx.array(slots)[:, None],
            self._mask(at if runs is None else at[:, 0][runs], length, is_decoding=width == 1),
            None if runs is None else (mx.array(runs), mx.array(places)),
            slice(starts[0], int(ends[0])) if len(slots) == 1 and width > 1 else None,
        )

    def _mask(self, at: np.ndarray, length: int, is_decoding: bool) -> mx.array:
        """What new tokens at these positions (S, T) attend to: (S, 1, T, L), or (S, H, T, L) for a GPU's decoding."""
        (S, T), H = at.shape, self.keys[0].shape[1]
        mask = (mx.arange(length) <= mx.array(at)[:, :, None])[:, None]
        # Metal's kernel for few tokens of several sequences would copy the mask for all heads, in each layer anew.
        return mx.contiguous(mx.broadcast_to(mask, (S, H, T, length))) if device.on_gpu() and is_decoding else mask

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` tokens of slot `source` to the beginning of slot `target`."""
        self._reserve(max(source, target) + 1, length)
        for arrays in (self.keys, self.values):
            for array in arrays:
                array[target, :, :length] = array[source, :, :length]

    def read(self, slot: int, start: int, end: int) -> list[mx.array]:
        """A copy of the tokens of a slot from `start` up to `end`, for `write`."""
        parts = [mx.contiguous(array[slot, :, start:end]) for array in self.state()]
        mx.eval(parts)
        return parts

    def write(self, slot: int, start: int, parts: list[mx.array]) -> None:
        """Have a slot hold what `read` gave, from `start` on."""
        end = start + parts[0].shape[1]
        self._reserve(slot + 1, end)
        for arrays, own in ((self.keys, parts[: len(self.keys)]), (self.values, parts[len(self.keys) :])):
            for array, part in zip(arrays, own):
                array[slot, :, start:end] = part

    def state(self) -> list[mx.array]:
        """All arrays, to be evaluated."""
        return [*self.keys, *self.values]


@dataclass(frozen=True)
class CacheView:
    """What one forward pass needs of a cache: the positions of its tokens, and each layer's keys and values."""

    cache: KVCache
    slots: slice | mx.array  # (S,); a slice needs no copy
    n_slots: int  # S
    n_padding: int  # B - S
    length: int  # L
    positions: mx.array  # (B, T) of the new tokens; padding has position 0
    write_to: mx.array  # (S, T) where a slot stores them
    rows: mx.array  # (S, 1) the slots
    mask: mx.array  # (S, 1 or H, T, L) what each of them attends to
    runs: tuple[mx.array, mx.array] | None = None  # where slots have several rows; see `_runs`
    chunk: slice | None = None  # where a single slot stores a chunk of a prompt, without padding

    @property
    def layers(self) -> list["LayerCache"]:
        """The view of each layer, in order."""
        return [LayerCache(self, layer) for layer in range(len(self.cache.keys))]

    @property
    def shape(self) -> tuple:
        """What a pass compiled with one view must have in common with another, where the slots are a slice."""
        return self.slots.start, self.n_slots, self.n_padding, self.length, self.runs and self.runs[0].shape

    @property
    def arrays(self) -> tuple[mx.array, ...]:
        """What differs between views of one shape."""
        return self.positions, self.write_to, self.rows, self.mask, *(self.runs or ())

    def of(self, arrays: tuple[mx.array, ...]) -> "CacheView":
        """The view of the same shape with these `arrays`."""
        return CacheView(
            self.cache, self.slots, self.n_slots, self.n_padding, self.length, *arrays[:4], arrays[4:] or None
        )


@dataclass(frozen=True)
class LayerCache:
    """One layer of a view."""

    view: CacheView
    layer: int

    def attend(self, q: mx.array, k: mx.array, v: mx.array, scale: float) -> mx.array:
        """Store the new keys and values, and attend to all that are stored; arguments and result are (B, H, T, D)."""
        S, n_padding = self.view.n_slots, self.view.n_padding
        keys = self._store(self.view.cache.keys, k[:S])  # (S, H, L, D)
        values = self._store(self.view.cache.values, v[:S])
        attention = partial(_attention_of_runs, *self.view.runs) if self.view.runs else _attention
        y = attention(q[:S], keys, values, self.view.mask, scale)
        return mx.pad(y, [(0, n_padding), (0, 0), (0, 0), (0, 0)]) if n_padding else y

    def _store(self, arrays: list[mx.array], new: mx.array) -> mx.array:
        array, view = arrays[self.layer], self.view
        if view.chunk:  # in 16 bits Metal writes the elements of a scatter one by one, with a lock for each
            array[view.slots, :, view.chunk] = new[:, :, : view.chunk.stop - view.chunk.start]
        else:
            array[view.rows, :, view.write_to] = new.swapaxes(1, 2)  # (S, T, H, D)
        return array[view.slots, :, : view.length]


def _runs(slots: list[int], counts: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Which rows belong to each of the n slots from the first to the last, (n, R), and each row's place therein, (S,).

    R is a power of two, so that there are few shapes. What is left of a slot's R rows, and of the places, is 0.
    """
    numbers = [slots[:row].count(slot) if counts[row] else 0 for row, slot in enumerate(slots)]
    n, R = slots[-1] + 1 - slots[0], 1 << max(numbers).bit_length()
    places = np.where(counts, (np.array(slots) - slots[0]) * R + numbers, 0)
    runs = np.zeros(n * R, np.int32)
    for row in np.flatnonzero(counts):
        runs[places[row]] = row
    return runs.reshape(n, R), places


def _attention_of_runs(
    runs: mx.array, places: mx.array, q: mx.array, keys: mx.array, values: mx.array, mask: mx.array, scale: float
) -> mx.array:
    """As `_attention`, for rows q (S, H, 1, D) of which several attend to one slot; keys and values (n, H, L, D)."""
    (n, R), (_, H, _, D) = runs.shape, q.shape
    q = q[runs.flatten()]  # (n R, H, 1, D)
    if device.on_gpu():
        y = _attention(q.reshape(n, R, H, D).swapaxes(1, 2), keys, values, mask, scale).swapaxes(1, 2)
    else:  # each row by itself: a product of several rows would have other bits
        mask = mask.swapaxes(1, 2)[..., None, :]  # (n, R, 1, 1, L)
        y = _attention(q.reshape(n, R, H, 1, D), keys[:, None], values[:, None], mask, scale)
    return y.reshape(n * R, H, 1, D)[places]


def _attention(q: mx.array, keys: mx.array, values: mx.array, mask: mx.array, scale: float) -> mx.array:
    if device.on_gpu():
        return mx.fast.scaled_dot_product_attention(q, keys, values, scale=scale, mask=mask)
    T, L = q.shape[-2], keys.shape[-2]
    scores = mx.where(mask, (q * scale) @ keys.swapaxes(-1, -2), -mx.inf)  # (S, H, T, L)
    e = _masked_exp(scores, mx.max(scores, axis=-1, keepdims=True), mask)
    # A product's order of summing depends on its length L, and L on the longest row. A decoded row must have the same
    # bits whatever the other rows are, so its values are summed bucket by bucket, or in order by a kernel of our own,
    # where the zeros at the end change nothing.
    size = BUCKET if T == 1 and not blas.alike_rows() else L
    buckets = (slice(i, i + size) for i in range(0, L, size))
    y = sum(e[..., own] @ values[..., own, :] for own in buckets) / mx.sum(e, axis=-1, keepdims=True)
    return y.astype(q.dtype)


@mx.compile
def _masked_exp(scores: mx.array, peak: mx.array, mask: mx.array) -> mx.array:
    """exp(scores - peak) in float32 where the mask holds, else 0, so that what a slot held before has no effect."""
    return mx.where(mask, elementwise.exp_of_negative((scores - peak).astype(mx.float32)), 0)
