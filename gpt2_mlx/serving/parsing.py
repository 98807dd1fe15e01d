"""From a body to the request it holds, or to what is wrong with it in one line."""

import reprlib
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from ..tokenizer import VOCAB_SIZE
from .errors import ApiError
from .fields import Body
from .limits import MAX_SEQUENCES
from .schemas import TextRequest

Parsed = TypeVar("Parsed", bound=Body)


def parse(model: type[Parsed], body: bytes, n_vocab: int = VOCAB_SIZE) -> Parsed:
    """The request behind a body.

    Args:
        model: what it must be.
        body: JSON.
        n_vocab: the number of tokens that the served model knows.

    Raises:
        ApiError: 400, the body is no JSON or a field is not allowed; it names the field.
    """
    try:
        request = model.model_validate_json(body, context=n_vocab)
    except ValidationError as error:
        raise _complaint(model, error.errors(include_url=False)[0]) from None
    if isinstance(request, TextRequest):
        _check(request)
    return request


def _check(request: TextRequest) -> None:
    """Refuse fields that do not go together."""
    if len(request.prompts) * request.n > MAX_SEQUENCES:
        raise _bad(
            "n", f"n is {request.n} for {len(request.prompts)} prompts; at most {MAX_SEQUENCES} texts are allowed"
        )
    if request.structured_outputs and request.response_format and request.response_format.constraint:
        raise _bad("structured_outputs", "structured_outputs and response_format both say what the text must be")


def _complaint(model: type[BaseModel], error: dict) -> ApiError:
    """pydantic's first complaint in one line: the field, its value, what is allowed."""
    name = _shown(".".join(map(str, error["loc"])))[1:-1]
    if error["type"] == "json_invalid":
        return _bad(None, f"the body is not JSON: {error['ctx']['error']}")
    if not error["loc"]:
        whole = error["type"] == "value_error"
        return _bad(None, str(error["ctx"]["error"]) if whole else "the body must be a JSON object")
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
