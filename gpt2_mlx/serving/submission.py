"""`Submission`: one request in the engine, and its events on their way to whoever waits for them."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from ..generation.outputs import Output
from ..generation.params import SamplingParams
from .errors import ApiError

RETRY_AFTER = {"Retry-After": "1"}  # seconds

Job = tuple[list[int], SamplingParams]  # a prompt's token ids, never empty, and how to go on from it
Event = tuple[int, Output]  # the job's number in its request, and what a step brought it


class QueueFull(Exception):
    """As many sequences wait as are allowed to, or as many checkpoints are in use."""


class Unavailable(Exception):
    """The engine takes no requests: it loads, drains or has ended."""


class Refused(Exception):
    """The engine does not take a job: a token is out of its range, say."""


class EngineFailed(Exception):
    """The engine's process ended twice on this request."""


class Submission:
    """One request in the engine: `with` ends what is left of it, `async for` brings (number of the job, Output).

    It ends when each job has had an Output with a finish_reason or was cancelled.

    Args:
        jobs: what was asked for.
        checkpoint: the folder of the checkpoint that answers.
        cancel: tells the engine to end a job.
        number: of the request, in the order in which requests came.
        key: which earlier request it supersedes, and which later one supersedes it.

    Attributes:
        deadline: ends it, if it has a timeout.

    Raises:
        EngineFailed, Refused, QueueFull, Unavailable: while iterating.
    """

    def __init__(
        self,
        jobs: list[Job],
        checkpoint: Path,
        cancel: Callable[["Submission", int], None],
        number: int = 0,
        key: str | None = None,
    ):
        self.jobs, self.checkpoint = jobs, checkpoint
        self.number, self.key = number, key
        self.deadline: asyncio.TimerHandle | None = None
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
        if self.deadline:
            self.deadline.cancel()
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
            if number not in self._open:  # it came before the cancel
                continue
            if output.finish_reason:
                self._open.discard(number)
            return event
        raise StopAsyncIteration


@contextlib.contextmanager
def as_api_errors() -> Iterator[None]:
    """Turns the engine's exceptions into ApiErrors."""
    try:
        yield
    except QueueFull as error:
        raise ApiError(429, str(error), code="queue_full", headers=RETRY_AFTER) from None
    except Unavailable as error:
        raise ApiError(503, str(error), headers=RETRY_AFTER) from None
    except EngineFailed as error:
        raise ApiError(500, str(error), code="engine_failed") from None
    except Refused as error:
        raise ApiError(400, str(error), code="invalid_value") from None
