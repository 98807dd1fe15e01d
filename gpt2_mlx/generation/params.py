"""How a text is drawn: each parameter once, with its default, its limits and what it means.

The command line, Python and the service's requests take them from here.
"""

import functools
from dataclasses import dataclass, field
from typing import Annotated, Any, get_type_hints

from annotated_types import Ge, Le
from typing_extensions import Doc


class About(Doc):
    """What a field means, for --help and for the description of the API."""

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        return handler(schema) | {"description": self.documentation}


MaxTokens = Annotated[int, Ge(0), About("The most tokens to draw.")]
Temperature = Annotated[
    float, Ge(0), Le(100), About("What the logits are divided by; 0 takes the likeliest token each time.")
]
TopK = Annotated[int, Ge(0), About("Draw from this many of the likeliest tokens; 0 is all.")]
TopP = Annotated[
    float, Ge(0), Le(1), About("Draw from the fewest tokens whose probabilities sum to at least this; 1 is all.")
]
MinP = Annotated[
    float, Ge(0), Le(1), About("Draw from tokens that are at least this times as likely as the likeliest; 0 is all.")
]
RepetitionPenalty = Annotated[
    float, Ge(0.01), Le(100), About("More than 1 makes tokens of the prompt and of the text less likely.")
]
PresencePenalty = Annotated[float, Ge(-2), Le(2), About("Taken from the logits of tokens drawn before.")]
FrequencyPenalty = Annotated[
    float, Ge(-2), Le(2), About("Taken from the logits of tokens drawn before, times how often they were drawn.")
]
LogitBias = Annotated[dict[int, float], About("Added to the logits of tokens, by token id.")]
Seed = Annotated[int, Ge(0), Le(2**64 - 1), About("What the draws follow from: the same seed gives the same text.")]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """What most users choose.

    Raises:
        ValueError: a value is out of range; the message names the field, the value and what is allowed.
    """

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
    """How one sequence is drawn. Raises as `Sampling`."""

    presence_penalty: PresencePenalty = 0.0
    frequency_penalty: FrequencyPenalty = 0.0
    logit_bias: LogitBias = field(default_factory=dict)
    seed: Seed = 0
    logprobs: int | None = None  # the number of alternatives told beside each token's log-probability; None: no numbers
    prompt_logprobs: bool = False  # tell the same of the prompt's tokens


@functools.cache
def _limits(settings: type[Sampling]) -> dict[str, tuple[float, float]]:
    """The least and the largest value of each field that has one of them."""
    found = {}
    for name, hint in get_type_hints(settings, include_extras=True).items():
        marks = getattr(hint, "__metadata__", ())
        low = next((mark.ge for mark in marks if isinstance(mark, Ge)), float("-inf"))
        high = next((mark.le for mark in marks if isinstance(mark, Le)), float("inf"))
        if low > float("-inf") or high < float("inf"):
            found[name] = low, high
    return found
