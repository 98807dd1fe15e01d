"""`Pulse`: whether the engine's process still works, by what it says."""

import asyncio
import time
from collections.abc import Callable

from .messages import Pass

SILENCE = 10.0  # seconds that a pass may take, and
TIMES = 5.0  # this many times what its tokens take, a token having taken what the slowest has taken so far


class Pulse:
    """When the process last said something, and what may take it some time.

    Attributes:
        at_work: the pass that it has begun.
    """

    def __init__(self):
        self.at_work = Pass((), 0)
        self._heard = time.monotonic()
        self._slowest = 0.0  # seconds a token

    def expect(self) -> None:
        """From now on it is expected to say something."""
        self._heard = time.monotonic()

    def begin(self) -> None:
        """Another process takes its place."""
        self.at_work = Pass((), 0)
        self.expect()

    def hear(self, message: object) -> None:
        if self.at_work.n_tokens:
            self._slowest = max(self._slowest, (time.monotonic() - self._heard) / self.at_work.n_tokens)
        self.begin()
        if isinstance(message, Pass):
            self.at_work = message

    async def watch(self, is_due: Callable[[], bool], kill: Callable[[], None]) -> None:
        """Kill it and return when it has been silent for too long, while something was due."""
        while not (is_due() and self._is_over_due):
            began = time.monotonic()
            await asyncio.sleep(0.25)
            if time.monotonic() - began > 1.0:  # this process stood still itself
                self.expect()
        kill()

    @property
    def _is_over_due(self) -> bool:
        return time.monotonic() - self._heard > SILENCE + TIMES * self._slowest * self.at_work.n_tokens
