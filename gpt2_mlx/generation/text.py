"""Text in, text out: one prompt through an engine of its own."""

import secrets
from collections.abc import Iterator, Sequence

import tiktoken

from ..model import GPT2
from ..tokenizer import StreamingDecoder
from .engine import Engine
from .scheduler import SamplingParams


class TextStream:
    """Ids in, text out: whole characters, and nothing from the first stop string on.

    Attributes:
        stopped: whether a stop string was found.
    """

    def __init__(self, encoding: tiktoken.Encoding, stop: Sequence[str] = ()):
        self._decoder = StreamingDecoder(encoding)
        self._stop = stop
        self._held = ""  # what may yet become a stop string
        self.stopped = False

    def push(self, ids: list[int]) -> str:
        """The text that is certain now."""
        return self._release(self._decoder.push(ids))

    def finish(self) -> str:
        """What was held back; nothing follows."""
        piece = self._release(self._decoder.finish()) + self._held
        self._held = ""
        return piece

    def _release(self, piece: str) -> str:
        if self.stopped:
            return ""
        text = self._held + piece
        # the one that is complete first, so that the pieces' sizes do not matter
        found = [(text.index(stop) + len(stop), text.index(stop)) for stop in self._stop if stop in text]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]
        hold = max((n for stop in self._stop for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
        self._held = text[len(text) - hold :]
        return text[: len(text) - hold]


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
    engine, text = Engine(model, n_slots=1), TextStream(tokenizer, stop)
    seed = secrets.randbits(63) if seed is None else seed
    engine.add(tokenizer.encode_ordinary(prompt) or [tokenizer.eot_token], SamplingParams(seed=seed, **params))
    while engine.has_work and not text.stopped:
        for output in engine.step():
            if piece := text.push([token.id for token in output.tokens]):
                yield piece
    if piece := text.finish():
        yield piece


def generate(model: GPT2, tokenizer: tiktoken.Encoding, prompt: str, **params) -> str:
    """The prompt and what follows it. Arguments as `stream`."""
    return prompt + "".join(stream(model, tokenizer, prompt, **params))
