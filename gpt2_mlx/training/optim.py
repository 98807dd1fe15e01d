"""The learning rate's schedule, and AdamW and Muon with decay on matrices only."""

import itertools
import math

import mlx.core as mx
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_map, tree_merge

from .. import device
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


class _Guarded(optim.Optimizer):
    """An optimizer of MLX that can skip a step."""

    def apply_gradients(self, gradients: dict, parameters: dict, rate: mx.array, taken: mx.array) -> dict:
        """The new parameters. Where the scalar `taken` is false, the parameters and the state keep their values."""
        step = self.step
        self.learning_rate, self._taken = mx.where(taken, rate, 0), taken
        updated = super().apply_gradients(gradients, parameters)
        self.state["step"] = mx.where(taken, self.step, step)
        return updated


def _apart(*arrays: mx.array) -> list[mx.array]:
    """The arrays, which `mx.compile` then computes in kernels of their own, apart from what is made of them.

    A kernel of one result writes it in the place of an argument that nobody else holds. One of several never does.
    """
    return mx.depends(list(arrays), [])


class AdamW(_Guarded, optim.AdamW):
    """MLX's AdamW (Loshchilov & Hutter 2019), written so that `mx.compile` makes few kernels per parameter.

    The `streams` update the parameters in turns.
    """

    def __init__(self, streams: list[mx.Stream], **settings):
        super().__init__(0.0, **settings)
        self._streams = itertools.cycle(streams)

    def apply_single(self, gradient: mx.array, parameter: mx.array, state: dict) -> mx.array:
        with mx.stream(next(self._streams)):
            return self._updated(gradient, parameter, state)

    def _updated(self, gradient: mx.array, parameter: mx.array, state: dict) -> mx.array:
        (b1, b2), rate, step = self.betas, self.learning_rate, self.step
        m = state["m"] = state["m"] + mx.where(self._taken, 1 - b1, 0) * (gradient - state["m"])
        v = state["v"] = state["v"] + mx.where(self._taken, 1 - b2, 0) * (gradient * gradient - state["v"])
        if parameter.ndim > 1:
            m, v = _apart(m, v)
        denominator = mx.sqrt(v) * mx.rsqrt(1 - b2**step) + self.eps
        return parameter * (1 - rate * self.weight_decay) - rate / (1 - b1**step) * m / denominator


class Muon(_Guarded, optim.Muon):
    """MLX's Muon (Jordan et al. 2024) with decoupled weight decay, at AdamW's scale.

    An orthogonal (m, n) update has elements of root mean square 1 / sqrt(max(m, n)). Scaled by 0.2 sqrt(max(m, n)),
    as Liu et al. 2025 ("Muon is scalable for LLM training", section 2.2) do, it moves weights as far as AdamW does, so
    that one learning rate and one decay serve both. The `streams` update the parameters in turns.
    """

    def __init__(self, decay: float, streams: list[mx.Stream]):
        super().__init__(0.0, momentum=0.95, weight_decay=0)
        self.decay = decay
        self._streams = itertools.cycle(streams)

    def apply_single(self, gradient: mx.array, parameter: mx.array, state: dict) -> mx.array:
        m, n = parameter.shape
        with mx.stream(next(self._streams)):
            v = self.momentum * state["v"] + (1 - self.momentum) * gradient
            state["v"] = mx.where(self._taken, v, state["v"])
            (v,) = _apart(state["v"])
            nesterov = gradient * (1 - self.momentum) + v * self.momentum
            orthogonal = self._zeropower_via_newtonschulz5(nesterov, self.ns_steps)
            shape = max(1, m / n) ** 0.5  # MLX's factor, which is taken back: runs from before keep their bits
            moved = (0 - self.learning_rate * shape * orthogonal) * (0.2 * max(m, n) ** 0.5 / shape)
            return parameter * (1 - self.learning_rate * self.decay) + moved


class Rules(optim.MultiOptimizer):
    """Several optimizers, each for its own parameters."""

    def apply_gradients(self, gradients: dict, parameters: dict, rate: mx.array, taken: mx.array) -> dict:
        """As `_Guarded.apply_gradients`."""
        updated: dict = {}
        for rule, own in zip(self.optimizers, self._split_dictionary(gradients)):
            updated = tree_merge(updated, rule.apply_gradients(own, parameters, rate, taken))
        return updated


def group(name: str, parameter: mx.array, optimizer: str) -> str:
    """The rule of a parameter: "tokens" (wte), "muon" (hidden matrices), "decay" (others) or "plain" (vectors)."""
    if parameter.ndim < 2:
        return "plain"
    if name.startswith("wte."):
        return "tokens"
    return "muon" if optimizer == "muon" and name.startswith("h.") else "decay"


def build(config: TrainConfig, model: GPT2, streams: list[mx.Stream]) -> Rules:
    """The optimizer of a run, with its initial state, for `guarded_update`."""
    each_core = device.streams_of_cores()

    def adamw(weight_decay: float, epsilon: float = 1e-8) -> AdamW:
        return AdamW(each_core, betas=[0.9, config.beta2], eps=epsilon, weight_decay=weight_decay)

    def is_in(name: str):
        return lambda path, parameter: group(path, parameter, config.optimizer) == name

    decay = config.weight_decay
    rules = {"tokens": adamw(decay, config.epsilon), "decay": adamw(decay), "plain": adamw(0)}
    if config.optimizer == "muon":
        rules = {"muon": Muon(decay, streams), **rules}
    optimizer = Rules([*rules.values()], [is_in(name) for name in rules if name != "plain"])  # the last takes the rest
    optimizer.init(model.trainable_parameters())
    mx.eval(optimizer.state)
    return optimizer


def guarded_update(
    model: GPT2, optimizer: Rules, sums: dict, count: mx.array, rate: mx.array, max_norm: float
) -> tuple[mx.array, mx.array]:
    """Clip the gradients to the global norm `max_norm` (0: do not clip) and update the model.

    The gradients are `sums` divided by the scalar `count`. If they hold a nan or an infinity, the step is not taken:
    model and optimizer stay as they were.

    Returns:
        The norm before clipping, and whether the step was taken, both scalars.
    """
    # row by row: on a CPU, one float32 sum over millions of squares is too small by several percent
    norm = mx.sqrt(sum(mx.sum(mx.sum(mx.square(g), axis=-1)) for _, g in tree_flatten(sums))) / count
    taken = mx.isfinite(norm)
    factor = (mx.minimum(1, max_norm / (norm + 1e-6)) if max_norm > 0 else 1) / count
    gradients = tree_map(lambda g: mx.where(taken, g * factor, 0), sums)
    model.update(optimizer.apply_gradients(gradients, model.trainable_parameters(), rate, taken))
    return norm, taken


def set_state(state: dict | list, other: dict | list) -> None:
    """Replace the arrays of an optimizer's state in place, since mx.compile identifies its state by the containers."""
    for key in state if isinstance(state, dict) else range(len(state)):
        if isinstance(state[key], mx.array):
            state[key] = other[key]
        else:
            set_state(state[key], other[key])
