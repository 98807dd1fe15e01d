"""Checks of the mathematics: this machine against NumPy in float64."""

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from ..tokenizer import VOCAB_SIZE
from ..training.loss import cross_entropy
from . import reference
from .finding import Finding, difference, within, worst
from .specimens import SHAPE, as_float64, model, tokens
from .tolerance import product_error, tolerance


def products(_: Path) -> Finding:
    return within(product_error(), 2e-3)


def quantized(_: Path) -> Finding:
    """Products with weights in 8 and 4 bits, for which a GPU has kernels by the number of rows."""
    errors = {}
    for dtype in ("float32", "float16"):
        for bits in (8, 4):
            x, layer = _quantized_layer(bits, dtype)
            weight = _dequantized(layer)  # (out, in)
            for n in (1, 5, 32):
                got = layer(x[:n]).astype(mx.float32)
                expected = reference.product(np.array(x[:n], np.float64), weight)
                errors[f"{n} rows, {bits} bits, {dtype}"] = difference(got, expected), 4 * tolerance(dtype)
    return worst(errors)


def _quantized_layer(bits: int, dtype: str) -> tuple[mx.array, nn.QuantizedLinear]:
    """Rows (32, 256) and a layer from 256 to 192 numbers, both in a type."""
    random = np.random.RandomState(bits)
    layer = nn.Linear(256, 192, bias=False)
    layer.weight = mx.array(random.standard_normal((192, 256)))
    layer.set_dtype(getattr(mx, dtype))
    return mx.array(random.standard_normal((32, 256))).astype(layer.weight.dtype), layer.to_quantized(64, bits)


def _dequantized(layer: nn.QuantizedLinear) -> np.ndarray:
    """The weights (out, in), unpacked in NumPy: 64 of a row share a scale and an offset; the lowest bits come first."""
    packed = np.array(layer.weight)  # (out, in * bits / 32) uint32
    shifts = np.arange(0, 32, layer.bits, dtype=np.uint32)
    whole = packed[..., None] >> shifts & (2**layer.bits - 1)  # (out, in * bits / 32, 32 / bits)
    scales, offsets = (np.array(a, np.float64)[..., None] for a in (layer.scales, layer.biases))  # (out, in / 64, 1)
    return (whole.reshape(*scales.shape[:2], 64) * scales + offsets).reshape(len(packed), -1)


def logits(_: Path) -> Finding:
    specimen, text = model(), tokens(2, SHAPE.block_size)
    expected = reference.logits(as_float64(specimen), text, SHAPE.n_layer, SHAPE.n_head)
    return within(difference(specimen(mx.array(text)), expected), tolerance())


def gradient(_: Path) -> Finding:
    """Each parameter's gradient along a random direction, against the difference of two losses of the reference."""
    random, distance = np.random.RandomState(1), 1e-5
    specimen, text, targets = model(), tokens(1, 24), tokens(1, 24, seed=1)

    def loss(tokens: mx.array, targets: mx.array) -> mx.array:
        return cross_entropy(specimen.hidden(tokens), specimen.wte.weight, targets)[0]

    gradients = nn.value_and_grad(specimen, loss)(mx.array(text), mx.array(targets))[1]
    parameters, largest = as_float64(specimen), 0.0
    for name, g in tree_flatten(gradients):
        g, direction = np.array(g, np.float64), random.standard_normal(g.shape)
        plus, minus = (
            reference.loss({**parameters, name: parameters[name] + by * direction}, text, targets, 2, SHAPE.n_head)
            for by in (distance, -distance)
        )
        error = abs((g * direction).sum() - (plus - minus) / (2 * distance)) / max(np.linalg.norm(g), 1e-3)
        largest = max(largest, error) if error == error else error  # a nan stays
    return within(largest, 10 * tolerance())


def loss(_: Path) -> Finding:
    """The model's cross entropy over the whole vocabulary against the one of mlx.nn: value and gradients."""
    hidden = mx.random.normal((256, 64), key=mx.random.key(0))
    wte = mx.random.normal((VOCAB_SIZE, 64), key=mx.random.key(1)) * 0.3
    targets = mx.random.randint(0, VOCAB_SIZE, (256,), key=mx.random.key(2))

    def both(loss) -> list[mx.array]:
        value, gradients = mx.compile(mx.value_and_grad(loss, argnums=(0, 1)))(hidden, wte)
        return [value, *gradients]

    ours = both(lambda h, w: cross_entropy(h, w, targets)[0])
    plain = both(lambda h, w: nn.losses.cross_entropy(h @ w.T, targets, reduction="sum"))
    return within(max(difference(*pair) for pair in zip(ours, plain)), 2 * tolerance())
