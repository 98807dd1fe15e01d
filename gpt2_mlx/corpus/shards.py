"""Token shards: a text as a folder of files of tokens, written once and read in parts.

    shards.json         format, vocab_sha256, key, next, and of each shard its file, tokens and sha256
    tokens-00000.bin    uint16, little-endian, in the order of the text; <|endoftext|> between two documents

`key` tells texts apart. `next` is the position where an unfinished preparation goes on, null when all is written.
A shard gets its name when it is whole, and its place in shards.json after that.
"""

import json
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tiktoken
from tqdm import tqdm

from .. import device, tokenizer
from ..files import lock, new_file, remove_leftovers, sha256_of_each, write_json
from . import documents

INDEX = "shards.json"
FORMAT = 1  # another one where the same text would be cut into other shards
SHARD_TOKENS = 1 << 25  # 67 MB; a kill costs at most the work on one shard
DTYPE = np.dtype("<u2")

Bundle = list[tuple[bool, str]]  # pieces, each with whether <|endoftext|> comes first


class Position(NamedTuple):
    """A place between two pieces of a text."""

    file: int
    piece: int  # of the file
    read: int  # bytes of all files before here, about


class Tokens:
    """The tokens of a folder, (n,) uint16, on the disk: a slice is the same of a part, `np.asarray` reads it.

    They are not mapped into memory, since a page once touched would count as the process's own.
    """

    def __init__(self, files: list[Path], ends: np.ndarray, start: int, stop: int):
        self._files, self._ends = files, ends  # ends: (shards,) int64, where each of them stops
        self._start, self._stop = start, stop

    def __len__(self) -> int:
        return self._stop - self._start

    def __getitem__(self, part: slice) -> "Tokens":
        start, stop, step = part.indices(len(self))
        assert step == 1
        return Tokens(self._files, self._ends, self._start + start, self._start + max(start, stop))

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        tokens = np.empty(len(self), dtype or np.uint16)
        at, i = self._start, int(np.searchsorted(self._ends, self._start, side="right"))
        while at < self._stop:
            begin, end = int(self._ends[i - 1]) if i else 0, min(int(self._ends[i]), self._stop)
            offset = DTYPE.itemsize * (at - begin)
            tokens[at - self._start : end - self._start] = np.fromfile(self._files[i], DTYPE, end - at, offset=offset)
            at, i = end, i + 1
        return tokens


def read(folder: Path) -> tuple[Tokens, str]:
    """The tokens of a folder and their key.

    Raises:
        ValueError: it is not a whole folder of shards; the message says why.
    """
    index = _read_index(folder)
    if index["next"]:
        raise ValueError(f"{folder} is not finished: train on the text that it is made of, and that goes on with it")
    ends = np.cumsum([shard["tokens"] for shard in index["shards"]], dtype=np.int64)
    return Tokens([folder / shard["file"] for shard in index["shards"]], ends, 0, int(ends[-1])), index["key"]


def prepare(name: str, files: tuple[Path, ...], folder: Path, key: str) -> None:
    """Tokenize files into a folder, or go on where an earlier call was interrupted; what is damaged is made anew.

    The bytes it writes follow from the files alone, whatever interrupts it and however many cores there are.

    Args:
        name: what to call the text.
        key: what its tokens follow from.

    Raises:
        ValueError: there is no token in the files, or one is not what its name says. No shard is left then.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        held = lock(folder)
    except ValueError:
        print(f"waiting for another process, which tokenizes {name}", flush=True)
        held = lock(folder, wait=True)
    with held:
        try:
            _write_rest(name, files, folder, key)
        except ValueError:
            _clear(folder)
            raise
        except (KeyboardInterrupt, SystemExit):
            print(f"stopped while tokenizing {name}: the same command goes on with what is left", flush=True)
            raise


def _write_rest(name: str, files: tuple[Path, ...], folder: Path, key: str) -> None:
    remove_leftovers(folder)
    index = _begun(folder, key)
    if not index["next"]:
        return
    position, size = Position(*index["next"]), sum(file.stat().st_size for file in files)
    # disable=None: no bar where stderr is no terminal
    bar = tqdm(desc=f"tokenizing {name}", total=size, unit="B", unit_scale=True, leave=False, disable=None)
    bar.update(position.read)
    with bar, ThreadPoolExecutor(device.cpu_count()) as pool:
        work = encoded(pool, _bundles(files, position))
        while position:
            shard, position = _write_shard(folder / f"tokens-{len(index['shards']):05d}.bin", work, bar)
            if not shard["tokens"]:
                raise ValueError(f"{name} is empty: {', '.join(map(str, files))}")
            index = {**index, "next": position, "shards": [*index["shards"], shard]}
            with new_file(folder / INDEX) as aside:
                write_json(aside, index)


def _write_shard(
    path: Path, work: Iterator[tuple[np.ndarray, Position | None]], bar: tqdm
) -> tuple[dict, Position | None]:
    """What shards.json says of the shard, and the position after it."""
    tokens, digest, position = 0, sha256(), None
    with new_file(path) as aside, aside.open("wb") as file:
        for part, position in work:
            file.write(part)
            digest.update(part)
            tokens += len(part)
            bar.update((position.read if position else bar.total) - bar.n)
            if tokens >= SHARD_TOKENS:
                break
    return {"file": path.name, "tokens": tokens, "sha256": digest.hexdigest()}, position


def encoded(
    pool: Executor, bundles: Iterator[tuple[Bundle, Position | None]]
) -> Iterator[tuple[np.ndarray, Position | None]]:
    """The tokens of each bundle, in order. In threads, for tiktoken works without Python's lock."""
    encoding = tokenizer.load()
    waiting = deque()
    for bundle, position in bundles:
        waiting.append((pool.submit(_encode, encoding, bundle), position))
        if len(waiting) > 8 * device.cpu_count():  # work for while a shard is synced
            future, reached = waiting.popleft()
            yield future.result(), reached
    for future, reached in waiting:
        yield future.result(), reached


def _encode(encoding: tiktoken.Encoding, bundle: Bundle) -> np.ndarray:
    parts = [np.empty(0, DTYPE)]
    for separate, text in bundle:
        if separate:
            parts.append(np.array([tokenizer.EOT], DTYPE))
        parts.append(tokenizer.encode(encoding, text))
    return np.concatenate(parts, dtype=DTYPE)


def _bundles(files: tuple[Path, ...], start: Position) -> Iterator[tuple[Bundle, Position | None]]:
    """Pieces from a position on, about `PIECE_CHARS` characters at a time, and the position after: None at the end."""
    bundle, size, read = [], 0, sum(file.stat().st_size for file in files[: start.file])
    for i in range(start.file, len(files)):
        with files[i].open("rb") as file:
            for j, (begins, text) in enumerate(documents.pieces(file, str(files[i]))):
                if (i, j) < start[:2]:
                    continue
                if size >= documents.PIECE_CHARS:
                    yield bundle, Position(i, j, read + file.tell())
                    bundle, size = [], 0
                bundle.append((begins and (i, j) > (0, 0), text))
                size += len(text)
        read += files[i].stat().st_size
    yield bundle, None


def _begun(folder: Path, key: str) -> dict:
    """What an earlier call left of this text, if it is sound, else a new beginning."""
    try:
        index = _read_index(folder)
        if index["key"] == key:
            return index
    except ValueError:
        pass
    _clear(folder)
    first = Position(0, 0, 0)
    return {"format": FORMAT, "vocab_sha256": tokenizer.VOCAB_SHA256, "key": key, "next": first, "shards": []}


def _read_index(folder: Path) -> dict:
    """The content of shards.json, when the shards are what it says."""
    path = folder / INDEX
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        if (index["format"], index["vocab_sha256"]) != (FORMAT, tokenizer.VOCAB_SHA256):
            raise ValueError("it is of another format or vocabulary")
        digests = sha256_of_each([folder / shard["file"] for shard in index["shards"]])
        for shard, digest in zip(index["shards"], digests):
            if digest != shard["sha256"]:
                raise ValueError(f"{shard['file']} is damaged")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is no list of token shards: {error}") from None
    return index


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name != ".lock":
            path.unlink()
