"""`ExampleDataset`: examples of prompts and answers in three splits; and `find`, which tells them from a text."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .. import template, tokenizer
from ..tokenizer import Vocabulary
from . import examples
from .dataset import SPLITS, TokenDataset, key_of
from .examples import Examples
from .loader import Windows
from .packing import ExampleLoader, PackedWindows
from .source import Source


@dataclass(frozen=True)
class ExampleDataset:
    """Examples of prompts and answers: the first 80 % of them, the next 10 % and the last 10 %.

    They are tokenized at each start. Those longer than a window are left out, whatever split they are in.
    """

    examples: Examples
    key: str  # as a TokenDataset's
    vocabulary: Vocabulary  # with the chat template where the examples are conversations
    _packed: dict[tuple, PackedWindows] = field(default_factory=dict, compare=False, repr=False)
    n_ignored = 0  # of the tokens that --without names: there are none

    @staticmethod
    def open(source: Source, vocabulary: Vocabulary | None = None) -> "ExampleDataset":
        """The examples of a source. Raises as `examples.read`."""
        vocabulary = vocabulary or tokenizer.gpt2()
        if examples.kind(source) == ("messages",) and not vocabulary.template:
            vocabulary = dataclasses.replace(vocabulary, template=template.OURS)
        key = key_of(source, f"examples {vocabulary.sha256} {vocabulary.template}")
        return ExampleDataset(examples.read(source, vocabulary), key, vocabulary)

    def _part(self, split: str, limit: int = 0) -> Examples:
        """A split's examples, all of them or as many as hold at most `limit` tokens, but at least one."""
        n = len(self.examples)
        borders = [0, n * 8 // 10, n * 9 // 10, n]
        i = SPLITS.index(split) if split != "all" else 0
        part = self.examples.part(borders[i], n if split == "all" else borders[i + 1])
        return part.part(0, max(1, int((part.ends <= limit).sum()))) if limit and len(part) else part

    def _windows(self, split: str, block_size: int, limit: int = 0) -> PackedWindows:
        """A split's examples in windows, which are made once."""
        if (split, block_size, limit) not in self._packed:
            self._packed[split, block_size, limit] = PackedWindows(self._part(split, limit), block_size)
        return self._packed[split, block_size, limit]

    def split(self, name: str) -> np.ndarray:
        """The tokens of a split's examples, or of all for "all"."""
        return self._part(name).tokens

    def without(self, names: tuple[str, ...], source: Source) -> "ExampleDataset":
        """Raise a ValueError where passages are named."""
        if names:
            raise ValueError(f"--without is {' '.join(names)}, but {source.name} holds prompts and answers, not texts")
        return self

    @property
    def told(self) -> str:
        """How much there is of each split, in words."""
        counts = " + ".join(f"{len(self._part(name)):,} {name}" for name in SPLITS)
        train = self._part("train")
        return f"{counts} examples; {int(train.learnt.sum()):,} of {len(train.tokens):,} train tokens are answers"

    def counted(self, split: str) -> np.ndarray:
        """The tokens of a split's answers."""
        part = self._part(split)
        return part.tokens[part.learnt]

    def per_pass(self, block_size: int) -> int:
        """The tokens of the windows that one pass over the training split reads, those that fill them up too."""
        return block_size * len(self._windows("train", block_size))

    def loader(self, batch_size: int, block_size: int, seed: int) -> ExampleLoader:
        """The micro-batches of the training split."""
        return ExampleLoader(self._windows("train", block_size), batch_size, seed)

    def evaluation(
        self, split: str, batch_size: int, block_size: int, limit: int = 0, stride: int | None = None
    ) -> tuple[Iterator[Windows], np.ndarray]:
        """The batches that score a split, over all of it or its first `limit` tokens, and the tokens they predict."""
        if stride is not None:
            raise ValueError(f"--stride is {stride}, but the text holds prompts and answers, which are read whole")
        windows = self._windows(split, block_size, limit)
        return windows.batches(batch_size), windows.targets

    def n_windows(self, split: str, block_size: int, limit: int = 0) -> int:
        """The windows of an evaluation."""
        return len(self._windows(split, block_size, limit))

    def check_length(self, block_size: int) -> None:
        """Raise a ValueError where a split has no example that fits into a window."""
        lengths = self.examples.lengths
        for name in SPLITS:
            if not len(self._windows(name, block_size)):
                raise ValueError(
                    f"of the {len(self.examples)} examples none is left for {name} that fits into --block-size"
                    f" {block_size}; the longest has {lengths.max(initial=0)} tokens, and there must be at least 3"
                )

    @property
    def prompt(self) -> str:
        """What a sample goes on from: the first prompt of the validation split, without what no text can spell."""
        example = self._part("val").part(0, 1)
        ids = example.tokens[: int(example.learnt.argmax())]
        return self.vocabulary.encoding.decode(ids[ids != self.vocabulary.eot].tolist())

    def note(self, block_size: int) -> str:
        """How many examples are left out, since they do not fit into a window; nothing where all do."""
        lengths = self.examples.lengths
        n, longest = int((lengths > block_size + 1).sum()), lengths.max(initial=0)
        told = f"{n:,} of {len(lengths):,} examples are left out: they have more than {block_size + 1} tokens, up to"
        return f"{told} {longest:,}" if n else ""


Dataset = TokenDataset | ExampleDataset


def find(source: Source, cache: Path | None = None, vocabulary: Vocabulary | None = None) -> Dataset:
    """What a source holds. Raises as `TokenDataset.open` and `ExampleDataset.open`."""
    if examples.kind(source):
        return ExampleDataset.open(source, vocabulary)
    return TokenDataset.open(source, cache, vocabulary)
