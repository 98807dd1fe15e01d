"""The vocabulary for a text: GPT-2's, bytes alone, or one that is trained on the text's training split.

A trained one is the byte-level BPE of the package tokenizers: GPT-2's pattern cuts the text into words, and the pair of
tokens that is most frequent within words is merged, again and again (Sennrich et al. 2016, section 3.2).
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from .. import tokenizer
from ..files import lock, new_file, remove_folder
from ..tokenizer import Vocabulary
from . import documents, example_dataset, examples, shards
from .dataset import default_cache, key_of
from .source import Source

MOST_BYTES = 1 << 30  # of text to train on; more would change few merges and take hours


def find(vocab: str | None, source: Source, cache: Path | None = None) -> Vocabulary:
    """The vocabulary that --vocab names, for a text; None is that of a folder of shards, else GPT-2's.

    Raises a ValueError where the shards are of another one, or the text is too small for so many tokens.
    """
    if source.files[0].is_dir():
        there = shards.vocabulary(source.files[0])
        if vocab not in (None, there.name):
            raise ValueError(
                f"--vocab is {vocab}, but the tokens in {source.files[0]} are of the vocabulary {there.name}"
            )
        return there
    if vocab in (None, tokenizer.NAME):
        return tokenizer.gpt2()
    size = tokenizer.size_of(vocab)
    return tokenizer.of_merges([]) if size == tokenizer.LEAST else _cached(size, source, cache or default_cache())


def _cached(size: int, source: Source, cache: Path) -> Vocabulary:
    folder = cache / key_of(source, f"a vocabulary of {size} tokens")
    path = folder / shards.MERGES
    with lock(folder, wait=True):
        try:
            vocabulary = tokenizer.read(path)
            if vocabulary.size == size:
                return vocabulary
        except ValueError:  # not there or damaged
            pass
        print(f"making a vocabulary of {size:,} tokens for {source.name}", flush=True)
        vocabulary = _of_training_split(size, source, cache)
        with new_file(path) as aside:
            aside.write_bytes(vocabulary.merges.encode())
    return vocabulary


def _of_training_split(size: int, source: Source, cache: Path) -> Vocabulary:
    """A vocabulary that is trained on a part of the training split alone.

    The split is the first 80 % of the tokens, and how many bytes these are follows from the vocabulary. So the first
    three quarters of the bytes are tried. Where the split turns out to be shorter, a shorter part is.
    """
    n_bytes = min(sum(len(piece.encode()) for piece in _pieces(source)) * 3 // 4, MOST_BYTES)
    while True:
        vocabulary = trained(size, _first(n_bytes, source), source.name)
        split = example_dataset.find(source, cache, vocabulary).split("train")
        if (n := shards.count_bytes(vocabulary.encoding, split)) >= n_bytes:
            return vocabulary
        remove_folder(cache / key_of(source, vocabulary.sha256))  # what nobody will ask for
        n_bytes = n * 9 // 10


def trained(size: int, texts: Iterable[str], name: str) -> Vocabulary:
    """The vocabulary of `size` tokens that these texts give, whatever the number of threads.

    Raises a ValueError, which calls the texts by their name, where they have fewer pairs to merge.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers  # here: few runs need them

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=size - 1, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(texts, trainer)
    vocabulary = tokenizer.of_merges(json.loads(bpe.to_str())["model"]["merges"])
    if vocabulary.size < size:
        raise ValueError(f"--vocab is {size}, but {name} is so short that it gives only {vocabulary.size} tokens")
    return vocabulary


def _pieces(source: Source) -> Iterator[str]:
    if examples.kind(source):
        yield from examples.texts(source)
        return
    for path in source.files:
        with path.open("rb") as file:
            for _, piece in documents.pieces(file, str(path)):
                yield tokenizer.mended(piece)


def _first(n_bytes: int, source: Source) -> Iterator[str]:
    """The first bytes of a source's documents, in pieces."""
    for piece in _pieces(source):
        content = piece.encode()[:n_bytes]
        n_bytes -= len(content)
        yield content.decode(errors="ignore")  # the last character may be cut
        if not n_bytes:
            return
