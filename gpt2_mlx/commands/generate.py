"""gpt2-mlx generate: a text in the terminal."""

import dataclasses
import secrets
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from .. import checkpoint, cli, tokenizer
from ..generation.params import Sampling
from ..generation.text import stream
from ..pretrained import LoadConfig


@dataclass(frozen=True, kw_only=True)
class Generate(LoadConfig, Sampling):
    """Go on with a text. It is written to stdout as it comes; the speed is told on stderr."""

    prompt: Annotated[str, tyro.conf.Positional]
    """The text to go on with."""
    checkpoint: str | None = None
    """Run, checkpoint folder, gpt2 ... gpt2-xl, or owner/name on the hub. Default: the newest run in checkpoints/."""
    stop: tuple[str, ...] = ()
    """Strings that end the text and are kept out of it."""
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 1
    """How many texts."""
    seed: int | None = None
    """What the draws follow from; text number i has seed + i. Default: another one each time, told on stderr."""


def main() -> None:
    flags = cli.parse(Generate)
    source = flags.checkpoint or checkpoint.newest_run(Path("checkpoints"))
    model, encoding = flags.load(source), tokenizer.load()
    seed = secrets.randbits(32) if flags.seed is None else flags.seed
    params = {field.name: getattr(flags, field.name) for field in dataclasses.fields(Sampling)}
    began, pieces = time.perf_counter(), []
    for i in range(flags.n):
        print(flags.prompt, end="", flush=True)
        for piece in stream(model, encoding, flags.prompt, stop=flags.stop, seed=seed + i, **params):
            print(piece, end="", flush=True)
            pieces.append(piece)
        print("\n---" if i < flags.n - 1 else "")
    seconds = time.perf_counter() - began
    count = len(encoding.encode_ordinary("".join(pieces)))
    print(f"[{source}, seed {seed}: {count} tokens, {count / seconds:,.1f} tokens/s]", file=sys.stderr)
