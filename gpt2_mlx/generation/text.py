"""Text in, text out: ids as they come become text, and one prompt goes through an engine of its own."""

import secrets
from collections.abc import Iterator, Sequence

import tiktoken

from ..model import GPT2
from ..tokenizer import StreamingDecoder
from .engine import Engine
from .params import SamplingParams

MARKS = frozenset(".!?")
CLOSERS = frozenset("\"'\u201d\u2019)]}\xbb")  # quotes and brackets that may follow the marks


class _StopString:
    """Looks for a string in a text that comes character by character (Knuth, Morris and Pratt 1977).

    Attributes:
        n_matched: how many of the text's last characters the string begins with.
    """

    def __init__(self, string: str):
        self._string, self.n_matched = string, 0
        self._shorter = [0] * len(string)  # of each beginning, the longest shorter one that it ends with
        for i in range(1, len(string)):
            self._shorter[i] = self._next(self._shorter[i - 1], string[i])

    def _next(self, n: int, char: str) -> int:
        while n and (n == len(self._string) or self._string[n] != char):
            n = self._shorter[n - 1]
        return n + (self._string[n] == char)

    def add(self, char: str) -> bool:
        """Whether the string ends with this character."""
        self.n_matched = self._next(self.n_matched, char)
        return self.n_matched == len(self._string)


class TextStream:
    """Ids in, pieces of text out; joined, the pieces are the whole text.

    It holds back the bytes of a half character, and what may yet become a stop string. The text ends before the stop
    string that is complete first, wherever tokens begin and end. The work for a token does not grow with the text.

    Args:
        encoding: the tokenizer.
        stop: strings that end the text and are no part of it; none is empty.
        whole_sentence: end the text after its first sentence, that is where white space follows marks like . ! ? and
            closing quotes or brackets behind them. So 3.14 is no end.

    Attributes:
        stopped: whether the text has come to such an end; further ids bring nothing.
        n_given: characters handed out so far.
    """

    def __init__(self, encoding: tiktoken.Encoding, stop: tuple[str, ...] = (), whole_sentence: bool = False):
        self.stopped = False
        self.n_given = 0
        self._stops = [_StopString(string) for string in stop]
        self._whole_sentence, self._sentence_may_end = whole_sentence, False
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
        self._take(self._decoder.add(id))
        doubtful = 0 if self.stopped else max((stop.n_matched for stop in self._stops), default=0)
        return self._give(len(self._held) - doubtful)

    def finish(self) -> str:
        """The rest of the text; a character that stayed half becomes U+FFFD."""
        if self.stopped:
            return ""
        self._take(self._decoder.finish())
        return self._give(len(self._held))

    def _take(self, text: str) -> None:
        """Hold the text, up to an end that is found."""
        if not (self._stops or self._whole_sentence):
            self._held += text
            return
        for char in text:
            ends = [stop.n_matched for stop in self._stops if stop.add(char)]  # lengths of the strings that end here
            if self._whole_sentence:
                ends += [1] if self._sentence_may_end and char.isspace() else []
                self._sentence_may_end = char in MARKS or (self._sentence_may_end and char in CLOSERS)
            self._held += char
            if ends:
                self._held = self._held[: -max(ends)]
                self.stopped = True
                return

    def _give(self, n: int) -> str:
        piece, self._held = self._held[:n], self._held[n:]
        self.n_given += len(piece)
        return piece


def stream(
    model: GPT2,
    tokenizer: tiktoken.Encoding,
    prompt: str,
    *,
    stop: str | Sequence[str] = (),
    seed: int | None = None,
    **params,
) -> Iterator[str]:
    """Yield what follows the prompt, piece by piece, in whole characters.

    Args:
        stop: a string, or several, that end the text and are kept out of it.
        seed: what the draws follow from; left out, each call gives another text.
        params: the other fields of `SamplingParams`: max_tokens, temperature, top_k, top_p, min_p, ...

    Raises:
        ValueError: a parameter is out of range.
    """
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    if not all(isinstance(string, str) and string for string in stops):
        raise ValueError(f"stop is {stop!r}; it must be a string or several, none of them empty")
    engine, text = Engine(model, n_slots=1), TextStream(tokenizer, stops)
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
