"""Who runs next: sequences, and a scheduler that shares the slots among requests. Plain Python, no arrays."""

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from .params import SamplingParams

CHUNK = 128  # a context is read in chunks of this many tokens, cut at fixed places


class Status(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(eq=False)
class Sequence:
    """A text that is being generated.

    `context` is what belongs in the slot, and the slot holds the first `cached` tokens of it. All but the last token
    are prefilled. The last one is decoded, and the next token is drawn from its logits.
    """

    id: int
    prompt: list[int]  # of a longer one its newest block_size tokens are kept
    params: SamplingParams
    block_size: int
    request: int = 0  # what it belongs to: the slots are shared among requests
    adapter: int = 0  # the number of its adapter; 0 is none
    status: Status = Status.WAITING
    slot: int | None = None
    parked: Any = None  # what its slot held, while another sequence has the slot
    context: list[int] = field(default_factory=list)
    cached: int = 0
    found: int = 0  # tokens of the prompt whose keys and values were kept from an earlier one
    generated: list[int] = field(default_factory=list)
    slides: int = 0  # how often the window was moved on
    finish_reason: str | None = None  # "stop", "length", "cancelled" or "failed"
    compiling: Any = None  # the future state of its constraint, from when it has a slot
    matcher: Any = None  # that state, once it is there
    guesses: Any = None  # how its text may go on, once it decodes
    noted_prompt: list = field(default_factory=list)  # the prompt's tokens with log-probabilities, until output

    def __post_init__(self):
        self.prompt = self.prompt[-self.block_size :]
        self.context = list(self.prompt)

    @property
    def chunk(self) -> int:
        """The number of tokens to prefill next: up to the next fixed cut."""
        return min(len(self.context) - 1 - self.cached, CHUNK - self.cached % CHUNK)

    @property
    def ahead(self) -> list[int]:
        """The tokens that the slot will hold once the next chunk is read."""
        return self.context[: self.cached + self.chunk]

    @property
    def is_decoding(self) -> bool:
        return self.cached == len(self.context) - 1

    def append(self, token: int) -> None:
        """Append a drawn token. Where the window is full, keep its newer half, which is then prefilled again."""
        self.generated.append(token)
        self.context.append(token)
        if len(self.context) > self.block_size:
            self.context = self.context[-max(1, self.block_size // 2) :]
            self.cached = 0
            self.slides += 1


class Scheduler:
    """Shares the slots among requests and says which rows each step runs.

    A free slot goes to the request that has the fewest, and of two to the older one. Where none is free and another
    request has at least two more, its newest sequence gives up its slot: it waits, and its cache is parked meanwhile.
    So a small request never waits for a large one to end.

    Args:
        n_slots: the largest number of sequences that run at once.
        prefill_budget: the largest number of prompt tokens that a step reads, so that long prompts do not stall others.
    """

    def __init__(self, n_slots: int, prefill_budget: int = 4 * CHUNK):
        self.waiting: dict[int, Sequence] = {}  # by id
        self.running: dict[int, Sequence] = {}  # by slot
        self.prefill_budget = prefill_budget
        self._free = sorted(range(n_slots), reverse=True)
        self._n_steps = 0
        self._read_at: dict[int, int] = {}  # the step in which a request's prompts were last read

    def add(self, sequence: Sequence) -> None:
        self.waiting[sequence.id] = sequence

    def make_room(self) -> Sequence | None:
        """Take the slot of a sequence whose request has too many; returns it, with the slot that it had."""
        counts = self._counts()
        if self._free or not self.waiting or not counts:
            return None
        largest = max(counts, key=counts.get)
        if counts[largest] < counts[self._next(counts).request] + 2:
            return None
        parked = max((s for s in self.running.values() if s.request == largest), key=lambda s: s.id)
        self._release(parked)
        parked.status = Status.WAITING
        self.waiting[parked.id] = parked
        return parked

    def admit(self) -> list[Sequence]:
        """Give the free slots to waiting sequences; returns these."""
        admitted, counts = [], self._counts()
        while self.waiting and self._free:
            sequence = self._next(counts)
            del self.waiting[sequence.id]
            sequence.slot = self._free.pop()
            sequence.status = Status.RUNNING
            self.running[sequence.slot] = sequence
            counts[sequence.request] += 1
            admitted.append(sequence)
        return admitted

    def prefill(self) -> list[Sequence]:
        """The sequences whose prompts are to be read on in this step: the requests take turns, each in order."""
        self._n_steps += 1
        rank, turns = Counter(), []
        for sequence in sorted(self.running.values(), key=lambda s: s.id):
            if not sequence.is_decoding:
                turns.append((rank[sequence.request], self._read_at.get(sequence.request, 0), sequence.id, sequence))
                rank[sequence.request] += 1
        chosen, budget = [], self.prefill_budget
        for *_, sequence in sorted(turns):
            if budget > 0:
                chosen.append(sequence)
                budget -= sequence.chunk
        self._read_at = {request: n for request, n in self._read_at.items() if request in rank}
        self._read_at |= {sequence.request: self._n_steps for sequence in chosen}
        return chosen

    @property
    def decoding(self) -> list[Sequence]:
        """The running sequences whose next token can be drawn, by slot."""
        return sorted((s for s in self.running.values() if s.is_decoding), key=lambda s: s.slot)

    def finish(self, sequence: Sequence, reason: str) -> None:
        """End a waiting or running sequence and free its slot at once. Ending it twice has no effect."""
        if sequence.status is Status.FINISHED:
            return
        if sequence.status is Status.WAITING:
            del self.waiting[sequence.id]
        else:
            self._release(sequence)
        sequence.status = Status.FINISHED
        sequence.finish_reason = reason

    def _release(self, sequence: Sequence) -> None:
        del self.running[sequence.slot]
        self._free.append(sequence.slot)
        self._free.sort(reverse=True)  # low slots are given out first, so that a pass has few rows

    def _counts(self) -> Counter:
        """How many slots each request has."""
        return Counter(sequence.request for sequence in self.running.values())

    def _next(self, counts: Counter) -> Sequence:
        """The waiting sequence that gets the next slot."""
        return min(self.waiting.values(), key=lambda s: (counts[s.request], s.id))
