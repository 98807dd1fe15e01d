"""python -m gpt2_mlx: generate, evaluate and convert models; doctor checks the machine."""

import os
import secrets
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

import gpt2_mlx

from . import checkpoint, cli, device, pretrained
from .commands.doctor import Doctor, doctor
from .commands.evaluate import Evaluate, evaluate
from .generation.text import stream


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
    n: int = 1
    """How many texts."""
    seed: int | None = None
    """What the draws follow from; text number i has seed + i. Default: another one each time, told on stderr."""
    device: Literal["auto", "gpu", "cpu"] = "auto"
    """Where to compute."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of weights, cache and computation."""
    quantize: Literal[8, 4] | None = None
    """Round the matrices to so many bits a weight: less memory, some loss of quality. Slower on Linux CPUs."""


@dataclass(frozen=True)
class Convert:
    """Write a model as a checkpoint folder, in another type or quantised."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SRC")]
    """Run, checkpoint folder, gpt2 ... gpt2-xl, or owner/name on the hub."""
    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DST")]
    """The folder to write; it must not exist."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Type of the weights; of a quantised model, of all that is not. Default: as they are stored."""
    quantize: Literal[8, 4] | None = None
    """Round the matrices to so many bits a weight. mlx_lm opens such a folder, transformers does not."""


def generate(flags: Generate) -> None:
    device.select(flags.device)
    source = flags.checkpoint or checkpoint.newest_run(Path("checkpoints"))
    model, tokenizer = gpt2_mlx.load(source, flags.dtype, flags.quantize)
    seed = secrets.randbits(32) if flags.seed is None else flags.seed
    names = ("max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "stop")
    params = {name: getattr(flags, name) for name in names}
    began, pieces = time.perf_counter(), []
    for i in range(flags.n):
        print(flags.prompt, end="", flush=True)
        for piece in stream(model, tokenizer, flags.prompt, seed=seed + i, **params):
            print(piece, end="", flush=True)
            pieces.append(piece)
        print("\n---" if i < flags.n - 1 else "")
    seconds = time.perf_counter() - began
    count = len(tokenizer.encode_ordinary("".join(pieces)))
    print(f"[{source}, seed {seed}: {count} tokens, {count / seconds:,.1f} tokens/s]", file=sys.stderr)


def convert(flags: Convert) -> None:
    if flags.folder.exists():
        raise ValueError(f"{flags.folder} exists already")
    device.select()
    model = checkpoint.load(pretrained.find(flags.source), flags.dtype, flags.quantize)
    checkpoint.save(flags.folder, model)
    kind = str(model.dtype).removeprefix("mlx.core.")
    bits = f", matrices in {model.quantization['bits']} bits" if model.quantization else ""
    size = (flags.folder / "model.safetensors").stat().st_size
    print(f"{flags.folder}: {kind}{bits}, {size / 1e6:,.1f} MB")


def main() -> None:
    commands = {Generate: generate, Evaluate: evaluate, Convert: convert, Doctor: doctor}
    flags = cli.parse_command("python -m gpt2_mlx", {settings.__name__.lower(): settings for settings in commands})
    try:
        commands[type(flags)](flags)
    except BrokenPipeError:  # `| head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None


if __name__ == "__main__":
    cli.run(main)
