"""The engine: continuous batching of sequences with one model and one cache. A step is schedule, prefill, decode."""

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Iterable
from concurrent.futures import wait

import mlx.core as mx
import numpy as np
from tiktoken import Encoding

from .. import device
from ..kv_cache import KVCache
from ..model import GPT2
from .adapters import Adapters
from .decoder import Decoder
from .draft_model import ModelDrafter
from .drafts import Drafter
from .outputs import Output, Token, token_of
from .params import SamplingParams
from .prefill import WIDTHS, Prefill
from .prefixes import Prefixes
from .rows import Row, n_that_count, rows_of
from .sampling import constrained, penalised, sample, uniform
from .scheduler import Scheduler, Sequence, Status

WAYS = ({}, {"temperature": 0}, {"top_k": 0}, {"top_k": 0, "top_p": 0.9}, {"logprobs": 5}, {"presence_penalty": 1})
LITTLE = 0.01  # seconds to wait for a constraint, where nothing else is to do
_ids = itertools.count()  # ids of sequences, unique in the process, also across engines


class Engine:
    """Generates many sequences at once.

    Every sequence gets the text that it would get alone. On a CPU it gets the same bits: prompts are read in
    chunks cut at fixed places, and rows are read or decoded together only in numbers that do not change their bits.

    Args:
        model: evaluated, and used by this thread alone.
        n_slots: the largest number of sequences that run at once; the others wait.
        on_pass: called before each forward pass with the ids of its sequences and the number of its tokens, and before
            a constraint is compiled with the id of its sequence and 0; the ids of those that are being compiled beside
            it follow.
        n_prefixes: the largest number of blocks of prompts to keep for prompts that begin as these did.
        encoding: the tokenizer, for constraints and for the token that ends a text; without it none does.
        speculate: what to draft; see `Drafter`.
        adapters: those of the model.
        draft_model: a small model of the same vocabulary that drafts; by default drafts are taken from the text.

    Attributes:
        prefixes: the blocks that are kept.
    """

    def __init__(
        self,
        model: GPT2,
        n_slots: int = 16,
        on_pass: Callable[[list[int], int], None] = lambda *_: None,
        n_prefixes: int = 0,
        encoding: Encoding | None = None,
        speculate: str | int = "off",
        adapters: Adapters | None = None,
        draft_model: GPT2 | None = None,
    ):
        self.model, self._adapters = model, Adapters(model) if adapters is None else adapters
        self.prefixes = Prefixes(n_prefixes)
        self._sequences: dict[int, Sequence] = {}
        self._on_pass = functools.partial(_tell_pass, on_pass, self._sequences)  # no method: it would keep the engine
        self.block_size, self.vocab_size = model.config.block_size, model.config.vocab_size
        self._cache = KVCache(model.config, n_slots, model.dtype)
        self._prefill = Prefill(model, self._cache, self.prefixes, self._on_pass, self._adapters)
        self._decoder = Decoder(model, self._cache, self._adapters)
        if draft_model and draft_model.config.vocab_size != self.vocab_size:
            raise ValueError(f"the draft model has {draft_model.config.vocab_size} tokens, not {self.vocab_size}")
        how = speculate, self._decoder.row_counts, encoding.eot_token if encoding else None
        self._drafter = ModelDrafter(draft_model, n_slots, *how, self._on_pass) if draft_model else Drafter(*how)
        self._scheduler, self._encoding = Scheduler(n_slots), encoding

    def add(
        self,
        prompt: list[int],
        params: SamplingParams,
        id: int | None = None,
        request: int | None = None,
        adapter: int = 0,
    ) -> int:
        """Queue a sequence and return its id.

        Args:
            prompt: token ids; of more than block_size the newest count.
            params: how to draw.
            id: what to call it; by default a number that no other sequence has.
            request: which request it belongs to, among which the slots are shared; by default one of its own.
            adapter: the number of its adapter; 0 is none.

        Raises:
            ValueError: the prompt is empty or a token is out of range.
        """
        if not prompt:
            raise ValueError("the prompt has no tokens; it must have at least one")
        id = next(_ids) if id is None else id
        request, block_size = id if request is None else request, self._adapters.block_sizes[adapter]
        sequence = Sequence(id, prompt, params, block_size, request, adapter)
        for token in (*sequence.prompt, *params.logit_bias):
            if not 0 <= token < self.vocab_size:
                raise ValueError(f"token {token} is out of range; it must lie in [0, {self.vocab_size - 1}]")
        if params.prompt_logprobs:
            sequence.noted_prompt.append(Token(sequence.context[0]))
        self._sequences[sequence.id] = sequence
        self._scheduler.add(sequence)
        return sequence.id

    def cancel(self, id: int) -> None:
        """End a waiting or running sequence, with no effect on the others. Unknown ids are ignored."""
        if id in self._sequences:
            self._finish(self._sequences[id], "cancelled")

    def step(self) -> list[Output]:
        """Let every running sequence read a chunk of its prompt or draw a token."""
        parked = self._scheduler.make_room()
        if parked and parked.cached:
            parked.parked = self._cache.read(parked.slot, 0, parked.cached)
        for sequence in self._scheduler.admit():
            if sequence.parked:
                self._cache.write(sequence.slot, 0, sequence.parked)
                sequence.parked = None
            if sequence.params.constraint and sequence.params.max_tokens and not sequence.compiling:
                self._on_pass([sequence.id], 0)  # if the process dies of it, this sequence is why
                sequence.compiling = self._matchers.begin(sequence.params.constraint)  # beside the prompt's reading
        self._prefill.read(self._scheduler.prefill(), self._scheduler.running.values())
        return self._decode(self._scheduler.decoding)

    def warm_up(self) -> None:
        """Run each kernel once, so that the first request is as fast as later ones."""
        widths = WIDTHS if device.on_gpu() else WIDTHS[:1] * len(WAYS)  # on a CPU one kernel serves all shapes
        for width, way in zip(widths, itertools.cycle(WAYS)):
            if width < self.block_size:
                self.add([0] * (width + 1), SamplingParams(max_tokens=2, seed=0, **way))
        if len(self._adapters):
            self.add([0, 0], SamplingParams(max_tokens=2, seed=0), adapter=1)
        while self.has_work:
            self.step()

    def learn_vocabulary(self) -> None:
        """Make what all constraints need of the vocabulary; for GPT-2's that takes a quarter of a second."""
        if self._encoding and self._encoding.n_vocab <= self.model.config.vocab_size:  # else no constraint holds
            _ = self._matchers.vocabulary

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
        self._scheduler.finish(sequence, reason)
        if sequence.compiling:
            sequence.compiling.cancel()  # if it has not begun
        self._sequences.pop(sequence.id, None)

    def _decode(self, sequences: list[Sequence]) -> list[Output]:
        """Draw the next tokens of each of the sequences, and end those that are complete."""
        outputs = [self._output(s, None) for s in sequences if s.params.max_tokens == 0]
        sequences = [s for s in sequences if s.params.max_tokens]
        outputs += [output for s in sequences if s.params.constraint and (output := self._follow(s))]
        if compiling := [s.compiling for s in sequences if s.compiling and not s.matcher]:
            sequences = [s for s in sequences if s.compiling not in compiling]
        sequences = [s for s in sequences if s.status is Status.RUNNING]
        if not sequences:
            wait(compiling, LITTLE)
            return outputs
        drafts = self._drafter.drafts(sequences)
        began = time.perf_counter()
        groups = [rows_of(sequence, draft) for sequence, draft in zip(sequences, drafts)]
        rows = list(itertools.chain(*groups))
        n_rows = self._decoder.n_rows(rows)
        drawn = iter(self._draw(rows))
        outputs += [self._take(group, list(itertools.islice(drawn, len(group)))) for group in groups]
        self._drafter.note(n_rows, time.perf_counter() - began)
        return outputs

    def _draw(self, rows: list[Row]) -> Iterable[tuple[int, np.ndarray]]:
        """Draw a token for each of the rows: its id, and log-probabilities (V,) where any sequence asks for them."""
        self._on_pass([row.sequence.id for row in rows], len(rows))
        logits = self._decoder.next_logits(rows)  # (B, V)
        if any(row.matcher for row in rows):
            mx.async_eval(logits, self._cache.state())  # what constraints allow is found meanwhile
        log_p = mx.zeros((len(logits), 0))
        if any(row.params.logprobs is not None for row in rows):
            log_p = logits - mx.logsumexp(logits, axis=-1, keepdims=True)  # (B, V)
        draws = [uniform(row.params.seed, len(row.generated)) for row in rows]
        ids = sample(constrained(penalised(logits, rows), rows), rows, draws)
        mx.eval(ids, log_p, self._cache.state())  # at once: the device works without a pause
        return zip(ids.tolist(), np.array(log_p))

    def _take(self, rows: list[Row], drawn: list[tuple[int, np.ndarray]]) -> Output:
        """Go on with what was drawn for the rows of a sequence, as far as they count."""
        sequence, n = rows[0].sequence, n_that_count(rows, [id for id, _ in drawn])
        if rows[0].matcher and (error := rows[0].matcher.error):
            return self._fail(sequence, error)
        *drafted, last = (token_of(log_p, id, sequence.params) for id, log_p in drawn[:n])
        self._drafter.learn(sequence, [token.id for token in (*drafted, last)])
        sequence.cached += n
        sequence.matcher = rows[n - 1].matcher
        for token in drafted:
            sequence.append(token.id)
        output = self._output(sequence, last)
        tokens = *drafted, *output.tokens
        return dataclasses.replace(output, tokens=tokens, drafted=len(rows) - 1, accepted=len(drafted))

    def _output(self, sequence: Sequence, token: Token | None) -> Output:
        tokens, reason, end = (), "length", None  # of a sequence that asks for no token
        if token and self._encoding and token.id == self._encoding.eot_token:
            reason, end = "stop", None if token.logprob is None else token
        elif token:
            tokens = (token,)
            sequence.append(token.id)
            reason = "length" if len(sequence.generated) == sequence.params.max_tokens else None
            if sequence.matcher:
                sequence.matcher.add(token.id)
                reason = "stop" if sequence.matcher.is_complete else reason
        prompt, sequence.noted_prompt = tuple(sequence.noted_prompt), []
        output = Output(sequence.id, tokens, prompt, reason, sequence.slides, sequence.found, end)
        if reason:
            self._finish(sequence, reason)
        return output

    def _follow(self, sequence: Sequence) -> Output | None:
        """Have a sequence follow its constraint, once that is compiled; an output that ends it where that cannot be."""
        try:
            if sequence.compiling.done():
                sequence.matcher = sequence.matcher or sequence.compiling.result()
        except ValueError as error:
            return self._fail(sequence, str(error))

    def _fail(self, sequence: Sequence, why: str) -> Output:
        self._finish(sequence, "failed")
        return Output(sequence.id, (), failure=why)

    @functools.cached_property
    def _matchers(self):
        from .constraints import Matchers  # here, since its package takes 40 ms

        assert self._encoding, "constraints need the tokenizer"
        return Matchers(self._encoding, self.vocab_size)


def _tell_pass(
    on_pass: Callable[[list[int], int], None], sequences: dict[int, Sequence], ids: list[int], n_tokens: int
) -> None:
    """Tell of a pass, and of the sequences whose constraints are compiled beside it."""
    compiling = [s.id for s in sequences.values() if s.compiling and not s.matcher]
    on_pass(list(dict.fromkeys([*ids, *compiling])), n_tokens)
