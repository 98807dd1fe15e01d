"""Byte-level BPE (Radford et al. 2019, section 2.2) through tiktoken, offline: GPT-2's vocabulary and its like."""

import codecs
import functools
import hashlib
import json
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import tiktoken
from tiktoken_ext.openai_public import ENDOFTEXT, r50k_pat_str

ASSETS = Path(__file__).parent / "assets"
NAME = "gpt2"
VOCAB_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
VOCAB_SIZE = 50257
EOT = 50256  # <|endoftext|>: separates documents

BYTES = "bytes"  # the name of the vocabulary without merges
LEAST = 257  # tokens of a vocabulary: 256 bytes and <|endoftext|>
_HEADER = "#version: 0.2\n"  # the first line of a merges.txt

# Each byte as a character that can be printed, in the order of the ids: files of vocabularies spell tokens in these.
_PLAIN = [b for b in range(256) if chr(b).isprintable() and chr(b) != " "]
_BYTES = _PLAIN + [b for b in range(256) if b not in _PLAIN]
_CHARS = [chr(b) for b in _PLAIN] + [chr(256 + i) for i in range(256 - len(_PLAIN))]
_BYTE_OF = str.maketrans({char: chr(byte) for char, byte in zip(_CHARS, _BYTES)})


@dataclass(frozen=True)
class Vocabulary:
    """A byte-level BPE: 256 bytes, the token of each merge, and <|endoftext|>, with ids in this order.

    So the id of a token is the rank of its merge, and tiktoken, transformers and mlx_lm give the same ids.
    """

    merges: str  # the content of merges.txt, from which all but the template follows
    template: str | None = field(default=None, compare=False)  # how a model puts conversations, if it was taught to

    @cached_property
    def size(self) -> int:
        """The number of tokens."""
        return LEAST + self.merges.count("\n") - 1

    @property
    def eot(self) -> int:
        """The id of <|endoftext|>, which separates documents."""
        return self.size - 1

    @property
    def ends(self) -> dict[str, int]:
        """What config.json says of the tokens that begin and end a text."""
        return {"bos_token_id": self.eot, "eos_token_id": self.eot}

    @property
    def name(self) -> str:
        """What --vocab calls it: "gpt2", "bytes" or the number of tokens."""
        if self.sha256 == VOCAB_SHA256:
            return NAME
        return BYTES if self.size == LEAST else str(self.size)

    @cached_property
    def sha256(self) -> str:
        """What tells vocabularies apart."""
        return hashlib.sha256(self.merges.encode()).hexdigest()

    @cached_property
    def ids(self) -> dict[str, int]:
        """The content of vocab.json."""
        merged = [line.replace(" ", "") for line in self.merges.splitlines()[1:]]
        return {token: id for id, token in enumerate([*_CHARS, *merged, ENDOFTEXT])}

    @cached_property
    def encoding(self) -> tiktoken.Encoding:
        """`encode_ordinary(text)` gives ids below `eot`, `decode(ids)` the text again."""
        ranks = {token.translate(_BYTE_OF).encode("latin-1"): id for token, id in self.ids.items()}
        special = {ENDOFTEXT: ranks.pop(ENDOFTEXT.encode())}
        return tiktoken.Encoding(
            self.name, explicit_n_vocab=self.size, pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens=special
        )

    @cached_property
    def n_bytes(self) -> np.ndarray:
        """How many bytes of text each token stands for, (size,) int64; <|endoftext|> stands for none."""
        return np.array([len(token) if id < self.eot else 0 for token, id in self.ids.items()])

    def files(self, block_size: int) -> dict[str, bytes]:
        """What a checkpoint folder tells other programs of it: the content of each file, by name."""
        special = {f"{kind}_token": ENDOFTEXT for kind in ("bos", "eos", "unk")}
        config = {"tokenizer_class": "GPT2Tokenizer", "model_max_length": block_size, **special}
        config |= {"chat_template": self.template} if self.template else {}
        return {
            "vocab.json": json.dumps(self.ids).encode(),
            "merges.txt": self.merges.encode(),
            "tokenizer_config.json": json.dumps(config, indent=2).encode(),
            "generation_config.json": json.dumps(self.ends, indent=2).encode(),
        }


def of_merges(pairs: list[tuple[str, str]]) -> Vocabulary:
    """The vocabulary with these merges, the first one first; tokens are spelt as in a vocab.json."""
    return Vocabulary(_HEADER + "".join(f"{a} {b}\n" for a, b in pairs))


def read(merges: Path) -> Vocabulary:
    """The vocabulary of a merges.txt. Raises a ValueError where the file is none of a byte-level BPE."""
    try:
        _, *lines = merges.read_text(encoding="utf-8").splitlines()
        return _of_lines(lines)
    except (OSError, ValueError) as error:
        raise ValueError(f"{merges} cannot be read: {error}") from None


def of_json(content: bytes) -> Vocabulary | None:
    """The vocabulary of a tokenizer.json; None where it is no byte-level BPE that splits and numbers as GPT-2's."""
    as_gpt2 = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    try:
        fields = json.loads(content)
        model, split = fields["model"], {"use_regex": True, **fields["pre_tokenizer"]}
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
        ids = model["vocab"] | {token["content"]: token["id"] for token in fields["added_tokens"]}
        own = _of_lines(merges)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    is_like = own.ids == ids and split.items() >= as_gpt2.items() and not fields.get("normalizer")
    return own if is_like else None


def _of_lines(lines: list[str]) -> Vocabulary:
    """The vocabulary of the merges in these lines. Raises a ValueError where one of them cannot be."""
    known, vocabulary = set(_CHARS), of_merges([tuple(line.split(" ")) for line in lines])
    for line in lines:
        a, b = line.split(" ")
        if not known >= {a, b} or a + b in known:
            raise ValueError(f"the merge {line[:60]!r} joins unknown tokens or makes a known one")
        known.add(a + b)
    return vocabulary


def size_of(vocab: str) -> int:
    """The number of tokens of the vocabulary that --vocab calls by this name. Raises a ValueError for another name."""
    named = {NAME: VOCAB_SIZE, BYTES: LEAST}
    size = named.get(vocab) or (int(vocab) if re.fullmatch("[1-9][0-9]{0,5}", vocab) else 0)
    if not LEAST <= size <= VOCAB_SIZE:
        raise ValueError(
            f"--vocab is {vocab!r}; it must be gpt2, bytes or a number of tokens, at least {LEAST} and at most"
            f" {VOCAB_SIZE}"
        )
    return size


@functools.cache
def gpt2() -> Vocabulary:
    """The vocabulary of GPT-2. Raises a ValueError where its file is not the one that OpenAI published."""
    path = ASSETS / "vocab.bpe"
    vocabulary = Vocabulary(path.read_bytes().decode(errors="replace"))
    if vocabulary.sha256 != VOCAB_SHA256:
        raise ValueError(f"{path} is not the file that OpenAI published: its SHA-256 is {vocabulary.sha256}")
    return vocabulary


def load() -> tiktoken.Encoding:
    """The encoding of GPT-2's vocabulary. Raises as `gpt2`."""
    return gpt2().encoding


def encode(encoding: tiktoken.Encoding, text: str) -> np.ndarray:
    """The ids of `encode_ordinary` as (n,) uint16, made without a Python list."""
    try:
        return encoding.encode_to_numpy(text, disallowed_special=()).astype(np.uint16)
    except UnicodeEncodeError:
        return encode(encoding, mended(text))


def mended(text: str) -> str:
    """The text with U+FFFD in place of each half of a surrogate pair, which JSON may hold."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


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
