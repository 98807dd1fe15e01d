"""The trainer: one compiled step, repeated, with validation, samples and checkpoints between two steps."""

import dataclasses
import math
import time
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from .. import checkpoint, device, tokenizer
from ..generation.text import generate
from ..model import GPT2
from . import memory, optim, precision, ranks
from .config import TrainConfig
from .data import DataLoader, TokenDataset, evaluation_batches
from .evaluation import Evaluator
from .loss import IGNORE
from .report import Report, Silence
from .step import Batch, Step

SAMPLE_PROMPT = "The course of true love never did run smooth."
SAMPLE_TOKENS = 50
FINAL_SAMPLES = 5


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
    loss_scale: float = 1.0
    steps_at_scale: int = 0  # in a row without an overflow


class Trainer:
    """Trains a model and keeps its run folder; one of several processes that do so together, or the only one.

    Args:
        config: resolved settings.
        model: what to train, in place.
        dataset: where the splits come from.
        run: the run folder; where the first process is, it must exist.
    """

    def __init__(self, config: TrainConfig, model: GPT2, dataset: TokenDataset, run: Path):
        self.config, self.model, self.dataset, self.run = config, model, dataset, run
        self.progress = Progress(loss_scale=precision.first_scale(config.dtype))
        self.stop_reason: str | None = None  # set from outside to stop between two steps
        self._saved_step = 0
        self._encoding = tokenizer.load()
        mx.eval(model.parameters())
        device.work_within(memory.peak(config, ranks.size()) - 4 * model.n_params)
        streams = device.streams(config.batch_size)
        self.optimizer = optim.build(config, model, streams)
        self._step = Step(config, model, self.optimizer, streams)
        self._evaluator = Evaluator(model, streams, config.compile)

    def fit(self) -> str:
        """Train to the end and return its reason: "max_steps", "patience" or what `stop_reason` was set to."""
        config, progress = self.config, self.progress
        self._report = Report(self.run, progress.step, config) if ranks.is_first() else Silence()
        self._began = time.perf_counter() - progress.elapsed_s
        try:
            self._loop()
            if progress.step != self._saved_step:
                self.save()
            if not ranks.agree(self.stop_reason):
                self._test()
            finished = "max_steps" if progress.step >= config.max_steps else "patience"
            reason = ranks.agree(self.stop_reason) or finished
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
        while progress.step < config.max_steps and not self._out_of_patience() and not ranks.agree(self.stop_reason):
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
            progress.loss_scale, progress.steps_at_scale = precision.next_scale(
                config.dtype, progress.loss_scale, progress.steps_at_scale, taken.item()
            )
            self._report.step(
                progress.step,
                loss=loss.item(),
                lr=rate,
                grad_norm=norm.item(),
                taken=taken.item(),
                loss_scale=progress.loss_scale,
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
        if ranks.is_first():
            checkpoint.load_weights(self.run / f"step-{step:08d}", self.model)
        self.model.update(ranks.share(self.model.parameters()))
        self._report.test(step, self.evaluate("test"))
        for i in range(FINAL_SAMPLES):
            if not self.stop_reason:
                self._sample(self.config.seed + i)

    def _sample(self, seed: int) -> None:
        if not ranks.is_first():
            return
        text = generate(self.model, self._encoding, SAMPLE_PROMPT, max_tokens=SAMPLE_TOKENS, seed=seed)
        self._report.sample(self.progress.step, SAMPLE_PROMPT, text)

    def train_step(self, batches: list[Batch], rate: float) -> tuple[mx.array, mx.array, mx.array]:
        """A `Step` from where the run is; it does not count as one of the run's."""
        return self._step(batches, rate, self.progress.step, self.progress.loss_scale)

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
        self._saved_step = progress.step
        if not ranks.is_first():
            return
        folder = self.run / f"step-{progress.step:08d}"
        state = {"seed": self.config.seed, **dataclasses.asdict(progress)}
        checkpoint.save(folder, self.model, self.optimizer.state, state)
        if progress.best_step == progress.step:
            checkpoint.mark(self.run, "best", folder)
        checkpoint.mark(self.run, "latest", folder)
        checkpoint.prune(self.run, self.config.keep)
        self._report.saved(progress.step, folder)

    def restore(self, folder: Path) -> None:
        """Go back to the state that `save` wrote."""
        checkpoint.load_weights(folder, self.model)
        arrays, state = checkpoint.load_training(folder, self.optimizer.state)
        optim.set_state(self.optimizer, arrays)
        state.pop("seed", None)  # the settings have it
        try:
            self.progress = Progress(**state)
        except TypeError as error:
            raise ValueError(f"{folder / 'state.json'} is of another version: {error}") from None

    def share(self) -> None:
        """Give every process the first one's state: only that one reads the run folder."""
        self.model.update(ranks.share(self.model.parameters()))
        optim.set_state(self.optimizer, ranks.share(self.optimizer.state))
        self.progress = Progress(**ranks.ask_first(lambda: dataclasses.asdict(self.progress)))
        self._saved_step = self.progress.step

    def _read(self, loader: DataLoader) -> list[Batch]:
        """This process's share of a step's micro-batches; the loader's position passes over those of all."""
        config, n = self.config, self.config.grad_accum_steps // ranks.size()
        after = loader.position + config.grad_accum_steps * config.batch_size
        loader.position += ranks.rank() * n * config.batch_size
        batches = [tuple(map(mx.array, loader.next_batch())) for _ in range(n)]
        loader.position = after
        return batches
