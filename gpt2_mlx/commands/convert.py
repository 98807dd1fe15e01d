"""gpt2-mlx convert: a model as a checkpoint folder of another type, or as a GGUF file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from .. import adapter, card, checkpoint, cli, device, pretrained
from ..model import GPT2


@dataclass(frozen=True)
class Convert:
    """Write a model in another type or quantised: as a checkpoint folder, or as a GGUF file for llama.cpp."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SRC")]
    """Run, checkpoint folder, gpt2 ... gpt2-xl, or owner/name on the hub."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DST")]
    """The folder to write, or the file where the name ends in .gguf (llama.cpp, Ollama and LM Studio open it). It must
    not exist."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Type of the weights; in a quantised folder, of those that are not quantised; in a GGUF file, of the matrices.
    Default: the stored type."""
    quantize: Literal[8, 4] | None = None
    """Round the matrices to 8 or 4 bits per weight. mlx_lm opens such a folder, transformers does not. In a GGUF file
    these are Q8_0 and Q4_0."""
    fuse: bool = False
    """Write an adapter and its base as one whole model. Without it an adapter becomes a GGUF file of its own, for
    llama.cpp's --lora; its folder opens in peft and mlx_lm as it is."""
    card: bool = False
    """Add a model card to the folder, README.md: what the model is and learned from, its losses, how to load it."""


def main() -> None:
    flags = cli.parse(Convert)
    if flags.out.exists():
        raise ValueError(f"{flags.out} exists already")
    write = _write_gguf if flags.out.suffix == ".gguf" else _write_folder
    device.select()
    print(f"{flags.out}: {write(flags)}")


def _write_folder(flags: Convert) -> str:
    """Write a checkpoint folder and return its type and size in words."""
    folder = _find(flags)
    if adapter.is_in(folder) and not flags.fuse:
        raise ValueError(f"{flags.source} is an adapter: give --fuse to write it and its base as one model")
    model = pretrained.load(folder, flags.dtype, flags.quantize)
    files = card.files(flags.source, folder, flags.out.name, model.quantization) if flags.card else {}
    checkpoint.save(flags.out, model, vocabulary=pretrained.vocabulary(folder))
    for name, content in files.items():
        (flags.out / name).write_bytes(content)
    bits = f", matrices in {model.quantization['bits']} bits" if model.quantization else ""
    return f"{_name(model.dtype)}{bits}, {_megabytes(flags.out / 'model.safetensors')}"


def _write_gguf(flags: Convert) -> str:
    """The same for a GGUF file."""
    from .. import gguf  # here, since its package takes a quarter of a second

    if flags.card:
        raise ValueError(f"--card writes README.md into a folder, but {flags.out} is a file")
    if flags.quantize and flags.dtype:
        raise ValueError(f"--dtype is {flags.dtype}, but --quantize {flags.quantize} is the type of a GGUF's matrices")
    folder = _find(flags)
    if adapter.is_in(folder) and not flags.fuse:
        return _write_gguf_adapter(flags, folder)
    model = pretrained.load(folder, flags.dtype)
    gguf.save(flags.out, model, pretrained.vocabulary(folder), flags.quantize)
    kind = {8: "Q8_0", 4: "Q4_0"}.get(flags.quantize) or _name(model.dtype)
    return f"GGUF, matrices in {kind}, {_megabytes(flags.out)}"


def _write_gguf_adapter(flags: Convert, folder: Path) -> str:
    """The same for an adapter without its base."""
    from .. import gguf

    for name in ("quantize", "dtype"):
        if value := getattr(flags, name):
            raise ValueError(f"--{name} is {value}, but an adapter is written in float32; --fuse makes it a model")
    config = pretrained.read_config(folder)
    gguf.save_adapter(flags.out, *adapter.read(folder, GPT2(config)), config.n_layer)
    bits, _ = adapter.rounding(folder)
    note = f"; it learned beside a base in {bits} bits, which only --fuse gives exactly" if bits else ""
    return f"GGUF, an adapter of {adapter.base(folder)[0]}, {_megabytes(flags.out)}{note}"


def _find(flags: Convert) -> Path:
    folder = pretrained.find(flags.source)
    if flags.fuse and not adapter.is_in(folder):
        raise ValueError(f"--fuse is given, but {flags.source} is no adapter")
    return folder


def _name(dtype) -> str:
    return str(dtype).removeprefix("mlx.core.")


def _megabytes(file: Path) -> str:
    return f"{file.stat().st_size / 1e6:,.1f} MB"
