"""Models for tests."""

import mlx.core as mx
from mlx.utils import tree_map

from gpt2_mlx.config import GPT2Config
from gpt2_mlx.model import GPT2


def far_from_uniform(config: GPT2Config) -> GPT2:
    """One of random weights that are large, so that a wrong number anywhere becomes another token."""
    model = GPT2(config, seed=1)
    model.update(tree_map(lambda p: 8 * p if p.ndim == 2 else p, model.parameters()))
    mx.eval(model.parameters())
    return model
