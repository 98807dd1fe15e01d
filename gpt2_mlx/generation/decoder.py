"""The decoding pass: from the newest token of each row to the logits of its next one."""

import itertools
from collections.abc import Callable

import mlx.core as mx

from ..kv_cache import CacheView, KVCache
from ..model import GPT2
from .adapters import Adapters
from .capacity import equal_row_counts
from .rows import Row

MOST_PASSES = 128  # that are kept; with 12 layers each takes 2 MB


class Decoder:
    """Decodes rows with a model and its cache, in groups of slots.

    A pass is compiled for each shape, since building its graph takes Python as long as a fast GPU takes to compute it.
    Those used last are kept.

    Attributes:
        row_counts: the numbers of rows, padding included, that a pass may have.
    """

    def __init__(self, model: GPT2, cache: KVCache, adapters: Adapters):
        self._model, self._cache, self._adapters = model, cache, adapters
        with adapters.chosen(None):
            self.row_counts = equal_row_counts(model)
        self._passes: dict[tuple, Callable[..., mx.array]] = {}

    def n_rows(self, rows: list[Row]) -> int | None:
        """The rows of the pass for these, padding included; None where it takes several passes."""
        n = len(rows) if _has_drafts(rows) else rows[-1].slot + 1
        return next((count for count in self.row_counts if count >= n), None)

    def next_logits(self, rows: list[Row]) -> mx.array:
        """The logits (B, V) of the next token of each row; not yet evaluated.

        Stores the keys and values of each row's newest token.

        Args:
            rows: those of a sequence follow each other, and the sequences are in the order of their slots; where there
                are drafts, no more than the largest of `row_counts`.
        """
        if _has_drafts(rows):
            return self._verify(rows)
        size = self.row_counts[-1]
        groups = [list(group) for _, group in itertools.groupby(rows, lambda row: row.slot // size)]
        logits = []
        for group in groups:
            logits.append(self._next_logits(group, first=group[0].slot // size * size))
            if len(groups) > 1:
                mx.eval(logits[-1], self._cache.state())  # now, or the next group would copy the whole cache
        return mx.concatenate(logits)

    def _next_logits(self, group: list[Row], first: int) -> mx.array:
        """The same for a row of each sequence, in the slots from `first` on."""
        places = [row.slot - first for row in group]
        n_slots = places[-1] + 1
        n_rows = next(n for n in self.row_counts if n >= n_slots)
        starts, counts, newest, numbers = [0] * n_slots, [0] * n_slots, [0] * n_rows, [0] * n_rows
        for place, row in zip(places, group):
            starts[place], counts[place], newest[place] = row.start, 1, row.newest
            numbers[place] = row.sequence.adapter
        view = self._cache.extend(list(range(first, first + n_slots)), starts, counts, width=1, n_rows=n_rows)
        return self._run(view, newest, numbers)[mx.array(places)]

    def _verify(self, rows: list[Row]) -> mx.array:
        """The same for several rows of a sequence. Padding is of the last slot, so that there are few shapes."""
        n_padding = self.n_rows(rows) - len(rows)
        slots = [row.slot for row in rows] + [rows[-1].slot] * n_padding
        starts, counts = [row.start for row in rows] + [0] * n_padding, [1] * len(rows) + [0] * n_padding
        newest = [row.newest for row in rows] + [0] * n_padding
        numbers = [row.sequence.adapter for row in rows] + [0] * n_padding
        view = self._cache.extend(slots, starts, counts, width=1)
        return self._run(view, newest, numbers)[: len(rows)]

    def _run(self, view: CacheView, newest: list[int], numbers: list[int]) -> mx.array:
        """The logits (B, V) of rows with these tokens and adapters."""
        step = self._pass(view, is_adapted=any(numbers))
        return step(mx.array(newest)[:, None], mx.array(numbers), *view.arrays)

    def _pass(self, view: CacheView, is_adapted: bool) -> Callable[..., mx.array]:
        """The pass for views of this shape: tokens (B, 1), adapters (B,) and the view's arrays -> logits (B, V)."""
        shape = *view.shape, is_adapted
        self._passes[shape] = self._passes.pop(shape, None) or self._compiled(view, is_adapted)
        if len(self._passes) > MOST_PASSES:
            del self._passes[next(iter(self._passes))]
        return self._passes[shape]

    def _compiled(self, view: CacheView, is_adapted: bool) -> Callable[..., mx.array]:
        model, adapters, state = self._model, self._adapters, [self._cache.keys, self._cache.values]

        def logits(tokens: mx.array, numbers: mx.array, *arrays: mx.array) -> mx.array:
            with adapters.chosen(numbers if is_adapted else 0):
                hidden = model.hidden(tokens, cache=view.of(arrays))  # (B, 1, C)
            return head(model, hidden[:, 0])

        return mx.compile(logits, inputs=state, outputs=state)


def _has_drafts(rows: list[Row]) -> bool:
    return any(row.drafted for row in rows)


def head(model: GPT2, hidden: mx.array) -> mx.array:
    """(B, C) -> logits (B, V) in float32."""
    return model.wte.as_linear(hidden).astype(mx.float32)
