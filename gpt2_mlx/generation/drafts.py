"""Drafts: tokens that may come next, to be tried in one pass. Here they are taken from a text that repeats itself.

What is drawn does not depend on them: they only spare passes.
"""

import itertools
from collections import Counter, deque
from dataclasses import dataclass
from typing import Literal

from .. import device
from .scheduler import Sequence

Speculate = Literal["auto", "off"] | int
MOST = 31  # drafted tokens of a row: a pass has at most 32 rows
AUTO = 15  # the same where the engine chooses
RUNS = (3, 2)  # how many of the last tokens are looked up, the longest first
MEMORY = 8  # a row's rate of right guesses is that of about so many of the last
PASSES = 5  # the quickest of so many of the last passes counts: what else the machine does makes them slower
UNKNOWN = 1.1  # a pass that was not measured is taken to last this many times as long as the next smaller one
MARGIN = 1.05  # drafts must make a step so many times as fast: a pass of another shape may have to be built
AGE = 400  # after so many times its seconds a measurement is forgotten, so that measuring takes little


@dataclass(frozen=True, kw_only=True)
class DraftConfig:
    """What is drafted, and by what."""

    speculate: str = "auto"
    """Draft tokens and verify them together, which changes no text on a CPU. auto: as many as pay, and on a GPU none
    without a draft model; off: none; a number from 1 to 31: so many."""
    draft_model: str | None = None
    """Run or checkpoint, as --checkpoint, of a small model of the same vocabulary, which then drafts. Default: drafts
    are taken from the text, where it repeats itself."""

    def __post_init__(self):
        if read(self.speculate) == "off" and self.draft_model:
            raise ValueError(f"--draft-model is {self.draft_model}, but --speculate is off: leave one of them out")


class Guesses:
    """Guesses how a text goes on: as it went on where its last three tokens, or two, stood last.

    Attributes:
        latest: the latest guess.
        rate: how often the guess of a token was right lately, from 0 to 1.
    """

    def __init__(self, tokens: list[int]):
        self.latest: list[int] = []
        self.rate = 0.0
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # where the text went on after a run of tokens
        self._add(tokens)

    def guess(self, n: int, end: int | None) -> None:
        """Guess the next n tokens, or fewer: up to the token `end`, or none where the last tokens are new together."""
        at = next((at for size in RUNS if (at := self._after.get(tuple(self._tokens[-size:])))), None)
        found = [] if at is None else itertools.islice(itertools.cycle(self._tokens[at : at + n]), n)
        self.latest = list(itertools.takewhile(lambda token: token != end, found))

    def learn(self, drawn: list[int]) -> None:
        """Go on with the tokens that were drawn, and judge the latest guess by them."""
        self.rate = judge(self.rate, drawn, self.latest, MEMORY)
        self.latest = []
        self._add(drawn)

    def _add(self, tokens: list[int]) -> None:
        for token in tokens:
            for size in RUNS:
                if len(self._tokens) >= size:
                    self._after[tuple(self._tokens[-size:])] = len(self._tokens)
            self._tokens.append(token)


def judge(rate: float, drawn: list[int], guessed: list[int], memory: int) -> float:
    """The rate of right guesses after these, up to the first that is wrong; it is that of about `memory` guesses."""
    for token, guess in zip(drawn, guessed):
        rate += ((token == guess) - rate) / memory
        if token != guess:
            break
    return rate


def best_of(rates: dict[int, float]) -> int:
    """The number of drafted tokens with the largest rate, in tokens a second; 0 where that gains next to nothing."""
    best = max(rates, key=rates.get, default=0)
    return best if best and rates[best] > MARGIN * rates[0] else 0


class Costs:
    """How long passes take, by their number of rows, as it was measured lately.

    Args:
        row_counts: the numbers of rows that a pass may have.
    """

    def __init__(self, row_counts: tuple[int, ...]):
        self._row_counts = row_counts
        self._seconds = {n: deque(maxlen=PASSES) for n in row_counts}
        self._measured_at = dict.fromkeys(row_counts, 0.0)
        self._now = 0.0  # seconds in passes

    def note(self, n_rows: int, seconds: float) -> None:
        self._now += seconds
        self._measured_at[n_rows] = self._now
        self._seconds[n_rows].append(seconds)

    def of(self, n_rows: int, least: int) -> float | None:
        """The seconds of a pass; None where it has `least` rows, or fewer, and was not measured."""
        seconds = self._seconds[n_rows]
        if seconds and self._now - self._measured_at[n_rows] > AGE * min(seconds):
            seconds.clear()
        if len(seconds) > 1:  # the first pass of its shape had to be built
            return min(seconds)
        if n_rows <= least:
            return None
        smaller = self.of(self._row_counts[self._row_counts.index(n_rows) - 1], least)
        return smaller and UNKNOWN * smaller


class Drafter:
    """Says for each step which tokens to draft, so that the most tokens a second are to be expected.

    A guess of j tokens is right with the chance rate^j, where the rate is that of the row's latest guesses, the untried
    ones too. The rows of a pass go to the likeliest guesses, and the pass has as many as pay: what they are expected to
    bring, for the time that passes of so many rows take. So a text that does not repeat itself has no drafts, and the
    more texts there are the fewer drafts each has.

    Args:
        speculate: "auto" is all this, "off" drafts nothing; N drafts as many tokens, whether it pays or not, where
            there is a guess, as long as the rows of a pass suffice. On a GPU "auto" is "off", since there a row's bits
            may depend on the number of rows.
        row_counts: the numbers of rows that a pass may have.
        end: the token that ends a text.

    Raises:
        ValueError: speculate is none of these.
    """

    def __init__(self, speculate: str | int, row_counts: tuple[int, ...], end: int | None):
        speculate = read(speculate)
        self._adapts = speculate == "auto"
        self._most = {"auto": 0 if device.on_gpu() else AUTO, "off": 0}.get(speculate, speculate)
        self._row_counts, self._end = row_counts, end
        self._costs = Costs(row_counts)

    def drafts(self, sequences: list[Sequence]) -> list[list[int]]:
        """The tokens to draft for each of the sequences, which are in the order of their slots."""
        n_slots = sequences[-1].slot + 1
        if not self._most or n_slots > self._row_counts[-1]:
            return [[] for _ in sequences]
        guesses = [self._guess(sequence) for sequence in sequences]
        places = [(i, j) for i, guess in enumerate(guesses) for j in range(len(guess))]
        worth = {(i, j): sequences[i].guesses.rate ** (j + 1) for i, j in places}
        places.sort(key=lambda place: (-worth[place], place[1]))
        room = self._room(n_slots, len(sequences), [worth[place] for place in places])
        lengths = Counter(i for i, _ in places[:room])
        return [guess[: lengths[i]] for i, guess in enumerate(guesses)]

    def learn(self, sequence: Sequence, drawn: list[int]) -> None:
        """Note what was drawn for a sequence in a step."""
        if sequence.guesses:
            sequence.guesses.learn(drawn)

    def note(self, n_rows: int | None, seconds: float) -> None:
        """Note how long a step took whose pass had so many rows, padding included; None is more than one pass."""
        if n_rows:
            self._costs.note(n_rows, seconds)

    def _guess(self, sequence: Sequence) -> list[int]:
        if sequence.params.cold:
            return []
        if not sequence.guesses:
            sequence.guesses = Guesses([*sequence.prompt, *sequence.generated])
        left = sequence.params.max_tokens - len(sequence.generated), sequence.block_size - len(sequence.context) + 1
        sequence.guesses.guess(min(self._most, *(n - 1 for n in left)), self._end)
        return sequence.guesses.latest

    def _room(self, n_slots: int, n_sequences: int, worth: list[float]) -> int:
        """The number of rows to give to drafts; `worth` is what each is expected to bring, the most first."""
        if not self._adapts:
            return self._row_counts[-1] - n_sequences
        plain = next(n for n in self._row_counts if n >= n_slots)
        expected = list(itertools.accumulate(worth, initial=n_sequences))  # tokens, by the number of drafted ones
        rates = {0: n_sequences / seconds} if (seconds := self._costs.of(plain, plain)) else {}
        for n in self._row_counts if rates else ():
            n_drafted = min(n - n_sequences, len(worth))
            if n_drafted > 0 and (seconds := self._costs.of(n, plain)):
                rates[n_drafted] = max(expected[n_drafted] / seconds, rates.get(n_drafted, 0))
        return best_of(rates)


def read(speculate: str | int) -> Speculate:
    """What a flag or a caller says. Raises a ValueError where it is neither auto nor off nor a number in [1, MOST]."""
    value = int(speculate) if isinstance(speculate, str) and speculate.isdecimal() else speculate
    if value not in ("auto", "off") and not (isinstance(value, int) and 1 <= value <= MOST):
        raise ValueError(f"--speculate is {speculate}; it must be auto, off or a number from 1 to {MOST}")
    return value
