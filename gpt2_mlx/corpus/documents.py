"""The documents of a file (text, JSON lines, Parquet, the first two also gzipped), in pieces to tokenize alone."""

import codecs
import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

SUFFIXES = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz", ".parquet")  # what is read from a folder
FIELD = "text"  # of a JSON object, of a Parquet row
PIECE_CHARS = 1 << 18  # characters of a piece, about; a core takes 20 ms for it

# The last place with a space behind a character that is none. GPT-2's pattern never looks back, no match of it spans
# such a place, and each match that ends before it ends there too where the text stops: a cut changes no token.
# Python calls a few more characters spaces than the pattern does; in front of these four both agree.
_LAST_CUT = re.compile(r".*\S(?=[ \t\n\r])", re.DOTALL)


def kind(name: str) -> str:
    """How a file is read, by its name: "text", "jsonl" or "parquet"."""
    suffix = Path(name.lower().removesuffix(".gz")).suffix
    return suffix[1:] if suffix in (".jsonl", ".parquet") else "text"


def pieces(file: BinaryIO, name: str) -> Iterator[tuple[bool, str]]:
    """Yield a file's documents as (begins, text): whether a document begins here, and a piece of it.

    The tokens of a document are those of its pieces. A file of text is one document. A piece is longer than about
    `PIECE_CHARS` only where the text has no space in it.

    Raises:
        ValueError: the file is not what its name says; the message tells where.
    """
    try:
        for document in _documents(file, name):
            begins = True
            for text in cut(document):
                yield begins, text
                begins = False
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{name} is not a whole gzip file: {error}") from None


def cut(blocks: Iterable[str]) -> Iterator[str]:
    """Yield a document again in pieces that give the same tokens, at least one."""
    rest, searched = "", 0  # in what was searched there is no place to cut
    for block in blocks:
        rest += block
        if len(rest) < PIECE_CHARS:
            continue
        if match := _LAST_CUT.match(rest, searched):
            yield rest[: match.end()]
            rest, searched = rest[match.end() :], 0
        else:
            searched = len(rest) - 1  # the last character may be one, if a space follows
    yield rest


def _documents(file: BinaryIO, name: str) -> Iterator[Iterable[str]]:
    stream = gzip.GzipFile(fileobj=file) if name.lower().endswith(".gz") else file
    match kind(name):
        case "parquet":
            yield from map(_blocks, _parquet(file, name))
        case "jsonl":
            yield from map(_blocks, _json_lines(stream, name))
        case "text":
            yield _decoded(stream, name)


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


def _json_lines(stream: BinaryIO, name: str) -> Iterator[str]:
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line.removeprefix(codecs.BOM_UTF8))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{name}, line {number} is not JSON: {error}") from None
        text = record.get(FIELD) if isinstance(record, dict) else None
        if not isinstance(text, str):
            raise ValueError(f"{name}, line {number} has no string {FIELD!r}: {line[:60].decode(errors='replace')}")
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
            columns = ", ".join(table.schema_arrow.names)
            raise ValueError(f"{name} has no column {FIELD!r}, but {columns}")
        row = 0
        for batch in table.iter_batches(batch_size=256, columns=[FIELD]):
            for text in batch.column(0).to_pylist():
                if not isinstance(text, str):
                    raise ValueError(f"{name}, row {row} has no string {FIELD!r}, but {text!r}")
                yield text
                row += 1
    except ArrowException as error:
        raise ValueError(f"{name} cannot be read: {str(error).splitlines()[0]}") from None
