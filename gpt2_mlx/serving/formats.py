"""Fields of requests that say what a text must be, as OpenAI and vLLM call them, and the constraint behind them."""

import json
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ..generation.params import Constraint
from .fields import Body
from .limits import MAX_CHOICES, MAX_CONSTRAINT_CHARS

Pattern = Annotated[str, Field(max_length=MAX_CONSTRAINT_CHARS)]
Choice = Annotated[str, Field(min_length=1)]
ANY_OBJECT = {"type": "object"}


class JsonSchema(Body):
    name: str = Field(pattern="^[a-zA-Z0-9_-]{1,64}$")
    """What it is called; of no consequence here."""
    content: dict[str, Any] = Field(ANY_OBJECT, alias="schema")
    """The JSON Schema; a keyword that is not supported is refused."""
    strict: bool = False
    """Of no consequence here: a text always keeps to the schema."""
    description: str | None = None
    """Of no consequence here."""


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    """There if type is json_schema."""

    @model_validator(mode="after")
    def _is_whole(self) -> "ResponseFormat":
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("it must have a json_schema if its type is json_schema, and only then")
        _ = self.constraint
        return self

    @property
    def constraint(self) -> tuple[str, Constraint] | None:
        """The name of the field that says it, and what the text must be."""
        if self.json_schema:
            return "json_schema.schema", _json(self.json_schema.content)
        return ("type", _json(ANY_OBJECT)) if self.type == "json_object" else None


class StructuredOutputs(Body):
    """One of these."""

    schema_: dict[str, Any] | Pattern | None = Field(None, alias="json")
    """A JSON Schema, as an object or as a string."""
    regex: Pattern | None = None
    """What the whole text matches, in the syntax of Rust's regex: no look-around, no backreferences."""
    choice: list[Choice] | None = Field(None, min_length=1, max_length=MAX_CHOICES)
    """Strings, of which the text is one."""
    grammar: Pattern | None = None
    """A grammar of the text, in GBNF (llama.cpp's) or in Lark's syntax."""
    json_object: bool = False
    """The text is a JSON object, whatever it holds."""

    @model_validator(mode="after")
    def _is_one(self) -> "StructuredOutputs":
        given = [self.schema_, self.regex, self.choice, self.grammar, self.json_object or None]
        if sum(each is not None for each in given) != 1:
            raise ValueError("it must have one of json, regex, choice, grammar and json_object")
        try:
            _ = self.constraint
        except RecursionError:
            raise ValueError("it is nested too deeply") from None
        return self

    @property
    def constraint(self) -> tuple[str, Constraint]:
        """The name of the field that says it, and what the text must be."""
        if self.regex is not None:
            return "regex", Constraint("regex", self.regex)
        if self.grammar is not None:
            return "grammar", Constraint("grammar", self.grammar)
        if self.choice is not None:
            return "choice", Constraint("choice", json.dumps(_bounded(self.choice)))
        if self.json_object:
            return "json_object", _json(ANY_OBJECT)
        return "json", _json(_parsed(self.schema_) if isinstance(self.schema_, str) else self.schema_)


def _json(schema: dict[str, Any]) -> Constraint:
    text = json.dumps(schema)
    if len(text) > MAX_CONSTRAINT_CHARS:
        raise ValueError(f"the schema has {len(text)} characters; at most {MAX_CONSTRAINT_CHARS} are allowed")
    return Constraint("json_schema", text)


def _bounded(strings: list[str]) -> list[str]:
    if (n := sum(map(len, strings))) > MAX_CONSTRAINT_CHARS:
        raise ValueError(f"the strings of choice have {n} characters; at most {MAX_CONSTRAINT_CHARS} are allowed")
    return strings


def _parsed(schema: str) -> dict[str, Any]:
    try:
        found = json.loads(schema)
    except ValueError as error:
        raise ValueError(f"json is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError("json must be a JSON object")
    return found
