"""Following a run while it trains."""

import asyncio
from pathlib import Path

from starlette.concurrency import run_in_threadpool

from .. import checkpoint
from .async_engine import AsyncEngine

SECONDS = 2.0  # between two looks at the run's link `best`
LONGEST = 64.0  # seconds until a checkpoint that could not be loaded is tried again


async def watch(run: Path, engine: AsyncEngine, seconds: float = SECONDS) -> None:
    """Have the engine go over to the run's best checkpoint whenever that is another one.

    Args:
        run: the run's folder. It may be moved away and come back.
        engine: the one to tell.
        seconds: between two looks.
    """
    tried, pause = None, seconds
    while True:
        await asyncio.sleep(seconds)
        try:
            best = (await run_in_threadpool(checkpoint.resolve, run)).resolve()
        except (OSError, ValueError):  # it was moved away, say: the engine goes on
            continue
        if best == engine.checkpoint or engine.swapping:
            continue
        if best == tried:  # in vain: it may be half copied
            await asyncio.sleep(pause)
        tried, pause = best, min(LONGEST, 2 * pause) if best == tried else seconds
        engine.swap(best)
