"""Drafts by a small model of the same vocabulary: it writes a text on, and the large one verifies that in one pass."""

import dataclasses
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import mlx.core as mx

from .. import pretrained
from ..kv_cache import KVCache
from ..model import GPT2
from .adapters import Adapters
from .decoder import Decoder
from .drafts import AUTO, MEMORY, Costs, best_of, judge, read
from .prefill import Prefill
from .prefixes import Prefixes
from .rows import Row
from .sampling import penalised, sample, uniform
from .scheduler import Sequence

FIRST_RATE = 0.5  # how often a guess is right, as long as nothing is known
LONG_MEMORY = 64  # the rate with which a text begins is that of about so many guesses for others
PAUSE = 64  # steps without a draft after which one is tried, since a text may have become easier to guess
TRIAL = 2  # the tokens of such a draft
TRIED = 0.01  # the largest share of the time that such drafts may take, the reading of their texts included
MOST_READ = 4  # texts of which a chunk is read in a step, so that the others do not wait for long


def find(source: str, target: Path) -> Path:
    """The checkpoint folder of the draft model that a user means, as `pretrained.find`, for the model in `target`.

    Raises a ValueError where there is none, or its vocabulary is another one.
    """
    try:
        folder = pretrained.find(source)
        shape, ids = pretrained.read_config(folder), pretrained.vocabulary(folder).ids
    except ValueError as error:
        raise ValueError(f"--draft-model is {source}: {error}") from None
    if shape.vocab_size != pretrained.read_config(target).vocab_size or ids != pretrained.vocabulary(target).ids:
        raise ValueError(f"--draft-model is {source}; it must have the vocabulary of {target}, the same ids and size")
    return folder


@dataclass(eq=False)
class Follower:
    """A text as the small model has it: a sequence of its own, which holds the latest draft until that is judged."""

    sequence: Sequence
    rate: float  # how often the guess of a token was right lately, from 0 to 1
    latest: list[int] = field(default_factory=list)

    def room(self, leader: Sequence) -> int:
        """How many tokens may be drafted: one less than may be drawn, and no window slides meanwhile."""
        left = leader.params.max_tokens - len(leader.generated) - 1
        return min(left, *(sequence.block_size - len(sequence.context) for sequence in (leader, self.sequence)))

    def write(self, token: int) -> None:
        self.latest.append(token)
        self.sequence.append(token)

    def learn(self, drawn: list[int]) -> None:
        """Put what was drawn in the place of the draft. The cache keeps the tokens that both begin with."""
        own, n = self.sequence, len(self.latest)
        right = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(drawn, self.latest)))
        self.rate = judge(self.rate, drawn, self.latest, MEMORY)
        if n:
            del own.context[-n:], own.generated[-n:]
            own.cached = min(own.cached, len(own.context) + min(right, len(drawn) - 1))  # the last one is read later
        for token in drawn:
            own.append(token)
        self.latest = []


class ModelDrafter:
    """Says for each step which tokens to draft, as `Drafter` does; they are what a small model draws.

    It draws with the random numbers that the text itself has at these places. So where both models think alike they
    draw the same, and the draft is right.

    Args:
        model: the small model, evaluated.
        n_slots: as the engine has them.
        speculate: "auto" drafts as many tokens as pay, by the rates at which drafts were right and by the time that
            passes take; "off" none; N as many, as long as the rows of a pass suffice.
        row_counts: the numbers of rows that a pass of the large model may have.
        end: the token that ends a text.
        on_pass: as the engine has it.

    Raises:
        ValueError: speculate is none of these.
    """

    def __init__(
        self,
        model: GPT2,
        n_slots: int,
        speculate: str | int,
        row_counts: tuple[int, ...],
        end: int | None,
        on_pass: Callable[[list[int], int], None],
    ):
        speculate = read(speculate)
        self._adapts = speculate == "auto"
        self._most = {"auto": AUTO, "off": 0}.get(speculate, speculate)
        self._row_counts, self._end, self._on_pass = row_counts, end, on_pass
        self._block_size = model.config.block_size
        adapters, self._cache = Adapters(model), KVCache(model.config, n_slots, model.dtype)
        self._prefill = Prefill(model, self._cache, Prefixes(0), on_pass, adapters)
        self._decoder = Decoder(model, self._cache, adapters)
        self._costs, self._own_costs = Costs(row_counts), Costs(self._decoder.row_counts)
        self._rate, self._n_idle = FIRST_RATE, 0
        self._is_trial = False  # whether the latest draft is one
        self._seconds = self._tried = 0.0  # in passes of the large model, and in trials
        self._holders: dict[int, Follower] = {}  # whose text each slot of the cache has

    def drafts(self, sequences: list[Sequence]) -> list[list[int]]:
        """The tokens to draft for each of the sequences, which are in the order of their slots."""
        began = time.perf_counter()
        followers = [(sequence, self._follower(sequence)) for sequence in sequences if not sequence.params.cold]
        n = self._length(sequences, [follower.rate for _, follower in followers]) if followers else 0
        if n:
            self._write({follower: min(n, follower.room(sequence)) for sequence, follower in followers})
        self._n_idle = 0 if any(follower.latest for _, follower in followers) else self._n_idle + 1
        if self._is_trial:
            self._tried += time.perf_counter() - began
        return [[] if sequence.params.cold else list(sequence.guesses.latest) for sequence in sequences]

    def learn(self, sequence: Sequence, drawn: list[int]) -> None:
        """Note what was drawn for a sequence in a step."""
        if follower := sequence.guesses:
            self._rate = judge(self._rate, drawn, follower.latest, LONG_MEMORY)
            follower.learn(drawn)

    def note(self, n_rows: int | None, seconds: float) -> None:
        """As `Drafter.note`; the seconds are those of the large model's pass."""
        self._seconds += seconds
        if n_rows:
            self._costs.note(n_rows, seconds)

    def _follower(self, sequence: Sequence) -> Follower:
        """The follower of a sequence, with its slot."""
        if not sequence.guesses:
            params = dataclasses.replace(sequence.params, cold=True, prompt_logprobs=False)  # cold ones share nothing
            own = Sequence(sequence.id, sequence.prompt, params, self._block_size)
            sequence.guesses = Follower(own, self._rate)
        follower, slot = sequence.guesses, sequence.slot
        if follower.sequence.slot != slot or self._holders.get(slot) is not follower:
            follower.sequence.slot, follower.sequence.cached = slot, 0
            self._holders[slot] = follower
        return follower

    def _length(self, sequences: list[Sequence], rates: list[float]) -> int:
        """How many tokens to draft for each sequence, where guesses for these are right with these rates."""
        self._is_trial, n_slots = False, sequences[-1].slot + 1
        if not self._most or n_slots > self._row_counts[-1]:
            return 0
        most = min(self._most, (self._row_counts[-1] - len(sequences)) // len(rates))
        if not self._adapts:
            return most
        plain = next(n for n in self._row_counts if n >= n_slots)
        if (seconds := self._costs.of(plain, plain)) is None:
            return 0
        n_own = next((n for n in self._decoder.row_counts if n >= n_slots), self._decoder.row_counts[-1])
        own_seconds = self._own_costs.of(n_own, n_own) or 0.0
        gains = {0: len(sequences) / seconds}  # tokens a second, by the number of drafted ones
        tokens = float(len(sequences))
        for n in range(1, most + 1):
            n_rows = next(count for count in self._row_counts if count >= len(sequences) + n * len(rates))
            tokens += sum(rate**n for rate in rates)
            if seconds := self._costs.of(max(n_rows, plain), plain):
                gains[n] = tokens / (seconds + (n + 1) * own_seconds)  # the last one is read before the next draft
        best = best_of(gains)
        self._is_trial = best == 0 and self._n_idle >= PAUSE and self._tried <= TRIED * self._seconds
        return min(most, TRIAL) if self._is_trial else best

    def _write(self, lengths: dict[Follower, int]) -> None:
        """Write drafts of these lengths for the texts that the small model has read; of some others read a chunk."""
        wanted = [follower for follower, n in lengths.items() if n > 0]
        behind = [follower.sequence for follower in wanted if not follower.sequence.is_decoding]
        self._prefill.read(behind[:MOST_READ], ())
        writing = [follower for follower in wanted if follower.sequence.is_decoding]
        while writing := [follower for follower in writing if len(follower.latest) < lengths[follower]]:
            drawn = self._draw([Row(follower.sequence) for follower in writing])
            for follower, token in zip(writing, drawn):
                follower.sequence.cached += 1
                if token == self._end:
                    lengths[follower] = 0
                else:
                    follower.write(token)

    def _draw(self, rows: list[Row]) -> list[int]:
        """What the small model draws for each of the rows."""
        began = time.perf_counter()
        self._on_pass([row.sequence.id for row in rows], len(rows))
        logits = self._decoder.next_logits(rows)  # (B, V)
        ids = sample(penalised(logits, rows), rows, [uniform(row.params.seed, len(row.generated)) for row in rows])
        mx.eval(ids, self._cache.state())
        if n_rows := self._decoder.n_rows(rows):
            self._own_costs.note(n_rows, time.perf_counter() - began)
        return ids.tolist()
