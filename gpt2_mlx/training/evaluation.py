"""The loss of a model on tokens it does not learn from: a run's validation and `gpt2-mlx evaluate`."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import tiktoken
from tqdm import tqdm

from .. import device, tokenizer
from ..corpus.loader import IGNORE, Windows, evaluation_batches
from ..corpus.shards import AnyTokens
from ..model import GPT2
from . import ranks
from .loss import cross_entropy_by_token

_COUNTED_AT_ONCE = 1 << 22  # the tokens that are held in memory to be counted


@dataclass(frozen=True)
class Score:
    """How well a model predicts a text."""

    loss: float  # nats per token
    tokens: int  # the number of predicted tokens: all but the first
    bytes: int  # the bytes of text that these tokens stand for

    @property
    def perplexity(self) -> float:
        return perplexity(self.loss)

    @property
    def bits_per_byte(self) -> float:
        """The loss in a unit that does not depend on the tokenizer."""
        return self.loss * self.tokens / math.log(2) / self.bytes if self.bytes else math.nan


def perplexity(loss: float) -> float:
    """e^loss, or e^700 where that is more than a float can hold."""
    return math.exp(min(loss, 700))


class Evaluator:
    """Sums the loss of a model, as it is at each call and without dropout, over rows of tokens.

    Each of the `streams`, those of `device.streams` for the batch size, takes some rows of a batch.
    """

    def __init__(self, model: GPT2, streams: list[mx.Stream], compile: bool = True):
        self.model, self._streams = model, streams
        if compile:
            self._rows = mx.compile(self._rows, inputs=[model.state])

    def rows(self, tokens: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """The summed loss of each row in nats: tokens and targets (B, T) int32 -> (B,) float64; `IGNORE` adds 0."""
        return np.array(self._rows(mx.array(tokens), mx.array(targets)), np.float64)

    def sums(self, batches: Iterable[Windows], name: str) -> tuple[float, int]:
        """The loss summed over batches, and the number of targets that count; `name` labels the progress bar.

        The processes share the batches, and each returns the sum over all, with the bits that one process alone gets.
        """
        losses, count = [], 0
        bar = tqdm(batches, desc=name, unit="batch", leave=False, disable=None if ranks.is_first() else True)
        for i, (tokens, targets) in enumerate(bar):
            own = i % ranks.size() == ranks.rank()
            losses.append(self.rows(tokens, targets).sum() if own else 0.0)
            count += int((targets != IGNORE).sum())
        return sum(ranks.total(mx.array(losses)).tolist()), count

    def _rows(self, tokens: mx.array, targets: mx.array) -> mx.array:
        sums = []
        for stream, rows in device.split(len(tokens), self._streams):
            with mx.stream(stream):
                losses = cross_entropy_by_token(self.model.hidden(tokens[rows]), _head(self.model), targets[rows])
                sums.append(mx.sum(losses, axis=-1))
        return mx.concatenate(sums)  # (B,)


def _head(model: GPT2) -> mx.array:
    """The weight of the head (V, C), dequantised where the model is quantised."""
    wte = model.wte
    if not model.quantization:
        return wte.weight
    return mx.dequantize(wte.weight, wte.scales, wte.get("biases"), **model.quantization)


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
    counts = _token_counts(tokens)
    largest = int(np.flatnonzero(counts)[-1])
    if largest >= model.config.vocab_size:
        raise ValueError(f"the text has the token {largest}; the model knows those below {model.config.vocab_size}")
    batches = evaluation_batches(tokens, batch_size, T, stride)
    total, count = Evaluator(model, device.streams(batch_size)).sums(batches, "windows")
    return Score(total / count, count, _bytes(encoding, counts - _token_counts(tokens[:1])))


def _token_counts(tokens: AnyTokens) -> np.ndarray:
    """How often each token occurs: (65536,)."""
    n = _COUNTED_AT_ONCE
    arrays = (np.asarray(tokens[start : start + n]) for start in range(0, len(tokens), n))
    return sum(np.bincount(array, minlength=2**16) for array in arrays)


def _bytes(encoding: tiktoken.Encoding, counts: np.ndarray) -> int:
    """The bytes of text that the counted tokens stand for; <|endoftext|> stands for none."""
    ids = (int(id) for id in np.flatnonzero(counts) if id != tokenizer.EOT)
    return sum(int(counts[id]) * len(tokenizer.token_bytes(encoding, id)) for id in ids)
