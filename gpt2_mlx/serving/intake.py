"""What every route of the API begins with: the key of a request, and its body."""

import hmac

import anyio
from starlette.requests import Request

from .errors import ApiError
from .limits import BODY_SECONDS, MAX_BODY, MAX_READ
from .service import Service

# `curl -d` calls all it sends a form, and a bare client says nothing: then the body tells.
JSON_TYPES = ("application/json", "application/x-www-form-urlencoded", "")


async def read_body(request: Request) -> bytes:
    """The body of a request that may be JSON; read first, so that whoever sends it comes to read the answer.

    Raises:
        ApiError: 408, 413 or 415.
    """
    body, size = bytearray(), 0
    try:
        with anyio.fail_after(BODY_SECONDS):
            async for part in request.stream():
                size += len(part)
                if size <= MAX_BODY:
                    body += part
                elif size > MAX_READ:
                    break
    except TimeoutError:
        raise ApiError(408, f"the body did not come within {BODY_SECONDS:g} seconds") from None
    if size > MAX_BODY:
        raise ApiError(413, f"the body is larger than {MAX_BODY} bytes", code="body_too_large")
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in JSON_TYPES:
        raise ApiError(415, f"the Content-Type is {kind[:80]!r}; it must be application/json")
    return bytes(body)


def service_of(request: Request, needs_key: bool = False) -> Service:
    """The service, to those who may use it.

    Raises:
        ApiError: 401.
    """
    service: Service = request.app.state.service
    if needs_key and service.api_key is not None:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        # header values arrive as latin-1; compared as bytes, in a time that tells nothing
        same = hmac.compare_digest(key.strip().encode("latin-1"), service.api_key.encode())
        if scheme.lower() != "bearer" or not same:
            headers = {"WWW-Authenticate": "Bearer"}
            raise ApiError(401, "the API key is missing or wrong", code="invalid_api_key", headers=headers)
    return service
