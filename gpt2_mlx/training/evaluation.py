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
from ..corpus.shards import Tokens
from ..model import GPT2
from . import ranks
from .loss import cross_entropy_by_token

_COUNTED_AT_ONCE = 1 << 22  # tokens to hold in memory


@dataclass(frozen=True)
class Score:
    """What a model makes of a text."""

    loss: float  # nats per token
    tokens: int  # that were predicted: all but the first
    bytes: int  # of the text they stand for

    @property
    def perplexity(self) -> float:
        return perplexity(self.loss)

    @property
    def bits_per_byte(self) -> float:
        """The loss in a unit that no tokenizer has a share in."""
        return self.loss * self.tokens / math.log(2) / self.bytes if self.bytes else math.nan


def perplexity(loss: float) -> float:
    """e^loss; where that is more than a float holds, e^700."""
    return math.exp(min(loss, 700))


class Evaluator:
    """Sums a model's loss over rows of tokens.

    Args:
        model: scored as it is at each call, without dropout.
        streams: those of `device.streams` for the batch size; each takes a part of a batch.
        compile: fuse what can be.
    """

    def __init__(self, model: GPT2, streams: list[mx.Stream], compile: bool = True):
        self.model, self._streams = model, streams
        if compile:
            self._rows = mx.compile(self._rows, inputs=[model.state])

    def rows(self, tokens: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """The summed loss of each row, in nats: (B, T) int32 and targets, some of them `IGNORE`, -> (B,) float64."""
        return np.array(self._rows(mx.array(tokens), mx.array(targets)), np.float64)

    def sums(self, batches: Iterable[Windows], name: str) -> tuple[float, int]:
        """The loss summed over batches of `evaluation_batches`, and the tokens that count; `name` is for the bar.

        The processes share the batches out, and all get the sum that one alone would get.
        """
        losses, count = [], 0
        bar = tqdm(batches, desc=name, unit="batch", leave=False, disable=None if ranks.is_first() else True)
        for i, (tokens, targets) in enumerate(bar):
            own = i % ranks.size() == ranks.rank()
            losses.append(self.rows(tokens, targets).sum() if own else 0.0)
            count += int((targets != IGNORE).sum())
        return sum(ranks.total(mx.array(losses)).tolist()), count

    def _rows(self, tokens: mx.array, targets: mx.array) -> mx.array:
        parts = []
        for stream, rows in device.split(len(tokens), self._streams):
            with mx.stream(stream):
                losses = cross_entropy_by_token(self.model.hidden(tokens[rows]), _head(self.model), targets[rows])
                parts.append(mx.sum(losses, axis=-1))
        return mx.concatenate(parts)


def _head(model: GPT2) -> mx.array:
    """(V, C), also of a quantised model."""
    wte = model.wte
    if not model.quantization:
        return wte.weight
    return mx.dequantize(wte.weight, wte.scales, wte.get("biases"), **model.quantization)


def score_text(
    model: GPT2,
    encoding: tiktoken.Encoding,
    tokens: Tokens | np.ndarray,
    stride: int | None = None,
    batch_size: int = 8,
) -> Score:
    """The score of a text, read in windows of block_size that begin every `stride` tokens; default: block_size.

    Every token but the first counts once. With a stride below block_size each has more than block_size - stride tokens
    before it, save for those of the first window; without one, the first of each window has a single one.

    Raises:
        ValueError: the stride is out of range, or the tokens are too few or beyond the model's vocabulary.
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


def _token_counts(tokens: Tokens | np.ndarray) -> np.ndarray:
    """How often each token is there: (65536,)."""
    n = _COUNTED_AT_ONCE
    parts = (np.asarray(tokens[start : start + n]) for start in range(0, len(tokens), n))
    return sum(np.bincount(part, minlength=2**16) for part in parts)


def _bytes(encoding: tiktoken.Encoding, counts: np.ndarray) -> int:
    """How many bytes of text tokens stand for; <|endoftext|> stands for none."""
    ids = (int(id) for id in np.flatnonzero(counts) if id != tokenizer.EOT)
    return sum(int(counts[id]) * len(tokenizer.token_bytes(encoding, id)) for id in ids)
