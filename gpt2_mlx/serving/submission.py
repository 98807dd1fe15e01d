"""`Submission`: one request in the engine. Its events are on their way from the engine's thread to asyncio."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from ..generation.engine import Output
from ..generation.params import SamplingParams

Job = tuple[list[int], SamplingParams]  # a prompt's token ids, never empty, and how to go on from it
Event = tuple[int, Output]  # the job's number in its request, and what a step brought it


class QueueFull(Exception):
    """As many sequences wait as are allowed to."""


class Unavailable(Exception):
    """The engine takes no requests: it loads, drains or has ended."""


class Refused(Exception):
    """The engine does not take a job: a token is out of its range, say."""


class StepFailed(Exception):
    """The step that this request was in raised an exception."""


class Submission:
    """One request in the engine: `with` ends what is left of it, `async for` brings (number of the job, Output).

    It ends when each job has had an Output with a finish_reason or was cancelled.

    Args:
        jobs: what was asked for.
        cancel: tells the engine to end a job.
        checkpoint: the folder of the checkpoint to answer with; without one the engine chooses, and has told its choice
            before the first event.

    Raises:
        StepFailed: while iterating, the engine failed on this request.
        Refused: the engine did not take a job.
        Unavailable: the engine ended.
    """

    def __init__(self, jobs: list[Job], cancel: Callable[["Submission", int], None], checkpoint: Path | None = None):
        self.jobs = jobs
        self.checkpoint = checkpoint
        self.loop = asyncio.get_running_loop()  # where its events are awaited
        self.ids: dict[int, int] = {}  # the engine's id of each job; belongs to the engine's thread
        self._cancel = cancel
        self._open = set(range(len(jobs)))
        self._events: asyncio.Queue[Event | Exception] = asyncio.Queue()

    def put(self, event: Event | Exception) -> None:
        self._events.put_nowait(event)

    def cancel(self, number: int) -> None:
        """End one job; its slot is free at the next step."""
        if number in self._open:
            self._open.discard(number)
            self._cancel(self, number)

    def close(self) -> None:
        """End all jobs that go on."""
        for number in sorted(self._open):
            self.cancel(number)

    def __enter__(self) -> "Submission":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def __aiter__(self) -> "Submission":
        return self

    async def __anext__(self) -> Event:
        while self._open:
            event = await self._events.get()
            if isinstance(event, Exception):
                self._open.clear()
                raise event
            number, output = event
            if number not in self._open:  # drawn before the engine heard of the cancel
                continue
            if output.finish_reason:
                self._open.discard(number)
            return event
        raise StopAsyncIteration
