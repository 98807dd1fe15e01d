"""Opening a run: from settings to a trainer that is ready, in a run folder that says how it was made."""

import dataclasses
import json
from pathlib import Path

import mlx.core as mx

from .. import checkpoint, device, metrics
from ..files import lock, new_file, remove_leftovers
from ..model import GPT2
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
        return TrainConfig(**_read_facts(run)["config"]) if path.exists() else None
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


def open_run(config: TrainConfig, source: Source, run: Path, init: Path | None = None) -> Trainer:
    """A trainer for resolved settings: new, or with --resume as its latest checkpoint left it.

    Args:
        config: resolved settings.
        source: the text.
        run: the run folder.
        init: the checkpoint folder with the weights to begin with, if any.

    Raises:
        ValueError: the folder holds a run and --resume is not given, or what it holds does not fit.
    """
    latest = run / "latest"
    resuming = latest.exists()
    if resuming and not config.resume:
        raise ValueError(f"{run} holds a run already: go on with --resume, or choose another folder with --out")
    dataset = TokenDataset.open(source)
    dataset.check_length(config.block_size)
    if resuming and _text_key(run) != dataset.key:
        raise ValueError(f"{', '.join(map(str, source.files))} is not the text that {run} began to learn from")
    model = _model(config, init, latest if resuming else init)
    run.mkdir(parents=True, exist_ok=True)
    held = lock(run)
    remove_leftovers(run)
    trainer = Trainer(config, model, dataset, run)
    trainer.lock = held  # as long as there is a trainer
    if resuming:
        trainer.restore(latest.resolve())
    step = trainer.progress.step
    if step > config.max_steps:
        raise ValueError(f"--max-steps is {config.max_steps}, but {run} is at step {step} already")
    metrics.rewind(run / "metrics.jsonl", step if resuming else -1)
    facts = _facts(trainer, source)
    with new_file(run / "train.json") as aside:
        aside.write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    log = metrics.MetricsLog(run / "metrics.jsonl")
    log.write("resume" if resuming else "start", step, **facts)
    log.close()
    return trainer


def _model(config: TrainConfig, init: Path | None, like: Path | None) -> GPT2:
    """A new model, or one with the weights of `init`; its vocabulary is as large as that of the checkpoint `like`."""
    shape = config.model_config()
    if like:
        shape = dataclasses.replace(shape, vocab_size=checkpoint.read_config(like).vocab_size)
    model = GPT2(shape, config.seed)
    if init:
        weights = checkpoint.load(init)
        if weights.quantization:
            raise ValueError(f"--init-from is {config.init_from}, which is quantised; training needs float weights")
        weights.wpe.weight = weights.wpe.weight[: config.block_size]
        model.update(weights.parameters())
    mx.eval(model.parameters())
    return model


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
        "dtype": trainer.config.dtype,
        "versions": device.versions(),
    }
