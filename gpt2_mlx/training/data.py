"""Tokens for training: a data set in three splits and a deterministic loader whose position is data."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import tokenizer
from ..files import sha256_of_each
from . import shards
from .documents import kind
from .text import Source

CACHE = Path(__file__).resolve().parents[2] / "data" / "cache"
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class TokenDataset:
    """The tokens of a text, split by position into the first 80 %, the next 10 % and the last 10 %.

    Attributes:
        tokens: (n,) uint16, on the disk or in memory.
        key: what the tokens follow from, in 24 hexadecimal digits: the files' contents and the vocabulary.
    """

    tokens: shards.Tokens | np.ndarray
    key: str = ""

    @staticmethod
    def open(source: Source, cache: Path = CACHE) -> "TokenDataset":
        """The tokens of a folder of shards, or of a text: tokenized now, or by an earlier call into the cache.

        Raises:
            ValueError: a file is not what its name says (the message shows where), the text is empty, or the shards
                are not whole.
        """
        folder = source.files[0]
        if folder.is_dir():
            return TokenDataset(*shards.read(folder))
        key = _key(source)
        folder = cache / key
        try:
            return TokenDataset(*shards.read(folder))
        except ValueError:  # not there, not finished or damaged
            shards.prepare(source.name, source.files, folder, key)
            return TokenDataset(*shards.read(folder))

    def split(self, name: str) -> shards.Tokens | np.ndarray:
        """The tokens of "train", "val" or "test"; of "all" of them."""
        if name == "all":
            return self.tokens
        borders = [0, len(self.tokens) * 8 // 10, len(self.tokens) * 9 // 10, len(self.tokens)]
        i = SPLITS.index(name)
        return self.tokens[borders[i] : borders[i + 1]]

    def check_length(self, block_size: int) -> None:
        """Raise a ValueError where a split is too short to read from."""
        for name, least in (("train", block_size + 1), ("val", 2), ("test", 2)):
            n = len(self.split(name))
            if n < least:
                raise ValueError(
                    f"the text is too short: its {len(self.tokens)} tokens leave {n} for {name}, which needs {least}"
                    f" with --block-size {block_size}"
                )


def _key(source: Source) -> str:
    digest = hashlib.sha256(tokenizer.VOCAB_SHA256.encode())
    for file, content in zip(source.files, sha256_of_each(source.files)):
        digest.update(bytes.fromhex(content))
        if kind(file.name) != "text":  # the same bytes may be read as text or as JSON
            digest.update(kind(file.name).encode())
    return digest.hexdigest()[:24]


class DataLoader:
    """Windows of a split in an order that is a function of (seed, epoch).

    An epoch cuts the tokens into windows of block_size at a random offset and reads each once. The position, the
    number of windows read so far, is all the state there is.
    """

    def __init__(
        self, tokens: shards.Tokens | np.ndarray, batch_size: int, block_size: int, seed: int, position: int = 0
    ):
        self.tokens = tokens
        self.batch_size = batch_size
        self.block_size = block_size
        self.seed = seed
        self.position = position
        self.windows_per_epoch = max(1, (len(tokens) - block_size) // block_size)
        self._epoch, self._offset, self._order = -1, 0, np.empty(0)

    def next_batch(self) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and the tokens that follow them, both (batch_size, block_size) int32; the position advances."""
        positions = range(self.position, self.position + self.batch_size)
        windows = np.stack([self._window(position) for position in positions])  # (B, T + 1)
        self.position += self.batch_size
        return windows[:, :-1], windows[:, 1:]

    def _window(self, position: int) -> np.ndarray:
        epoch, i = divmod(position, self.windows_per_epoch)
        if epoch != self._epoch:
            self._epoch = epoch
            self._offset, self._order = self._shuffled(epoch)
        start = self._offset + self.block_size * int(self._order[i])
        return np.asarray(self.tokens[start : start + self.block_size + 1]).astype(np.int32)

    def _shuffled(self, epoch: int) -> tuple[int, np.ndarray]:
        n, T = self.windows_per_epoch, self.block_size
        random = np.random.RandomState([self.seed, epoch])  # the one stream that NumPy has frozen
        offset = random.randint(min(T, len(self.tokens) - n * T))
        order = np.arange(n, dtype=np.uint32)  # 4 bytes a window
        random.shuffle(order)
        return offset, order


def evaluation_batches(tokens: shards.Tokens | np.ndarray, batch_size: int, block_size: int, stride: int, ignore: int):
    """Yield tokens and targets, both (batch_size, block_size) int32, that hold each target of a split once.

    Windows of block_size begin every `stride` tokens. The first counts whole, a later one its last `stride` targets, so
    that each of these is predicted from more than block_size - stride tokens. What does not count has the target
    `ignore`: targets of the window before, and what the last, ragged windows lack.
    """
    n = len(tokens) - 1  # targets
    n_windows = 1 + -(-max(0, n - block_size) // stride)
    for first in range(0, n_windows, batch_size):
        shape = (batch_size, block_size)
        inputs, targets = np.zeros(shape, np.int32), np.full(shape, ignore, np.int32)
        for row, window in enumerate(range(first, min(first + batch_size, n_windows))):
            part = np.asarray(tokens[window * stride : window * stride + block_size + 1])
            count, seen = len(part) - 1, block_size - stride if window else 0
            inputs[row, :count] = part[:-1]
            targets[row, seen:count] = part[seen + 1 :]
        yield inputs, targets
