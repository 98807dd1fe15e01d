"""Who runs next: sequences and a first-come-first-served scheduler. Plain Python, no arrays."""

from collections import deque
from dataclasses import dataclass, field
from enum import Enum

from .params import SamplingParams

CHUNK = 256  # a context is read in chunks of this many tokens, cut at fixed places


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
    prompt: list[int]
    params: SamplingParams
    block_size: int
    status: Status = Status.WAITING
    slot: int | None = None
    context: list[int] = field(default_factory=list)
    cached: int = 0
    generated: list[int] = field(default_factory=list)
    slides: int = 0  # how often the window was moved on
    finish_reason: str | None = None  # "stop", "length", "cancelled" or "error"
    noted_prompt: list = field(default_factory=list)  # the prompt's tokens with log-probabilities, until output

    def __post_init__(self):
        self.context = self.prompt[-self.block_size :]

    @property
    def chunk(self) -> int:
        """The number of tokens to prefill next: up to the next fixed cut."""
        return min(len(self.context) - 1 - self.cached, CHUNK - self.cached % CHUNK)

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
    """Gives free slots to waiting sequences, in order, and decides which sequences each step prefills and decodes.

    A step reads no further chunk once it has read `prefill_budget` tokens, so that long prompts do not delay others.
    """

    def __init__(self, n_slots: int, prefill_budget: int = 2 * CHUNK):
        self.waiting: deque[Sequence] = deque()
        self.running: dict[int, Sequence] = {}  # by slot
        self.prefill_budget = prefill_budget
        self._free = sorted(range(n_slots), reverse=True)

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def schedule(self) -> list[Sequence]:
        """Give out the free slots; return the sequences to prefill in this step, the oldest first."""
        while self.waiting and self._free:
            sequence = self.waiting.popleft()
            sequence.slot = self._free.pop()
            sequence.status = Status.RUNNING
            self.running[sequence.slot] = sequence
        prefill, budget = [], self.prefill_budget
        for sequence in sorted(self.running.values(), key=lambda s: s.id):
            if not sequence.is_decoding and budget > 0:
                prefill.append(sequence)
                budget -= sequence.chunk
        return prefill

    @property
    def decoding(self) -> list[Sequence]:
        """The running sequences whose next token can be drawn, by slot."""
        return sorted((s for s in self.running.values() if s.is_decoding), key=lambda s: s.slot)

    def finish(self, sequence: Sequence, reason: str) -> None:
        """End a waiting or running sequence and free its slot at once. Ending it twice has no effect."""
        if sequence.status is Status.FINISHED:
            return
        if sequence.status is Status.WAITING:
            self.waiting.remove(sequence)
        else:
            del self.running[sequence.slot]
            self._free.append(sequence.slot)
            self._free.sort(reverse=True)  # low slots are given out first, so that a pass has few rows
        sequence.status = Status.FINISHED
        sequence.finish_reason = reason
