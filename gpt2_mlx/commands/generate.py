"""gpt2-mlx generate: a text in the terminal."""

import dataclasses
import secrets
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from .. import checkpoint, cli, device, pretrained
from ..generation import draft_model
from ..generation.drafts import DraftConfig
from ..generation.params import Sampling
from ..generation.text import stream
from ..pretrained import LoadConfig


@dataclass(frozen=True, kw_only=True)
class Generate(LoadConfig, Sampling, DraftConfig):
    """Continue a text. It is written to stdout as it is generated; the speed is written to stderr."""

    prompt: Annotated[str, tyro.conf.Positional]
    """The text to continue."""
    checkpoint: str | None = None
    """Run, checkpoint folder, gpt2 ... gpt2-xl, or owner/name on the hub. Default: the newest run in checkpoints/."""
    stop: tuple[str, ...] = ()
    """Strings that end the text and are left out of it."""
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 1
    """The number of texts."""
    seed: int | None = None
    """The seed of the draws; text number i has seed + i. Default: a random one, which is written to stderr."""

    def __post_init__(self):
        Sampling.__post_init__(self)
        DraftConfig.__post_init__(self)


def main() -> None:
    flags = cli.parse(Generate)
    source = flags.checkpoint or checkpoint.newest_run(Path("checkpoints"))
    small = flags.draft_model and draft_model.find(flags.draft_model, pretrained.find(source))
    model, vocabulary = flags.load(source)
    encoding = vocabulary.encoding
    seed = secrets.randbits(32) if flags.seed is None else flags.seed
    params = {field.name: getattr(flags, field.name) for field in dataclasses.fields(Sampling)}
    drafting = pretrained.load(small, device.dtype(flags.dtype), flags.quantize) if small else None
    params |= {"speculate": flags.speculate, "draft_model": drafting}
    began, text = time.perf_counter(), ""
    for i in range(flags.n):
        print(flags.prompt, end="", flush=True)
        for new in stream(model, encoding, flags.prompt, stop=flags.stop, seed=seed + i, **params):
            print(new, end="", flush=True)
            text += new
        print("\n---" if i < flags.n - 1 else "")
    seconds = time.perf_counter() - began
    count = len(encoding.encode_ordinary(text))
    print(f"[{source}, seed {seed}: {count} tokens, {count / seconds:,.1f} tokens/s]", file=sys.stderr)
