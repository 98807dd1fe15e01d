"""`TokenDataset`: the tokens of a text, in three splits."""

import dataclasses
import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .. import folders, tokenizer
from ..files import sha256_of_each
from ..tokenizer import Vocabulary
from . import passages, shards
from .documents import kind
from .shards import AnyTokens
from .source import Source

SPLITS = ("train", "val", "test")


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
