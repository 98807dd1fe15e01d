"""From flags to what a run shall be: nothing is left open, and nothing is written yet."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .. import checkpoint, device, pretrained
from ..config import GPT2Config
from ..corpus.source import Source, find
from ..files import read_json
from . import plan, ranks
from .config import SHAPE, TrainConfig, flag

# What a resumed run must share with the one that was stopped, or it would be another run.
_FIXED = (*SHAPE, "preset", "init_from", "batch_size", "grad_accum_steps", "optimizer", "dtype", "seed", "eval_tokens")


@dataclass(frozen=True)
class Settled:
    """A run to begin or to go on with."""

    config: TrainConfig  # resolved
    source: Source  # its text
    run: Path  # its folder
    init: Path | None  # the checkpoint folder with the weights to begin with, if any, in the first process


def settle(flags: TrainConfig, over: Callable[[TrainConfig], TrainConfig]) -> Settled:
    """Choose the device, find the text and the weights, and resolve the settings.

    Args:
        flags: what was asked for.
        over: the same flags over a saved run's settings in place of the defaults.

    Raises:
        ValueError: a text or weights are not there, or the settings are not those of the run to resume, or do not fit.
    """
    device.select(flags.device)
    source = None if flags.resume and flags.out else find(flags.data)
    run = Path(flags.out or f"checkpoints/{source.name}-{flags.model_name(device.on_gpu())}")
    saved = _saved_settings(run) if flags.resume else None
    if saved:
        flags = over(saved)
        device.select(flags.device)
    elif flags.resume:
        print(f"there is no run in {run} to resume: beginning one")
    source = source or find(flags.data)
    if source.note:
        print(f"NOTE: {source.note}")
        flags = dataclasses.replace(flags, data=source.name)
    init, shape = _find_init(flags, run)
    config = flags.resolved(device.on_gpu(), shape, ranks.size())
    if saved:
        _check_unchanged(config, saved)
    config = plan.choose(config, given=bool(saved or flags.batch_size))
    device.wire(config.wired_limit_gb)
    return Settled(config, source, run, init)


def _saved_settings(run: Path) -> TrainConfig | None:
    """The settings a run was started with, None where there is no run yet."""
    path = run / "train.json"
    facts = ranks.ask_first(lambda: read_json(path) if path.exists() else None)
    try:
        return TrainConfig(**facts["config"]) if facts else None
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None


def _find_init(flags: TrainConfig, run: Path) -> tuple[Path | None, GPT2Config | None]:
    """The weights to begin with, which only the first process reads, and their shape; None where there are none."""
    begins_here = ranks.is_first() and flags.fine_tunes and not checkpoint.to_resume(run)
    init = pretrained.find(flags.init_from) if begins_here else None
    shape = ranks.ask_first(lambda: dataclasses.asdict(checkpoint.read_config(init)) if init else None)
    return init, GPT2Config(**shape) if shape else None


def _check_unchanged(config: TrainConfig, saved: TrainConfig) -> None:
    for name in _FIXED:
        new, old = getattr(config, name), getattr(saved, name)
        if new != old:
            raise ValueError(f"{flag(name)} is {new}, but the run to resume was started with {old}")
