"""The trainer: it repeats the step, with validation, samples and checkpoints between two steps."""

import dataclasses
import time
from pathlib import Path

import mlx.core as mx

from .. import checkpoint, metrics
from ..corpus.example_dataset import Dataset
from ..files import sync
from ..generation.text import generate
from . import optim, precision, ranks
from .config import TrainConfig
from .evaluation import Evaluator, Score
from .progress import Progress
from .report import Report
from .step import Batch, Step

SAMPLE_TOKENS = 50
FINAL_SAMPLES = 5


class Trainer:
    """Trains the model of a step, for resolved settings, and writes the run folder, which must exist.

    If several processes train together, each has a trainer, and only that of the first process writes.
    """

    def __init__(self, config: TrainConfig, step: Step, dataset: Dataset, run: Path):
        self.config, self.step, self.dataset, self.run = config, step, dataset, run
        self.model, self.optimizer = step.model, step.optimizer
        self.progress = Progress(loss_scale=precision.first_scale(config.dtype))
        self.stop_reason: str | None = None  # others set it to stop the run after the current step
        self._saved_step = 0
        self.encoding = dataset.vocabulary.encoding
        self._evaluator = Evaluator(self.model, step.streams, config.compile)
        self._loader = dataset.loader(config.batch_size, config.block_size, config.seed)

    def fit(self) -> str:
        """Train to the end and return why it ended: "max_steps", "patience" or the `stop_reason`."""
        config, progress = self.config, self.progress
        self._report = Report(self.run, progress.step, config)
        self._began = time.perf_counter() - progress.elapsed_s
        try:
            self._train()
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

    def _train(self) -> None:
        config, progress = self.config, self.progress
        if config.fine_tunes and progress.best_step is None and not progress.step:
            self._validate()  # the loss before fine-tuning
            self.save()
        batches = self.read(progress.step)
        while progress.step < config.max_steps and not ranks.agree(self.stop_reason):
            if 0 < config.patience <= progress.evals_since_best:
                break
            batches = self._take_step(batches)
            self._between_steps()

    def read(self, step: int) -> list[Batch]:
        """This process's micro-batches of a step."""
        numbers = ranks.own_micro_batches(step, self.config.grad_accum_steps // ranks.size())
        return [tuple(map(mx.array, self._loader.micro_batch(number))) for number in numbers]

    def _take_step(self, batches: list[Batch]) -> list[Batch]:
        """Take a step on these micro-batches and return the next ones, which are read while the device updates."""
        progress, began = self.progress, time.perf_counter()
        rate = optim.learning_rate(progress.step, self.config)
        loss, norm, taken = self.step(batches, rate, progress.step, progress.loss_scale)
        state = (loss, norm, taken, *self.step.state)
        mx.async_eval(state)
        following = self.read(progress.step + 1)
        mx.eval(state)
        now = time.perf_counter()
        progress.elapsed_s = now - self._began
        progress.count_step(taken.item(), self.config.dtype)
        self._report.step(progress, loss.item(), rate, norm.item(), taken.item(), now - began)
        return following

    def _between_steps(self) -> None:
        """Validate, show a sample and save: each at its own interval."""
        config, step = self.config, self.progress.step
        if step % config.eval_interval == 0 or step == config.max_steps:
            self._validate()
        if config.sample_interval and step % config.sample_interval == 0 and step < config.max_steps:
            self._sample(config.seed)
        if step % config.save_interval == 0 or step == self.progress.best_step:
            self.save()

    def _validate(self) -> None:
        score = self.evaluate("val")
        self._report.validation(self.progress.step, score, is_best=self.progress.count_validation(score.loss))

    def _test(self) -> None:
        """Test the weights with the best validation loss and show samples of them; they stay in the model."""
        best, last = self.progress.best_step, self.progress.step
        step = last if best is None else best  # no step is the best where no loss was finite
        if ranks.is_first():
            checkpoint.load_weights(self.run / checkpoint.name_of(step), self.model)
        self.model.update(ranks.share(self.model.parameters()))
        self._report.test(step, self.evaluate("test"))
        for i in range(FINAL_SAMPLES):
            if not self.stop_reason:
                self._sample(self.config.seed + i)

    def _sample(self, seed: int) -> None:
        if not ranks.is_first():
            return
        prompt = self.dataset.prompt
        text = generate(self.model, self.encoding, prompt, max_tokens=SAMPLE_TOKENS, seed=seed)
        self._report.sample(self.progress.step, prompt, text)

    def evaluate(self, split: str) -> Score:
        """The score of a split, over all of it or always the same first `eval_tokens`."""
        shape = self.config.batch_size, self.config.block_size
        batches, predicted = self.dataset.evaluation(split, *shape, self.config.eval_tokens)
        return self._evaluator.score(self.encoding, batches, predicted, split)

    def save(self) -> None:
        """Write a checkpoint of the current state and point `latest` to it."""
        progress = self.progress
        self._saved_step = progress.step
        if not ranks.is_first():
            return
        folder, log = self.run / checkpoint.name_of(progress.step), self.run / "metrics.jsonl"
        state = {"seed": self.config.seed, **dataclasses.asdict(progress)}
        checkpoint.save(folder, self.model, self.optimizer.state, state, self.dataset.vocabulary)
        if progress.best_step == progress.step:
            checkpoint.mark(self.run, "best", folder)
        checkpoint.mark(self.run, "latest", folder)
        checkpoint.prune(self.run, self.config.keep)
        if not metrics.write(log, "save", progress.step, path=folder.name):
            sync(log)

    def restore(self, folder: Path) -> None:
        """Go back to the state that `save` wrote."""
        checkpoint.load_weights(folder, self.model)
        arrays, state = checkpoint.load_training(folder, self.optimizer.state)
        optim.set_state(self.optimizer.state, arrays)
        for name in ("seed", "position"):  # they follow from the settings and the step
            state.pop(name, None)
        try:
            self.progress = Progress(**state)
        except TypeError as error:
            raise ValueError(f"{folder / 'state.json'} is of another version: {error}") from None

    def share(self) -> None:
        """Give every process the state of the first one, since only that one reads the run folder."""
        self.model.update(ranks.share(self.model.parameters()))
        optim.set_state(self.optimizer.state, ranks.share(self.optimizer.state))
        self.progress = Progress(**ranks.ask_first(lambda: dataclasses.asdict(self.progress)))
        self._saved_step = self.progress.step
