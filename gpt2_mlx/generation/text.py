"""Text in, text out: ids as they come become text, and one prompt goes through an engine of its own."""

import re
import secrets
from collections.abc import Iterator, Sequence

import tiktoken

from ..model import GPT2
from ..tokenizer import StreamingDecoder
from .engine import Engine
from .params import SamplingParams

SENTENCE_END = r"[.!?]+[\"'\u201d\u2019)\]}\xbb]*"  # marks, closing quotes and brackets; white space must follow: 3.14
_END_FOUND = re.compile(SENTENCE_END + r"(?=\s)")
_END_BEGUN = re.compile(SENTENCE_END + r"\Z")


class TextStream:
    """Ids in, pieces of text out; joined, the pieces are the whole text.

    It holds back the bytes of a half character, and whatever might still become a stop string. The text ends before
    the stop string that is complete first, wherever tokens begin and end.

    Args:
        encoding: the tokenizer.
        stop: strings that end the text and are no part of it.
        whole_sentence: end the text after its first sentence.

    Attributes:
        stopped: whether the text has come to such an end; further ids bring nothing.
        n_given: characters handed out so far.
    """

    def __init__(self, encoding: tiktoken.Encoding, stop: tuple[str, ...] = (), whole_sentence: bool = False):
        self.stopped = False
        self.n_given = 0
        self._stop = stop
        self._whole_sentence = whole_sentence
        self._decoder = StreamingDecoder(encoding)
        self._held = ""

    @property
    def n_chars(self) -> int:
        """Characters decoded so far: those handed out and those held back, but no half one."""
        return self.n_given + len(self._held)

    def add(self, id: int) -> str:
        """Take a token's id; returns the text that is certain now, often none."""
        if self.stopped:
            return ""
        self._held += self._decoder.add(id)
        return self._give(len(self._held) - self._n_doubtful())

    def finish(self) -> str:
        """The rest of the text; a character that stayed half becomes U+FFFD."""
        if self.stopped:
            return ""
        self._held += self._decoder.finish()
        return self._give(len(self._held))

    def _give(self, n: int) -> str:
        """Hand out the first n characters held, or those before an end that is found."""
        cut = self._cut()
        self.stopped = cut is not None
        piece = self._held[: n if cut is None else cut]
        self._held = "" if self.stopped else self._held[n:]
        self.n_given += len(piece)
        return piece

    def _cut(self) -> int | None:
        """Where the text ends, if it does. Of several ends the one counts that is complete first."""
        found = [(at + len(stop), at) for stop in self._stop if (at := self._held.find(stop)) >= 0]
        if self._whole_sentence and (match := _END_FOUND.search(self._held)):
            found.append((match.end() + 1, match.end()))
        return min(found)[1] if found else None

    def _n_doubtful(self) -> int:
        """How many of the last characters may belong to an end that is not complete yet."""
        n = max((_overlap(self._held, stop) for stop in self._stop), default=0)
        if self._whole_sentence and (match := _END_BEGUN.search(self._held)):
            n = max(n, len(self._held) - match.start())
        return n


def stream(
    model: GPT2,
    tokenizer: tiktoken.Encoding,
    prompt: str,
    *,
    stop: Sequence[str] = (),
    seed: int | None = None,
    **params,
) -> Iterator[str]:
    """Yield what follows the prompt, piece by piece, in whole characters.

    Args:
        stop: strings that end the text and are kept out of it.
        seed: what the draws follow from; left out, each call gives another text.
        params: the other fields of `SamplingParams`: max_tokens, temperature, top_k, top_p, min_p, ...

    Raises:
        ValueError: a parameter is out of range.
    """
    engine, text = Engine(model, n_slots=1), TextStream(tokenizer, tuple(stop))
    seed = secrets.randbits(63) if seed is None else seed
    engine.add(tokenizer.encode_ordinary(prompt) or [tokenizer.eot_token], SamplingParams(seed=seed, **params))
    while engine.has_work and not text.stopped:
        for output in engine.step():
            for token in output.tokens:
                if piece := text.add(token.id):
                    yield piece
    if piece := text.finish():
        yield piece


def generate(model: GPT2, tokenizer: tiktoken.Encoding, prompt: str, **params) -> str:
    """The prompt and what follows it. Arguments as `stream`."""
    return prompt + "".join(stream(model, tokenizer, prompt, **params))


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that a longer `stop` begins with."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
