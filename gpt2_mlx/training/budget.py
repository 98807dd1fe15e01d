"""--minutes: the steps that fit into a time, from what the parts of a run are seen to take."""

import bisect
import dataclasses
import gc
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from .. import STARTED, metrics, plot
from ..corpus.example_dataset import Dataset
from ..generation.text import generate
from ..model import GPT2
from . import adapting, ranks, step
from .config import TrainConfig
from .trainer import FINAL_SAMPLES, SAMPLE_TOKENS, Trainer

_ROUNDS = 2  # batches that each process evaluates to be timed
_LEAST_STEPS, _LONGEST_S = 5, 10  # steps that are timed, and for how long at most where they are more


@dataclass(frozen=True)
class Seconds:
    """What the parts of a run take."""

    begin: float  # from the process's start to the first step
    step: float
    validation: float
    test: float
    sample: float
    save: float
    curve: float


def settle(config: TrainConfig, settings: Callable[[int], TrainConfig], dataset: Dataset, run: Path) -> TrainConfig:
    """The settings of as many steps as fit into `config.minutes`, counted from the process's start to its end.

    `settings` gives the resolved settings for a number of steps. What is timed is thrown away: the run that follows has
    the bits of one that was given its steps. Raises a ValueError where not even one step fits.
    """
    measured = measure(config, dataset, run)
    seconds = Seconds(**ranks.ask_first(lambda: dataclasses.asdict(measured)))  # all settle on the same steps
    if not (steps := steps_within(60 * config.minutes, seconds, settings)):
        least = needed(settings(1), seconds) / 60
        raise ValueError(
            f"--minutes is {config.minutes:g}; a run of one step takes {least:.2f} here, which is the least"
        )
    settled = settings(steps)
    passes = (
        steps * config.batch_size * config.grad_accum_steps * config.block_size / dataset.per_pass(config.block_size)
    )
    print(
        f"time:   --minutes {config.minutes:g} holds {steps:,} steps of {seconds.step:.3g} s, which read the text"
        f" {passes:.3g} times, with validations of {seconds.validation:.3g} s, {seconds.begin:.3g} s after the start",
        flush=True,
    )
    return settled


def steps_within(limit: float, seconds: Seconds, settings: Callable[[int], TrainConfig]) -> int:
    """A number of steps that takes at most `limit` seconds, while one step more takes longer; 0 where no step fits."""
    numbers = range(1, int(limit / seconds.step) + 2)
    return bisect.bisect(numbers, False, key=lambda steps: needed(settings(steps), seconds) > limit)


def needed(config: TrainConfig, seconds: Seconds) -> float:
    """The seconds of a run with resolved settings, if patience does not end it and each validation finds a new best."""
    n, validate, save = config.max_steps, config.eval_interval, config.save_interval
    validations = math.ceil(n / validate) + config.fine_tunes
    saves = n // save + n // validate - n // math.lcm(save, validate) + config.fine_tunes
    saves += n % save > 0 and n % validate > 0  # the last step's
    samples = FINAL_SAMPLES + ((n - 1) // config.sample_interval if config.sample_interval else 0)
    parts = n * seconds.step + validations * seconds.validation + samples * seconds.sample + saves * seconds.save
    return seconds.begin + parts + seconds.test + seconds.curve


def measure(config: TrainConfig, dataset: Dataset, run: Path) -> Seconds:
    """Time each part of a run, on its shapes, its text and its disk, with a model and in a folder of its own."""
    opening, parts = _parts(config, dataset, run)
    gc.collect()  # a compiled step refers to itself
    mx.clear_cache()
    return Seconds(time.perf_counter() - STARTED + opening, *parts)


def _parts(config: TrainConfig, dataset: Dataset, run: Path) -> tuple[float, tuple[float, ...]]:
    """The seconds that it takes to open a run, and those of the parts after its beginning, in `Seconds`' order."""
    began = time.perf_counter()
    tokens = _ROUNDS * ranks.size() * config.batch_size * config.block_size
    there = next(path for path in run.absolute().parents if path.is_dir())
    with tempfile.TemporaryDirectory(prefix=".minutes-", dir=there) as folder:
        model = GPT2(config.model_config(), config.seed)
        adapting.lower_base(model, config)
        adapting.adapt(model, config)
        take_step = step.build(config, model)
        trainer = Trainer(dataclasses.replace(config, eval_tokens=tokens), take_step, dataset, Path(folder))
        opening = time.perf_counter() - began
        per_step = _seconds_per_step(trainer, min(_LONGEST_S, config.minutes))
        trainer.evaluate("val")  # compiles
        evaluations = [_timed(trainer.evaluate, "val") for _ in range(3)]
        per_round = statistics.median(evaluations) / _rounds(trainer.config, dataset, "val")
        validation, test = (per_round * _rounds(config, dataset, split) for split in ("val", "test"))
        save = _timed(trainer.save)
        sample = curve = 0.0
        if ranks.is_first():
            _sample(trainer)  # compiles
            sample, curve = _timed(_sample, trainer), _timed(_draw, trainer.run)
    return opening, (per_step, validation, test, sample, save, curve)


def _seconds_per_step(trainer: Trainer, lasting: float) -> float:
    """The median of as many steps as last so long, and of a few at least. A pause of the machine does not move it."""

    def take(number: int) -> None:
        mx.eval(trainer.step(trainer.read(number), 0.0, number), trainer.step.state)

    take(0)  # compiles
    once = _timed(take, 0)
    steps = ranks.ask_first(lambda: max(_LEAST_STEPS, int(lasting / once)))
    return statistics.median(_timed(take, number) for number in range(steps))


def _rounds(config: TrainConfig, dataset: Dataset, split: str) -> int:
    """The batches of a split that each process evaluates."""
    windows = dataset.n_windows(split, config.block_size, config.eval_tokens)
    return math.ceil(math.ceil(windows / config.batch_size) / ranks.size())


def _sample(trainer: Trainer) -> None:
    generate(trainer.model, trainer.encoding, trainer.dataset.prompt, max_tokens=SAMPLE_TOKENS, seed=0)


def _draw(run: Path) -> None:
    metrics.write(run / "metrics.jsonl", "eval", 1, val_loss=1.0)
    plot.draw([run], run / "loss.png")


def _timed(act: Callable, *arguments: object) -> float:
    began = time.perf_counter()
    act(*arguments)
    return time.perf_counter() - began
