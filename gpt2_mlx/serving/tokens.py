"""What a text is to the model: the routes between texts and token ids."""

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from ..tokenizer import token_bytes
from . import schemas
from .answers import DetokenizeAnswer, TokenizeAnswer, answer
from .completions import Service
from .intake import read_body, service_of


async def tokenize(request: Request) -> Response:
    service = service_of(request, needs_key=True)
    return await run_in_threadpool(_tokenize, service, await read_body(request))


async def detokenize(request: Request) -> Response:
    service = service_of(request, needs_key=True)
    return await run_in_threadpool(_detokenize, service, await read_body(request))


def _tokenize(service: Service, body: bytes) -> Response:
    ids = service.encoding.encode_ordinary(schemas.parse(schemas.TokenizeRequest, body).prompt)
    return answer(TokenizeAnswer(count=len(ids), max_model_len=service.run.block_size, tokens=ids))


def _detokenize(service: Service, body: bytes) -> Response:
    ids = schemas.parse(schemas.DetokenizeRequest, body).tokens
    text = b"".join(token_bytes(service.encoding, id) for id in ids)
    return answer(DetokenizeAnswer(prompt=text.decode(errors="replace")))
