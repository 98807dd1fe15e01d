"""The step: gradients of micro-batches, shared by streams and processes, and one update. Both are compiled."""

from functools import partial, reduce

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map

from .. import device
from ..lora import dropping
from ..model import GPT2
from . import memory, optim, precision, ranks
from .config import TrainConfig
from .loss import cross_entropy

Batch = tuple[mx.array, ...]  # tokens, targets, and of packed examples where they start: each (B, T) int32


def build(config: TrainConfig, model: GPT2) -> "Step":
    """The step of a model with its optimizer, for resolved settings. It limits MLX's memory to what the step needs."""
    arrays = [array for _, array in tree_flatten(model.parameters())]
    for array in arrays:  # one by one: what it was made from is let go before the next one
        mx.eval(array)
    held = sum(array.nbytes for array in arrays)
    device.work_within(memory.peak(config, ranks.size()) - held, ranks.here())
    return Step(config, model, device.streams(config.batch_size))


class Step:
    """Takes optimizer steps, which change the model in place.

    Each of the `streams`, those of `device.streams` for the batch size, takes some rows of a micro-batch.
    """

    def __init__(self, config: TrainConfig, model: GPT2, streams: list[mx.Stream]):
        self.config, self.model, self.streams = config, model, streams
        self.optimizer = optim.build(config, model, streams)
        state = [model.state, self.optimizer.state]
        if config.compile:
            self.gradients = mx.compile(self.gradients, inputs=state[:1])
            self.update = mx.compile(self.update, inputs=state, outputs=state)

    def __call__(
        self, batches: list[Batch], rate: float, number: int = 0, loss_scale: float = 1.0
    ) -> tuple[mx.array, mx.array, mx.array]:
        """One step on the micro-batches of all processes, whose last part is not yet evaluated.

        Args:
            batches: this process's micro-batches; every process has the same number of them.
            rate: the learning rate.
            number: the number of steps before this one; dropout follows from it and from the seed.
            loss_scale: the factor of the loss while its gradients are computed.

        Returns:
            The mean loss per token (nan where no target counts; then the gradients are 0), the gradients' norm before
            clipping, and whether the step was taken: scalars.
        """
        keys = [self._key(i) for i in ranks.own_micro_batches(number, len(batches))]
        scale = mx.array(loss_scale)
        sums = self.gradients(keys[0], scale, *batches[0])
        for batch, key in zip(batches[1:], keys[1:]):
            _evaluate(sums)  # one micro-batch's activations at a time
            sums = tree_map(mx.add, sums, self.gradients(key, scale, *batch))
        if ranks.size() > 1:
            _evaluate(sums)
            sums = ranks.mean(sums)
            _evaluate(sums)  # macOS ends a GPU's work that waits for seconds, as an update would for a slow network
        outcome = self.update(sums, scale, mx.array(rate))
        _evaluate(sums)  # so that nothing but the update needs the old weights, and it writes the new ones over them
        del sums
        for part in _parts(self.model.trainable_parameters())[:-1]:
            mx.eval(part)
        return outcome

    @property
    def state(self) -> list[dict]:
        """The arrays that a step changes, to be evaluated: parameters and the optimizer's state."""
        return [self.model.state, self.optimizer.state]

    def gradients(
        self, key: mx.array, scale: mx.array, tokens: mx.array, *others: mx.array
    ) -> tuple[mx.array, mx.array, dict]:
        """The summed and scaled loss of a micro-batch, the number of targets that count, and the loss's gradients.

        `tokens` and `others` are a `Batch`.
        """
        parameters = self.model.trainable_parameters()
        keys, results = mx.random.split(key, len(self.streams)), []
        for (stream, rows), own_key in zip(device.split(len(tokens), self.streams), keys):
            with mx.stream(stream), dropping(self.model, own_key):
                loss = mx.value_and_grad(self._loss)
                own = [array[rows] for array in (tokens, *others)]
                results.append(loss(parameters, own_key, scale, *own))
        self.model.update(parameters)  # replaces the tracers that value_and_grad left
        (loss, count), gradients = reduce(partial(tree_map, mx.add), results)
        return loss, count, gradients

    def _loss(
        self,
        parameters: dict,
        key: mx.array,
        scale: mx.array,
        tokens: mx.array,
        targets: mx.array,
        starts: mx.array | None = None,
    ) -> tuple[mx.array, mx.array]:
        """The summed and scaled loss in float32, and the number of targets that count."""
        self.model.update(precision.lowered(parameters, self.config.dtype))
        key = key if self.config.dropout else None
        hidden = self.model.hidden(tokens, key, recompute=self.config.grad_checkpoint, starts=starts)
        loss, count = cross_entropy(hidden, self.model.wte.weight, targets, learns_wte=not self.model.lora)
        return scale * loss, count

    def update(self, sums: tuple, scale: mx.array, rate: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        """Take the step, given the sums of the results of `gradients`. Returns as `__call__`."""
        loss, count, gradients = sums
        divisor = scale * mx.where(count == 0, 1, count)
        outcome = optim.guarded_update(self.model, self.optimizer, gradients, divisor, rate, self.config.grad_clip)
        return loss / (scale * count), *outcome

    def _key(self, micro_batch: int) -> mx.array:
        """The dropout key of a micro-batch. It follows from the seed and the number, so that nothing must be saved."""
        return mx.random.key(self.config.seed << 32 | micro_batch)


def _parts(tree: tuple | dict) -> list[list[mx.array]]:
    """The arrays of a tree from the last to the first, the order of a backward pass, in parts of a few arrays."""
    arrays = [array for _, array in reversed(tree_flatten(tree))]
    most, parts, size = memory.part_size(sum(array.nbytes for array in arrays)), [[]], 0
    for array in arrays:
        if size and size + array.nbytes > most:
            parts.append([])
            size = 0
        parts[-1].append(array)
        size += array.nbytes
    return parts


def _evaluate(sums: tuple) -> None:
    """Evaluate gradients part by part: what a part was added up from is let go before the next one."""
    for part in _parts(sums):
        mx.eval(part)
