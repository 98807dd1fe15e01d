"""Following a run while it trains."""

import contextlib
import threading
from pathlib import Path

from .. import checkpoint
from .async_engine import AsyncEngine

SECONDS = 2.0  # between two looks at the run's link `best`


def watch(run: Path, served: Path, engine: AsyncEngine, ended: threading.Event, seconds: float = SECONDS) -> None:
    """Have the engine go over to the run's best checkpoint whenever that is another one; returns when `ended` is set.

    Args:
        run: the run's folder.
        served: the folder of the checkpoint that the engine began with.
        engine: the one to tell.
        ended: when to return.
        seconds: between two looks.
    """
    while not ended.wait(seconds):
        with contextlib.suppress(ValueError):  # the run was moved away, say: the engine goes on
            best = checkpoint.resolve(run).resolve()
            if best != served:
                engine.swap(best)
                served = best
