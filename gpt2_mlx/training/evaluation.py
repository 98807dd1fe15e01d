"""The score of a model on tokens it does not learn from: a run's validation and test, and `gpt2-mlx evaluate`."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import tiktoken
from tqdm import tqdm

from .. import device, quantized
from ..corpus.dataset import TokenDataset
from ..corpus.example_dataset import Dataset
from ..corpus.loader import Windows
from ..corpus.shards import AnyTokens, count_bytes, count_tokens
from ..model import GPT2
from . import ranks
from .loss import cross_entropy_by_token


@dataclass(frozen=True)
class Score:
    """How well a model predicts a text."""

    loss: float  # nats per token
    tokens: int  # the number of predicted tokens: all but the first, or those of answers
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

    def rows(self, *windows: np.ndarray) -> np.ndarray:
        """The summed loss of each row of `Windows` in nats: (B, T) int32 -> (B,) float64; `IGNORE` adds 0."""
        return np.array(self._rows(*map(mx.array, windows)), np.float64)

    def score(
        self,
        encoding: tiktoken.Encoding,
        batches: Iterable[Windows],
        predicted: AnyTokens,
        name: str = "windows",
    ) -> Score:
        """The score of batches whose targets that count are the `predicted` tokens; `name` labels the progress bar.

        The processes share the batches, and each returns the score of all, with the bits that one process alone gets.
        """
        bar = tqdm(batches, desc=name, unit="batch", leave=False, disable=None if ranks.is_first() else True)
        losses = []
        for i, batch in enumerate(bar):
            own = i % ranks.size() == ranks.rank()
            losses.append(self.rows(*batch).sum() if own else 0.0)
        total = sum(ranks.total(mx.array(losses)).tolist())
        return Score(total / len(predicted), len(predicted), count_bytes(encoding, predicted))

    def _rows(self, tokens: mx.array, targets: mx.array, starts: mx.array | None = None) -> mx.array:
        sums = []
        for stream, rows in device.split(len(tokens), self._streams):
            with mx.stream(stream):
                head = quantized.weight(self.model.wte)  # (V, C)
                hidden = self.model.hidden(tokens[rows], starts=None if starts is None else starts[rows])
                losses = cross_entropy_by_token(hidden, head, targets[rows])
                sums.append(mx.sum(losses, axis=-1))
        return mx.concatenate(sums)  # (B,)


def score_text(
    model: GPT2, encoding: tiktoken.Encoding, tokens: AnyTokens, stride: int | None = None, batch_size: int = 8
) -> Score:
    """The score of a text. As `score_split`."""
    return score_split(model, encoding, TokenDataset(tokens), "all", stride, batch_size)


def score_split(
    model: GPT2,
    encoding: tiktoken.Encoding,
    dataset: Dataset,
    split: str,
    stride: int | None = None,
    batch_size: int = 8,
) -> Score:
    """The score of a split: of a text, read in windows of block_size that begin every `stride` tokens, by default
    block_size, or of the answers of examples.

    Every token of a text but the first counts once. A token after the first window is predicted from at least
    block_size - stride + 1 tokens. Raises a ValueError where the stride is out of range or there is none, the tokens
    are fewer than 2 or beyond the model's vocabulary, or no example fits into a window.
    """
    T, tokens = model.config.block_size, dataset.split(split)
    if stride is not None and not 1 <= stride <= T:
        raise ValueError(f"--stride is {stride}; it must be at least 1 and at most the model's block_size, {T}")
    if len(tokens) < 2:
        raise ValueError(f"the text is too short: {len(tokens)} tokens; to be scored it must have at least 2")
    largest = int(np.flatnonzero(count_tokens(tokens))[-1])
    if largest >= model.config.vocab_size:
        raise ValueError(f"the text has the token {largest}; the model knows those below {model.config.vocab_size}")
    batches, predicted = dataset.evaluation(split, batch_size, T, stride=stride)
    if not len(predicted):
        raise ValueError(f"none of the examples fits into the model's block_size, {T}")
    return Evaluator(model, device.streams(batch_size)).score(encoding, batches, predicted)
