"""The learning rate's schedule, and AdamW and Muon with decay on matrices only."""

import math
from collections.abc import Callable

import mlx.core as mx
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_map

from ..model import GPT2
from .config import TrainConfig


def learning_rate(step: int, config: TrainConfig) -> float:
    """The rate of step 0, 1, ... max_steps - 1: linear warm-up, then a cosine that ends at min_lr.

    Step 0 already learns, at learning_rate / warmup_steps; the last step is at min_lr.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps + 1) / max(1, config.max_steps - config.warmup_steps)
    return config.min_lr + (config.learning_rate - config.min_lr) * (1 + math.cos(math.pi * min(1, progress))) / 2


class Muon(optim.Muon):
    """MLX's Muon (Jordan et al. 2024) with decoupled weight decay, at AdamW's scale.

    An orthogonal (m, n) update has elements of root mean square 1 / sqrt(max(m, n)). Scaled by 0.2 sqrt(max(m, n)),
    as Liu et al. 2025 ("Muon is scalable for LLM training", section 2.2) do, it moves weights as far as AdamW does, so
    that one learning rate and one decay serve both.
    """

    def __init__(self, learning_rate: float, decay: float):
        super().__init__(learning_rate, momentum=0.95, weight_decay=0)
        self.decay = decay

    def apply_single(self, gradient: mx.array, parameter: mx.array, state: dict) -> mx.array:
        m, n = parameter.shape
        moved = super().apply_single(gradient, mx.zeros_like(parameter), state)  # -rate * max(1, m / n)^0.5 * update
        scale = 0.2 * max(m, n) ** 0.5 / max(1, m / n) ** 0.5
        return parameter * (1 - self.learning_rate * self.decay) + scale * moved


def group(name: str, parameter: mx.array, optimizer: str) -> str:
    """Which rule updates a parameter: "muon" (hidden matrices), "decay" (other matrices) or "plain" (vectors)."""
    if parameter.ndim < 2:
        return "plain"
    return "muon" if optimizer == "muon" and name.startswith("h.") else "decay"


def build(config: TrainConfig, model: GPT2) -> optim.MultiOptimizer:
    """The optimizer of a run, its state made. The learning rate is set before each step."""

    def adamw(weight_decay: float) -> optim.AdamW:
        return optim.AdamW(0.0, betas=[0.9, config.beta2], weight_decay=weight_decay, bias_correction=True)

    def is_in(name: str):
        return lambda path, parameter: group(path, parameter, config.optimizer) == name

    rules = [Muon(0.0, config.weight_decay)] if config.optimizer == "muon" else []
    filters = [is_in("muon")] if config.optimizer == "muon" else []
    optimizer = optim.MultiOptimizer(
        [*rules, adamw(config.weight_decay), adamw(0.0)],
        [*filters, is_in("decay")],
    )
    optimizer.init(model.trainable_parameters())
    mx.eval(optimizer.state)
    return optimizer


def guarded_update(
    model: GPT2, optimizer: optim.MultiOptimizer, gradients: dict, rate: mx.array, max_norm: float
) -> tuple[mx.array, mx.array]:
    """Clip the gradients to a global norm (0: do not) and update the model, unless the norm is not finite.

    A step whose gradients hold a nan or an infinity leaves the model and the optimizer as they were.

    Returns:
        The norm before clipping, and whether the step was taken, both scalars.
    """
    # row by row: one float32 sum over millions of squares on a CPU falls short by percents
    norm = mx.sqrt(sum(mx.sum(mx.sum(mx.square(g), axis=-1)) for _, g in tree_flatten(gradients)))
    finite = mx.isfinite(norm)
    if max_norm > 0:
        factor = mx.minimum(1, max_norm / (norm + 1e-6))
        gradients = tree_map(lambda g: g * factor, gradients)
    old_state = tree_map(lambda s: s, optimizer.state)
    old_parameters = model.trainable_parameters()
    optimizer.learning_rate = rate
    new_parameters = optimizer.apply_gradients(gradients, old_parameters)

    def keep(new: mx.array, old: mx.array) -> mx.array:
        return mx.where(finite, new, old)

    model.update(tree_map(keep, new_parameters, old_parameters))
    _replace(optimizer.state, old_state, keep)
    return norm, finite


def set_state(optimizer: optim.MultiOptimizer, state: dict) -> None:
    """Give the optimizer another state of the same shape."""
    _replace(optimizer.state, state, lambda _, new: new)


def _replace(tree: dict | list, other: dict | list, choose: Callable[[mx.array, mx.array], mx.array]) -> None:
    """tree_map in place: mx.compile knows its state by the containers."""
    for key in tree if isinstance(tree, dict) else range(len(tree)):
        if isinstance(tree[key], mx.array):
            tree[key] = choose(tree[key], other[key])
        else:
            _replace(tree[key], other[key], choose)
