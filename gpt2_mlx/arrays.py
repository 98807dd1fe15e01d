"""Arrays in safetensors files, and errors that name the file."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlx.core as mx


@contextmanager
def named(path: Path, problem: str = "") -> Iterator[None]:
    """Add to an error the path that it is about. MLX raises RuntimeErrors, some of them only when it evaluates."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{path}{problem}: {str(error).splitlines()[0]}") from None


def read_arrays(path: Path) -> dict[str, mx.array]:
    with named(path, " cannot be read"):
        return mx.load(str(path))


def write_arrays(path: Path, arrays: dict[str, mx.array]) -> None:
    try:
        mx.save_safetensors(str(path), arrays, metadata={"format": "pt"})  # transformers asks for a format
    except RuntimeError as error:
        raise OSError(f"{path} cannot be written: {str(error).splitlines()[0]}") from None
