"""HellaSwag (Zellers et al. 2019): which of four endings follows a context, decided by their losses."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tiktoken
from tqdm import tqdm

from .. import device
from ..corpus.loader import IGNORE
from ..model import GPT2
from .evaluation import Evaluator

BUCKET = 32  # rows are padded to a multiple of this, so that there are few different shapes


@dataclass(frozen=True)
class Item:
    """A context, its endings, and the number of the true ending."""

    context: str
    endings: tuple[str, ...]
    label: int


@dataclass(frozen=True)
class HellaSwagScore:
    """The number of items, and of those for which the true ending has the lowest loss."""

    items: int
    right: int  # by the summed loss of the ending
    right_norm: int  # by its mean loss per token

    @property
    def acc(self) -> float:
        return self.right / self.items

    @property
    def acc_norm(self) -> float:
        return self.right_norm / self.items


def read(path: Path) -> list[Item]:
    """The items of a file in the published format: one JSON object with ctx, endings and label per line.

    Raises a ValueError that names a line with anything else.
    """
    items = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            items.append(_item(json.loads(line)))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
    if not items:
        raise ValueError(f"{path} has no items")
    return items


def _item(fields: object) -> Item:
    if not isinstance(fields, dict):
        raise ValueError("not a JSON object")
    context, endings, label = (fields.get(name) for name in ("ctx", "endings", "label"))
    if not isinstance(context, str) or not context:
        raise ValueError(f"ctx is {context!r}; it must be a text")
    if not isinstance(endings, list) or len(endings) < 2 or not all(isinstance(e, str) for e in endings):
        raise ValueError(f"endings is {endings!r}; it must be a list of texts, at least 2")
    if str(label) not in map(str, range(len(endings))):  # Hugging Face's copy has "0" to "3"
        raise ValueError(f"label is {label!r}; it must lie in [0, {len(endings) - 1}] (the test file has no labels)")
    return Item(context, tuple(endings), int(label))


def score(model: GPT2, encoding: tiktoken.Encoding, items: list[Item], batch_size: int = 16) -> HellaSwagScore:
    """Take the ending with the lowest loss as the answer to each item; only the tokens of the ending count.

    A context and ending that are longer than block_size lose their first tokens. Raises a ValueError where the model's
    vocabulary is smaller than the tokenizer's.
    """
    if model.config.vocab_size < encoding.n_vocab:
        raise ValueError(f"the model's vocab_size is {model.config.vocab_size}; HellaSwag needs {encoding.n_vocab}")
    windows = [window for item in items for window in rows(encoding, item, model.config.block_size)]
    sums = _losses(model, windows, batch_size)
    means = sums / [(targets != IGNORE).sum() for _, targets in windows]
    right = right_norm = start = 0
    for item in items:
        own = slice(start, start + len(item.endings))
        right += sums[own].argmin() == item.label
        right_norm += means[own].argmin() == item.label
        start = own.stop
    return HellaSwagScore(len(items), int(right), int(right_norm))


def rows(encoding: tiktoken.Encoding, item: Item, block_size: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Tokens and targets, (n,) each, of a context with each of its endings."""
    context = encoding.encode_ordinary(item.context)
    windows = []
    for ending in item.endings:
        tokens = np.array(context + encoding.encode_ordinary(" " + ending), np.int32)
        targets = tokens[1:].copy()
        targets[: len(context) - 1] = IGNORE
        windows.append((tokens[:-1][-block_size:], targets[-block_size:]))
    return windows


def _losses(model: GPT2, windows: list[tuple[np.ndarray, np.ndarray]], batch_size: int) -> np.ndarray:
    """The summed loss of each window, (len(windows),). Windows of about the same length share a batch."""
    evaluator, losses = Evaluator(model, device.streams(batch_size)), np.empty(len(windows))
    order = sorted(range(len(windows)), key=lambda i: -len(windows[i][0]))
    with tqdm(total=len(windows), desc="hellaswag", unit="ending", leave=False, disable=None) as bar:
        for start in range(0, len(windows), batch_size):
            batch = order[start : start + batch_size]
            width = min(-(-len(windows[batch[0]][0]) // BUCKET) * BUCKET, model.config.block_size)
            tokens, targets = np.zeros((batch_size, width), np.int32), np.full((batch_size, width), IGNORE, np.int32)
            for row, i in enumerate(batch):
                tokens[row, : len(windows[i][0])], targets[row, : len(windows[i][1])] = windows[i]
            losses[batch] = evaluator.rows(tokens, targets)[: len(batch)]
            bar.update(len(batch))
    return losses
