"""What answers hold: each is made from one of these models, and the API is described by them."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse

FinishReason = Literal["stop", "length", "timeout", "superseded"]


class Answer(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)


class PromptTokensDetails(Answer):
    cached_tokens: int
    """Tokens of prompts that the prefix cache had: they were read for another request, which may still go on."""


class CompletionTokensDetails(Answer):
    accepted_prediction_tokens: int
    """Tokens of the texts that were drafted and verified together."""
    rejected_prediction_tokens: int
    """Tokens that were drafted in vain: they are in no text."""


class Usage(Answer):
    prompt_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens: int
    completion_tokens_details: CompletionTokensDetails
    total_tokens: int


class Logprobs(Answer):
    """Of the tokens that begin in the text, and of the `<|endoftext|>` that ends it; natural logarithms, of the model's
    own probabilities."""

    tokens: list[str]
    token_logprobs: list[float | None]
    """None for a prompt's first token."""
    top_logprobs: list[dict[str, float] | None]
    """The likeliest tokens in each place, and the one that stands there."""
    text_offset: list[int]
    """Where each token begins, in characters."""


class ReceiptText(Answer):
    """What to know a text by."""

    tokens: list[int]
    """Those that were drawn."""
    finish_reason: FinishReason
    sha256: str
    """Of the tokens, the text, its log-probabilities and its finish_reason."""


class Versions(Answer):
    """What computed."""

    gpt2_mlx: str
    mlx: str
    platform: str
    device: Literal["gpu", "cpu"]
    dtype: Literal["float32", "bfloat16", "float16"]
    quantize: Literal[8, 4] | None


class AdapterReceipt(Answer):
    folder: str
    """Told as the checkpoint's is."""
    sha256: str
    """Of its weights and its configuration."""


class Receipt(Answer):
    """What an answer followed from, and what to know it by: `gpt2-mlx replay` draws it again and compares."""

    route: Literal["/complete-sentence", "/v1/completions", "/v1/chat/completions"]
    request: dict[str, Any]
    """What was asked for, with the seed that was used, less what has no say in the texts."""
    checkpoint: str
    """The folder, below the one that the service was started in if it lies there."""
    sha256: str
    """Of the checkpoint's weights, config.json and vocabulary."""
    adapter: AdapterReceipt | None = None
    """There if an adapter of the checkpoint answered."""
    versions: Versions
    texts: list[ReceiptText] = Field(min_length=1)


class SentenceEvent(Answer):
    """A part of a streamed sentence."""

    index: int
    """Which sample."""
    text: str
    logprobs: Logprobs | None = None
    """There if logprobs is more than 0."""
    finish_reason: FinishReason | None = None
    """There at the sample's end."""


class SentenceAnswer(Answer):
    completed_sentence: str
    """The prompt and what follows it."""
    completed_sentences: list[str] = []
    """All samples; there if n is more than 1."""
    finish_reason: FinishReason
    """stop: the text came to its end; length: max_tokens were drawn; timeout, superseded: see the request."""
    slides: int
    """How often the window of block_size tokens was moved on."""
    logprobs: Logprobs | None = None
    """Of the first sample; there if logprobs is more than 0."""
    checkpoint: str
    """Which checkpoint or adapter answered."""
    usage: Usage
    receipt: Receipt | None = None
    """There if asked for; null if a text did not come to its end, or the checkpoint's files are gone."""


class CompletionChoice(Answer):
    index: int
    text: str
    logprobs: Logprobs | None
    finish_reason: FinishReason | None
    """stop: the text came to its end; length: max_tokens were drawn; timeout, superseded: see the request; null: the
    stream goes on."""
    slides: int
    """How often the window of block_size tokens was moved on."""


class CompletionAnswer(Answer):
    """OpenAI's text_completion object, of a whole answer and of a stream's events alike."""

    id: str
    object: Literal["text_completion"]
    created: int
    """Seconds since 1970."""
    model: str
    system_fingerprint: str
    """Which checkpoint or adapter answered."""
    choices: list[CompletionChoice]
    usage: Usage | None = None
    """In a stream only in the last event, if asked for."""
    receipt: Receipt | None = None
    """There if asked for, in a stream in the last event; null if a text did not come to its end, or the checkpoint's
    files are gone."""


class TokenizeAnswer(Answer):
    count: int
    """How many tokens the text has."""
    max_model_len: int
    """How many the model can look back on."""
    tokens: list[int]


class DetokenizeAnswer(Answer):
    prompt: str
    """The text; bytes that are no character are U+FFFD."""


class Model(Answer):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    parent: str | None = None
    """Of an adapter, the model that it belongs to."""


class Models(Answer):
    object: Literal["list"]
    data: list[Model]


class Health(Answer):
    status: Literal["ok"]


class Ready(Answer):
    status: Literal["ready"]
    checkpoint: str
    """The one that answers where a request names none."""


class Checkpoint(Answer):
    name: str
    step: int | None
    val_loss: float | None
    """Nats per token."""
    bits_per_byte: float | None
    """The same loss per byte of text, by which models with different vocabularies are compared."""


class Card(Answer):
    model: str
    preset: str | None
    """None for a shape that is no preset's."""
    n_params: int
    n_layer: int
    n_head: int
    n_embd: int
    block_size: int
    """Tokens the model can look back on."""
    vocab_size: int
    """Tokens the model knows."""
    data: str | None
    """What it learned from; None where no run is known."""
    step: int | None
    """How far the training has come."""
    max_steps: int | None
    ended: str | None
    """Why the training ended; None if it has not."""
    test_loss: float | None
    """Nats per token, of the best checkpoint."""
    test_bits_per_byte: float | None
    checkpoint: Checkpoint
    """The one that answers where a request names none."""
    checkpoints: list[Checkpoint]
    """Those that requests may name, adapters last."""
    watch: bool
    """Whether a new best checkpoint of the run takes over."""
    unready: str | None
    """Why a request would not be served; None if it would."""


class ErrorFacts(Answer):
    message: str
    """For people."""
    type: str
    param: str | None
    """The field to blame, if one is."""
    code: str
    """For programs."""


class Error(Answer):
    error: ErrorFacts


def answer(content: BaseModel, status: int = 200, headers: dict | None = None) -> JSONResponse:
    """An answer in JSON; what was not set is left out."""
    return JSONResponse(content.model_dump(exclude_unset=True), status, headers)
