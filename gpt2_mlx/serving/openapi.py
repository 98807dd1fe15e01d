"""The API described as OpenAPI 3.1, from the schemas of requests and answers."""

from typing import Any

from pydantic import BaseModel

from . import answers, schemas

_REF = "#/components/schemas/"
_BAD = {
    "400": "A value is not allowed; `param` names the field",
    "401": "The key is missing or wrong",
    "413": f"The body is larger than {schemas.MAX_BODY} bytes",
    "415": "The Content-Type is not application/json",
    "429": "The queue is full; Retry-After says how many seconds to wait",
    "500": "The engine failed on this request",
    "503": "The model is loading, or the server is draining",
}
_REQUESTS = (schemas.SentenceRequest, schemas.CompletionRequest)
_ANSWERS = (
    answers.SentenceAnswer,
    answers.CompletionAnswer,
    answers.Models,
    answers.Health,
    answers.Ready,
    answers.Card,
    answers.Error,
)
_NULL = {"type": "null"}
_EVENT = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
_KEYED = {"security": [{}, {"key": []}]}  # a key is asked for only where the server was started with one
_ABOUT = "GPT-2 over HTTP. Same request, same text: checkpoint, prompt, parameters and seed decide it."


def document() -> dict[str, Any]:
    """The OpenAPI document."""
    posts = {
        "/complete-sentence": (
            "Go on with a text",
            "Streamed, each event has a sample's `index` and the next part of its `text`, with its `logprobs` if asked "
            "for and at its end a `finish_reason`; the last event before `[DONE]` is the unstreamed answer.",
            schemas.SentenceRequest,
            answers.SentenceAnswer,
        ),
        "/v1/completions": (
            "OpenAI's completions",
            "Works with the `openai` package; `top_k`, `min_p`, `repetition_penalty` and `checkpoint` are additions.",
            schemas.CompletionRequest,
            answers.CompletionAnswer,
        ),
    }
    theme = {"name": "theme", "in": "query", "schema": {"enum": ["light", "dark"], "default": "light"}}
    paths = {path: {"post": _post(*told)} for path, told in posts.items()}
    paths |= {
        "/v1/models": {"get": _get("The model that is served", answers.Models, "401") | _KEYED},
        "/health": {"get": _get("Whether the process lives", answers.Health)},
        "/ready": {"get": _get("Whether a request would be served", answers.Ready, "503")},
        "/card": {"get": _get("The model's card: its shape, what it learned from, its checkpoints", answers.Card)},
        "/loss.svg": {"get": _get("The run's loss curve", "image/svg+xml", "400", "404") | {"parameters": [theme]}},
        "/metrics": {"get": _get("Metrics for Prometheus", "text/plain")},
    }
    models = (*_REQUESTS, *_ANSWERS)
    return {
        "openapi": "3.1.0",
        "info": {"title": "gpt2_mlx", "version": "1", "description": _ABOUT},
        "paths": paths,
        "components": {
            "schemas": {name: schema for model in models for name, schema in _schemas(model).items()},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _post(summary: str, description: str, request: type[BaseModel], answer: type[BaseModel]) -> dict[str, Any]:
    good = {"description": "The whole text, or with `stream` its events", "content": _content(answer)}
    good["content"]["text/event-stream"] = {"schema": _EVENT}
    return {
        "summary": summary,
        "description": description,
        "requestBody": {"required": True, "content": _content(request)},
        "responses": {"200": good} | {status: _error(status) for status in _BAD},
    } | _KEYED


def _get(summary: str, answer: type[BaseModel] | str, *bad: str) -> dict[str, Any]:
    content = {answer: {"schema": {"type": "string"}}} if isinstance(answer, str) else _content(answer)
    return {
        "summary": summary,
        "responses": {"200": {"description": summary, "content": content}} | {status: _error(status) for status in bad},
    }


def _content(model: type[BaseModel]) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _REF + model.__name__}}}


def _error(status: str) -> dict[str, Any]:
    return {"description": _BAD.get(status, "There is none"), "content": _content(answers.Error)}


def _schemas(model: type[BaseModel]) -> dict[str, Any]:
    """The JSON Schemas of a model and of those it refers to, by name."""
    schema = model.model_json_schema(ref_template=_REF + "{model}")
    found = schema.pop("$defs", {}) | {model.__name__: schema}
    for each in found.values():
        each.pop("title", None)
        for field in each["properties"].values():
            field.pop("title", None)
    if model in _REQUESTS:
        fields = schema["properties"]
        own = dict.fromkeys([*schema["required"], *model.__annotations__, *fields])  # those of the base class last
        schema["properties"] = {n: fields[n] if n in schema["required"] else _or_null(fields[n]) for n in own}
    return found


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    """null is the same as left out."""
    about = {key: schema.pop(key) for key in ("default", "description") if key in schema}
    kinds = schema.pop("anyOf", None) or [schema]
    return {"anyOf": [*(kind for kind in kinds if kind != _NULL), _NULL]} | about
