"""Quantised weights, multiplied out: packed integers, times the scale and plus the offset of their group."""

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from .model import GPT2


def weight(layer: nn.Module) -> mx.array:
    """The weight of a layer, multiplied out where it is quantised: (out, in), not yet evaluated."""
    if "scales" not in layer:
        return layer.weight
    return mx.dequantize(layer.weight, layer.scales, layer.get("biases"), layer.group_size, layer.bits, layer.mode)


def multiply_out(model: GPT2) -> None:
    """Make of the quantised layers of a model plain ones; it then gives the same logits but for rounding."""
    plain = []
    for name, layer in tree_flatten(model.leaf_modules(), is_leaf=nn.Module.is_module):
        if "scales" in layer:
            new = nn.Linear(1, 1) if isinstance(layer, nn.QuantizedLinear) else nn.Embedding(1, 1)
            new.weight = weight(layer)
            if "bias" in layer:
                new.bias = layer.bias
            plain.append((name, new))
    model.update_modules(tree_unflatten(plain))
