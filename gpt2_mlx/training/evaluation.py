"""The score of a model on tokens it does not learn from: a run's validation and test, and `gpt2-mlx evaluate`."""

import math
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import tiktoken
from tqdm import tqdm

from .. import device, quantized
from ..corpus.loader import evaluation_batches
from ..corpus.shards import AnyTokens, count_bytes, count_tokens
from ..model import GPT2
from . import ranks
from .loss import cross_entropy_by_token


@dataclass(frozen=True)
class Score:
    """How well a model predicts a text."""

    loss: float  # nats per token
    tokens: int  # the number of predicted tokens: all but the first
    bytes: int  # the bytes of text that these tokens stand for

    @property
    def perplexity(self) -> float:
        """e^loss, or e^700 where that is more than a float can hold."""
        return math.exp(min(self.loss, 700))

    @property
    def bits_per_byte(self) -> float:
        """The loss in a unit that does not depend on the tokenizer."""
        return self.loss * self.tokens / math.log(2) / self.bytes if self.bytes else math.nan


class Evaluator:
    """Scores a model, as it is at each call and without dropout.

    Each of the `streams`, those of `device.streams` for the batch size, takes some rows of a batch.
    """

    def __init__(self, model: GPT2, streams: list[mx.Stream], compile: bool = True):
        self.model, self._streams = model, streams
        if compile:
            self._rows = mx.compile(self._rows, inputs=[model.state])

    def rows(self, tokens: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """The summed loss of each row in nats: tokens and targets (B, T) int32 -> (B,) float64; `IGNORE` adds 0."""
        return np.array(self._rows(mx.array(tokens), mx.array(targets)), np.float64)

    def score(
        self,
        encoding: tiktoken.Encoding,
        tokens: AnyTokens,
        batch_size: int,
        stride: int | None = None,
        name: str = "windows",
    ) -> Score:
        """The score of at least two tokens, read as `evaluation_batches` does; `name` labels the progress bar.

        The processes share the batches, and each returns the score of all, with the bits that one process alone gets.
        """
        batches = evaluation_batches(tokens, batch_size, self.model.config.block_size, stride)
        bar = tqdm(batches, desc=name, unit="batch", leave=False, disable=None if ranks.is_first() else True)
        losses = []
        for i, batch in enumerate(bar):
            own = i % ranks.size() == ranks.rank()
            losses.append(self.rows(*batch).sum() if own else 0.0)
        count = len(tokens) - 1  # the first one is not predicted
        total = sum(ranks.total(mx.array(losses)).tolist())
        return Score(total / count, count, count_bytes(encoding, tokens[1:]))

    def _rows(self, tokens: mx.array, targets: mx.array) -> mx.array:
        sums = []
        for stream, rows in device.split(len(tokens), self._streams):
            with mx.stream(stream):
                head = quantized.weight(self.model.wte)  # (V, C)
                losses = cross_entropy_by_token(self.model.hidden(tokens[rows]), head, targets[rows])
                sums.append(mx.sum(losses, axis=-1))
        return mx.concatenate(sums)  # (B,)


def score_text(
    model: GPT2, encoding: tiktoken.Encoding, tokens: AnyTokens, stride: int | None = None, batch_size: int = 8
) -> Score:
    """The score of a text, read in windows of block_size that begin every `stride` tokens, by default block_size.

    Every token but the first counts once. A token after the first window is predicted from at least
    block_size - stride + 1 tokens. Raises a ValueError where the stride is out of range, or the tokens are fewer than 2
    or beyond the model's vocabulary.
    """
    T = model.config.block_size
    stride = T if stride is None else stride
    if not 1 <= stride <= T:
        raise ValueError(f"--stride is {stride}; it must be at least 1 and at most the model's block_size, {T}")
    if len(tokens) < 2:
        raise ValueError(f"the text is too short: {len(tokens)} tokens; to be scored it must have at least 2")
    largest = int(np.flatnonzero(count_tokens(tokens))[-1])
    if largest >= model.config.vocab_size:
        raise ValueError(f"the text has the token {largest}; the model knows those below {model.config.vocab_size}")
    return Evaluator(model, device.streams(batch_size)).score(encoding, tokens, batch_size, stride)
