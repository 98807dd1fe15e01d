"""`AsyncEngine`: the engine's process seen from asyncio. When it dies or hangs, another goes on where it was.

The same request gives the same text, so what was under way is drawn again from its seeds, and what was sent already is
left out: a client sees a pause and nothing else.
"""

import asyncio
import contextlib
import itertools
import logging
import subprocess
from collections.abc import Callable
from pathlib import Path

from ..generation.prefixes import PrefixCounts
from . import messages
from .jobs import Jobs
from .messages import Add, Cancel, Loaded, NotLoaded, NotTaken, Step, Swap
from .pulse import Pulse
from .submission import EngineFailed, Job, QueueFull, Refused, Submission, Unavailable

LONGEST_WAIT = 30.0  # seconds between two trials to start a process
STOPPED = "the server has stopped"

log = logging.getLogger(__name__)


class AsyncEngine:
    """The engine in a process of its own; `start` and all that follows belong to one event loop.

    Args:
        launch: starts a process that answers with this checkpoint; see `worker.launch`.
        checkpoint: the folder of the checkpoint that answers first.
        max_queue: the largest number of sequences that wait for a slot; one request may go beyond it by what it brings.

    Attributes:
        on_step: called after a step with the number of its sequences and what the prefix cache did.
        on_restart: called when another process is started.
        checkpoint: the folder of the checkpoint that answers where none is named.
        n_running: the sequences that have a slot.
        next_number: gives a number for a request, larger than those of requests that came before.
        failure: why the first process could not be started, if it could not.
    """

    def __init__(self, launch: Callable[[Path], subprocess.Popen], checkpoint: Path, max_queue: int):
        self.checkpoint, self.max_queue = checkpoint, max_queue
        self.on_step: Callable[[int, PrefixCounts], None] = lambda *_: None
        self.on_restart: Callable[[], None] = lambda: None
        self.failure: str | None = None
        self.n_running = 0
        self.swapping: Path | None = None  # what is being loaded to answer next
        self._launch = launch
        self._jobs = Jobs()
        self.next_number = itertools.count(1).__next__
        self._loaded = self._draining = False
        self._trouble: str | None = None
        self._pipe: asyncio.WriteTransport | None = None  # to the process
        self._task: asyncio.Task | None = None
        self._process = launch(checkpoint)
        self._pulse = Pulse()

    def start(self, on_failure: Callable[[], None] = lambda: None) -> None:
        """Attend to the process, and to those that follow it. `on_failure` is called if the first cannot load."""
        self._task = asyncio.get_running_loop().create_task(self._supervise(on_failure))

    def drain(self, seconds: float) -> None:
        """Refuse new requests; those taken may go on for this long. A second call changes nothing."""
        if not self._draining:
            self._draining = True
            asyncio.get_running_loop().call_later(seconds, self._end_all, STOPPED)

    async def stop(self) -> None:
        """End the process; requests that are left get Unavailable."""
        self._draining = True
        self._end_all(STOPPED)
        if self._task:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._process.kill()
        self._process.wait()

    @property
    def n_waiting(self) -> int:
        """The sequences that wait for a slot."""
        return max(0, len(self._jobs) - self.n_running)

    @property
    def closed(self) -> str | None:
        """Why no request is taken; None if one is."""
        if self.failure:
            return f"the engine could not be started: {self.failure}"
        if self._draining:
            return "the server is draining"
        return None if self._loaded else "the model is loading"

    @property
    def unready(self) -> str | None:
        """Why a request would not be served at once; None if it would."""
        full = f"the queue is full: {self.n_waiting} wait" if self.n_waiting >= self.max_queue else None
        return self.closed or self._trouble or full

    def submit(
        self,
        jobs: list[Job],
        checkpoint: Path | None = None,
        number: int | None = None,
        key: str | None = None,
        timeout: float | None = None,
    ) -> Submission:
        """Queue the jobs of a request.

        Args:
            jobs: what is asked for.
            checkpoint: the folder of the one to answer with, if not the one that answers now.
            number: when the request came; see `next_number`.
            key: end the request with this key that came earlier, with the finish_reason "superseded".
            timeout: end the texts where they are after so many seconds, at 0 at once, with the finish_reason "timeout".

        Raises:
            QueueFull, Unavailable: `max_queue` sequences wait already; see `closed`.
        """
        if reason := self.closed:
            raise Unavailable(reason)
        number = number or self.next_number()
        other = self._jobs.with_key(key) if key else None
        if other and other.number < number:
            self._end(other, "superseded")
        if self.n_waiting >= self.max_queue:
            raise QueueFull(f"{self.n_waiting} sequences wait already; at most {self.max_queue} may")
        submission = Submission(jobs, checkpoint or self.checkpoint, self._cancel, number, key)
        self._jobs.add(submission)
        if other and other.number > number:  # it was overtaken on its way here
            self._end(submission, "superseded")
        elif timeout == 0:  # nor does the engine get it
            self._end(submission, "timeout")
        elif timeout:
            submission.deadline = asyncio.get_running_loop().call_later(timeout, self._end, submission, "timeout")
        self._send_due()
        return submission

    def swap(self, checkpoint: Path) -> None:
        """Answer with another checkpoint as soon as it is loaded. If it cannot be, the log says so."""
        self.swapping = checkpoint
        self._send(Swap(checkpoint))

    def _cancel(self, submission: Submission, number: int | None = None) -> None:
        """End a job of a submission, or all of them."""
        for id in self._jobs.drop(submission, number):
            self._send(Cancel(id))
        self._send_due()

    def _end(self, submission: Submission, reason: str) -> None:
        self._jobs.conclude(submission, reason)
        self._cancel(submission)

    def _send_due(self) -> None:
        if self._pipe:
            if not self._jobs.n_sent:
                self._pulse.expect()
            for message in self._jobs.due():
                self._send(message)

    def _send(self, message: Add | Cancel | Swap) -> None:
        if self._pipe:  # else it is starting, and gets what is open then
            self._pipe.write(messages.pack(message))

    async def _supervise(self, on_failure: Callable[[], None]) -> None:
        how, trials = await self._attend(), 0  # to start it again, in vain
        while self._loaded:
            log.error("the engine's process ended: %s; another is started", how)
            trials = trials + 1 if self._trouble else 0
            self._trouble = f"the engine's process ended ({how}), and another is starting"
            self.n_running, self.swapping = 0, None
            if trials:
                self._end_all(f"the engine cannot be started: {how}")
                await asyncio.sleep(min(LONGEST_WAIT, 2**trials))
            elif submission := self._jobs.died(self._pulse.at_work.ids):
                submission.put(EngineFailed("the engine failed twice on this request"))
            try:
                self._process = self._launch(self.checkpoint)
                self.on_restart()
                how = await self._attend()
            except OSError as error:  # there is no memory for another process, say
                how = str(error)
        self.failure = how
        on_failure()

    async def _attend(self) -> str:
        """Talk to the process until it has ended; returns how."""
        loop, reader = asyncio.get_running_loop(), asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), self._process.stdout)
        self._pipe, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, self._process.stdin)
        self._pulse.begin()
        self._jobs.rewind()
        self._send_due()
        if self.swapping:  # asked for while it started
            self._send(Swap(self.swapping))
        watching, how = loop.create_task(self._pulse.watch(self._is_due, self._process.kill)), ""
        try:
            while message := await messages.receive(reader):
                how = self._act(message) or how
        finally:
            self._pipe.close()
            self._pipe = None
            hung = watching.done()
            watching.cancel()
            self._process.kill()
        status = await asyncio.to_thread(self._process.wait)
        return how or ("it hung" if hung else f"status {status}")

    def _act(self, message: object) -> str | None:
        """Do what a message asks for; returns why the process will end, if it says so."""
        self._pulse.hear(message)
        match message:
            case Loaded(checkpoint):
                self._loaded, self._trouble, self.checkpoint = True, None, checkpoint
                self.swapping = None if self.swapping == checkpoint else self.swapping
                log.info("%s answers from now on", checkpoint)
            case NotLoaded(checkpoint, reason) if not self._loaded or self._trouble:
                return reason
            case NotLoaded(checkpoint, reason):
                self.swapping = None
                log.error("%s could not be loaded: %s", checkpoint, reason)
            case Step(outputs, n_running, prefixes):
                self.on_step(n_running + sum(output.finish_reason is not None for output in outputs), prefixes)
                self.n_running = n_running
                for output in outputs:
                    if taken := self._jobs.take(output):
                        submission, event = taken
                        if isinstance(event, Exception):
                            self._cancel(submission)
                        submission.put(event)
                self._send_due()
            case NotTaken(id, reason, for_now):
                if submission := self._jobs.submission_of(id):
                    self._cancel(submission)
                    submission.put(QueueFull(reason) if for_now else Refused(reason))
        return None

    def _is_due(self) -> bool:
        """Whether the process has to say something soon."""
        return self._jobs.n_sent > 0 and self._loaded and not self._trouble

    def _end_all(self, reason: str) -> None:
        for submission in self._jobs.clear():
            submission.put(Unavailable(reason))
