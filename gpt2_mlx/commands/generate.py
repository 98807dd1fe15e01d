"""python -m gpt2_mlx generate: a text in the terminal."""

import secrets
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from .. import checkpoint, device, pretrained, tokenizer
from ..generation.text import stream


@dataclass(frozen=True)
class Generate:
    """Go on with a text. It is written to stdout as it comes; the speed is told on stderr."""

    prompt: Annotated[str, tyro.conf.Positional]
    """The text to go on with."""
    checkpoint: str | None = None
    """Run, checkpoint folder, gpt2 ... gpt2-xl, or owner/name on the hub. Default: the newest run in checkpoints/."""
    max_tokens: int = 50
    """The most tokens to generate."""
    temperature: float = 0.8
    """What the logits are divided by; 0 takes the likeliest token each time."""
    top_k: int = 50
    """Draw from so many of the likeliest tokens; 0 is all."""
    top_p: float = 1.0
    """Draw from the fewest tokens whose probabilities sum to this."""
    min_p: float = 0.0
    """Draw from tokens at least this times as likely as the likeliest."""
    repetition_penalty: float = 1.0
    """More than 1 makes tokens seen before less likely."""
    stop: tuple[str, ...] = ()
    """Strings that end the text and are kept out of it."""
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 1
    """How many texts."""
    seed: int | None = None
    """What the draws follow from; text number i has seed + i. Default: another one each time, told on stderr."""
    device: Literal["auto", "gpu", "cpu"] = "auto"
    """Where to compute."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of weights, cache and computation."""
    quantize: Literal[8, 4] | None = None
    """Round the matrices to so many bits a weight: less memory, some loss of quality. Slower on Linux CPUs."""


def generate(flags: Generate) -> None:
    device.select(flags.device)
    source = flags.checkpoint or checkpoint.newest_run(Path("checkpoints"))
    model, encoding = checkpoint.load(pretrained.find(source), flags.dtype, flags.quantize), tokenizer.load()
    seed = secrets.randbits(32) if flags.seed is None else flags.seed
    names = ("max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "stop")
    params = {name: getattr(flags, name) for name in names}
    began, pieces = time.perf_counter(), []
    for i in range(flags.n):
        print(flags.prompt, end="", flush=True)
        for piece in stream(model, encoding, flags.prompt, seed=seed + i, **params):
            print(piece, end="", flush=True)
            pieces.append(piece)
        print("\n---" if i < flags.n - 1 else "")
    seconds = time.perf_counter() - began
    count = len(encoding.encode_ordinary("".join(pieces)))
    print(f"[{source}, seed {seed}: {count} tokens, {count / seconds:,.1f} tokens/s]", file=sys.stderr)
