"""Open a run: from its settings to a trainer that is ready, in a run folder that says how it was made."""

import dataclasses
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import mlx.core as mx

from .. import checkpoint, inventory, metrics, pretrained
from ..corpus.dataset import SPLITS
from ..corpus.shards import count_bytes
from ..corpus.source import Source
from ..files import lock, new_file, read_json, write_json
from ..model import GPT2
from . import adapting, fork, ranks, step
from .config import TrainConfig
from .settle import Settled, refuse_to_replace
from .trainer import Trainer


@contextmanager
def opened(settled: Settled) -> Iterator[Trainer]:
    """Yield a trainer: a new one, with --resume one in the state of the run's latest checkpoint, with --fork in its
    origin's.

    The run folder is locked until the block ends. Raises a ValueError where the folder holds a run and --resume is not
    given, or where the text or the steps of that run do not fit the settings.
    """
    config, source, dataset, run = settled.config, settled.source, settled.dataset, settled.run
    origin = settled.origin if ranks.is_first() else None
    with _locked(run) if ranks.is_first() else nullcontext():
        saved = checkpoint.to_resume(run) if ranks.is_first() else None
        resuming = ranks.ask_first(lambda: saved is not None)
        refuse_to_replace(run, config.resume)  # again, for another process may have trained while this one settled
        former = run if resuming else settled.origin and Path(settled.origin.run)
        facts = ranks.ask_first(lambda: read_json(former / "train.json") if former else {})
        if former and facts.get("text", {}).get("key") != dataset.key:
            files = ", ".join(map(str, source.files))
            raise ValueError(f"{files} is not the text that {former} began to learn from")
        model = initial(config, settled.init, saved or (origin and Path(origin.folder)))
        trainer = Trainer(config, step.build(config, model), dataset, run)
        if saved:
            if saved != checkpoint.linked(run, "latest"):
                print(f"NOTE: {run / 'latest'} leads to no whole checkpoint: going on from {saved.name}")
                checkpoint.mark(run, "latest", saved)
            trainer.restore(saved.resolve())
            best = run / checkpoint.name_of(trainer.progress.best_step or 0)
            if best.is_dir() and checkpoint.linked(run, "best").resolve() != best.resolve():
                checkpoint.mark(run, "best", best)  # lost with a copy that left the links out
        elif origin:
            trainer.restore(Path(origin.folder))
            fork.bring_best(origin, run, trainer.progress)
        trainer.share()
        done = trainer.progress.step
        if done > config.max_steps:
            raise ValueError(f"--max-steps is {config.max_steps}, but {run} is at step {done} already")
        if ranks.is_first():
            metrics.rewind(run / "metrics.jsonl", done if resuming else -1)
            began = pretrained.lasting_name(config.init_from, settled.init) if settled.init else None
            origins = {
                "init": facts.get("init") if former else began,
                "fork": origin.facts() if origin else facts.get("fork"),
            }
            _write_facts(trainer, source, origins, "resume" if resuming else "start")
            if origin:
                trainer.save()
        yield trainer


@contextmanager
def _locked(run: Path) -> Iterator[None]:
    """Lock a run folder. One that is new and in which no run begins is not left behind."""
    is_new = not run.exists()
    with lock(run):
        try:
            yield
        except ValueError:
            if is_new and not (run / "train.json").exists():
                shutil.rmtree(run, ignore_errors=True)
            raise


def initial(config: TrainConfig, init: Path | None, begun: Path | None) -> GPT2:
    """What a run of resolved settings begins with: a new model or one with the weights of `init`, and its adapter.

    It has the vocab_size of these or of what the run goes on from, `begun`.
    """
    like, shape = begun or init, config.model_config()
    vocab_size = ranks.ask_first(lambda: pretrained.read_config(like).vocab_size if like else shape.vocab_size)
    model = GPT2(dataclasses.replace(shape, vocab_size=vocab_size), config.seed)
    base = adapting.base_of(config, init, begun)

    def begin(weights: GPT2) -> GPT2:
        if weights.quantization:
            raise ValueError(f"--init-from is {config.init_from}, which is quantised; training needs float weights")
        weights.wpe.weight = weights.wpe.weight[: config.block_size]
        weights.set_dtype(mx.float32)
        model.update(weights.parameters())
        adapting.lower_base(model, config)
        return model

    if init:
        checkpoint.whole(pretrained.loading(init, dtype=None, quantize=None, change=begin))
    else:
        adapting.lower_base(model, config)
    adapting.adapt(model, config, base)
    return model


def _write_facts(trainer: Trainer, source: Source, origins: dict, event: str) -> None:
    """Write what a reader of the run must know: its settings, text and origin, the device and the versions."""
    dataset, files = trainer.dataset, [str(file) for file in source.files]
    facts = {
        "config": dataclasses.asdict(trainer.config) | {"resume": False, "out": str(trainer.run)},
        "text": {"name": source.name, "files": files, "key": dataset.key, "note": source.note},
        **origins,
        "tokens": {split: len(dataset.counted(split)) for split in SPLITS},
        "bytes": {split: count_bytes(trainer.encoding, dataset.counted(split)) for split in SPLITS},
        "n_params": trainer.model.config.n_params,
        "n_trained": trainer.model.n_trained,
        "device": inventory.description(),
        "processes": ranks.size(),
        "dtype": trainer.config.dtype,
        "versions": inventory.versions(),
    }
    for name, content in dataset.vocabulary.files(trainer.config.block_size).items():
        with new_file(trainer.run / name) as aside:
            aside.write_bytes(content)
    with new_file(trainer.run / "train.json") as aside:
        write_json(aside, facts)
    metrics.write(trainer.run / "metrics.jsonl", event, trainer.progress.step, **facts)
