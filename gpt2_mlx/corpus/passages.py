"""Passages of a text, by name: a file, a line or several lines; and the tokens that they hold.

FILE            a file of the text, by its name or the end of its path
FILE:7          line 7 of it, counted from 1; a line of JSON is a document, and so is a row of Parquet
FILE:7-20       lines 7 to 20
"""

import codecs
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..tokenizer import Vocabulary
from . import documents
from .shards import AnyTokens
from .source import Source

NONE = np.empty((0, 2), np.int64)  # no passages
_LINES = re.compile(r"(.+):(\d+)(?:-(\d+))?")
_READ_AT_ONCE = 1 << 22  # tokens
_SHOWN = 20  # files in a message


class _Part(NamedTuple):
    """A part of a file: documents of it, or bytes of the one document that a text file is."""

    file: int
    start: int
    stop: int | None  # None: the end


def find(names: tuple[str, ...], source: Source, tokens: AnyTokens, vocabulary: Vocabulary) -> np.ndarray:
    """Where the tokens of passages lie: (n, 2) int64, the first position and the one after the last, in order, apart.

    A token that is partly in a passage belongs to it, and so does the <|endoftext|> after a document. `tokens` are all
    of the source. Raises a ValueError that shows what there is where a name matches nothing, or several files.
    """
    if source.files[0].is_dir():
        raise ValueError(f"--without names files, but --data is a folder of token shards: {source.files[0]}")
    parts = [_part(name, source.files) for name in names]
    counts = map(_n_documents, source.files[: max(part.file for part in parts) + 1])
    before = np.cumsum([0, *counts])  # (files + 1,) the documents of all files before each
    ends = _document_ends(tokens, vocabulary.eot)
    apart: list[list[int]] = []
    for start, stop in sorted(_positions(part, source, before, ends, tokens, vocabulary) for part in parts):
        if apart and start <= apart[-1][1]:
            apart[-1][1] = max(stop, apart[-1][1])
        else:
            apart.append([start, stop])
    return np.array(apart, np.int64)


def _part(name: str, files: tuple[Path, ...]) -> _Part:
    match = None if _matching(name, files) else _LINES.fullmatch(name)
    found = _matching(match[1] if match else name, files)
    if len(found) != 1:
        shown = [str(files[i]) for i in found or range(len(files))]
        more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
        problem = "fits several files" if found else "is none of the text's files"
        raise ValueError(f"--without is {name!r}, which {problem}: {', '.join(shown[:_SHOWN])}{more}")
    file = files[found[0]]
    if not match:
        if not _n_documents(file):
            raise ValueError(f"--without is {name!r}, but there is no document in it")
        return _Part(found[0], 0, None)
    first, last = int(match[2]), int(match[3] or match[2])
    ends = np.cumsum([0, *_line_sizes(file)])
    if not 1 <= first <= last < len(ends):
        raise ValueError(f"--without is {name!r}, but {file} has the lines 1 to {len(ends) - 1}")
    start, stop = int(ends[first - 1]), int(ends[last])
    if start == stop:
        raise ValueError(f"--without is {name!r}, but there is no document in these lines")
    return _Part(found[0], start, stop)


def _matching(name: str, files: tuple[Path, ...]) -> list[int]:
    parts = Path(name).parts
    return [i for i, file in enumerate(files) if file.absolute().parts[-len(parts) :] == parts]


def _line_sizes(file: Path) -> Iterator[int]:
    """What each line of a file has: bytes of text, or one document, or none."""
    kind = documents.kind(file.name)
    with file.open("rb") as packed:
        if kind == "parquet":
            yield from (1 for begins, _ in documents.pieces(packed, str(file)) if begins)
            return
        for number, line in enumerate(documents.unpacked(packed, file.name)):
            if kind == "jsonl":
                yield int(bool(line.strip()))
            else:
                yield len(line if number else line.removeprefix(codecs.BOM_UTF8))


def _n_documents(file: Path) -> int:
    return 1 if documents.kind(file.name) == "text" else sum(_line_sizes(file))


def _document_ends(tokens: AnyTokens, eot: int) -> np.ndarray:
    """The position after each document, where the <|endoftext|> is, or the text's end: (documents,) int64."""
    found = [
        start + np.flatnonzero(np.asarray(tokens[start : start + _READ_AT_ONCE]) == eot)
        for start in range(0, len(tokens), _READ_AT_ONCE)
    ]
    return np.concatenate([*found, [len(tokens)]])


def _positions(
    part: _Part, source: Source, before: np.ndarray, ends: np.ndarray, tokens: AnyTokens, vocabulary: Vocabulary
) -> tuple[int, int]:
    """The first position of a part and the one after its last; an <|endoftext|> belongs to the document before it."""
    starts, n = np.concatenate([[0], ends[:-1] + 1]), int(before[part.file])
    if documents.kind(source.files[part.file].name) == "text" and part.stop is not None:
        start = int(starts[n])
        first, behind = _covering(tokens[start : int(ends[n])], vocabulary.n_bytes, part.start, part.stop)
        return start + first, start + behind
    stop = int(before[part.file + 1]) if part.stop is None else n + part.stop
    return int(starts[n + part.start]), min(int(ends[stop - 1]) + 1, len(tokens))


def _covering(tokens: AnyTokens, sizes: np.ndarray, start: int, stop: int) -> tuple[int, int]:
    """The first token that holds one of the bytes start ... stop - 1 of a document, and the one after the last."""
    first = behind = at = 0
    for i in range(0, len(tokens), _READ_AT_ONCE):
        size = sizes[np.asarray(tokens[i : i + _READ_AT_ONCE])]
        ends = at + np.cumsum(size)
        first += int((ends <= start).sum())
        behind += int((ends - size < stop).sum())
        at = int(ends[-1])
    return first, behind
