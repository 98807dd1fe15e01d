"""Fields of requests that may be said in several ways: how each is read, and as JSON Schema what is allowed.

What token ids there are depends on the served model: its number of tokens is pydantic's context.
"""

import re
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, PlainValidator, ValidationInfo, WithJsonSchema, model_validator

from ..tokenizer import VOCAB_SIZE
from .limits import MAX_BIAS, MAX_BIASES, MAX_PROMPT_CHARS, MAX_PROMPTS, MAX_STOP_CHARS, MAX_STOPS

Conversation = tuple[dict[str, str], ...]  # messages, each with a role and a content
Prompt = str | list[int] | Conversation


class Body(BaseModel):
    """A JSON object of a request; null is the same as left out."""

    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, frozen=True, use_attribute_docstrings=True
    )

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        names = {field.alias or name for name, field in cls.model_fields.items()}
        return {name: v for name, v in fields.items() if v is not None or name not in names}


def read_prompts(value: Any, info: ValidationInfo) -> tuple[Prompt, ...]:
    """The prompts behind OpenAI's `prompt`: a string, strings, token ids, or lists of token ids."""
    prompts = [value] if isinstance(value, str) or _are(int, value) else value
    if not (_are(str, prompts) or (isinstance(prompts, list) and prompts and all(_are(int, p) for p in prompts))):
        raise ValueError("it must be a string, a list of strings, a list of token ids or a list of those, none empty")
    if len(prompts) > MAX_PROMPTS:
        raise ValueError(f"it has {len(prompts)} prompts; at most {MAX_PROMPTS} are allowed")
    if (n := sum(map(len, prompts))) > MAX_PROMPT_CHARS:
        raise ValueError(f"it is {n} characters or tokens long; at most {MAX_PROMPT_CHARS} are allowed")
    for token in (token for p in prompts if not isinstance(p, str) for token in p):
        if not 0 <= token < info.context:
            raise ValueError(f"token ids must be at least 0 and at most {info.context - 1}")
    return tuple(prompts)


def read_ids(value: Any, info: ValidationInfo) -> list[int]:
    """Token ids, of which there may be none."""
    if value == []:
        return value
    if not _are(int, value):
        raise ValueError("it must be a list of token ids")
    (ids,) = read_prompts(value, info)
    return ids


def read_stop(value: Any) -> tuple[str, ...]:
    """The stop strings behind a string or a list of strings."""
    stops = [value] if isinstance(value, str) else value
    if stops != [] and not _are(str, stops):
        raise ValueError("it must be a string or a list of strings")
    if len(stops) > MAX_STOPS or not all(1 <= len(stop) <= MAX_STOP_CHARS for stop in stops):
        raise ValueError(f"it may hold up to {MAX_STOPS} strings of 1 to {MAX_STOP_CHARS} characters")
    return tuple(stops)


def read_logit_bias(value: Any, info: ValidationInfo) -> dict[int, float]:
    """{token id: bias} behind a JSON object, whose keys are strings."""
    if not isinstance(value, dict) or len(value) > MAX_BIASES:
        raise ValueError(f"it must be an object of up to {MAX_BIASES} token ids and biases")
    keys = _below(info.context)
    for key, bias in value.items():
        if not re.fullmatch(keys, key):
            raise ValueError(f"its keys must be token ids, at least 0 and at most {info.context - 1}")
        if isinstance(bias, bool) or not isinstance(bias, (int, float)) or not abs(bias) <= MAX_BIAS:
            raise ValueError(f"its values must be numbers of at least {-MAX_BIAS} and at most {MAX_BIAS}")
    return {int(key): float(bias) for key, bias in value.items()}


def _are(kind: type, values: Any) -> bool:
    """Whether `values` is a list of such values, at least one."""
    is_list = isinstance(values, list) and len(values) > 0
    return is_list and all(isinstance(v, kind) and not isinstance(v, bool) for v in values)


def _below(n: int) -> str:
    """A pattern of the decimal numbers from 0 to n - 1; n is above 9."""
    digits = str(n)
    patterns = [f"0|[1-9][0-9]{{0,{len(digits) - 2}}}"]  # those with fewer digits
    for i, digit in enumerate(digits):  # as many: the first i are the same, the next is smaller
        least = int(i == 0)
        if int(digit) > least:
            patterns.append(f"{digits[:i]}[{least}-{int(digit) - 1}][0-9]{{{len(digits) - i - 1}}}")
    return "|".join(patterns)


_STOP = {"type": "string", "minLength": 1, "maxLength": MAX_STOP_CHARS}
_STOPS = {"anyOf": [_STOP, {"type": "array", "items": _STOP, "maxItems": MAX_STOPS}], "default": []}


def schemas_of_ids(n_vocab: int) -> dict[str, dict[str, Any]]:
    """The JSON Schema of each field that holds token ids, for a model that knows so many tokens."""
    text = {"type": "string", "maxLength": MAX_PROMPT_CHARS}
    ids = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": n_vocab - 1}, "minItems": 1}
    several = {"type": "array", "minItems": 1, "maxItems": MAX_PROMPTS}
    bias = {"type": "number", "minimum": -MAX_BIAS, "maximum": MAX_BIAS}
    biases = {"additionalProperties": bias, "maxProperties": MAX_BIASES}
    return {
        "prompt": {"anyOf": [text, several | {"items": text}, ids, several | {"items": ids}]},
        "tokens": ids | {"minItems": 0},
        "logit_bias": {"type": "object", "propertyNames": {"pattern": f"^({_below(n_vocab)})$"}, **biases},
    }


OF_GPT2 = schemas_of_ids(VOCAB_SIZE)

TokenIds = Annotated[list[int], PlainValidator(read_ids), WithJsonSchema(OF_GPT2["tokens"])]
Prompts = Annotated[tuple[Prompt, ...], PlainValidator(read_prompts), WithJsonSchema(OF_GPT2["prompt"])]
Stop = Annotated[tuple[str, ...], PlainValidator(read_stop), WithJsonSchema(_STOPS)]
LogitBias = Annotated[dict[int, float], PlainValidator(read_logit_bias), WithJsonSchema(OF_GPT2["logit_bias"])]
