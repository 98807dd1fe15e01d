"""GPT-2's byte-level BPE (Radford et al. 2019, section 2.2) through tiktoken, offline."""

import codecs
import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import tiktoken
from tiktoken.load import data_gym_to_mergeable_bpe_ranks
from tiktoken_ext.openai_public import ENDOFTEXT, r50k_pat_str

from .files import sha256_of_each

ASSETS = Path(__file__).parent / "assets"
NAME = "gpt2"
ENCODER_SHA256 = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"
VOCAB_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
VOCAB_SIZE = 50257
EOT = 50256  # <|endoftext|>: separates documents


@functools.cache  # reading the vocabulary takes a quarter of a second
def load() -> tiktoken.Encoding:
    """The GPT-2 tokenizer: `encode_ordinary(text)` gives ids below `VOCAB_SIZE`, `decode(ids)` the text again.

    Raises a ValueError where a vocabulary file is not the one that OpenAI published.
    """
    paths = [ASSETS / "vocab.bpe", ASSETS / "encoder.json"]
    for path, found, expected in zip(paths, sha256_of_each(paths), (VOCAB_SHA256, ENCODER_SHA256)):
        if found != expected:
            raise ValueError(f"{path} is not the file that OpenAI published: its SHA-256 is {found}")
    with _no_copies():
        ranks = data_gym_to_mergeable_bpe_ranks(*map(str, paths))
    return tiktoken.Encoding(
        NAME, explicit_n_vocab=VOCAB_SIZE, pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens={ENDOFTEXT: EOT}
    )


@contextmanager
def _no_copies() -> Iterator[None]:
    """Keep tiktoken from copying the files that it reads, even local ones, into the system's temporary folder."""
    name = "TIKTOKEN_CACHE_DIR"
    before = os.environ.get(name)
    os.environ[name] = ""
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


def encode(encoding: tiktoken.Encoding, text: str) -> np.ndarray:
    """The ids of `encode_ordinary` as (n,) uint16, made without a Python list."""
    try:
        return encoding.encode_to_numpy(text, disallowed_special=()).astype(np.uint16)
    except UnicodeEncodeError:  # half a surrogate pair, which JSON may hold; it becomes U+FFFD
        return np.array(encoding.encode_ordinary(text), np.uint16)


class StreamingDecoder:
    """Turns ids into text as they come; bytes that may still become a character are held back."""

    def __init__(self, encoding: tiktoken.Encoding):
        self._encoding = encoding
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, id: int) -> str:
        """The text that is certain after this id; bytes that cannot become a character become U+FFFD."""
        return self._utf8.decode(token_bytes(self._encoding, id))

    def finish(self) -> str:
        """U+FFFD where bytes were held back, else nothing."""
        return self._utf8.decode(b"", final=True)


def token_bytes(encoding: tiktoken.Encoding, id: int) -> bytes:
    """The bytes of a token; those of U+FFFD for an id that only a model's padded vocabulary has."""
    try:
        return encoding.decode_single_token_bytes(id)
    except KeyError:
        return "\ufffd".encode()
