"""LoRA (Hu et al. 2021): a frozen model learns by low-rank matrices that are added to its projections.

Shapes: r rank; a projection's weight is (out, in), `lora_a` (in, r), `lora_b` (r, out).
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from . import quantized
from .model import GPT2, dropout

TARGETS = {  # the projections of a block, and their inputs' and outputs' widths in units of n_embd
    "attn.c_attn": (1, 3),
    "attn.c_proj": (1, 1),
    "mlp.c_fc": (1, 4),
    "mlp.c_proj": (4, 1),
}
_OWN_KEYS = 0x4C6F5241  # turns the key of a micro-batch into another one, whose masks are unlike the model's


@dataclass(frozen=True, kw_only=True)
class LoRA:
    """An adapter's shape, and the base that it was made for."""

    rank: int
    alpha: float  # what is added is multiplied by alpha / rank
    dropout: float
    layers: int  # the number of blocks that it changes, the last ones
    targets: tuple[str, ...]  # which of `TARGETS` it changes
    base: str = ""  # a name of the Hugging Face hub or a folder
    sha256: str = ""  # of the base's weights
    quantize: int | None = None  # the bits to which the base's blocks are rounded
    dtype: str = "float32"  # the type in which they are rounded

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def _kept(x: mx.array) -> mx.array:
    return x


class LoRALinear(nn.Module):
    """linear(x) + scale (drop(x) a) b. Only a and b learn; a begins uniform in +-1/sqrt(in), b at 0."""

    def __init__(self, linear: nn.Linear | nn.QuantizedLinear, rank: int, scale: float, key: mx.array):
        super().__init__()
        n_out, n_in = linear.weight.shape
        if isinstance(linear, nn.QuantizedLinear):
            n_in = linear.scales.shape[1] * linear.group_size
        self.linear, self.scale = linear, scale
        self.drop = _kept
        self.lora_a = mx.random.uniform(-1 / math.sqrt(n_in), 1 / math.sqrt(n_in), (n_in, rank), key=key)
        self.lora_b = mx.zeros((rank, n_out))

    def __call__(self, x: mx.array) -> mx.array:
        y = self.linear(x)  # (..., in) -> (..., out)
        return y + (self.scale * (self.drop(x) @ self.lora_a @ self.lora_b)).astype(y.dtype)


def add(model: GPT2, lora: LoRA, seed: int) -> None:
    """Freeze a model and add an adapter to it, whose initial values follow from the seed. At first it changes nothing.

    Raises a ValueError where it has more blocks than the model.
    """
    n_layer = model.config.n_layer
    if lora.layers > n_layer:
        raise ValueError(f"--lora-layers is {lora.layers}; the model has {n_layer} blocks")
    model.freeze()
    model.lora = lora
    keys = iter(mx.random.split(mx.random.key(seed), lora.layers * len(TARGETS)))
    for block in model.h[n_layer - lora.layers :]:
        modules = dict(block.named_modules())
        own = {name: LoRALinear(modules[name], lora.rank, lora.scale, next(keys)) for name in lora.targets}
        block.update_modules(tree_unflatten(list(own.items())))
    mx.eval(model.trainable_parameters())


@contextmanager
def dropping(model: GPT2, key: mx.array) -> Iterator[None]:
    """Drop inputs of the adapter of a model, if it has one, by masks that follow from this key, within the block.

    Gradients must be asked for in the block too: a recomputed forward pass drops the same elements.
    """
    if not (model.lora and model.lora.dropout):
        yield
        return
    layers = [layer for layer in model.modules() if isinstance(layer, LoRALinear)]
    for layer, own_key in zip(layers, mx.random.split(key ^ _OWN_KEYS, len(layers))):
        layer.drop = partial(dropout, p=model.lora.dropout, key=own_key)
    try:
        yield
    finally:
        for layer in layers:
            layer.drop = _kept


def fuse(model: GPT2, arrays: dict[str, mx.array], scale: float) -> None:
    """Add an adapter to the weights of a model without layers of an adapter: W + scale (a b)^T, summed in float32.

    `arrays` holds `lora_a` and `lora_b` by names such as "h.0.attn.c_attn.lora_a".
    """
    parameters = dict(tree_flatten(model.parameters()))
    for name in (name.removesuffix(".lora_a") for name in arrays if name.endswith(".lora_a")):
        a, b = (arrays[f"{name}.lora_{which}"].astype(mx.float32) for which in "ab")
        weight = parameters[f"{name}.weight"]
        fused = weight.astype(mx.float32) + scale * (a @ b).T
        model.update(tree_unflatten([(f"{name}.weight", fused.astype(weight.dtype))]))


def round_blocks(model: GPT2, bits: int, dtype: str) -> None:
    """Round the matrices of the blocks as a frozen base is rounded, and multiply them out again, in their own type."""
    own = model.dtype
    for block in model.h:
        block.apply(lambda p: p.astype(getattr(mx, dtype)) if p.ndim == 2 else p)
    model.quantize(bits, head=False)
    quantized.multiply_out(model)
    for block in model.h:
        block.apply(lambda p: p.astype(own))
