"""The engine: continuous batching of sequences over one model and one cache. A step is schedule, run, postprocess."""

import itertools
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from .. import tokenizer
from ..kv_cache import KVCache
from ..model import GPT2
from .sampling import penalised, sample, uniform
from .scheduler import PIECE, SamplingParams, Scheduler, Sequence, Status

WIDTHS = (16, 32, 64, 128, PIECE)  # a prompt's piece is padded to one of these
_ids = itertools.count()  # of sequences: no two of a process are the same, whatever their engine


@dataclass(frozen=True)
class Token:
    """One token of a sequence; the numbers are there where they were asked for."""

    id: int
    logprob: float | None = None  # of the token itself; None for a prompt's first
    alternatives: tuple[tuple[int, float], ...] = ()  # (id, logprob), the most likely first


@dataclass(frozen=True)
class Output:
    """What a step brought one sequence."""

    id: int
    tokens: tuple[Token, ...]  # newly drawn; <|endoftext|> is never among them
    prompt: tuple[Token, ...] = ()  # once, with the first output, where params.prompt_logprobs
    finish_reason: str | None = None  # "stop" (the model ended the text), "length", or None: it goes on
    slides: int = 0


class Engine:
    """Generates for many sequences at once.

    Every sequence gets the text it would get alone: a prompt is read by itself, in pieces cut at fixed places, and
    all slots are decoded in one pass of fixed shape, whoever is in them. On a CPU that holds bit for bit.

    Args:
        model: evaluated, and used by this thread alone.
        n_slots: the most sequences that run at once; the others wait.
    """

    def __init__(self, model: GPT2, n_slots: int = 16):
        self.model = model
        self.block_size, self.vocab_size = model.config.block_size, model.config.vocab_size
        self._n_slots = n_slots
        self._cache = KVCache(model.config, n_slots, model.wte.weight.dtype)
        self._scheduler = Scheduler(n_slots)
        self._sequences: dict[int, Sequence] = {}
        self._in_step: list[Sequence] = []

    def add(self, prompt: list[int], params: SamplingParams) -> int:
        """Queue a sequence and return its id.

        Raises:
            ValueError: the prompt is empty or a token is out of range.
        """
        if not prompt:
            raise ValueError("the prompt has no tokens; it must have at least one")
        for token in (*prompt, *params.logit_bias):
            if not 0 <= token < self.vocab_size:
                raise ValueError(f"token {token} is out of range; it must lie in [0, {self.vocab_size - 1}]")
        sequence = Sequence(next(_ids), list(prompt), params, self.block_size)
        self._sequences[sequence.id] = sequence
        self._scheduler.add(sequence)
        return sequence.id

    def cancel(self, id: int) -> None:
        """End a waiting or running sequence; others do not notice. Unknown ids are ignored."""
        if id in self._sequences:
            self._finish(self._sequences[id], "cancelled")

    def step(self) -> list[Output]:
        """Let every running sequence read a piece of its prompt or draw a token.

        An exception leaves the sequences of the step to `fail_step`; the others are untouched.
        """
        self._in_step = []
        prefill, decode = self._scheduler.schedule()
        self._in_step = [*prefill, *decode]
        outputs = []
        for sequence in prefill:
            outputs += self._prefill(sequence)
        if decode:
            outputs += self._decode(decode)
        return outputs

    def fail_step(self) -> list[int]:
        """Free the sequences of a step that raised, and return their ids: its outputs are lost for all of them."""
        for sequence in self._in_step:
            self._finish(sequence, "error")
        return [sequence.id for sequence in self._in_step]

    def warm_up(self) -> None:
        """Run each shape once, so that the first request is as fast as the tenth."""
        for width in WIDTHS:
            if width < self.block_size:
                self.add([0] * width, SamplingParams(max_tokens=2, seed=0))
        while self.has_work:
            self.step()

    @property
    def has_work(self) -> bool:
        return bool(self._sequences)

    @property
    def n_waiting(self) -> int:
        return len(self._scheduler.waiting)

    @property
    def n_running(self) -> int:
        return len(self._scheduler.running)

    def _finish(self, sequence: Sequence, reason: str) -> None:
        if sequence.status is Status.RUNNING:
            self._cache.free(sequence.slot)
        self._scheduler.finish(sequence, reason)
        self._sequences.pop(sequence.id, None)

    def _prefill(self, sequence: Sequence) -> list[Output]:
        """Read the next piece of a sequence's context; after the last one, draw a token."""
        self._share_prefill(sequence)
        n, slot = sequence.piece, sequence.slot
        piece = sequence.context[sequence.cached : sequence.cached + n]
        width = next(width for width in WIDTHS if width >= n)
        tokens = mx.array([piece + [0] * (width - n)])  # (1, T)
        self._cache.lengths[slot] = sequence.cached
        hidden = self.model.hidden(tokens, cache=self._cache.extend(slice(slot, slot + 1), [n], width))
        mx.eval(hidden, self._cache.state())
        sequence.cached += n
        if sequence.params.prompt_logprobs and not sequence.slides:
            self._note_prompt(sequence, hidden[0, :n])
        if sequence.cached < len(sequence.context):
            return []
        return self._postprocess([sequence], self._head(hidden[:, n - 1]))

    def _share_prefill(self, sequence: Sequence) -> None:
        """Take over what another slot has read of the same prompt."""
        if sequence.cached or sequence.params.prompt_logprobs:
            return
        for other in self._scheduler.running.values():
            if other is not sequence and other.prompt == sequence.prompt and not other.slides and not sequence.slides:
                # the last token is read anew, for its logits; a piece begins where it always does
                shared = min(other.cached, len(sequence.context) - 1) // PIECE * PIECE
                if shared:
                    self._cache.copy(other.slot, sequence.slot, shared)
                    sequence.cached = shared
                return

    def _decode(self, sequences: list[Sequence]) -> list[Output]:
        """Draw one token for each of the sequences: one pass over all slots, whoever is in them."""
        counts, last = [0] * self._n_slots, [0] * self._n_slots
        for sequence in sequences:
            counts[sequence.slot], last[sequence.slot] = 1, sequence.context[-1]
            self._cache.lengths[sequence.slot] = sequence.cached
        view = self._cache.extend(slice(0, self._n_slots), counts, width=1)
        logits = self._head(self.model.hidden(mx.array(last)[:, None], cache=view)[:, 0])  # (S, V)
        for sequence in sequences:
            sequence.cached += 1
        return self._postprocess(sequences, logits[mx.array([s.slot for s in sequences])])

    def _head(self, hidden: mx.array) -> mx.array:
        """(B, C) -> (B, V) float32."""
        return self.model.wte.as_linear(hidden).astype(mx.float32)

    def _postprocess(self, sequences: list[Sequence], logits: mx.array) -> list[Output]:
        """Draw from logits (B, V), append, and end what has come to its end."""
        if sequences[0].params.max_tokens == 0:  # its prompt was to be read, no more: it is never decoded with others
            return [self._output(sequences[0], None)]
        log_p = logits - mx.logsumexp(logits, axis=-1, keepdims=True)  # (B, V), computed where it is asked for
        draws = [uniform(s.params.seed, len(s.generated)) for s in sequences]
        ids = sample(penalised(logits, sequences), sequences, draws)
        mx.eval(ids, self._cache.state())
        tokens = [_token(row, id, s.params) for row, id, s in zip(log_p, ids.tolist(), sequences)]
        return [self._output(sequence, token) for sequence, token in zip(sequences, tokens)]

    def _output(self, sequence: Sequence, token: Token | None) -> Output:
        reason = "length" if token is None else None
        tokens: tuple[Token, ...] = ()
        if token is not None and token.id == tokenizer.EOT:
            reason = "stop"
        elif token is not None:
            tokens = (token,)
            sequence.append(token.id)
            if len(sequence.generated) == sequence.params.max_tokens:
                reason = "length"
        prompt, sequence.noted_prompt = tuple(sequence.noted_prompt), []
        output = Output(sequence.id, tokens, prompt, reason, sequence.slides)
        if reason:
            self._finish(sequence, reason)
        return output

    def _note_prompt(self, sequence: Sequence, hidden: mx.array) -> None:
        """The log-probabilities of the prompt's tokens that follow those just read: hidden (n, C)."""
        end = sequence.cached
        begin = end - len(hidden)
        if begin == 0:
            sequence.noted_prompt.append(Token(sequence.context[0]))
        following = sequence.context[begin + 1 : end + 1]
        if following:
            logits = self._head(hidden[: len(following)])
            log_p = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
            sequence.noted_prompt += [_token(row, id, sequence.params) for row, id in zip(log_p, following)]


def _token(log_p: mx.array, id: int, params: SamplingParams) -> Token:
    """A token with what the parameters ask for, from its row of log-probabilities (V,)."""
    if params.logprobs is None:
        return Token(id)
    k = params.logprobs
    if not k:
        return Token(id, log_p[id].item())
    row = np.array(log_p)
    best = np.argpartition(-row, k - 1)[:k]
    best = best[np.lexsort((best, -row[best]))]
    return Token(id, float(row[id]), tuple((int(i), float(row[i])) for i in best))
