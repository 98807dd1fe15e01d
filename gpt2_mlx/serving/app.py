"""The Starlette app: routes in, JSON or server-sent events out."""

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

from sse_starlette.sse import AppStatus, EventSourceResponse
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from . import errors, schemas, tokens
from .answers import Health, Model, Models, Ready, answer
from .chat import ChatRequest
from .choice import EncodedPrompt
from .completions import Generation, adapter_of
from .errors import ApiError
from .forms import ChatForm, CompletionForm, Form, SentenceForm, events, whole
from .guard import Guard
from .intake import read_body, service_of
from .limits import MAX_ECHO_CHARS, MAX_NUMBERS
from .parsing import Parsed, parse
from .service import Service
from .submission import RETRY_AFTER, as_api_errors
from .telemetry import Observed


def build(
    service: Service,
    host: str,
    allowed_hosts: tuple[str, ...] = (),
    cors_origins: tuple[str, ...] = (),
    pages: tuple[BaseRoute, ...] = (),
) -> Starlette:
    """The app of a service.

    Args:
        service: what answers; its engine may still load.
        host: the address that it listens on.
        allowed_hosts: further names for it; see `Guard`.
        cors_origins: origins whose pages may use it and read the answers.
        pages: further routes, open to all.
    """
    # The server lets streams end when it drains; the library would cut them off.
    AppStatus.disable_automatic_graceful_drain()
    routes = [
        Route("/complete-sentence", complete_sentence, methods=["POST"]),
        Route("/v1/completions", completions, methods=["POST"]),
        Route("/v1/chat/completions", chat_completions, methods=["POST"]),
        Route("/v1/models", models),
        Route("/tokenize", tokens.tokenize, methods=["POST"]),
        Route("/detokenize", tokens.detokenize, methods=["POST"]),
        Route("/health", health),
        Route("/ready", ready),
        Route("/metrics", metrics),
        *pages,
    ]
    paths = frozenset(route.path for route in routes if isinstance(route, Route))
    middleware = [
        Middleware(Observed, telemetry=service.telemetry, routes=paths),
        Middleware(Guard, host=host, allowed_hosts=allowed_hosts, allowed_origins=cors_origins),
    ]
    if cors_origins:
        cors = {"allow_headers": ["Authorization", "Content-Type", "X-Request-ID"], "expose_headers": ["X-Request-ID"]}
        middleware.append(Middleware(CORSMiddleware, allow_origins=cors_origins, allow_methods=["GET", "POST"], **cors))
    handlers = {ApiError: errors.respond, HTTPException: errors.respond_to_http}
    app = Starlette(routes=routes, middleware=middleware, exception_handlers=handlers)
    app.router.redirect_slashes = False
    app.state.service = service
    return app


async def complete_sentence(request: Request) -> Response:
    return await _complete(request, schemas.SentenceRequest, SentenceForm)


async def completions(request: Request) -> Response:
    return await _complete(request, schemas.CompletionRequest, CompletionForm)


async def chat_completions(request: Request) -> Response:
    return await _complete(request, ChatRequest, ChatForm)


async def models(request: Request) -> Response:
    service = service_of(request, needs_key=True)
    facts = {"object": "model", "created": service.created, "owned_by": "gpt2_mlx"}
    base = Model(id=service.run.name, **facts)
    adapters = [Model(id=name, parent=base.id, **facts) for name in service.adapters.folders]
    return answer(Models(object="list", data=[base, *adapters]))


async def health(_: Request) -> Response:
    return answer(Health(status="ok"))


async def ready(request: Request) -> Response:
    engine = service_of(request).engine
    if reason := engine.unready:
        raise ApiError(503, reason, headers=RETRY_AFTER)
    return answer(Ready(status="ready", checkpoint=engine.checkpoint.name))


async def metrics(request: Request) -> Response:
    text = service_of(request).telemetry.text()
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


async def _complete(request: Request, schema: type[Parsed], form_of: type[Form]) -> Response:
    service = service_of(request, needs_key=True)
    # Now: bodies, prompts and constraints take some longer than others.
    number, arrived = service.engine.next_number(), time.monotonic()
    body = await read_body(request)
    if service.engine.closed:
        raise ApiError(503, service.engine.closed, headers=RETRY_AFTER)
    # Beside the event loop: a large body takes tenths of a second.
    parsed, prompts = await run_in_threadpool(_read, service, schema, body)
    timeout = await _examined(service, parsed, arrived)
    generation = Generation(service, parsed, prompts, number, timeout)
    form = form_of(generation)
    if parsed.stream:
        return _Events(form)
    with generation:
        return await _unless_gone(request, whole(form))


def _read(service: Service, schema: type[Parsed], body: bytes) -> tuple[schemas.TextRequest, list[EncodedPrompt]]:
    request = parse(schema, body, service.encoding.n_vocab)
    adapter = adapter_of(service, request)
    vocabulary, block_size = service.vocabulary_of(adapter), service.adapters.block_sizes.get(adapter)
    block_size = block_size or service.run.block_size
    prompts = [EncodedPrompt.of(prompt, vocabulary, block_size, request.echo) for prompt in request.prompts]
    _check_answer(request, prompts)
    return request, prompts


def _check_answer(request: schemas.TextRequest, prompts: list[EncodedPrompt]) -> None:
    """Refuse, before anything is computed, what would make too large an answer."""
    n_chars = request.n * sum(len(prompt.text) for prompt in prompts) if request.echo else 0
    if n_chars > MAX_ECHO_CHARS:
        message = f"the prompts are {n_chars} characters long, times n; at most {MAX_ECHO_CHARS} can be echoed"
        raise ApiError(400, message, "echo", code="invalid_value")
    if request.wants_logprobs:
        n_tokens = request.n * sum(request.max_tokens + request.echo * len(prompt.ids) for prompt in prompts)
        if (n := n_tokens * (1 + request.n_alternatives)) > MAX_NUMBERS:
            message = f"logprobs asks for up to {n} numbers in the answer; at most {MAX_NUMBERS} are allowed"
            raise ApiError(400, message, "logprobs", code="invalid_value")


async def _examined(service: Service, request: schemas.TextRequest, arrived: float) -> float | None:
    """The seconds that a request's timeout leaves it, once its constraint is examined.

    Raises:
        ApiError: 400, the text cannot be what is asked for, or would cost the engine too much.
    """
    timeout = request.timeout
    if request.constraint:
        name, constraint = request.constraint
        try:
            with as_api_errors():
                left = timeout and timeout - (time.monotonic() - arrived)
                wrong = await asyncio.wait_for(service.examiner.examine(constraint), left)
        except asyncio.TimeoutError:
            return 0.0  # the engine must not get what is not examined
        if wrong:
            raise ApiError(400, f"{name} cannot be used: {wrong}", name, code="invalid_value")
    return timeout and max(0.0, timeout - (time.monotonic() - arrived))


class _Events(EventSourceResponse):
    """Streams a generation and ends it, whichever way the stream ends."""

    def __init__(self, form: Form):
        super().__init__(events(form), sep="\n")
        self.generation = form.generation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self.generation:
            await super().__call__(scope, receive, send)


async def _unless_gone(request: Request, work: Coroutine[Any, Any, Response]) -> Response:
    """The result of `work`, which is cancelled when the client leaves.

    Raises:
        ClientDisconnect: it left.
    """
    working, waiting = asyncio.ensure_future(work), asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait({working, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnect
    finally:
        working.cancel()
        waiting.cancel()


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
