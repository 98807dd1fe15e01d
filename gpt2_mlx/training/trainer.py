"""The trainer: one compiled step, repeated, with validation, samples and checkpoints between two steps."""

import dataclasses
import math
import time
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_map

from .. import checkpoint, device, tokenizer
from ..generation.text import generate
from ..model import GPT2
from . import optim
from .config import TrainConfig
from .data import DataLoader, TokenDataset, evaluation_batches
from .evaluation import Evaluator
from .loss import IGNORE, cross_entropy
from .report import Report

SAMPLE_PROMPT = "The course of true love never did run smooth."
SAMPLE_TOKENS = 50
FINAL_SAMPLES = 5

Batch = tuple[mx.array, mx.array]  # tokens, targets: (B, T) int32


@dataclass
class Progress:
    """How far a run has come: all that a resumed run needs beside weights and moments."""

    step: int = 0  # optimizer steps done
    position: int = 0  # windows read
    best_loss: float | None = None
    best_step: int | None = None
    evals_since_best: int = 0
    skipped: int = 0  # steps whose gradients were not finite
    elapsed_s: float = 0.0


class Trainer:
    """Trains a model and keeps its run folder.

    Args:
        config: resolved settings.
        model: what to train, in place.
        dataset: where the splits come from.
        run: the run folder; it must exist.
    """

    def __init__(self, config: TrainConfig, model: GPT2, dataset: TokenDataset, run: Path):
        self.config, self.model, self.dataset, self.run = config, model, dataset, run
        self.progress = Progress()
        self.optimizer = optim.build(config, model)
        self.stop_reason: str | None = None  # set from outside to stop between two steps
        self._saved_step = 0
        self._encoding = tokenizer.load()
        self._streams = device.streams(config.batch_size)
        self._evaluator = Evaluator(model, self._streams, config.compile)
        state = [model.state, self.optimizer.state]
        if config.compile:
            self._gradients = mx.compile(self._gradients, inputs=state[:1])
            self._update = mx.compile(self._update, inputs=state, outputs=state)

    def fit(self) -> str:
        """Train to the end and return its reason: "max_steps", "patience" or what `stop_reason` was set to."""
        config, progress = self.config, self.progress
        self._report = Report(self.run, progress.step, config)
        self._began = time.perf_counter() - progress.elapsed_s
        try:
            self._loop()
            if progress.step != self._saved_step:
                self.save()
            if not self.stop_reason:
                self._test()
            finished = "max_steps" if progress.step >= config.max_steps else "patience"
            reason = self.stop_reason or finished
            self._report.end(progress.step, reason, time.perf_counter() - self._began)
        finally:
            self._report.close()
        return reason

    def _loop(self) -> None:
        config, progress = self.config, self.progress
        if config.fine_tunes and progress.best_step is None and not progress.step:
            self._validate()  # what the weights know before
            self.save()
        train = self.dataset.split("train")
        loader = DataLoader(train, config.batch_size, config.block_size, config.seed, progress.position)
        batches = self._read(loader)
        while progress.step < config.max_steps and not self._out_of_patience() and not self.stop_reason:
            began = time.perf_counter()
            progress.position = loader.position
            rate = optim.learning_rate(progress.step, config)
            loss, norm, taken = self.train_step(batches, rate)
            state = (loss, norm, taken, self.model.state, self.optimizer.state)
            mx.async_eval(state)
            batches = self._read(loader)  # while the device works
            mx.eval(state)
            progress.step += 1
            now = time.perf_counter()
            progress.elapsed_s = now - self._began
            progress.skipped += not taken.item()
            self._report.step(
                progress.step,
                loss=loss.item(),
                lr=rate,
                grad_norm=norm.item(),
                taken=taken.item(),
                seconds=now - began,
                elapsed_s=progress.elapsed_s,
            )
            self._between_steps()

    def _between_steps(self) -> None:
        """Validate, show a sample, save: each when its interval or the end has come."""
        config, step = self.config, self.progress.step
        if step % config.eval_interval == 0 or step == config.max_steps:
            self._validate()
        if config.sample_interval and step % config.sample_interval == 0 and step < config.max_steps:
            self._sample(config.seed)
        if step % config.save_interval == 0 or step == self.progress.best_step:
            self.save()

    def _validate(self) -> None:
        progress = self.progress
        loss = self.evaluate("val")
        is_best = math.isfinite(loss) and (progress.best_loss is None or loss < progress.best_loss)
        if is_best:
            progress.best_loss, progress.best_step, progress.evals_since_best = loss, progress.step, 0
        else:
            progress.evals_since_best += 1
        self._report.validation(progress.step, loss, is_best)

    def _out_of_patience(self) -> bool:
        return 0 < self.config.patience <= self.progress.evals_since_best

    def _test(self) -> None:
        """Test and sample the weights with the best validation loss; they stay in the model."""
        best, last = self.progress.best_step, self.progress.step
        step = last if best is None else best  # none is best where no loss was finite
        checkpoint.load_weights(self.run / f"step-{step:08d}", self.model)
        self._report.test(step, self.evaluate("test"))
        for i in range(FINAL_SAMPLES):
            if not self.stop_reason:
                self._sample(self.config.seed + i)

    def _sample(self, seed: int) -> None:
        text = generate(self.model, self._encoding, SAMPLE_PROMPT, max_tokens=SAMPLE_TOKENS, seed=seed)
        self._report.sample(self.progress.step, SAMPLE_PROMPT, text)

    def train_step(self, batches: list[Batch], rate: float) -> tuple[mx.array, mx.array, mx.array]:
        """One optimizer step on the micro-batches, not yet evaluated.

        Returns:
            The mean loss per token, the gradients' norm before clipping, and whether the step was taken: scalars.
        """
        first = self.progress.step * len(batches)
        loss, count, gradients = self._gradients(*batches[0], self._key(first))
        for i, batch in enumerate(batches[1:], 1):
            mx.eval(loss, count, gradients)  # one micro-batch's activations at a time
            more_loss, more_count, more = self._gradients(*batch, self._key(first + i))
            loss, count, gradients = loss + more_loss, count + more_count, tree_map(mx.add, gradients, more)
        norm, taken = self._update(gradients, count, mx.array(rate))
        return loss / count, norm, taken

    def evaluate(self, split: str) -> float:
        """The mean loss per token of a split, in nats, over all or the first `eval_tokens` of it; always the same."""
        config = self.config
        tokens = self.dataset.split(split)
        if config.eval_tokens:
            tokens = tokens[: config.eval_tokens + 1]  # the first is no target
        T = config.block_size
        total, count = self._evaluator.sums(evaluation_batches(tokens, config.batch_size, T, T, IGNORE), split)
        return total / count

    def save(self) -> None:
        """Write a checkpoint of this very state and point `latest` to it."""
        progress = self.progress
        folder = self.run / f"step-{progress.step:08d}"
        state = {"seed": self.config.seed, **dataclasses.asdict(progress)}
        checkpoint.save(folder, self.model, self.optimizer.state, state)
        if progress.best_step == progress.step:
            checkpoint.mark(self.run, "best", folder)
        checkpoint.mark(self.run, "latest", folder)
        checkpoint.prune(self.run, self.config.keep)
        self._saved_step = progress.step
        self._report.saved(progress.step, folder)

    def restore(self, folder: Path) -> None:
        """Go back to the state that `save` wrote."""
        checkpoint.load_weights(folder, self.model)
        arrays, state = checkpoint.load_training(folder, self.optimizer.state)
        optim.set_state(self.optimizer, arrays)
        state.pop("seed", None)  # the settings have it
        try:
            self.progress = Progress(**state)
            self._saved_step = self.progress.step
        except TypeError as error:
            raise ValueError(f"{folder / 'state.json'} is of another version: {error}") from None

    def _gradients(self, tokens: mx.array, targets: mx.array, key: mx.array) -> tuple[mx.array, mx.array, dict]:
        """Summed loss, tokens that count, and the gradients of the sum; each core takes a part of the batch."""
        parameters = self.model.trainable_parameters()
        parts = []
        for stream, rows, part_key in self._shards(len(tokens), key):
            with mx.stream(stream):
                parts.append(mx.value_and_grad(self._loss)(parameters, tokens[rows], targets[rows], part_key))
        self.model.update(parameters)  # not the tracers that value_and_grad left
        (loss, count), gradients = parts[0]
        for (more_loss, more_count), more in parts[1:]:
            loss, count, gradients = loss + more_loss, count + more_count, tree_map(mx.add, gradients, more)
        return loss, count, gradients

    def _loss(self, parameters: dict, tokens: mx.array, targets: mx.array, key: mx.array) -> tuple[mx.array, mx.array]:
        """Summed loss and tokens that count, computed in the run's dtype."""
        dtype = getattr(mx, self.config.dtype)
        self.model.update(tree_map(lambda p: p.astype(dtype), parameters))
        hidden = self.model.hidden(tokens, key if self.config.dropout else None)
        return cross_entropy(hidden, self.model.wte.weight, targets)

    def _update(self, gradients: dict, count: mx.array, rate: mx.array) -> tuple[mx.array, mx.array]:
        mean = tree_map(lambda g: g / count, gradients)
        return optim.guarded_update(self.model, self.optimizer, mean, rate, self.config.grad_clip)

    def _shards(self, batch_size: int, key: mx.array):
        parts = device.shards(self._streams, batch_size)
        return [(*part, part_key) for part, part_key in zip(parts, mx.random.split(key, len(parts)))]

    def _key(self, micro_step: int) -> mx.array:
        """What the dropout of a micro-batch follows from: the seed and its number, nothing that needs saving."""
        return mx.random.key(self.config.seed << 32 | micro_step)

    def _read(self, loader: DataLoader) -> list[Batch]:
        return [tuple(map(mx.array, loader.next_batch())) for _ in range(self.config.grad_accum_steps)]
