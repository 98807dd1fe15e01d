"""`Engines`: an Engine for each checkpoint in use, behind the methods of one."""

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx

from ..generation.engine import Engine, Output
from ..generation.params import SamplingParams
from .submission import QueueFull

MAX_ENGINES = 5  # the one that answers, and up to four that requests have named


class Engines:
    """One Engine that answers, and others for as long as a sequence needs them.

    A sequence ends on the checkpoint it began with: its cached keys and values are of no use to another, and its text
    is that of one model. So `swap` waits for nobody and restarts nothing: what comes later goes to the new engine,
    what came before goes on in the old one, a step each in turn, and an engine with nothing left to do is let go.
    The price is the memory of both while they overlap, and steps wait while a checkpoint is read.

    Args:
        load: makes the Engine of a checkpoint's folder.
        checkpoint: the folder of the one that answers.
    """

    def __init__(self, load: Callable[[Path], Engine], checkpoint: Path):
        self.checkpoint = checkpoint
        self._load = load
        self._engines = {checkpoint: load(checkpoint)}
        self._stepping = self._engines[checkpoint]
        self._n_steps = 0

    def swap(self, checkpoint: Path) -> None:
        """Let another checkpoint answer from now on.

        Raises:
            ValueError: it cannot be loaded; all is as before.
        """
        if checkpoint not in self._engines:
            self._engines[checkpoint] = self._load(checkpoint)
        self.checkpoint = checkpoint
        self._let_go()

    def add(self, prompt: list[int], params: SamplingParams, checkpoint: Path) -> int:
        """Queue a sequence for a checkpoint and return its id.

        Raises:
            ValueError: the checkpoint cannot be loaded, the prompt is empty or a token is out of range.
            QueueFull: too many checkpoints are in use.
        """
        if checkpoint not in self._engines:
            if len(self._engines) >= MAX_ENGINES:
                raise QueueFull(f"{len(self._engines)} checkpoints are in use; at most {MAX_ENGINES} may be")
            self._engines[checkpoint] = self._load(checkpoint)
        try:
            return self._engines[checkpoint].add(prompt, params)
        finally:
            self._let_go()

    def cancel(self, id: int) -> None:
        """As `Engine.cancel`."""
        for engine in self._engines.values():
            engine.cancel(id)
        self._let_go()

    def step(self) -> list[Output]:
        """A step of the engine whose turn it is."""
        self._stepping = self._next()
        outputs = self._stepping.step()
        self._let_go()
        return outputs

    def fail_step(self) -> list[int]:
        """As `Engine.fail_step`, of the engine whose step raised."""
        failed = self._stepping.fail_step()
        self._let_go()
        return failed

    def warm_up(self) -> None:
        """Warm up the engine that answers; those that come later run the same shapes."""
        self._stepping = self._engines[self.checkpoint]
        self._stepping.warm_up()

    @property
    def loaded(self) -> tuple[Path, ...]:
        """The checkpoints that have an engine."""
        return tuple(self._engines)

    @property
    def has_work(self) -> bool:
        return any(engine.has_work for engine in self._engines.values())

    @property
    def n_waiting(self) -> int:
        return sum(engine.n_waiting for engine in self._engines.values())

    @property
    def n_running(self) -> int:
        return sum(engine.n_running for engine in self._engines.values())

    def _next(self) -> Engine:
        self._n_steps += 1
        busy = [engine for engine in self._engines.values() if engine.has_work]
        return busy[self._n_steps % len(busy)]

    def _let_go(self) -> None:
        """Forget the engines that are of no more use, and give their memory back."""
        idle = [path for path, engine in self._engines.items() if path != self.checkpoint and not engine.has_work]
        for path in idle:
            del self._engines[path]
        if idle:
            self._stepping = self._engines[self.checkpoint]
            mx.clear_cache()
