"""gpt2-mlx convert: a model as a checkpoint folder of another type."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from .. import checkpoint, cli, device, pretrained


@dataclass(frozen=True)
class Convert:
    """Write a model as a checkpoint folder, in another type or quantised."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SRC")]
    """Run, checkpoint folder, gpt2 ... gpt2-xl, or owner/name on the hub."""
    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DST")]
    """The folder to write; it must not exist."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Type of the weights; in a quantised model, of those that are not quantised. Default: the stored type."""
    quantize: Literal[8, 4] | None = None
    """Round the matrices to 8 or 4 bits per weight. mlx_lm opens such a folder, transformers does not."""


def main() -> None:
    flags = cli.parse(Convert)
    if flags.folder.exists():
        raise ValueError(f"{flags.folder} exists already")
    device.select()
    model = checkpoint.load(pretrained.find(flags.source), flags.dtype, flags.quantize)
    checkpoint.save(flags.folder, model)
    kind = str(model.dtype).removeprefix("mlx.core.")
    bits = f", matrices in {model.quantization['bits']} bits" if model.quantization else ""
    size = (flags.folder / "model.safetensors").stat().st_size
    print(f"{flags.folder}: {kind}{bits}, {size / 1e6:,.1f} MB")
