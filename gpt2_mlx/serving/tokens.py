"""What a text is to the model: the routes between texts and token ids."""

from pydantic import ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from ..tokenizer import token_bytes
from .answers import DetokenizeAnswer, TokenizeAnswer, answer
from .fields import Body, TokenIds
from .intake import read_body, service_of
from .limits import MAX_PROMPT_CHARS
from .parsing import parse
from .service import Service


class TokenizeRequest(Body):
    """The body of POST /tokenize."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"prompt": "The quick brown fox"}]})

    prompt: str = Field(max_length=MAX_PROMPT_CHARS)
    """A text."""
    model: str | None = None
    """There is one: any name will do."""
    add_special_tokens: bool = True
    """Of no consequence: GPT-2's tokenizer adds none."""


class DetokenizeRequest(Body):
    """The body of POST /detokenize."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"tokens": [39, 72]}]})

    tokens: TokenIds
    """Token ids."""
    model: str | None = None
    """There is one: any name will do."""


async def tokenize(request: Request) -> Response:
    service = service_of(request, needs_key=True)
    return await run_in_threadpool(_tokenize, service, await read_body(request))


async def detokenize(request: Request) -> Response:
    service = service_of(request, needs_key=True)
    return await run_in_threadpool(_detokenize, service, await read_body(request))


def _tokenize(service: Service, body: bytes) -> Response:
    ids = service.encoding.encode_ordinary(parse(TokenizeRequest, body, service.encoding.n_vocab).prompt)
    return answer(TokenizeAnswer(count=len(ids), max_model_len=service.run.block_size, tokens=ids))


def _detokenize(service: Service, body: bytes) -> Response:
    ids = parse(DetokenizeRequest, body, service.encoding.n_vocab).tokens
    text = b"".join(token_bytes(service.encoding, id) for id in ids)
    return answer(DetokenizeAnswer(prompt=text.decode(errors="replace")))
