"""The API described as OpenAPI 3.1, from the schemas of requests and answers."""

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from ..tokenizer import VOCAB_SIZE
from . import answers, chat, schemas, tokens
from .fields import OF_GPT2, Body, schemas_of_ids
from .limits import MAX_BODY

_REF = "#/components/schemas/"
_BAD = {
    "400": "A value is not allowed; `param` names the field",
    "401": "The key is missing or wrong",
    "403": "The request came from a page of another host",
    "408": "The body did not come in time",
    "413": f"The body is larger than {MAX_BODY} bytes",
    "415": "The Content-Type is not application/json",
    "429": "The queue is full; Retry-After says how many seconds to wait",
    "500": "The engine failed on this request",
    "503": "The model is loading, or the server is draining",
}
_READING = ("400", "401", "403", "408", "413", "415")
_NULL = {"type": "null"}
_EVENT = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
_KEYED = {"security": [{}, {"key": []}]}  # a key is asked for only where the server was started with one
_ABOUT = "GPT-2 over HTTP. Same request, same text: checkpoint, prompt, parameters and seed decide it."


_THEME = {"name": "theme", "in": "query", "schema": {"enum": ["light", "dark"], "default": "light"}}


@dataclass(frozen=True)
class Operation:
    """What a route does; one with a request takes it by POST."""

    path: str
    summary: str
    answer: type[BaseModel] | str  # a model or a media type
    errors: tuple[str, ...] = ()
    request: type[BaseModel] | None = None
    description: str = ""
    parameters: tuple[dict, ...] = ()


OPERATIONS = (
    Operation(
        "/complete-sentence",
        "Go on with a text",
        answers.SentenceAnswer,
        tuple(_BAD),
        schemas.SentenceRequest,
        "Streamed, each event has a sample's `index` and the next part of its `text`, with its `logprobs` if asked for"
        " and at its end a `finish_reason`; the last event before `[DONE]` is the unstreamed answer.",
    ),
    Operation(
        "/v1/completions",
        "OpenAI's completions",
        answers.CompletionAnswer,
        tuple(_BAD),
        schemas.CompletionRequest,
        "Works with the `openai` package; `top_k`, `min_p`, `repetition_penalty`, `checkpoint`, `supersede`,"
        " `timeout` and `receipt` are additions, and so is `structured_outputs`, which vLLM has too."
        " Fields of others that would change the text are refused.",
    ),
    Operation(
        "/v1/chat/completions",
        "OpenAI's chat completions",
        chat.ChatAnswer,
        tuple(_BAD),
        chat.ChatRequest,
        "For models with a chat template; works with the `openai` package. Streamed, each event is a"
        " `chat.completion.chunk`. The additions are those of `/v1/completions`; fields of others, such as `tools` and"
        " `audio`, are refused.",
    ),
    Operation(
        "/tokenize",
        "A text as token ids",
        answers.TokenizeAnswer,
        _READING,
        tokens.TokenizeRequest,
        "As vLLM has it. A text of no character has no token; to go on from it, the model begins a new document.",
    ),
    Operation("/detokenize", "Token ids as text", answers.DetokenizeAnswer, _READING, tokens.DetokenizeRequest),
    Operation("/v1/models", "The model that is served, and its adapters", answers.Models, ("401",)),
    Operation("/health", "Whether the process lives", answers.Health),
    Operation("/ready", "Whether a request would be served", answers.Ready, ("503",)),
    Operation("/card", "The model's card: its shape, what it learned from, its checkpoints", answers.Card),
    Operation("/loss.svg", "The run's loss curve", "image/svg+xml", ("400", "404"), parameters=(_THEME,)),
    Operation("/metrics", "Metrics for Prometheus", "text/plain"),
)


def document(n_vocab: int = VOCAB_SIZE) -> dict[str, Any]:
    """The OpenAPI document, for a model that knows so many tokens."""
    models = [model for each in OPERATIONS for model in (each.request, each.answer) if isinstance(model, type)]
    return {
        "openapi": "3.1.0",
        "info": {"title": "gpt2_mlx", "version": "1", "description": _ABOUT},
        "paths": {each.path: {"post" if each.request else "get": _describe(each)} for each in OPERATIONS},
        "components": {
            "schemas": {
                name: schema for model in (*models, answers.Error) for name, schema in _schemas(model, n_vocab).items()
            },
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _describe(operation: Operation) -> dict[str, Any]:
    is_model = isinstance(operation.answer, type)
    content = _content(operation.answer) if is_model else {operation.answer: {"schema": {"type": "string"}}}
    good = {"description": operation.summary, "content": content}
    facts: dict[str, Any] = {"summary": operation.summary}
    if operation.description:
        facts["description"] = operation.description
    if operation.request:
        facts["requestBody"] = {"required": True, "content": _content(operation.request)}
    if operation.request in (schemas.SentenceRequest, schemas.CompletionRequest, chat.ChatRequest):
        good = {"description": "The whole text, or with `stream` its events", "content": content}
        content["text/event-stream"] = {"schema": _EVENT}
    if operation.parameters:
        facts["parameters"] = list(operation.parameters)
    facts["responses"] = {"200": good} | {status: _error(status) for status in operation.errors}
    return facts | (_KEYED if "401" in operation.errors else {})


def _content(model: type[BaseModel]) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _REF + model.__name__}}}


def _error(status: str) -> dict[str, Any]:
    return {"description": _BAD.get(status, "There is none"), "content": _content(answers.Error)}


def _schemas(model: type[BaseModel], n_vocab: int) -> dict[str, Any]:
    """The JSON Schemas of a model and of those it refers to, by name."""
    schema = model.model_json_schema(ref_template=_REF + "{model}")
    found = schema.pop("$defs", {}) | {model.__name__: schema}
    for each in found.values():
        each.pop("title", None)
        fields, required = each["properties"], each.get("required", ())
        for field in fields.values():
            field.pop("title", None)
        if issubclass(model, Body):
            for name, of_ids in schemas_of_ids(n_vocab).items():
                if name in fields and OF_GPT2[name].items() <= fields[name].items():
                    fields[name] |= of_ids
            own = model.__annotations__ if each is schema else ()  # those of the base class last
            order = dict.fromkeys([*required, *own, *fields])
            each["properties"] = {name: fields[name] if name in required else _or_null(fields[name]) for name in order}
    return found


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    """null is the same as left out."""
    about = {key: schema.pop(key) for key in ("default", "description") if key in schema}
    kinds = schema.pop("anyOf", None) or [schema]
    return {"anyOf": [*(kind for kind in kinds if kind != _NULL), _NULL]} | about
