"""Prefill: prompts are read into the cache, a chunk in a pass, and what is known of them is not read again."""

from collections.abc import Callable, Collection

import mlx.core as mx
import numpy as np

from .. import device
from ..kv_cache import KVCache, bucket
from ..model import GPT2
from .adapters import Adapters
from .capacity import alike_rows
from .decoder import head
from .outputs import token_of
from .prefixes import Prefixes
from .scheduler import CHUNK, Sequence

WIDTHS = (8, 16, 24, 32, 48, 64, 96, CHUNK)  # a chunk is padded to one of these lengths


class Prefill:
    """Reads contexts with a model into its cache; `on_pass` as the engine has it."""

    def __init__(
        self,
        model: GPT2,
        cache: KVCache,
        prefixes: Prefixes,
        on_pass: Callable[[list[int], int], None],
        adapters: Adapters,
    ):
        self._model, self._cache, self._prefixes, self._on_pass = model, cache, prefixes, on_pass
        self._adapters = adapters

    def read(self, sequences: list[Sequence], running: Collection[Sequence]) -> None:
        """Read the next chunk of each context, and note the log-probabilities of prompts that ask for them.

        Args:
            sequences: those to read on.
            running: all that have a slot, whose cache may be copied.
        """
        for group in self._groups(sequences, running):
            self._pass(group)

    def _groups(self, sequences: list[Sequence], running: Collection[Sequence]) -> list[list[Sequence]]:
        """Sequences to read together: of one adapter and shape; on a CPU so few that none has other bits than alone."""
        groups: dict = {}
        taken: list[Sequence] = []
        for sequence in sequences:
            self._copy_prefix(sequence)  # first, for what was read for others is told, whoever has a slot
            self._copy_from(running, sequence)
            if sequence.is_decoding or any(self._waits_for(sequence, other) for other in taken):
                continue  # in a later step it copies what the other reads now
            taken.append(sequence)
            shape = _width(sequence.chunk), bucket(sequence.cached + sequence.chunk), sequence.adapter
            groups.setdefault(shape, []).append(sequence)
        parts = []
        for (width, *_), group in groups.items():
            n = len(group) if device.on_gpu() else max(1, alike_rows(self._model) // width)
            parts += [group[i : i + n] for i in range(0, len(group), n)]
        return parts

    def _copy_from(self, running: Collection[Sequence], sequence: Sequence) -> None:
        """Copy what another slot holds of the same prompt."""
        for other in running:
            if _can_share(sequence, other) and other.cached > sequence.cached:
                n = min(other.cached, len(sequence.context) - 1)
                self._cache.copy(other.slot, sequence.slot, n)
                sequence.cached = n

    def _copy_prefix(self, sequence: Sequence) -> None:
        """Copy the blocks that are kept of the prompt."""
        while self._reads_block(sequence) and (block := self._prefixes.get(sequence.adapter, sequence.ahead)):
            self._cache.write(sequence.slot, sequence.cached, block)
            sequence.cached += CHUNK
            sequence.found += CHUNK

    def _waits_for(self, sequence: Sequence, other: Sequence) -> bool:
        """Whether a sequence can copy later what another is about to read."""
        both = self._reads_block(sequence) and self._reads_block(other)
        same = sequence.adapter == other.adapter and sequence.ahead == other.ahead
        return _can_share(sequence, other) or (both and same)

    def _reads_block(self, sequence: Sequence) -> bool:
        """Whether the next chunk of a sequence is one to keep for others."""
        return self._prefixes.room > 0 and sequence.chunk == CHUNK and _is_plain(sequence)

    def _pass(self, sequences: list[Sequence]) -> None:
        """Read the next chunk of each context; all chunks are padded to one width."""
        slots, starts, counts = zip(*((s.slot, s.cached, s.chunk) for s in sequences))
        width = _width(max(counts))
        self._on_pass([s.id for s in sequences], sum(counts))
        chunks = [s.context[s.cached : s.cached + n] + [0] * (width - n) for s, n in zip(sequences, counts)]
        view = self._cache.extend(list(slots), starts, counts, width)
        with self._adapters.chosen(sequences[0].adapter):
            hidden = self._model.hidden(mx.array(chunks), cache=view)  # (B, T, C)
        mx.eval(self._cache.state())
        for row, sequence, n in zip(hidden, sequences, counts):
            if self._reads_block(sequence):
                block = self._cache.read(sequence.slot, sequence.cached, sequence.cached + CHUNK)
                self._prefixes.put(sequence.adapter, sequence.ahead, block)
            sequence.cached += n
            if sequence.params.prompt_logprobs and not sequence.slides:
                self._note(sequence, row[:n])

    def _note(self, sequence: Sequence, hidden: mx.array) -> None:
        """Note the log-probabilities of the prompt's tokens that follow the n tokens just read: hidden (n, C)."""
        following = sequence.context[sequence.cached - len(hidden) + 1 : sequence.cached + 1]
        logits = head(self._model, hidden)
        log_p = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        sequence.noted_prompt += [token_of(row, id, sequence.params) for row, id in zip(np.array(log_p), following)]


def _width(n: int) -> int:
    return next(width for width in WIDTHS if width >= n)


def _can_share(sequence: Sequence, other: Sequence) -> bool:
    """Whether a sequence may copy what another has read: prompt and adapter are equal, and neither window has moved."""
    same = sequence is not other and sequence.adapter == other.adapter and sequence.prompt == other.prompt
    return same and _is_plain(sequence) and not other.slides


def _is_plain(sequence: Sequence) -> bool:
    """Whether a sequence reads its prompt, and may have keys and values from another that read the same."""
    return not (sequence.slides or sequence.params.prompt_logprobs or sequence.params.cold)
