"""Constraints: which tokens may come next in a text that must be JSON, match a pattern or follow a grammar.

llguidance keeps the state. A token costs some hundredths of a millisecond where the constraint is not made to be slow.
"""

import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache, partial

import llguidance
import numpy as np
from llguidance.gbnf_to_lark import any_to_lark
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask
from llguidance.tiktoken import lltokenizer_from_encoding
from tiktoken import Encoding

from .params import Constraint

# Between tokens of JSON: a space, or the end of a line with what the next one is indented by. Without a limit a small
# model goes on with white space for ever.
WHITE_SPACE = r" |\n[ \t]{0,20}"
# What the state of one text may take; well above what the schemas and patterns of users need.
LIMITS = llguidance.LLParserLimits(
    initial_lexer_fuel=500_000,
    step_lexer_fuel=100_000,
    step_max_items=10_000,
    max_lexer_states=50_000,
    max_grammar_size=100_000,
    verbose_errors=False,
)
MAX_KEPT = 32  # constraints that are kept ready for the next text
MAX_CHARS = 400  # of an error
# Where a schema holds others: by name, or in a list, or one.
_BY_NAME = ("properties", "patternProperties", "$defs", "definitions")
_HOLDERS = (*_BY_NAME, "anyOf", "allOf", "oneOf", "prefixItems", "items", "additionalProperties")


class Matcher:
    """The state of one text that follows a constraint.

    Args:
        state: llguidance's. Copies of it share a lexer, of which the limits count all states, whoever reached them.
        vocab_size: V.
        anew: makes the state of an empty text that shares nothing. The text goes through it where the state comes to an
            error: if that was due to other texts, it goes on.
    """

    def __init__(self, state: llguidance.LLMatcher, vocab_size: int, anew: Callable[[], llguidance.LLMatcher]):
        self._state, self._vocab_size, self._anew = state, vocab_size, anew
        self._tokens: list[int] = []

    def allowed(self) -> np.ndarray:
        """Which tokens may come next, (V,) bool; <|endoftext|> where the text may end. All, if there is an `error`."""
        bits = self._mask()
        if self._state.is_error():
            self._go_through_anew()
            bits = self._mask()
        if self._state.is_error():
            return np.ones(self._vocab_size, bool)
        return np.unpackbits(bits.view(np.uint8), bitorder="little", count=self._vocab_size).view(bool)

    def add(self, token: int) -> None:
        """Go on with a token that is allowed."""
        self._tokens.append(token)
        self._state.consume_token(token)
        if self._state.is_error():
            self._go_through_anew()

    def copy(self) -> "Matcher":
        """The same state, of which neither changes with the other."""
        copy = Matcher(self._state.deep_copy(), self._vocab_size, self._anew)
        copy._tokens = [*self._tokens]
        return copy

    @property
    def error(self) -> str | None:
        """Why `allowed` found nothing: the constraint takes too much work, or no text can meet it."""
        if self._state.is_error():
            return f"the constraint cannot be followed: {_line(self._state.get_error())}"

    @property
    def is_complete(self) -> bool:
        """Whether the text is whole and nothing may follow."""
        return self._state.is_stopped() and not self._state.is_error()

    def _mask(self) -> np.ndarray:
        bits = allocate_token_bitmask(1, self._vocab_size)
        fill_next_token_bitmask(self._state, bits)
        return bits

    def _go_through_anew(self) -> None:
        self._state = self._anew()
        for token in self._tokens:
            self._mask()  # this reaches states, too
            self._state.consume_token(token)


class Matchers:
    """Makes matchers for a vocabulary.

    Args:
        encoding: the tokenizer.
        vocab_size: the number of logits V; ids beyond the tokenizer's are never allowed.
    """

    def __init__(self, encoding: Encoding, vocab_size: int):
        self._encoding, self._vocab_size = encoding, vocab_size
        self._ready: dict[Constraint, llguidance.LLMatcher] = {}  # states of empty texts, the last used last
        self._thread = ThreadPoolExecutor(1)  # which starts with the first that begins

    @property
    def vocabulary(self) -> llguidance.LLTokenizer:
        return _vocabulary(self._encoding, self._vocab_size)

    def make(self, constraint: Constraint) -> Matcher:
        """The matcher of an empty text. Raises a ValueError that says what is wrong with the constraint, and where."""
        state = self._ready.pop(constraint, None) or self._build(constraint)
        self._ready[constraint] = state
        if len(self._ready) > MAX_KEPT:
            oldest, *_ = self._ready
            self._ready.pop(oldest, None)  # another thread may have taken it away, in `_anew`
        return Matcher(state.deep_copy(), self._vocab_size, partial(self._anew, constraint))

    def begin(self, constraint: Constraint) -> Future[Matcher]:
        """As `make`, in a thread: it may take a second, during which others can go on."""
        return self._thread.submit(self.make, constraint)

    def _anew(self, constraint: Constraint) -> llguidance.LLMatcher:
        self._ready.pop(constraint, None)  # its lexer is full, say; the next text begins with another
        return self._build(constraint)

    def _build(self, constraint: Constraint) -> llguidance.LLMatcher:
        if constraint.kind == "json_schema":
            return self._build_schema(json.loads(constraint.text))
        return self._state(_grammar(constraint))

    def _state(self, grammar: str) -> llguidance.LLMatcher:
        state = llguidance.LLMatcher(self.vocabulary, grammar, log_level=0, limits=LIMITS)
        if state.is_error():
            raise ValueError(_line(state.get_error()))
        return state

    def _build_schema(self, schema: dict) -> llguidance.LLMatcher:
        if not isinstance(schema, dict):
            raise ValueError("a schema must be an object")
        try:
            return self._state(_json_grammar(schema))
        except ValueError as error:
            place = self._place(schema, schema, str(error))
            raise ValueError(f"{error}, at {place}" if place else str(error)) from None

    def _place(self, schema: dict, root: dict, message: str) -> str:
        """The JSON pointer to the innermost schema that has the same error by itself; empty for the outermost."""
        definitions = {name: root[name] for name in ("$defs", "definitions") if name in root}
        for pointer, inner in _schemas_in(schema):
            try:
                self._state(_json_grammar(definitions | inner))
            except ValueError as error:
                if str(error) == message:
                    return pointer + self._place(inner, root, message)
        return ""


@lru_cache(maxsize=8)
def _vocabulary(encoding: Encoding, vocab_size: int) -> llguidance.LLTokenizer:
    """The vocabulary as llguidance has it; GPT-2's takes a quarter of a second."""
    return lltokenizer_from_encoding(encoding, n_vocab=vocab_size)


def examine(matchers: Matchers, constraint: Constraint, n_tokens: int) -> Iterator[None]:
    """Go through a text of random tokens under a constraint, a token at each step of the iterator.

    Raises:
        ValueError: as `Matchers.make`, or the error of the matcher.
    """
    matcher, random = matchers.make(constraint), np.random.default_rng(0)
    for _ in range(n_tokens):
        yield
        allowed = matcher.allowed()
        if matcher.error:
            raise ValueError(matcher.error)
        allowed[matchers.vocabulary.eos_token] = False  # a text goes on where it can
        if not allowed.any():
            return
        matcher.add(int(random.choice(np.flatnonzero(allowed))))
        if matcher.is_complete:
            return


def _grammar(constraint: Constraint) -> str:
    """What llguidance calls a pattern, strings or a grammar."""
    if constraint.kind == "regex":
        return llguidance.LLMatcher.grammar_from_regex(constraint.text)
    if constraint.kind == "choice":  # one terminal, or thousands of strings would be thousands of rules
        strings = " | ".join(json.dumps(string) for string in json.loads(constraint.text))
        return llguidance.LLMatcher.grammar_from_lark(f"start: TEXT\nTEXT: {strings}")
    try:
        return llguidance.LLMatcher.grammar_from_lark(any_to_lark(constraint.text))
    except Exception as error:  # of its parser, which has classes of its own
        raise ValueError(_line(str(error))) from None


def _json_grammar(schema: dict) -> str:
    options = {"whitespace_pattern": WHITE_SPACE}
    return llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema), defaults=options)


def _schemas_in(schema: dict) -> Iterator[tuple[str, dict]]:
    """The schemas directly inside a schema, each after the pointer from it to them."""
    for name in _HOLDERS:
        held = schema.get(name)
        if name in _BY_NAME and isinstance(held, dict):
            inside = [(f"/{name}/{key}", inner) for key, inner in held.items()]
        elif isinstance(held, list):
            inside = [(f"/{name}/{i}", inner) for i, inner in enumerate(held)]
        else:
            inside = [(f"/{name}", held)]
        yield from ((pointer, inner) for pointer, inner in inside if isinstance(inner, dict))


def _line(error: str) -> str:
    """An error of llguidance in one line, with the place in the user's own text."""
    if found := re.search(r"regex parse error:\n    (.*)\n    ( *)\^+\nerror: (.*)", error):
        pattern, before, what = found.groups()
        error = f"{what}, at character {len(before) + 1} of the pattern {pattern[:60]!r}"
    elif found := re.search(r"\(in regex\): (.*?) in regex /(.*)/", error):
        error = f"{found[1]}: {found[2]}"
    elif found := re.match(r"(?:at )?(\d+)\((\d+)\): (.*)", error):
        line, column, what = found.groups()
        error = f"{what}, at line {line}, column {column}"
    return " ".join(error.split("\n<")[0].split())[:MAX_CHARS]
