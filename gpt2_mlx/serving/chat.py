"""Conversations over HTTP: what POST /v1/chat/completions takes and what its answers hold."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from ..generation.params import SamplingParams
from .answers import Answer, FinishReason, Receipt, Usage
from .fields import Body, Conversation
from .limits import MAX_MESSAGES, MAX_PROMPT_CHARS
from .schemas import Label, Logprobs, MaxTokens, OpenAIRequest


def read_content(value: Any) -> Any:
    """The text behind a list of OpenAI's parts of type text; what is no such list is left as it is."""
    if not isinstance(value, list):
        return value
    for part in value:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise ValueError("it must be a string or a list of parts of type text")
    return "".join(part["text"] for part in value)


_PART = {"type": "object", "properties": {"type": {"const": "text"}, "text": {"type": "string"}}}
_PARTS = {"type": "array", "items": _PART | {"required": ["type", "text"]}}
Content = Annotated[
    str, BeforeValidator(read_content), WithJsonSchema({"anyOf": [{"type": "string"}, _PARTS], "type": "string"})
]


class Message(Body):
    role: Literal["system", "user", "assistant"]
    content: Content
    """A string, or a list of parts of type text."""
    name: Label | None = None
    """Of no consequence here."""
    refusal: None = None
    """Not offered."""


def _check_size(messages: list[Message]) -> list[Message]:
    if (n := sum(len(message.content) for message in messages)) > MAX_PROMPT_CHARS:
        raise ValueError(f"they are {n} characters long; at most {MAX_PROMPT_CHARS} are allowed")
    return messages


class ChatRequest(OpenAIRequest):
    """The body of POST /v1/chat/completions: OpenAI's, and fields of this server's own."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 20}]}
    )

    messages: Annotated[list[Message], AfterValidator(_check_size)] = Field(min_length=1, max_length=MAX_MESSAGES)
    """The conversation so far; the model's chat template makes a prompt of it."""
    max_completion_tokens: MaxTokens | None = None
    """The same as max_tokens, by its newer name."""
    max_tokens: MaxTokens = 256
    logprobs: bool = False
    """Tell each token's log-probability."""
    top_logprobs: Logprobs | None = None
    """With logprobs: tell those of this many alternatives, too."""

    @model_validator(mode="before")
    @classmethod
    def _with_one_limit(cls, fields: Any) -> Any:
        if not isinstance(fields, dict) or (newer := fields.get("max_completion_tokens")) is None:
            return fields
        if fields.get("max_tokens") not in (None, newer):
            raise ValueError("max_tokens and max_completion_tokens differ: give one of them")
        return fields | {"max_tokens": newer}

    @model_validator(mode="after")
    def _has_logprobs(self) -> "ChatRequest":
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs is given, but logprobs is not true")
        return self

    @property
    def prompts(self) -> tuple[Conversation, ...]:
        return (tuple({"role": message.role, "content": message.content} for message in self.messages),)

    @property
    def echo(self) -> bool:
        return False

    @property
    def wants_logprobs(self) -> bool:
        return self.logprobs

    @property
    def n_alternatives(self) -> int:
        return self.top_logprobs or 0

    def params(self, seed: int) -> SamplingParams:
        """The parameters of the sample with this seed."""
        return self._params(seed, logprobs=self.n_alternatives if self.logprobs else None)


class ChatToken(Answer):
    token: str
    logprob: float
    """The natural logarithm of the model's own probability."""
    bytes: list[int]


class ChatTokenChoice(ChatToken):
    top_logprobs: list[ChatToken]
    """The likeliest tokens in its place."""


class ChatLogprobs(Answer):
    content: list[ChatTokenChoice]
    """Of the tokens that begin in the text, and of the `<|endoftext|>` that ends it."""
    refusal: None


class ChatMessage(Answer):
    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(Answer):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason
    """stop: the answer came to its end; length: max_tokens were drawn; timeout, superseded: see the request."""
    slides: int
    """How often the window of block_size tokens was moved on."""


class ChatDelta(Answer):
    role: Literal["assistant"] | None = None
    """In a choice's first event."""
    content: str


class ChatPart(Answer):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None


class ChatAnswer(Answer):
    """OpenAI's chat.completion object."""

    id: str
    object: Literal["chat.completion"]
    created: int
    """Seconds since 1970."""
    model: str
    system_fingerprint: str
    """Which checkpoint answered."""
    choices: list[ChatChoice]
    usage: Usage
    receipt: Receipt | None = None
    """There if asked for; null if a text did not come to its end, or the checkpoint's files are gone."""


class ChatEvent(Answer):
    """OpenAI's chat.completion.chunk object."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatPart]
    usage: Usage | None = None
    receipt: Receipt | None = None
