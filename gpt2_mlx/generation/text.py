"""Text in, text out: one prompt through an engine of its own."""

from collections.abc import Iterator

import tiktoken

from ..model import GPT2
from ..tokenizer import StreamingDecoder
from .engine import Engine
from .scheduler import SamplingParams


def stream(model: GPT2, encoding: tiktoken.Encoding, prompt: str, **params) -> Iterator[str]:
    """Yield what follows the prompt, piece by piece, in whole characters.

    Args:
        params: the fields of `SamplingParams`.
    """
    engine, decoder = Engine(model, n_slots=1), StreamingDecoder(encoding)
    engine.add(encoding.encode_ordinary(prompt) or [encoding.eot_token], SamplingParams(**params))
    while engine.has_work:
        for output in engine.step():
            if piece := decoder.push([token.id for token in output.tokens]):
                yield piece
    if piece := decoder.finish():
        yield piece


def generate(model: GPT2, encoding: tiktoken.Encoding, prompt: str, **params) -> str:
    """The prompt and what follows it. Arguments as `stream`."""
    return prompt + "".join(stream(model, encoding, prompt, **params))
