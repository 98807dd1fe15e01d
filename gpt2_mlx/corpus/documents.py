"""The documents of a file, cut into pieces that can be tokenized alone.

A file is text, JSON lines or Parquet; the first two may be gzipped.
"""

import codecs
import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

SUFFIXES = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz", ".parquet")  # what is read from a folder
FIELD = "text"  # the field of a JSON object or the column of a Parquet file that holds the document
PIECE_CHARS = 1 << 18  # the characters of a piece, about; a core tokenizes them in 20 ms

# The last place where white space follows another character. Tokens stay the same when a text is cut there: GPT-2's
# pattern never looks back, and none of its matches spans such a place. Python counts a few more characters as white
# space than the pattern does, so the cut is made only before these four, about which both agree.
LAST_CUT = re.compile(r".*\S(?=[ \t\n\r])", re.DOTALL)


def kind(name: str) -> str:
    """The kind of a file by its name: "text", "jsonl" or "parquet"."""
    suffix = Path(name.lower().removesuffix(".gz")).suffix
    return suffix[1:] if suffix in (".jsonl", ".parquet") else "text"


def pieces(file: BinaryIO, name: str) -> Iterator[tuple[bool, str]]:
    """Yield the pieces of a file's documents as (begins, piece), where `begins` tells that a new document begins.

    The tokens of a document are the tokens of its pieces, one after the other. A text file is one document. A piece is
    longer than about `PIECE_CHARS` only where the text has no white space. Raises a ValueError that shows the place
    where the file is not what its name says.
    """
    try:
        for document in _documents(file, name):
            for i, piece in enumerate(cut(document)):
                yield i == 0, piece
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{name} is not a whole gzip file: {error}") from None


def cut(blocks: Iterable[str]) -> Iterator[str]:
    """Yield the pieces of a document, at least one; its blocks may be cut anywhere, and the tokens stay the same."""
    rest, searched = "", 0  # in what was searched there is no place to cut
    for block in blocks:
        rest += block
        if len(rest) < PIECE_CHARS:
            continue
        if match := LAST_CUT.match(rest, searched):
            yield rest[: match.end()]
            rest, searched = rest[match.end() :], 0
        else:
            searched = len(rest) - 1  # the last character may be one, if a space follows
    yield rest


def unpacked(file: BinaryIO, name: str) -> BinaryIO:
    """The content of a file, which may be gzipped."""
    return gzip.GzipFile(fileobj=file) if name.lower().endswith(".gz") else file


def _documents(file: BinaryIO, name: str) -> Iterator[Iterable[str]]:
    match kind(name):
        case "parquet":
            yield from map(_blocks, _parquet(file, name))
        case "jsonl":
            yield from map(_blocks, _json_lines(file, name))
        case "text":
            yield _decoded(unpacked(file, name), name)


def _blocks(text: str) -> Iterable[str]:
    return (text[i : i + PIECE_CHARS] for i in range(0, len(text), PIECE_CHARS))


def _decoded(stream: BinaryIO, name: str) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8-sig")()  # a byte order mark is no text
    read, block = 0, None
    while block != b"":
        block = stream.read(PIECE_CHARS)
        read += len(block)
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            at = read - len(error.object) + error.start
            raise ValueError(f"{name} is not UTF-8: byte {error.object[error.start]:#04x} at offset {at}") from None
        yield text


def records(file: BinaryIO, name: str) -> Iterator[tuple[str, Any, str]]:
    """Yield what each line of a file of JSON holds, after its place in words and before the line's beginning.

    Raises a ValueError that shows the place where a line is not JSON.
    """
    try:
        for number, line in enumerate(unpacked(file, name), 1):
            where = f"{name}, line {number}"
            if not line.strip():
                continue
            try:
                record = json.loads(line.removeprefix(codecs.BOM_UTF8))
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{where} is not JSON: {error}") from None
            yield where, record, line[:60].decode(errors="replace").strip()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{name} is not a whole gzip file: {error}") from None


def _json_lines(file: BinaryIO, name: str) -> Iterator[str]:
    for where, record, line in records(file, name):
        text = record.get(FIELD) if isinstance(record, dict) else None
        if not isinstance(text, str):
            raise ValueError(f"{where} has no string {FIELD!r}: {line}")
        yield text


def _parquet(file: BinaryIO, name: str) -> Iterator[str]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise ValueError(f"{name} needs the package pyarrow: `pip install pyarrow`") from None
    try:
        table = ParquetFile(file)
        if FIELD not in table.schema_arrow.names:
            raise ValueError(f"{name} has no column {FIELD!r}, but {', '.join(table.schema_arrow.names)}")
        batches = table.iter_batches(batch_size=256, columns=[FIELD])
        for row, text in enumerate(text for batch in batches for text in batch.column(0).to_pylist()):
            if not isinstance(text, str):
                raise ValueError(f"{name}, row {row} has no string {FIELD!r}, but {text!r}")
            yield text
    except ArrowException as error:
        raise ValueError(f"{name} cannot be read: {str(error).splitlines()[0]}") from None
