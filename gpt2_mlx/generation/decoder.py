"""The decoding pass: from the newest token of each sequence to the logits of its next one."""

import itertools
from collections.abc import Callable

import mlx.core as mx

from ..kv_cache import CacheView, KVCache
from ..model import GPT2
from .capacity import equal_row_counts
from .scheduler import Sequence


class Decoder:
    """Decodes sequences with a model and its cache, in groups of slots.

    A pass is compiled for each shape, since building its graph takes Python as long as a fast GPU takes to compute it.
    """

    def __init__(self, model: GPT2, cache: KVCache):
        self._model, self._cache = model, cache
        self._row_counts = equal_row_counts(model)
        self._passes: dict[tuple, Callable[..., mx.array]] = {}

    def next_logits(self, sequences: list[Sequence]) -> mx.array:
        """The logits (B, V) of the next tokens of sequences, which are in the order of their slots; not yet evaluated.

        Stores the keys and values of each sequence's newest token.
        """
        size = self._row_counts[-1]
        groups = [list(group) for _, group in itertools.groupby(sequences, lambda s: s.slot // size)]
        logits = []
        for group in groups:
            logits.append(self._next_logits(group, first=group[0].slot // size * size))
            if len(groups) > 1:
                mx.eval(logits[-1], self._cache.state())  # now, or the next group would copy the whole cache
        return mx.concatenate(logits)

    def _next_logits(self, group: list[Sequence], first: int) -> mx.array:
        """The same for sequences in the slots from `first` on."""
        rows = [s.slot - first for s in group]
        n_slots = rows[-1] + 1
        n_rows = next(n for n in self._row_counts if n >= n_slots)
        starts, counts, newest = [0] * n_slots, [0] * n_slots, [0] * n_rows
        for row, sequence in zip(rows, group):
            starts[row], counts[row], newest[row] = sequence.cached, 1, sequence.context[-1]
        view = self._cache.extend(list(range(first, first + n_slots)), starts, counts, width=1, n_rows=n_rows)
        return self._pass(view)(mx.array(newest)[:, None], *view.arrays)[mx.array(rows)]

    def _pass(self, view: CacheView) -> Callable[..., mx.array]:
        """The pass for views of this shape: tokens (B, 1) and the view's arrays -> logits (B, V)."""
        if view.shape not in self._passes:
            state = [self._cache.keys, self._cache.values]

            def logits(tokens: mx.array, *arrays: mx.array) -> mx.array:
                hidden = self._model.hidden(tokens, cache=view.of(arrays))  # (B, 1, C)
                return head(self._model, hidden[:, 0])

            self._passes[view.shape] = mx.compile(logits, inputs=state, outputs=state)
        return self._passes[view.shape]


def head(model: GPT2, hidden: mx.array) -> mx.array:
    """(B, C) -> logits (B, V) in float32."""
    return model.wte.as_linear(hidden).astype(mx.float32)
