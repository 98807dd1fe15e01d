"""Tokens for training: a cached, memory-mapped data set and a deterministic loader whose position is data."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import tokenizer
from ..files import new_folder
from .text import Source

CACHE = Path(__file__).resolve().parents[2] / "data" / "cache"
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class TokenDataset:
    """The tokens of a text, split by position into the first 80 %, the next 10 % and the last 10 %.

    Attributes:
        tokens: (n,) uint16, memory-mapped.
        key: what the tokens follow from, in 24 hexadecimal digits: the files' contents and the vocabulary.
    """

    tokens: np.ndarray
    key: str = ""

    @staticmethod
    def open(source: Source, cache: Path = CACHE) -> "TokenDataset":
        """Tokenize a source, or map the tokens that an earlier call cached; a damaged cache is made anew.

        Raises:
            ValueError: a file is not UTF-8 (the message shows the offset) or empty.
        """
        key = _key(source)
        folder = cache / key
        if not _is_whole(folder):
            tokens = _encode(source)
            try:
                _write(folder, tokens)
            except OSError:
                if not _is_whole(folder):  # else another process was quicker
                    raise
        return TokenDataset(np.load(folder / "tokens.npy", mmap_mode="r"), key)

    def split(self, name: str) -> np.ndarray:
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
    for file in source.files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:24]


def _is_whole(folder: Path) -> bool:
    try:
        recorded = json.loads((folder / "meta.json").read_text())["sha256"]
        return hashlib.sha256((folder / "tokens.npy").read_bytes()).hexdigest() == recorded
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _encode(source: Source) -> np.ndarray:
    """The tokens of all files, <|endoftext|> between two."""
    encoding = tokenizer.load()
    parts: list[np.ndarray] = []
    for file in source.files:
        if parts:
            parts.append(np.array([tokenizer.EOT]))
        parts.append(np.array(encoding.encode_ordinary(_read(file)), dtype=np.uint16))
    tokens = np.concatenate(parts).astype(np.uint16)
    if not len(tokens):
        raise ValueError(f"{source.name} is empty: {', '.join(map(str, source.files))}")
    return tokens


def _read(file: Path) -> str:
    content = file.read_bytes()
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        at = error.start
        raise ValueError(f"{file} is not UTF-8: byte {content[at]:#04x} at offset {at}") from None


def _write(folder: Path, tokens: np.ndarray) -> None:
    with new_folder(folder) as aside:
        np.save(aside / "tokens.npy", tokens)
        digest = hashlib.sha256((aside / "tokens.npy").read_bytes()).hexdigest()
        (aside / "meta.json").write_text(json.dumps({"tokens": len(tokens), "sha256": digest}))


class DataLoader:
    """Windows of a split in an order that is a function of (seed, epoch).

    An epoch cuts the tokens into windows of block_size at a random offset and reads each once. The position, the
    number of windows read so far, is all the state there is.
    """

    def __init__(self, tokens: np.ndarray, batch_size: int, block_size: int, seed: int, position: int = 0):
        self.tokens = tokens
        self.batch_size = batch_size
        self.block_size = block_size
        self.seed = seed
        self.position = position
        self.windows_per_epoch = max(1, (len(tokens) - block_size) // block_size)
        self._epoch, self._starts = -1, np.empty(0)

    def next_batch(self) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and the tokens that follow them, both (batch_size, block_size) int32; the position advances."""
        positions = range(self.position, self.position + self.batch_size)
        windows = np.stack([self._window(position) for position in positions])  # (B, T + 1)
        self.position += self.batch_size
        return windows[:, :-1], windows[:, 1:]

    def _window(self, position: int) -> np.ndarray:
        epoch, i = divmod(position, self.windows_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._starts = epoch, self._order(epoch)
        start = self._starts[i]
        return self.tokens[start : start + self.block_size + 1].astype(np.int32)

    def _order(self, epoch: int) -> np.ndarray:
        n, T = self.windows_per_epoch, self.block_size
        random = np.random.RandomState([self.seed, epoch])  # the one stream that NumPy has frozen
        offset = random.randint(min(T, len(self.tokens) - n * T))
        return offset + T * random.permutation(n)


def evaluation_batches(tokens: np.ndarray, batch_size: int, block_size: int, stride: int, ignore: int):
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
            start = window * stride
            end = min(start + block_size, n)
            inputs[row, : end - start] = tokens[start:end]
            seen = block_size - stride if window else 0
            targets[row, seen : end - start] = tokens[start + seen + 1 : end + 1]
        yield inputs, targets
