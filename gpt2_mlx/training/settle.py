"""From flags to a run whose settings are all decided. Nothing is written yet but the text's tokens into the cache."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .. import checkpoint, device, pretrained, tokenizer
from ..cli import told
from ..config import GPT2Config
from ..corpus import example_dataset, vocabularies
from ..corpus.example_dataset import Dataset
from ..corpus.source import Source, find
from ..files import read_json
from ..tokenizer import Vocabulary
from . import budget, fork, plan, ranks
from .config import SHAPE, TrainConfig, flag
from .fork import Origin

# Settings that a resumed run cannot change, since it continues the run that was stopped.
_FIXED = (*SHAPE, "preset", "init_from", "batch_size", "grad_accum_steps", "optimizer", "dtype", "seed", "eval_tokens")
_FIXED += ("vocab", "fork", "without", "quantize", "lora_rank", "lora_alpha", "lora_dropout", "lora_layers")
_FIXED += ("lora_targets",)
_FREE_IN_A_FORK = ("dropout", "lora_dropout", "seed", "fork", "without")


@dataclass(frozen=True)
class Settled:
    """A run to start or to resume."""

    config: TrainConfig  # resolved
    source: Source  # the text
    dataset: Dataset  # its tokens
    run: Path  # the run folder
    init: Path | None  # in the first process, the folder with the weights to start from or an adapter's base, if any
    origin: Origin | None  # what a fork that begins is to go on from


def settle(flags: TrainConfig, over: Callable[[TrainConfig], TrainConfig]) -> Settled:
    """Choose the device, find the text and the weights, and resolve the settings.

    `over` parses the command line again with the settings of the run to resume or to fork in place of the defaults.
    Raises a ValueError where the text or the weights are missing, the run folder holds a run that is not to be resumed,
    or the settings contradict the run to go on from or do not fit the machine.
    """
    if flags.minutes and flags.max_steps:
        raise ValueError(f"--minutes is {flags.minutes:g} and --max-steps is {flags.max_steps}: leave one out")
    if flags.minutes and flags.fork:
        raise ValueError(f"--minutes is {flags.minutes:g}, but a fork has the steps of its run, or --max-steps")
    device.select(flags.device)
    origin = fork.find(flags.fork) if flags.fork else None
    source = None if origin or (flags.resume and flags.out) else find(flags.data)
    run = Path(flags.out or (origin.default_run if origin else _default_run(flags, source)))
    if not flags.plan:
        refuse_to_replace(run, flags.resume)  # before anything is made of the text or timed
    saved = _saved_settings(run) if flags.resume else None
    if flags.resume and not saved:
        print(f"there is no run in {run} to resume: beginning one")
    former = saved or (_saved_settings(Path(origin.run)) if origin else None)
    if former:
        flags = dataclasses.replace(over(former), minutes=None)  # the run has its steps
        device.select(flags.device)
    if saved:
        origin = _origin_again(flags, run)
    elif origin:
        flags = dataclasses.replace(flags, fork=origin.name, out=str(run))
    source = source or find(flags.data)
    if source.note:
        print(f"NOTE: {source.note}")
        flags = dataclasses.replace(flags, data=source.name)
    begun = Path(origin.folder) if origin else checkpoint.to_resume(run) if saved else None
    init, shape = _find_init(flags, begun)
    vocabulary = _find_vocabulary(flags, source, begun or init)
    flags = dataclasses.replace(flags, vocab=vocabulary.name)
    dataset = ranks.in_turn(lambda: example_dataset.find(source, vocabulary=vocabulary).without(flags.without, source))

    def resolve(settings: TrainConfig) -> TrainConfig:
        block_size = settings.resolved(device.on_gpu(), shape, ranks.size()).block_size
        return settings.resolved(device.on_gpu(), shape, ranks.size(), dataset.per_pass(block_size))

    config = resolve(flags)
    dataset.check_length(config.block_size)
    if note := dataset.note(config.block_size):
        print(f"NOTE: {note}")
    if former:
        _check_unchanged(config, former, is_fork=not saved)
    if origin and origin.step >= config.max_steps:
        raise ValueError(f"--max-steps is {config.max_steps}, but the fork begins at step {origin.step} already")
    config = plan.choose(config, given=bool(former or flags.batch_size))
    device.wire(config.wired_limit_gb)
    if config.minutes:
        chosen = {name: getattr(config, name) for name in ("batch_size", "grad_accum_steps", "grad_checkpoint")}
        flags = dataclasses.replace(flags, **chosen, minutes=None)
        config = budget.settle(config, lambda n: resolve(dataclasses.replace(flags, max_steps=n)), dataset, run)
    return Settled(config, source, dataset, run, init, origin)


def refuse_to_replace(run: Path, resume: bool) -> None:
    """Raise a ValueError where the folder holds a run that is not to be resumed."""
    if not resume and ranks.ask_first(lambda: checkpoint.to_resume(run) is not None):
        raise ValueError(f"{run} holds a run already: go on with --resume, or choose another folder with --out")


def _default_run(flags: TrainConfig, source: Source) -> str:
    name = f"checkpoints/{source.name}-{flags.model_name(device.on_gpu())}"
    name += f"-lora{flags.lora_rank}" if flags.lora_rank else ""
    if flags.vocab in (None, tokenizer.NAME):
        return name
    return f"{name}-{flags.vocab}" if flags.vocab == tokenizer.BYTES else f"{name}-vocab{flags.vocab}"


def _origin_again(saved: TrainConfig, run: Path) -> Origin | None:
    """What a fork that was stopped before its first checkpoint is to begin from."""
    begins = ranks.ask_first(lambda: bool(saved.fork) and not checkpoint.to_resume(run))
    return fork.find(saved.fork) if begins else None


def _saved_settings(run: Path) -> TrainConfig | None:
    """The settings that a run was started with; None where there is no run yet."""
    path = run / "train.json"
    facts = ranks.ask_first(lambda: read_json(path) if path.exists() else None)
    try:
        return TrainConfig(**{"vocab": tokenizer.NAME} | facts["config"]) if facts else None
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None


def _find_init(flags: TrainConfig, begun: Path | None) -> tuple[Path | None, GPT2Config | None]:
    """The folder of the weights to start from, in the first process, which alone reads it, and their shape, or None.

    Where the run goes on from a checkpoint, `begun`, there are none, but for the folder of an adapter's base.
    """
    init = pretrained.find(flags.init_from) if ranks.is_first() and flags.fine_tunes and not begun else None
    shape = ranks.ask_first(lambda: dataclasses.asdict(pretrained.read_config(init)) if init else None)
    if ranks.is_first() and begun and flags.lora_rank:
        init = pretrained.base(begun)
    return init, GPT2Config(**shape) if shape else None


def _find_vocabulary(flags: TrainConfig, source: Source, held: Path | None) -> Vocabulary:
    """The vocabulary of the checkpoint to go on from, if there is one, else the one that the flags name.

    Only the first process reads or makes it.
    """

    def find() -> dict[str, str | None]:
        if held is None:
            return dataclasses.asdict(vocabularies.find(flags.vocab, source))
        there = pretrained.vocabulary(held)
        if flags.vocab not in (None, there.name):
            raise ValueError(f"--vocab is {flags.vocab}, but {held} has the vocabulary {there.name}: leave it out")
        return dataclasses.asdict(there)

    return Vocabulary(**ranks.ask_first(find))


def _check_unchanged(config: TrainConfig, former: TrainConfig, is_fork: bool) -> None:
    for name in _FIXED:
        new, old = getattr(config, name), getattr(former, name)
        if new != old and not (is_fork and name in _FREE_IN_A_FORK):
            word = "fork" if is_fork else "resume"
            raise ValueError(f"{flag(name)} is {told(new)}, but the run to {word} was started with {told(old)}")
