"""What a request for texts may say: a model for each route, strict."""

import dataclasses
from functools import cached_property
from typing import Annotated, Literal

from annotated_types import Le
from pydantic import ConfigDict, Field

from ..generation import params
from ..generation.params import Constraint, Sampling, SamplingParams
from .fields import Body, LogitBias, Prompt, Prompts, Stop
from .formats import ResponseFormat, StructuredOutputs
from .limits import (
    MAX_KEY_CHARS,
    MAX_LABEL_CHARS,
    MAX_LABELS,
    MAX_LOGPROBS,
    MAX_N,
    MAX_PROMPT_CHARS,
    MAX_TEMPERATURE,
    MAX_TIMEOUT,
    MAX_TOKENS,
    MAX_TOP_K,
    N_SEEDS,
)

MaxTokens = Annotated[params.MaxTokens, Le(MAX_TOKENS)]
Temperature = Annotated[params.Temperature, Le(MAX_TEMPERATURE)]
TopK = Annotated[params.TopK, Le(MAX_TOP_K)]
Logprobs = Annotated[int, Field(ge=0, le=MAX_LOGPROBS)]
Label = Annotated[str, Field(max_length=MAX_LABEL_CHARS)]


class TextRequest(Body):
    """What requests for texts have in common.

    Each of them also has the `prompts`, `params` for a seed, and how to tell a text: `echo`, `whole_sentence`,
    `wants_logprobs` and `n_alternatives`, of which each token has a log-probability.
    """

    top_p: params.TopP = Sampling.top_p
    min_p: params.MinP = Sampling.min_p
    repetition_penalty: params.RepetitionPenalty = Sampling.repetition_penalty
    stop: Stop = ()
    """A string, or several, that end the text and are kept out of it."""
    seed: int | None = Field(None, ge=0, lt=N_SEEDS)
    """What the draws follow from: the same request gives the same text. Sample i of n has seed + i."""
    n: int = Field(1, ge=1, le=MAX_N)
    """Samples of each prompt; prompts times samples may be at most 128."""
    stream: bool = False
    """Send the text as it comes, as server-sent events."""
    response_format: ResponseFormat | None = None
    """What the text must be, as OpenAI says it; docs/constraints.md tells more."""
    structured_outputs: StructuredOutputs | None = None
    """What the text must be, as vLLM says it."""
    checkpoint: str | None = None
    """The checkpoint of the served run to answer with, such as "step-00000300", or an adapter; the card lists them."""
    supersede: str | None = Field(None, min_length=1, max_length=MAX_KEY_CHARS)
    """A key that no other client has: this request ends the one before it with the same key, whose texts stay as they
    are then, with the finish_reason "superseded"."""
    timeout: float | None = Field(None, gt=0, le=MAX_TIMEOUT)
    """Seconds from its arrival, after which the texts stay as they are, with the finish_reason "timeout"."""
    receipt: bool = False
    """Tell what the answer follows from, the seed too, so that `gpt2-mlx replay` can draw it again."""

    @cached_property
    def constraint(self) -> tuple[str, Constraint] | None:
        """What the text must be, after the name of the field that says it; None if it may be anything."""
        for field in ("response_format", "structured_outputs"):
            if (value := getattr(self, field)) and (told := value.constraint):
                return f"{field}.{told[0]}", told[1]
        return None

    def _params(self, seed: int, **others) -> SamplingParams:
        shared = {field.name: getattr(self, field.name) for field in dataclasses.fields(Sampling)}
        constraint = self.constraint and self.constraint[1]
        return SamplingParams(**shared, seed=seed % N_SEEDS, constraint=constraint, **others)


class SentenceRequest(TextRequest):
    """The body of POST /complete-sentence."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"text": "The quick brown fox", "max_tokens": 20, "seed": 1}]}
    )

    text: str = Field(max_length=MAX_PROMPT_CHARS)
    """What to go on with."""
    max_tokens: MaxTokens = Sampling.max_tokens
    temperature: Temperature = Sampling.temperature
    top_k: TopK = Sampling.top_k
    logprobs: Logprobs = 0
    """Tell each token's log-probability and those of this many alternatives; 0 is off."""
    whole_sentence: bool = False
    """End the text at the first end of a sentence."""

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        return (self.text,)

    @property
    def echo(self) -> bool:
        return False

    @property
    def wants_logprobs(self) -> bool:
        return self.logprobs > 0

    @property
    def n_alternatives(self) -> int:
        return self.logprobs

    def params(self, seed: int) -> SamplingParams:
        """The parameters of the sample with this seed."""
        return self._params(seed, logprobs=self.logprobs or None)


class StreamOptions(Body):
    include_usage: bool = False
    """End the stream with an event that holds the usage."""
    include_obfuscation: bool = False
    """Of no consequence here: no event is padded."""


class _Unused(Body):
    """What OpenAI's clients send for OpenAI's own use. It is taken, checked and of no consequence."""

    user: Label | None = None
    """Of no consequence here."""
    metadata: dict[Label, Label] = Field({}, max_length=MAX_LABELS)
    """Of no consequence here: nothing is stored."""
    store: bool = False
    """Of no consequence here: nothing is stored."""
    service_tier: Label | None = None
    """Of no consequence here: all requests are served alike."""
    safety_identifier: Label | None = None
    """Of no consequence here."""
    prompt_cache_key: Label | None = None
    """Of no consequence here."""
    prompt_cache_retention: Label | None = None
    """Of no consequence here."""


class OpenAIRequest(_Unused, TextRequest):
    """What OpenAI's requests for texts have in common, with fields of this server's own."""

    model: str | None = None
    """The served model or one of its adapters; where none is served, any name will do."""
    temperature: Temperature = 1.0
    top_k: TopK = 0
    stream_options: StreamOptions = StreamOptions()
    """How to stream."""
    presence_penalty: params.PresencePenalty = SamplingParams.presence_penalty
    frequency_penalty: params.FrequencyPenalty = SamplingParams.frequency_penalty
    logit_bias: LogitBias = Field(default_factory=dict)
    """Added to the logits of tokens, by token id."""

    @property
    def whole_sentence(self) -> bool:
        return False

    def _params(self, seed: int, **others) -> SamplingParams:
        penalties = {name: getattr(self, name) for name in ("presence_penalty", "frequency_penalty", "logit_bias")}
        return super()._params(seed, **penalties, **others)


class CompletionRequest(OpenAIRequest):
    """The body of POST /v1/completions: OpenAI's, and fields of this server's own."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"prompt": "The quick brown fox", "max_tokens": 20, "seed": 1, "logprobs": 2}]}
    )

    prompt: Prompts
    """What to go on with: a text, texts, token ids, or lists of token ids."""
    max_tokens: MaxTokens = 16
    logprobs: Logprobs | None = None
    """Tell each token's log-probability and those of this many alternatives."""
    echo: bool = False
    """Begin the text with the prompt; with logprobs, its tokens are told too."""
    best_of: Literal[1] = 1
    """Not offered."""
    suffix: None = None
    """Not offered."""

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        return self.prompt

    @property
    def wants_logprobs(self) -> bool:
        return self.logprobs is not None

    @property
    def n_alternatives(self) -> int:
        return self.logprobs or 0

    def params(self, seed: int) -> SamplingParams:
        """The parameters of the sample with this seed."""
        return self._params(seed, logprobs=self.logprobs, prompt_logprobs=self.echo and self.wants_logprobs)
