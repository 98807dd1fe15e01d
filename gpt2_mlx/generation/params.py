"""The parameters of sampling: each is defined once, with its default, its limits and its meaning.

The command line, Python and the service's requests take them from here.
"""

import functools
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_type_hints

from annotated_types import Ge, Le
from typing_extensions import Doc


class About(Doc):
    """The meaning of a field, for --help and for the description of the API."""

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        return handler(schema) | {"description": self.documentation}


MaxTokens = Annotated[int, Ge(0), About("The largest number of tokens to draw.")]
Temperature = Annotated[float, Ge(0), Le(100), About("The logits are divided by this; 0 takes the likeliest token.")]
TopK = Annotated[int, Ge(0), About("Draw from this many of the likeliest tokens; 0 is all.")]
TopP = Annotated[
    float, Ge(0), Le(1), About("Draw from the fewest tokens whose probabilities sum to at least this; 1 is all.")
]
MinP = Annotated[
    float, Ge(0), Le(1), About("Draw from tokens that are at least this times as likely as the likeliest; 0 is all.")
]
RepetitionPenalty = Annotated[float, Ge(0.01), Le(100), About("Above 1, tokens of prompt and text get less likely.")]
PresencePenalty = Annotated[float, Ge(-2), Le(2), About("Subtracted from the logit of a token that was drawn before.")]
FrequencyPenalty = Annotated[float, Ge(-2), Le(2), About("Subtracted from a token's logit for each time it was drawn.")]
LogitBias = Annotated[dict[int, float], About("Added to the logits of tokens, by token id.")]
Seed = Annotated[int, Ge(0), Le(2**64 - 1), About("The seed of the draws: the same seed gives the same text.")]


@dataclass(frozen=True)
class Constraint:
    """What a text must be: JSON of a schema, a match of a pattern, one of some strings, or a product of a grammar."""

    kind: Literal["json_schema", "regex", "choice", "grammar"]
    text: str  # a JSON Schema, a regular expression, a JSON list of strings, or a grammar in Lark's syntax or GBNF


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """The parameters that most users set. Raises a ValueError where a value is out of range."""

    max_tokens: MaxTokens = 50
    temperature: Temperature = 0.8
    top_k: TopK = 50
    top_p: TopP = 1.0
    min_p: MinP = 0.0
    repetition_penalty: RepetitionPenalty = 1.0

    def __post_init__(self):
        for name, (low, high) in _limits(type(self)).items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ValueError(f"{name} is {value}; it must be at least {low} and at most {high}")


@dataclass(frozen=True, kw_only=True)
class SamplingParams(Sampling):
    """All parameters of one sequence. Raises as `Sampling`."""

    presence_penalty: PresencePenalty = 0.0
    frequency_penalty: FrequencyPenalty = 0.0
    logit_bias: LogitBias = field(default_factory=dict)
    seed: Seed = 0
    logprobs: int | None = None  # alternatives to return with each token's log-probability; None returns neither
    prompt_logprobs: bool = False  # return the same for the prompt's tokens
    constraint: Constraint | None = None  # what the text must be
    cold: bool = False  # take no shortcut: use nothing that was computed for another text


@functools.cache
def _limits(settings: type[Sampling]) -> dict[str, tuple[float, float]]:
    """The least and the largest value of each field that has limits."""
    found = {}
    for name, hint in get_type_hints(settings, include_extras=True).items():
        marks = getattr(hint, "__metadata__", ())
        low = next((mark.ge for mark in marks if isinstance(mark, Ge)), float("-inf"))
        high = next((mark.le for mark in marks if isinstance(mark, Le)), float("inf"))
        if low > float("-inf") or high < float("inf"):
            found[name] = low, high
    return found
