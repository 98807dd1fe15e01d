"""Opening a run: from settings to a trainer that is ready, in a run folder that says how it was made."""

import dataclasses
import json
from pathlib import Path
from typing import TextIO

import mlx.core as mx
from mlx.utils import tree_map

from .. import checkpoint, device, metrics, pretrained
from ..config import GPT2Config
from ..files import lock, new_file, remove_leftovers
from ..model import GPT2
from . import ranks
from .config import SHAPE, TrainConfig, flag
from .data import SPLITS, TokenDataset
from .text import Source
from .trainer import Trainer

# What a resumed run must share with the one that was stopped, or it would be another run.
_FIXED = (*SHAPE, "preset", "init_from", "batch_size", "grad_accum_steps", "optimizer", "dtype", "seed", "eval_tokens")


def saved_settings(run: Path) -> TrainConfig | None:
    """The settings a run was started with, None where there is no run yet.

    Raises:
        ValueError: train.json is not one of ours.
    """
    path = run / "train.json"
    try:
        saved = ranks.ask_first(lambda: _read_facts(run)["config"] if path.exists() else None)
        return TrainConfig(**saved) if saved else None
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None


def _text_key(run: Path) -> str | None:
    return _read_facts(run).get("text", {}).get("key")


def _read_facts(run: Path) -> dict:
    return json.loads((run / "train.json").read_text(encoding="utf-8"))


def check_unchanged(config: TrainConfig, saved: TrainConfig) -> None:
    """Raise a ValueError where a resumed run's settings would make it another run."""
    for name in _FIXED:
        new, old = getattr(config, name), getattr(saved, name)
        if new != old:
            raise ValueError(f"{flag(name)} is {new}, but the run to resume was started with {old}")


def find_init(flags: TrainConfig, run: Path) -> tuple[Path | None, GPT2Config | None]:
    """The weights to begin with, which only the first process reads, and their shape; None where there are none.

    Raises:
        ValueError: --init-from is no checkpoint, or cannot be fetched.
    """
    begins_here = ranks.is_first() and flags.fine_tunes and not (run / "latest").exists()
    init = pretrained.find(flags.init_from) if begins_here else None
    shape = ranks.ask_first(lambda: dataclasses.asdict(checkpoint.read_config(init)) if init else None)
    return init, GPT2Config(**shape) if shape else None


def open_run(config: TrainConfig, source: Source, run: Path, init: Path | None = None) -> Trainer:
    """A trainer for resolved settings: new, or with --resume as its latest checkpoint left it.

    Args:
        config: resolved settings.
        source: the text.
        run: the run folder.
        init: the checkpoint folder with the weights to begin with, if any, in the first process.

    Raises:
        ValueError: the folder holds a run and --resume is not given, or what it holds does not fit.
    """
    resuming = ranks.ask_first((run / "latest").exists)
    if resuming and not config.resume:
        raise ValueError(f"{run} holds a run already: go on with --resume, or choose another folder with --out")
    dataset = ranks.in_turn(lambda: TokenDataset.open(source))
    dataset.check_length(config.block_size)
    if ranks.ask_first(lambda: _text_key(run) if resuming else dataset.key) != dataset.key:
        raise ValueError(f"{', '.join(map(str, source.files))} is not the text that {run} began to learn from")
    model = _model(config, init, run / "latest" if resuming else init)
    held = _claim(run) if ranks.is_first() else None
    trainer = Trainer(config, model, dataset, run)
    trainer.lock = held  # as long as there is a trainer
    if resuming and ranks.is_first():
        trainer.restore((run / "latest").resolve())
    trainer.share()
    step = trainer.progress.step
    if step > config.max_steps:
        raise ValueError(f"--max-steps is {config.max_steps}, but {run} is at step {step} already")
    if ranks.is_first():
        metrics.rewind(run / "metrics.jsonl", step if resuming else -1)
        _write_facts(trainer, source, "resume" if resuming else "start")
    return trainer


def _claim(run: Path) -> TextIO:
    """Make the run folder and hold it, as long as what is returned is open."""
    run.mkdir(parents=True, exist_ok=True)
    held = lock(run)
    remove_leftovers(run)
    return held


def _model(config: TrainConfig, init: Path | None, like: Path | None) -> GPT2:
    """A new model, or one with the weights of `init`; its vocabulary is as large as that of the checkpoint `like`."""
    shape = config.model_config()
    vocab_size = ranks.ask_first(lambda: checkpoint.read_config(like).vocab_size if like else shape.vocab_size)
    model = GPT2(dataclasses.replace(shape, vocab_size=vocab_size), config.seed)
    if init:
        weights = checkpoint.load(init)
        if weights.quantization:
            raise ValueError(f"--init-from is {config.init_from}, which is quantised; training needs float weights")
        weights.wpe.weight = weights.wpe.weight[: config.block_size]
        model.update(tree_map(mx.contiguous, weights.parameters()))
    mx.eval(model.parameters())
    return model


def _write_facts(trainer: Trainer, source: Source, event: str) -> None:
    facts = _facts(trainer, source)
    with new_file(trainer.run / "train.json") as aside:
        aside.write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    log = metrics.MetricsLog(trainer.run / "metrics.jsonl")
    log.write(event, trainer.progress.step, **facts)
    log.close()


def _facts(trainer: Trainer, source: Source) -> dict:
    """What a reader of the run must know: its settings, its text, what it ran on and with."""
    return {
        "config": dataclasses.asdict(trainer.config) | {"resume": False, "out": str(trainer.run)},
        "text": {
            "name": source.name,
            "files": [str(file) for file in source.files],
            "key": trainer.dataset.key,
            "note": source.note,
        },
        "tokens": {split: len(trainer.dataset.split(split)) for split in SPLITS},
        "n_params": trainer.model.n_params,
        "device": device.description(),
        "processes": ranks.size(),
        "dtype": trainer.config.dtype,
        "versions": device.versions(),
    }
