"""What a step brings: `Output`s, and the `Token`s in them."""

import dataclasses
from dataclasses import dataclass

import numpy as np

from .params import SamplingParams


@dataclass(frozen=True)
class Token:
    """One token of a sequence, with log-probabilities where the parameters ask for them."""

    id: int
    logprob: float | None = None  # of this token; None for the first token of a prompt
    alternatives: tuple[tuple[int, float], ...] = ()  # (id, logprob), the most likely first


@dataclass(frozen=True)
class Output:
    """What a step adds to one sequence."""

    id: int  # of the sequence
    tokens: tuple[Token, ...]  # the new tokens, without <|endoftext|>
    prompt: tuple[Token, ...] = ()  # the prompt's tokens, with the first output, where params.prompt_logprobs is set
    finish_reason: str | None = None  # "stop" (the text came to its end), "length", or None while the text goes on
    slides: int = 0  # how often the window was moved on
    found: int = 0  # tokens of the prompt whose keys and values were kept from an earlier one
    end: Token | None = None  # <|endoftext|>, where the model ended the text and log-probabilities are asked for
    drafted: int = 0  # tokens that were drafted for this step
    accepted: int = 0  # how many of the new tokens, from the first on, were drafted
    failure: str | None = None  # why the text cannot go on, if its constraint cannot be followed

    def after(self, n: int) -> "Output":
        """The same without the first n tokens."""
        return dataclasses.replace(self, tokens=self.tokens[n:], accepted=max(0, self.accepted - n))


def token_of(log_p: np.ndarray, id: int, params: SamplingParams) -> Token:
    """A token with the log-probabilities that the parameters ask for, from the row log_p (V,)."""
    k = params.logprobs
    if not k:
        return Token(id, None if k is None else float(log_p[id]))
    best = np.argpartition(-log_p, k - 1)[:k]
    best = best[np.lexsort((best, -log_p[best]))]
    return Token(id, float(log_p[id]), tuple((int(i), float(log_p[i])) for i in best))
