"""Forks: a new run that begins from a checkpoint of another one, with its settings but for those that are given."""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from .. import adapter, checkpoint
from ..files import new_folder, read_json, sha256_of_each
from . import ranks
from .progress import Progress

_WEIGHTS_AND_MOMENTS = ("model.safetensors", adapter.MLX_LM, "optimizer.safetensors")  # of the first two one


@dataclass(frozen=True)
class Origin:
    """What a fork begins from. Only the first process reads the folder."""

    run: str
    step: int
    folder: str  # the checkpoint

    @property
    def name(self) -> str:
        return f"{self.run}@{self.step}"

    @property
    def default_run(self) -> str:
        return f"{self.run}-fork-{self.step}"

    def facts(self) -> dict:
        """What the fork's folder tells of it."""
        files = [path for name in _WEIGHTS_AND_MOMENTS if (path := Path(self.folder) / name).is_file()]
        digests = dict(zip((path.name for path in files), sha256_of_each(files)))
        return {"run": self.run, "step": self.step, "sha256": digests}


def find(name: str) -> Origin:
    """What --fork names. Raises a ValueError that shows what there is where that is no checkpoint of a run.

    Only the first process looks; all get its answer.
    """
    return Origin(**ranks.ask_first(lambda: _find(name)))


def _find(name: str) -> dict:
    match = re.fullmatch(r"(.+)@(\d+|latest|best)", name)
    run, which = (Path(match[1]), match[2]) if match else (Path(name), "latest")
    if not (run / "train.json").is_file():
        raise ValueError(f"--fork is {name}, but {run} is no run: it holds no train.json")
    if which == "latest":
        folder = checkpoint.to_resume(run)
    else:
        folder = checkpoint.linked(run, which) if which == "best" else run / checkpoint.name_of(int(which))
    if not folder or not checkpoint.is_whole(folder):
        steps = [str(checkpoint.step(path.name)) for path in checkpoint.all_of(run) if checkpoint.is_whole(path)]
        raise ValueError(f"--fork is {name}, but {run} has no such checkpoint to go on from; it has {_listed(steps)}")
    return {"run": str(run), "step": read_json(folder / "state.json").get("step"), "folder": str(folder.resolve())}


def _listed(steps: list[str]) -> str:
    return f"those of step {', '.join(steps)}" if steps else "none"


def bring_best(origin: Origin, run: Path, progress: Progress) -> None:
    """Copy the weights of the best validation loss so far into the fork's folder, where the test looks for them.

    Where the forked run no longer has them, the fork's test takes weights of its own; the loss stays the one to beat.
    """
    if progress.best_step in (None, origin.step):
        return
    name = checkpoint.name_of(progress.best_step)
    best = Path(origin.folder).parent / name
    if not best.is_dir():
        print(f"NOTE: {origin.run} no longer has its best weights, of step {progress.best_step}")
        progress.best_step = None
        return
    with new_folder(run / name) as aside:
        for file in best.iterdir():
            if file.name not in checkpoint.FOR_TRAINING:  # so that nothing goes on from here
                shutil.copyfile(file, aside / file.name)
    checkpoint.mark(run, "best", run / name)
