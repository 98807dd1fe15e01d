"""From flags to a run whose settings are all decided. Nothing is written yet but the text's tokens into the cache."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .. import checkpoint, device, pretrained
from ..config import GPT2Config
from ..corpus.dataset import TokenDataset
from ..corpus.source import Source, find
from ..files import read_json
from . import budget, plan, ranks
from .config import SHAPE, TrainConfig, flag

# Settings that a resumed run cannot change, since it continues the run that was stopped.
_FIXED = (*SHAPE, "preset", "init_from", "batch_size", "grad_accum_steps", "optimizer", "dtype", "seed", "eval_tokens")


@dataclass(frozen=True)
class Settled:
    """A run to start or to resume."""

    config: TrainConfig  # resolved
    source: Source  # the text
    dataset: TokenDataset  # its tokens
    run: Path  # the run folder
    init: Path | None  # in the first process, the checkpoint folder with the weights to start from, if there is one


def settle(flags: TrainConfig, over: Callable[[TrainConfig], TrainConfig]) -> Settled:
    """Choose the device, find the text and the weights, and resolve the settings.

    `over` parses the command line again with a saved run's settings in place of the defaults. Raises a ValueError where
    the text or the weights are missing, or the settings contradict the run to resume or do not fit the machine.
    """
    if flags.minutes and flags.max_steps:
        raise ValueError(f"--minutes is {flags.minutes:g} and --max-steps is {flags.max_steps}: leave one out")
    device.select(flags.device)
    source = None if flags.resume and flags.out else find(flags.data)
    run = Path(flags.out or f"checkpoints/{source.name}-{flags.model_name(device.on_gpu())}")
    saved = _saved_settings(run) if flags.resume else None
    if saved:
        flags = dataclasses.replace(over(saved), minutes=None)  # the run has its steps
        device.select(flags.device)
    elif flags.resume:
        print(f"there is no run in {run} to resume: beginning one")
    source = source or find(flags.data)
    if source.note:
        print(f"NOTE: {source.note}")
        flags = dataclasses.replace(flags, data=source.name)
    init, shape = _find_init(flags, run)
    dataset = ranks.in_turn(lambda: TokenDataset.open(source))

    def resolve(settings: TrainConfig) -> TrainConfig:
        return settings.resolved(device.on_gpu(), shape, ranks.size(), len(dataset.split("train")))

    config = resolve(flags)
    dataset.check_length(config.block_size)
    if saved:
        _check_unchanged(config, saved)
    config = plan.choose(config, given=bool(saved or flags.batch_size))
    device.wire(config.wired_limit_gb)
    if config.minutes:
        chosen = {name: getattr(config, name) for name in ("batch_size", "grad_accum_steps", "grad_checkpoint")}
        flags = dataclasses.replace(flags, **chosen, minutes=None)
        config = budget.settle(config, lambda n: resolve(dataclasses.replace(flags, max_steps=n)), dataset)
    return Settled(config, source, dataset, run, init)


def _saved_settings(run: Path) -> TrainConfig | None:
    """The settings that a run was started with; None where there is no run yet."""
    path = run / "train.json"
    facts = ranks.ask_first(lambda: read_json(path) if path.exists() else None)
    try:
        return TrainConfig(**facts["config"]) if facts else None
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None


def _find_init(flags: TrainConfig, run: Path) -> tuple[Path | None, GPT2Config | None]:
    """The folder of the weights to start from, in the first process, which alone reads it, and their shape, or None."""
    begins_here = ranks.is_first() and flags.fine_tunes and not checkpoint.to_resume(run)
    init = pretrained.find(flags.init_from) if begins_here else None
    shape = ranks.ask_first(lambda: dataclasses.asdict(checkpoint.read_config(init)) if init else None)
    return init, GPT2Config(**shape) if shape else None


def _check_unchanged(config: TrainConfig, saved: TrainConfig) -> None:
    for name in _FIXED:
        new, old = getattr(config, name), getattr(saved, name)
        if new != old:
            raise ValueError(f"{flag(name)} is {new}, but the run to resume was started with {old}")
