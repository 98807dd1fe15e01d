"""`ApiError`: what went wrong with a request, in the shape of OpenAI's API."""

import http

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from .answers import Error, ErrorFacts, answer

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable",
}


class ApiError(Exception):
    """An answer other than the one hoped for.

    Args:
        status: of HTTP.
        message: for people.
        param: the field to blame, if one is.
        code: for programs; by default the status in words, such as "not_found".
        headers: to send along.
    """

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str = "", headers: dict | None = None
    ):
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code or http.HTTPStatus(status).name.lower()
        self.headers = headers

    @property
    def body(self) -> Error:
        kind = TYPES.get(self.status, "invalid_request_error")
        return Error(error=ErrorFacts(message=str(self), type=kind, param=self.param, code=self.code))

    @property
    def response(self) -> JSONResponse:
        return answer(self.body, self.status, self.headers)


def respond(_: Request, error: Exception) -> JSONResponse:
    """The answer to an ApiError."""
    return error.response


def respond_to_http(request: Request, error: HTTPException) -> JSONResponse:
    """The answer to what Starlette itself refuses: an unknown path, a method that a path does not have."""
    allowed = (error.headers or {}).get("Allow")
    message = f"{request.method} {request.url.path}: {error.detail}"
    message += f"; allowed: {allowed}" if allowed else ""
    return ApiError(error.status_code, message, headers=error.headers).response
