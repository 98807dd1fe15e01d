"""Prompts and answers: lines of JSON, each an example of what to answer, of which only the answer is to be learnt.

    {"prompt": "2+2=", "completion": "4"}
    {"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]}

A completion follows its prompt as it stands, and <|endoftext|> ends it. Messages become text by a chat template, and
every answer of the assistant is to be learnt. Other fields of a line are left alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import numpy as np
from tiktoken_ext.openai_public import ENDOFTEXT

from .. import device, template, tokenizer
from ..tokenizer import Vocabulary
from . import documents
from .source import Source

KINDS = (("prompt", "completion"), ("messages",))  # the fields of an example, the same in all lines of a text
Parts = list[tuple[str, bool]]  # the text of an example, and which parts of it are to be learnt
_AT_ONCE = 1024  # examples that are tokenized at once


@dataclass(frozen=True)
class Examples:
    """The tokens of examples, one example after the other."""

    tokens: np.ndarray  # (n,) uint16
    learnt: np.ndarray  # (n,) bool: whether a token is of an answer
    ends: np.ndarray  # (examples,) int64: the position after each

    def __len__(self) -> int:
        return len(self.ends)

    def part(self, start: int, stop: int) -> "Examples":
        """The examples from number `start` on, before number `stop`."""
        first, behind = (int(self.ends[i - 1]) if i else 0 for i in (start, max(start, stop)))
        return Examples(self.tokens[first:behind], self.learnt[first:behind], self.ends[start:stop] - first)

    @property
    def lengths(self) -> np.ndarray:
        """The tokens of each example: (examples,) int64."""
        return np.diff(self.ends, prepend=0)


def kind(source: Source) -> tuple[str, ...] | None:
    """Which of `KINDS` the first line of a source has; None where the source is texts."""
    first = source.files[0]
    if first.is_dir() or documents.kind(first.name) != "jsonl":
        return None
    try:
        with first.open("rb") as file:
            fields = next(iter(documents.records(file, first.name)))[1]
    except (ValueError, EOFError, OSError, StopIteration):  # who reads it as a text tells what is wrong
        return None
    has = fields.keys() if isinstance(fields, dict) and documents.FIELD not in fields else ()
    return next((kind for kind in KINDS if any(name in has for name in kind)), None)


def read(source: Source, vocabulary: Vocabulary) -> Examples:
    """The examples of a source. Raises a ValueError that shows the file, the line and what is allowed."""
    encoding = vocabulary.encoding
    how = {"allowed_special": {ENDOFTEXT}, "disallowed_special": ()}
    tokens, learnt, ends = [np.empty(0, np.uint16)], [np.empty(0, bool)], [np.empty(0, np.int64)]
    examples = parts(source, vocabulary.template or template.OURS)
    while chunk := list(islice(examples, _AT_ONCE)):
        flat = list(chain(*chunk))
        ids = encoding.encode_batch([text for text, _ in flat], num_threads=device.cpu_count(), **how)
        ids = [own or [vocabulary.eot] if i == 0 else own for i, own in _numbered(chunk, ids)]  # of an empty prompt
        sizes = [len(own) for own in ids]
        tokens.append(np.fromiter(chain(*ids), np.uint16, sum(sizes)))
        learnt.append(np.repeat([is_answer for _, is_answer in flat], sizes))
        ends.append(np.cumsum(sizes)[np.cumsum([len(example) for example in chunk]) - 1] + sum(map(len, tokens[:-1])))
    return Examples(*map(np.concatenate, (tokens, learnt, ends)))


def _numbered(chunk: list[Parts], ids: list[list[int]]) -> Iterator[tuple[int, list[int]]]:
    """The ids of each part, with the number of the part in its example."""
    return zip(chain(*(range(len(example)) for example in chunk)), ids)


def parts(source: Source, conversation: str) -> Iterator[Parts]:
    """Yield the parts of each example; `conversation` is the chat template. Raises as `read`."""
    expected = kind(source)
    for path in source.files:
        if documents.kind(path.name) != "jsonl":
            raise ValueError(f"{path} is no JSON lines, but {source.files[0]} is, of prompts and answers: keep to one")
        with path.open("rb") as file:
            for where, fields, line in documents.records(file, str(path)):
                try:
                    yield _parts(fields, expected, conversation)
                except ValueError as error:
                    raise ValueError(f"{where} {error}: {line}") from None


def _parts(fields: Any, expected: tuple[str, ...], conversation: str) -> Parts:
    """The parts of an example. Raises a ValueError that goes on from the place of the example."""
    fields = fields if isinstance(fields, dict) else {}
    others = [name for each in (*KINDS, (documents.FIELD,)) if each != expected for name in each if name in fields]
    if others:
        first = " and ".join(map(repr, expected))
        raise ValueError(f"has {others[0]!r}, but the first line has {first}: keep to one kind")
    if expected == ("messages",):
        return template.answers(conversation, _messages(fields.get("messages")))
    for name in expected:
        if not isinstance(fields.get(name), str):
            raise ValueError(f"has no string {name!r}")
        if ENDOFTEXT in fields[name]:
            raise ValueError(f"holds {ENDOFTEXT}, which is put after each completion: leave it out")
    return [(fields["prompt"], False), (fields["completion"] + ENDOFTEXT, True)]


def _messages(messages: Any) -> list[dict[str, str]]:
    if not isinstance(messages, list) or not messages:
        raise ValueError("has no list 'messages' with at least one message")
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            raise ValueError(f"has a message {i} that is no object of a role and a content, and of no more")
        if message["role"] not in template.ROLES:
            raise ValueError(f"has a message {i} of role {message['role']!r}; allowed are {', '.join(template.ROLES)}")
        if not isinstance(message["content"], str):
            raise ValueError(f"has a message {i} whose content is no string")
    if messages[-1]["role"] != "assistant":
        raise ValueError("ends with no message of the assistant, so there is no answer to learn")
    return messages


def texts(source: Source) -> Iterator[str]:
    """Yield the texts of which a vocabulary can be made."""
    for example in parts(source, template.OURS):
        for text, _ in example:
            yield from (tokenizer.mended(piece) for piece in text.split(ENDOFTEXT) if piece)
