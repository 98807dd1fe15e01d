"""`TokenDataset`: the tokens of a text, in three splits."""

import dataclasses
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .. import folders, tokenizer
from ..files import sha256_of_each
from ..tokenizer import Vocabulary
from . import passages, shards
from .documents import kind
from .loader import DataLoader, Windows, evaluation_batches
from .shards import AnyTokens
from .source import Source

SPLITS = ("train", "val", "test")
SAMPLE_PROMPT = "The course of true love never did run smooth."


@dataclass(frozen=True)
class TokenDataset:
    """The tokens of a text, split by position into the first 80 %, the next 10 % and the last 10 %."""

    tokens: AnyTokens  # (n,) uint16
    key: str = ""  # 24 hexadecimal digits that follow from the files' contents and the vocabulary
    vocabulary: Vocabulary = field(default_factory=tokenizer.gpt2)
    ignored: np.ndarray = field(default_factory=lambda: passages.NONE)  # passages whose loss does not count in training

    @staticmethod
    def open(source: Source, cache: Path | None = None, vocabulary: Vocabulary | None = None) -> "TokenDataset":
        """The tokens of a source: read from a folder of shards, or tokenized into the `cache`, where they stay.

        The cache is data/cache by default, and the vocabulary GPT-2's. Raises a ValueError where a file is not what its
        name says (the message shows the place), the text is empty, or shards are not whole or of another vocabulary.
        """
        vocabulary, folder = vocabulary or tokenizer.gpt2(), source.files[0]
        if folder.is_dir():
            return TokenDataset(*shards.read(folder, vocabulary), vocabulary)
        key = key_of(source, vocabulary.sha256)
        folder = (cache or default_cache()) / key
        try:
            return TokenDataset(*shards.read(folder, vocabulary), vocabulary)
        except ValueError:  # not there, not finished or damaged
            shards.prepare(source.name, source.files, folder, key, vocabulary)
            return TokenDataset(*shards.read(folder, vocabulary), vocabulary)

    def split(self, name: str) -> AnyTokens:
        """The tokens of the split "train", "val" or "test", or all tokens for "all"."""
        if name == "all":
            return self.tokens
        borders = [0, len(self.tokens) * 8 // 10, len(self.tokens) * 9 // 10, len(self.tokens)]
        i = SPLITS.index(name)
        return self.tokens[borders[i] : borders[i + 1]]

    def without(self, names: tuple[str, ...], source: Source) -> "TokenDataset":
        """The same tokens, but the loss of those in the named passages of the source does not count in training.

        Raises a ValueError as `passages.find`, or where no token of the training split, or no other one, is in them.
        """
        if not names:
            return self
        dataset = dataclasses.replace(self, ignored=passages.find(names, source, self.tokens, self.vocabulary))
        if not 0 < dataset.n_ignored < len(self.split("train")):
            what = "all" if dataset.n_ignored else "none"
            raise ValueError(f"--without is {' '.join(names)}, which holds {what} of the tokens to learn from")
        return dataset

    @property
    def n_ignored(self) -> int:
        """The number of tokens of the training split whose loss does not count."""
        return int(np.diff(np.minimum(self.ignored, len(self.split("train")))).sum())

    @property
    def told(self) -> str:
        """How much there is of each split, in words."""
        return f"{' + '.join(f'{len(self.split(name)):,} {name}' for name in SPLITS)} tokens"

    def counted(self, split: str) -> AnyTokens:
        """The tokens of a split whose loss counts."""
        return self.split(split)

    def per_pass(self, block_size: int) -> int:
        """The tokens of the windows that one pass over the training split reads."""
        return len(self.split("train"))

    def loader(self, batch_size: int, block_size: int, seed: int) -> DataLoader:
        """The micro-batches of the training split."""
        return DataLoader(self.split("train"), batch_size, block_size, seed, self.ignored)

    def evaluation(
        self, split: str, batch_size: int, block_size: int, limit: int = 0, stride: int | None = None
    ) -> tuple[Iterator[Windows], AnyTokens]:
        """The batches that score a split, over all of it or its first `limit` tokens, and the tokens they predict."""
        tokens = self.split(split)
        tokens = tokens[: limit + 1] if limit else tokens  # the first token is no target
        return evaluation_batches(tokens, batch_size, block_size, stride), tokens[1:]

    def n_windows(self, split: str, block_size: int, limit: int = 0) -> int:
        """The windows of an evaluation."""
        n = len(self.split(split)) - 1
        return -(-min(n, limit or n) // block_size)

    @property
    def prompt(self) -> str:
        """What a sample goes on from."""
        return SAMPLE_PROMPT

    def note(self, block_size: int) -> str:
        """What of it is not read; nothing, of a text."""
        return ""

    def check_length(self, block_size: int) -> None:
        """Raise a ValueError where a split is too short to read from."""
        for name, least in (("train", block_size + 1), ("val", 2), ("test", 2)):
            n = len(self.split(name))
            if n < least:
                raise ValueError(
                    f"the text is too short: its {len(self.tokens)} tokens leave {n} for {name}, which needs {least}"
                    f" with --block-size {block_size}"
                )


def default_cache() -> Path:
    return folders.data() / "cache"


def key_of(source: Source, made_with: str) -> str:
    """24 hexadecimal digits that follow from the files of a source and from what is made of them."""
    digest = hashlib.sha256(made_with.encode())
    for file, content in zip(source.files, sha256_of_each(source.files)):
        digest.update(bytes.fromhex(content))
        if kind(file.name) != "text":  # the same bytes may be read as text or as JSON
            digest.update(kind(file.name).encode())
    return digest.hexdigest()[:24]
