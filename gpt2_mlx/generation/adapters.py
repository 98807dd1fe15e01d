"""`Adapters`: LoRA adapters beside one model; each row of a pass has one of them, or none.

Shapes: B rows, T tokens, R the ranks of all adapters together, each padded with zeros to a multiple of `LANES`.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_unflatten

from .. import adapter, checkpoint
from ..config import GPT2Config
from ..lora import TARGETS
from ..model import GPT2

LANES = 16  # an adapter's terms of a sum keep their lanes of a processor's vector, whichever others there are


class AdaptedLinear(nn.Module):
    """linear(x) + b (a x), of which each row counts what belongs to its adapter; a (R, in), b (out, R)."""

    def __init__(self, linear: nn.Linear | nn.QuantizedLinear, a: mx.array, b: mx.array):
        super().__init__()
        self.linear, self.a, self.b = linear, a, b
        self.chosen: slice | None = None  # what of R is multiplied
        self._own: mx.array | None = None  # (B, 1, R) what of it counts; all where it is None

    def choose(self, chosen: slice | None, own: mx.array | None) -> None:
        self.chosen, self._own = chosen, own

    def __call__(self, x: mx.array) -> mx.array:
        y = self.linear(x)  # (B, T, in) -> (B, T, out)
        if self.chosen is None:
            return y
        inner = x @ self.a[self.chosen].T  # (B, T, R)
        if self._own is not None:
            inner = mx.where(self._own, inner, 0)
        b = mx.contiguous(self.b[:, self.chosen])  # a BLAS sums otherwise over a part of rows
        return y + (inner @ b.T).astype(y.dtype)


class Adapters:
    """The adapters of a model. Number 0 is none; the others are counted from 1.

    All of them are one adapter of rank R, of which a row sees its own part. That takes two products for all rows, as
    a projection without adapters takes one, and a row's sums have the same bits whichever adapters the others have.

    Args:
        model: evaluated; projections that an adapter changes become an `AdaptedLinear`.
        folders: those of the adapters, by name.

    Attributes:
        block_sizes: the number of tokens that each can look back on, as it learned, none first.

    Raises:
        ValueError: an adapter does not fit the model or is broken.
    """

    def __init__(self, model: GPT2, folders: Mapping[str, Path] | None = None):
        folders = folders or {}
        found = [_read(name, folder, model) for name, folder in folders.items()]
        ranks = [_padded(_rank(arrays)) for arrays in found]
        ends = list(accumulate(ranks))
        self._parts = [slice(end - rank, end) for end, rank in zip(ends, ranks)]
        self._own = mx.array(np.repeat(np.eye(len(ranks) + 1, dtype=bool)[:, 1:], ranks, axis=1))  # (n + 1, R)
        self._layers = _adapt(model, found, self._parts)
        own_sizes = [_block_size(folder, model.config) for folder in folders.values()]
        self.block_sizes = [model.config.block_size, *own_sizes]

    def __len__(self) -> int:
        return len(self._parts)

    @contextmanager
    def chosen(self, numbers: int | mx.array | None) -> Iterator[None]:
        """Let passes in the block have an adapter: one for all rows, (B,) numbers, one for each, or None, all at once.

        All at once gives no text; it tries out what a processor does with the products.
        """
        part, own = slice(None), None
        if isinstance(numbers, int):
            part = self._parts[numbers - 1] if numbers else None
        elif numbers is not None:
            own = self._own[numbers][:, None]  # (B, 1, R)
        for layer in self._layers:
            layer.choose(part, own)
        try:
            yield
        finally:
            for layer in self._layers:
                layer.choose(None, None)


def size(folders: Mapping[str, Path], config: GPT2Config, dtype: str) -> int:
    """The most bytes that adapters take beside a model of this shape."""
    ranks = [_padded(_rank(adapter.stored(folder)[1])) for folder in folders.values()]
    widths = config.n_layer * config.n_embd * sum(n_in + n_out for n_in, n_out in TARGETS.values())
    return sum(ranks) * widths * getattr(mx, dtype).size


def _read(name: str, folder: Path, model: GPT2) -> dict[str, mx.array]:
    try:
        arrays, scale = adapter.read(folder, model)
    except ValueError as error:
        raise ValueError(f"adapter {name}: {error}") from None
    return {key: array.astype(mx.float32) * (scale if key.endswith("lora_b") else 1) for key, array in arrays.items()}


def _rank(arrays: dict[str, mx.array]) -> int:
    """The rank of an adapter; 0 where its file is none of an adapter, which `adapter.read` tells."""
    ranks = (array.shape[1] for name, array in arrays.items() if name.endswith("lora_a") and array.ndim == 2)
    return next(ranks, 0)


def _padded(rank: int) -> int:
    return -(-rank // LANES) * LANES


def _block_size(folder: Path, config: GPT2Config) -> int:
    is_told = (folder / "config.json").is_file()
    return min(checkpoint.read_config(folder).block_size, config.block_size) if is_told else config.block_size


def _adapt(model: GPT2, found: list[dict[str, mx.array]], parts: list[slice]) -> list[AdaptedLinear]:
    """Put `AdaptedLinear`s in place of the projections of a model that an adapter changes."""
    modules, layers = dict(model.named_modules()), {}
    for name in sorted({name.rpartition(".")[0] for arrays in found for name in arrays}):
        own = [(arrays, part) for arrays, part in zip(found, parts) if f"{name}.lora_a" in arrays]
        n_in, n_out = own[0][0][f"{name}.lora_a"].shape[0], own[0][0][f"{name}.lora_b"].shape[1]
        a, b = mx.zeros((parts[-1].stop, n_in)), mx.zeros((n_out, parts[-1].stop))
        for arrays, part in own:
            rank = _rank(arrays)
            a[part.start : part.start + rank] = arrays[f"{name}.lora_a"].T
            b[:, part.start : part.start + rank] = arrays[f"{name}.lora_b"].T
        layers[name] = AdaptedLinear(modules[name], a.astype(model.dtype), b.astype(model.dtype))
    model.update_modules(tree_unflatten(list(layers.items())))
    mx.eval([[layer.a, layer.b] for layer in layers.values()])
    return list(layers.values())
