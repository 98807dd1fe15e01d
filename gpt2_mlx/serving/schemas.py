"""What a request may say: two models, strict, and every limit."""

import reprlib
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError, WithJsonSchema, model_validator

from ..generation.scheduler import SamplingParams
from ..tokenizer import VOCAB_SIZE
from .errors import ApiError

MAX_BODY = 1 << 20  # bytes
MAX_READ = 16 << 20  # bytes of a body that is too large, read and dropped so that its sender hears the answer
MAX_PROMPT_CHARS = 400_000  # of all prompts of a request together
MAX_PROMPTS = 64
MAX_SEQUENCES = 128  # prompts x n
MAX_TOKENS = 4096
MAX_N = 64
MAX_STOPS = 4
MAX_STOP_CHARS = 256
MAX_LOGPROBS = 5
MAX_TOP_K = 2**31 - 1
MAX_TEMPERATURE = 2.0
MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY = 0.01, 100.0
MAX_PENALTY = 2.0
MAX_BIAS = 100.0
MAX_BIASES = 300
N_SEEDS = 2**63

Prompt = str | list[int]


def read_prompts(value: Any) -> tuple[Prompt, ...]:
    """The prompts behind OpenAI's `prompt`: a string, strings, token ids, or lists of token ids."""
    prompts = [value] if isinstance(value, str) or _are(int, value) else value
    if not (_are(str, prompts) or (isinstance(prompts, list) and prompts and all(_are(int, p) for p in prompts))):
        raise ValueError("it must be a string, a list of strings, a list of token ids or a list of those, none empty")
    if len(prompts) > MAX_PROMPTS:
        raise ValueError(f"it has {len(prompts)} prompts; at most {MAX_PROMPTS} are allowed")
    if (n := sum(map(len, prompts))) > MAX_PROMPT_CHARS:
        raise ValueError(f"it is {n} characters or tokens long; at most {MAX_PROMPT_CHARS} are allowed")
    for token in (token for p in prompts if not isinstance(p, str) for token in p):
        if not 0 <= token < VOCAB_SIZE:
            raise ValueError(f"token ids must be at least 0 and at most {VOCAB_SIZE - 1}")
    return tuple(prompts)


def read_stop(value: Any) -> tuple[str, ...]:
    """The stop strings behind a string or a list of strings."""
    stops = [value] if isinstance(value, str) else value
    if stops != [] and not _are(str, stops):
        raise ValueError("it must be a string or a list of strings")
    if len(stops) > MAX_STOPS or not all(1 <= len(stop) <= MAX_STOP_CHARS for stop in stops):
        raise ValueError(f"it may hold up to {MAX_STOPS} strings of 1 to {MAX_STOP_CHARS} characters")
    return tuple(stops)


def read_logit_bias(value: Any) -> dict[int, float]:
    """{token id: bias} behind a JSON object, whose keys are strings."""
    if not isinstance(value, dict) or len(value) > MAX_BIASES:
        raise ValueError(f"it must be an object of up to {MAX_BIASES} token ids and biases")
    for key, bias in value.items():
        if not (key.isascii() and key.isdigit() and len(key) <= len(str(VOCAB_SIZE)) and int(key) < VOCAB_SIZE):
            raise ValueError(f"its keys must be token ids, at least 0 and at most {VOCAB_SIZE - 1}")
        if isinstance(bias, bool) or not isinstance(bias, (int, float)) or not abs(bias) <= MAX_BIAS:
            raise ValueError(f"its values must be numbers of at least {-MAX_BIAS} and at most {MAX_BIAS}")
    return {int(key): float(bias) for key, bias in value.items()}


def _are(kind: type, values: Any) -> bool:
    """Whether `values` is a list of such values, at least one."""
    is_list = isinstance(values, list) and len(values) > 0
    return is_list and all(isinstance(v, kind) and not isinstance(v, bool) for v in values)


MaxTokens = Annotated[int, Field(ge=0, le=MAX_TOKENS)]
Temperature = Annotated[float, Field(ge=0, le=MAX_TEMPERATURE)]
TopK = Annotated[int, Field(ge=0, le=MAX_TOP_K)]
Logprobs = Annotated[int, Field(ge=0, le=MAX_LOGPROBS)]
Penalty = Annotated[float, Field(ge=-MAX_PENALTY, le=MAX_PENALTY)]

# What the readers above allow, as JSON Schema.
_TEXT = {"type": "string", "maxLength": MAX_PROMPT_CHARS}
_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": VOCAB_SIZE - 1}, "minItems": 1}
_SEVERAL = {"type": "array", "minItems": 1, "maxItems": MAX_PROMPTS}
_PROMPTS = {"anyOf": [_TEXT, _SEVERAL | {"items": _TEXT}, _IDS, _SEVERAL | {"items": _IDS}]}
_STOP = {"type": "string", "minLength": 1, "maxLength": MAX_STOP_CHARS}
_STOPS = {"anyOf": [_STOP, {"type": "array", "items": _STOP, "maxItems": MAX_STOPS}], "default": []}
_BIAS = {"type": "number", "minimum": -MAX_BIAS, "maximum": MAX_BIAS}
_KEYS = {"pattern": r"^(0|[1-9][0-9]{0,3}|[1-4][0-9]{4})$"}
_LOGIT_BIAS = {"type": "object", "propertyNames": _KEYS, "additionalProperties": _BIAS, "maxProperties": MAX_BIASES}


class _Request(BaseModel):
    """What both requests have in common; null is the same as left out."""

    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, frozen=True, use_attribute_docstrings=True
    )

    top_p: float = Field(1.0, ge=0, le=1)
    """Draw from the fewest tokens whose probabilities sum to this; 1 is all."""
    min_p: float = Field(0.0, ge=0, le=1)
    """Draw from tokens at least this times as likely as the likeliest; 0 is all."""
    repetition_penalty: float = Field(1.0, ge=MIN_REPETITION_PENALTY, le=MAX_REPETITION_PENALTY)
    """More than 1 makes tokens seen before less likely."""
    stop: Annotated[tuple[str, ...], PlainValidator(read_stop), WithJsonSchema(_STOPS)] = ()
    """A string, or several, that end the text and are kept out of it."""
    seed: int | None = Field(None, ge=0, lt=N_SEEDS)
    """What the draws follow from: the same request gives the same text. Sample i of n has seed + i."""
    n: int = Field(1, ge=1, le=MAX_N)
    """Samples of each prompt; prompts times samples may be at most 128."""
    stream: bool = False
    """Send the text as it comes, as server-sent events."""
    checkpoint: str | None = None
    """The checkpoint of the served run to answer with, such as "step-00000300"; the card lists them."""

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        return {name: v for name, v in fields.items() if v is not None or name not in cls.model_fields}

    def _params(self, seed: int, **others) -> SamplingParams:
        shared = ("max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty")
        return SamplingParams(**{name: getattr(self, name) for name in shared}, seed=seed % N_SEEDS, **others)


class SentenceRequest(_Request):
    """The body of POST /complete-sentence."""

    text: str = Field(max_length=MAX_PROMPT_CHARS)
    """What to go on with."""
    max_tokens: MaxTokens = 50
    """The most tokens to draw."""
    temperature: Temperature = 0.8
    """What the logits are divided by; 0 takes the likeliest token each time."""
    top_k: TopK = 50
    """Draw from so many of the likeliest tokens; 0 is all."""
    logprobs: Logprobs = 0
    """Tell each token's log-probability and those of so many alternatives; 0 is off."""
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

    def params(self, seed: int) -> SamplingParams:
        """The parameters of the sample with this seed."""
        return self._params(seed, logprobs=self.logprobs or None)


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)

    include_usage: bool = False
    """End the stream with an event that holds the usage."""


class CompletionRequest(_Request):
    """The body of POST /v1/completions: OpenAI's, and top_k, min_p and repetition_penalty."""

    prompt: Annotated[tuple[Prompt, ...], PlainValidator(read_prompts), WithJsonSchema(_PROMPTS)]
    """What to go on with: a text, texts, token ids, or lists of token ids."""
    model: str | None = None
    """There is one: any name will do."""
    max_tokens: MaxTokens = 16
    """The most tokens to draw."""
    temperature: Temperature = 1.0
    """What the logits are divided by; 0 takes the likeliest token each time."""
    top_k: TopK = 0
    """Draw from so many of the likeliest tokens; 0 is all."""
    logprobs: Logprobs | None = None
    """Tell each token's log-probability and those of so many alternatives."""
    echo: bool = False
    """Begin the text with the prompt; with logprobs, its tokens are told too."""
    stream_options: StreamOptions = StreamOptions()
    """How to stream."""
    presence_penalty: Penalty = 0.0
    """Taken from the logits of tokens drawn before."""
    frequency_penalty: Penalty = 0.0
    """The same, times how often."""
    logit_bias: Annotated[dict[int, float], PlainValidator(read_logit_bias), WithJsonSchema(_LOGIT_BIAS)] = Field(
        default_factory=dict
    )
    """Added to the logits of tokens, by token id."""
    best_of: Literal[1] = 1
    """Not offered."""
    suffix: None = None
    """Not offered."""
    user: str | None = None
    """Of no consequence here."""

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        return self.prompt

    @property
    def whole_sentence(self) -> bool:
        return False

    @property
    def wants_logprobs(self) -> bool:
        return self.logprobs is not None

    def params(self, seed: int) -> SamplingParams:
        """The parameters of the sample with this seed."""
        return self._params(
            seed,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=self.logit_bias,
            logprobs=self.logprobs,
            prompt_logprobs=self.echo and self.wants_logprobs,
        )


Request = SentenceRequest | CompletionRequest
Parsed = TypeVar("Parsed", SentenceRequest, CompletionRequest)


def parse(model: type[Parsed], body: bytes) -> Parsed:
    """The request behind a body.

    Raises:
        ApiError: 400, the body is no JSON or a field is not allowed; it names the field.
    """
    try:
        request = model.model_validate_json(body)
    except ValidationError as error:
        raise _told(model, error.errors(include_url=False)[0]) from None
    if len(request.prompts) * request.n > MAX_SEQUENCES:
        raise _bad(
            "n", f"n is {request.n} for {len(request.prompts)} prompts; at most {MAX_SEQUENCES} texts are allowed"
        )
    return request


def _told(model: type[BaseModel], error: dict) -> ApiError:
    """pydantic's first complaint in one line: the field, its value, what is allowed."""
    name = _shown(".".join(map(str, error["loc"])))[1:-1]
    if error["type"] == "json_invalid":
        return _bad(None, f"the body is not JSON: {error['ctx']['error']}")
    if not error["loc"]:
        return _bad(None, "the body must be a JSON object")
    if error["type"] == "missing":
        return _bad(name, f"{name} is missing")
    if error["type"] == "extra_forbidden":
        return _bad(name, f"{name} is not a field of this request; allowed: {', '.join(model.model_fields)}")
    allowed = str(error["ctx"]["error"]) if error["type"] == "value_error" else error["msg"]
    allowed = allowed.replace("Input should", "it must").replace("None", "null").replace("String should", "it must")
    return _bad(name, f"{name} is {_shown(error['input'])}; {allowed}")


def _bad(param: str | None, message: str) -> ApiError:
    return ApiError(400, message, param, code="invalid_value")


_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 60
_shown = _short.repr
