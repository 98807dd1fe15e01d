"""Token shards: a text as a folder of files of tokens. It is written once; any part of it can be read.

    shards.json         format, vocab_sha256, key, next, and for each shard its file, tokens and sha256
    tokens-00000.bin    uint16, little-endian, in the order of the text; <|endoftext|> between two documents
    merges.txt          the vocabulary, where it is not GPT-2's

`key` tells texts apart. `next` is the position where an unfinished preparation continues, null when all is written.
A shard gets its name when it is whole, and then its entry in shards.json.
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
from ..files import lock, new_file, sha256_of_each, write_json
from ..tokenizer import Vocabulary
from . import documents

INDEX, MERGES = "shards.json", "merges.txt"
FORMAT = 1  # to be raised when the same text would be cut into other shards
SHARD_TOKENS = 1 << 25  # 67 MB; a killed preparation loses at most the work on one shard
_COUNTED_AT_ONCE = 1 << 22  # tokens that are held in memory to be counted
DTYPE = np.dtype("<u2")


class Position(NamedTuple):
    """A place between two pieces of a text."""

    file: int
    piece: int  # the number of the next piece in this file
    read: int  # bytes of all files before this place, about


Bundle = list[tuple[bool, str]]  # pieces, each with whether <|endoftext|> comes before it
Encoded = Iterator[tuple[np.ndarray, Position | None]]  # tokens (n,) uint16 and the position after them; None: the end


class Tokens:
    """Tokens of a folder of shards, (n,) uint16, on the disk. A slice is still on the disk; `np.asarray` reads it.

    The files are not mapped into memory, since every page that was touched would count as memory of the process.
    """

    def __init__(self, files: list[Path], ends: np.ndarray, start: int, stop: int):
        self._files, self._ends = files, ends  # ends: (shards,) int64, the position after the last token of each shard
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


AnyTokens = Tokens | np.ndarray  # (n,) uint16, on the disk or in memory


def vocabulary(folder: Path) -> Vocabulary:
    """The vocabulary of a folder's tokens. Raises a ValueError where it cannot be read."""
    path = folder / MERGES
    return tokenizer.read(path) if path.exists() else tokenizer.gpt2()


def read(folder: Path, vocabulary: Vocabulary) -> tuple[Tokens, str]:
    """The tokens of a folder and their key.

    Raises a ValueError with the reason where its shards are not whole or are of another vocabulary.
    """
    index = _read_index(folder, vocabulary)
    if index["next"]:
        raise ValueError(f"{folder} is not finished: start a training on its text, which continues the preparation")
    ends = np.cumsum([shard["tokens"] for shard in index["shards"]], dtype=np.int64)
    return Tokens([folder / shard["file"] for shard in index["shards"]], ends, 0, int(ends[-1])), index["key"]


def prepare(name: str, files: tuple[Path, ...], folder: Path, key: str, vocabulary: Vocabulary) -> None:
    """Tokenize files into a folder, or continue where an earlier call was interrupted; damaged shards are made again.

    The shards follow from the files alone, not from interruptions or the number of cores. `name` is what messages call
    the text, and `key` is stored. Raises a ValueError, and leaves no shard, where the files hold no token or one of
    them is not what its name says.
    """
    try:
        held = lock(folder)
    except ValueError:
        print(f"waiting for another process, which tokenizes {name}", flush=True)
        held = lock(folder, wait=True)
    with held:
        try:
            _write_rest(name, files, folder, key, vocabulary)
        except ValueError:
            _clear(folder)
            raise
        except (KeyboardInterrupt, SystemExit):
            print(f"stopped while tokenizing {name}: the same command goes on from here", flush=True)
            raise


def _write_rest(name: str, files: tuple[Path, ...], folder: Path, key: str, vocabulary: Vocabulary) -> None:
    index = _begin(folder, key, vocabulary)
    if not index["next"]:
        return
    position, size = Position(*index["next"]), sum(file.stat().st_size for file in files)
    # disable=None: no bar where stderr is no terminal
    bar = tqdm(desc=f"tokenizing {name}", total=size, unit="B", unit_scale=True, leave=False, disable=None)
    bar.update(position.read)
    with bar, ThreadPoolExecutor(device.cpu_count()) as pool:
        tokens = encoded(pool, _bundles(files, position), vocabulary)
        while position:
            shard, position = _write_shard(folder / f"tokens-{len(index['shards']):05d}.bin", tokens, bar)
            if not shard["tokens"]:
                raise ValueError(f"{name} is empty: {', '.join(map(str, files))}")
            index = {**index, "next": position, "shards": [*index["shards"], shard]}
            with new_file(folder / INDEX) as aside:
                write_json(aside, index)


def _write_shard(path: Path, tokens: Encoded, bar: tqdm) -> tuple[dict, Position | None]:
    """Write the next shard; returns its entry in shards.json and the position after it."""
    count, digest, position = 0, sha256(), None
    with new_file(path) as aside, aside.open("wb") as file:
        for array, position in tokens:
            file.write(array)
            digest.update(array)
            count += len(array)
            bar.update((position.read if position else bar.total) - bar.n)
            if count >= SHARD_TOKENS:
                break
    return {"file": path.name, "tokens": count, "sha256": digest.hexdigest()}, position


def encoded(pool: Executor, bundles: Iterator[tuple[Bundle, Position | None]], vocabulary: Vocabulary) -> Encoded:
    """The tokens of each bundle, in order. Threads make them, since tiktoken releases Python's lock."""
    waiting = deque()
    for bundle, position in bundles:
        waiting.append((pool.submit(_encode, vocabulary, bundle), position))
        if len(waiting) > 8 * device.cpu_count():  # enough work for the threads while a shard is synced
            future, reached = waiting.popleft()
            yield future.result(), reached
    for future, reached in waiting:
        yield future.result(), reached


def _encode(vocabulary: Vocabulary, bundle: Bundle) -> np.ndarray:
    arrays = [np.empty(0, DTYPE)]
    for separate, piece in bundle:
        if separate:
            arrays.append(np.array([vocabulary.eot], DTYPE))
        arrays.append(tokenizer.encode(vocabulary.encoding, piece))
    return np.concatenate(arrays, dtype=DTYPE)


def _bundles(files: tuple[Path, ...], start: Position) -> Iterator[tuple[Bundle, Position | None]]:
    """Yield bundles of about `PIECE_CHARS` characters from a position on, and the position after each."""
    bundle, size, read = [], 0, sum(file.stat().st_size for file in files[: start.file])
    for i in range(start.file, len(files)):
        with files[i].open("rb") as file:
            for j, (begins, piece) in enumerate(documents.pieces(file, str(files[i]))):
                if (i, j) < start[:2]:
                    continue
                if size >= documents.PIECE_CHARS:
                    yield bundle, Position(i, j, read + file.tell())
                    bundle, size = [], 0
                bundle.append((begins and (i, j) > (0, 0), piece))
                size += len(piece)
        read += files[i].stat().st_size
    yield bundle, None


def _begin(folder: Path, key: str, vocabulary: Vocabulary) -> dict:
    """The index that an earlier call left for this text, if its shards are sound; else a new index."""
    try:
        index = _read_index(folder, vocabulary)
        if index["key"] == key:
            return index
    except ValueError:
        pass
    _clear(folder)
    if vocabulary != tokenizer.gpt2():
        with new_file(folder / MERGES) as aside:
            aside.write_bytes(vocabulary.merges.encode())
    first = Position(0, 0, 0)
    return {"format": FORMAT, "vocab_sha256": vocabulary.sha256, "key": key, "next": first, "shards": []}


def _read_index(folder: Path, vocabulary: Vocabulary) -> dict:
    """The content of shards.json. Raises a ValueError where it does not describe the shards that are there."""
    path = folder / INDEX
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        if (index["format"], index["vocab_sha256"]) != (FORMAT, vocabulary.sha256):
            raise ValueError(f"it is of another format or vocabulary than {vocabulary.name}")
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


def count_bytes(encoding: tiktoken.Encoding, tokens: AnyTokens) -> int:
    """The bytes of text that tokens spell; <|endoftext|> spells none."""
    counts = count_tokens(tokens)
    ids = (int(id) for id in np.flatnonzero(counts) if id != encoding.eot_token)
    return sum(int(counts[id]) * len(tokenizer.token_bytes(encoding, id)) for id in ids)


def count_tokens(tokens: AnyTokens) -> np.ndarray:
    """How often each token occurs: (65536,)."""
    n = _COUNTED_AT_ONCE
    arrays = (np.asarray(tokens[start : start + n]) for start in range(0, len(tokens), n))
    return sum(np.bincount(array, minlength=2**16) for array in arrays)
