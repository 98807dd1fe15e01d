"""`AsyncEngine`: one thread around the engines. Requests come in through a bounded inbox, events go out to asyncio."""

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx

from .engines import Engines
from .submission import Event, Job, QueueFull, Refused, StepFailed, Submission, Unavailable

PROBE_SECONDS = 5.0  # between two trials of an engine whose last step failed

log = logging.getLogger(__name__)


class AsyncEngine:
    """Engines in a thread of their own, which owns all arrays; what crosses is plain.

    Args:
        build: makes the Engines, in that thread.
        max_queue: the most sequences that wait for a slot; one request may go beyond it by what it brings.
        on_step: called in the engine's thread after a step with the number of its sequences.
    """

    def __init__(self, build: Callable[[], Engines], max_queue: int, on_step: Callable[[int], None] = lambda _: None):
        self.max_queue = max_queue
        self.failure: Exception | None = None  # what ended the engine
        self.n_running = 0
        self.checkpoint: Path | None = None  # the folder of the one that answers where none is named
        self._build = build
        self._on_step = on_step
        self._on_failure: Callable[[], None] = lambda: None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._loaded = self._draining = self._stopping = False
        self._deadline = float("inf")  # on the monotonic clock
        self._trouble: str | None = None
        self._live: dict[int, tuple[Submission, int]] = {}  # by the engine's id; belongs to the engine's thread
        self._changed = threading.Condition()  # guards what follows
        self._inbox: list[tuple] = []  # (method, arguments ...) for the engine's thread
        self._n_arriving = 0  # sequences that the engine has not been given yet
        self._n_queued = 0  # sequences that wait inside the engine

    def start(self, on_failure: Callable[[], None] = lambda: None) -> None:
        """Begin to load. `on_failure` is called, in the engine's thread, if that fails; see `failure`."""
        self._on_failure = on_failure
        self._thread.start()

    def drain(self, seconds: float) -> None:
        """Refuse new requests; those taken may go on for so long. May be called from a signal handler."""
        self._deadline = time.monotonic() + seconds
        self._draining = True

    def stop(self, timeout: float) -> None:
        """End the thread after the step in hand; requests that are left get Unavailable."""
        self._draining = self._stopping = True
        with self._changed:
            self._changed.notify()
        self._thread.join(timeout)

    @property
    def n_waiting(self) -> int:
        return self._n_arriving + self._n_queued

    @property
    def closed(self) -> str | None:
        """Why no request is taken; None if one is."""
        if self.failure:
            return f"the engine ended: {type(self.failure).__name__}"
        if self._draining:
            return "the server is draining"
        return None if self._loaded else "the model is loading"

    @property
    def unready(self) -> str | None:
        """Why a request would not be served; None if it would."""
        full = f"the queue is full: {self.n_waiting} wait" if self.n_waiting >= self.max_queue else None
        return self.closed or self._trouble or full

    def submit(self, jobs: list[Job], checkpoint: Path | None = None) -> Submission:
        """Queue the jobs of a request; call it in the event loop that shall get the events.

        Args:
            jobs: what is asked for.
            checkpoint: the folder of the one to answer with, if not the one that answers at the time.

        Raises:
            QueueFull: `max_queue` sequences wait already.
            Unavailable: see `closed`.
        """
        submission = Submission(jobs, self._cancel, checkpoint)
        with self._changed:
            if reason := self.closed:
                raise Unavailable(reason)
            if self.n_waiting >= self.max_queue:
                raise QueueFull(f"{self.n_waiting} sequences wait already; at most {self.max_queue} may")
            self._n_arriving += len(jobs)
            self._tell(self._admit, submission)
        return submission

    def swap(self, checkpoint: Path) -> None:
        """Answer with another checkpoint from the next step on; see `Engines`. One that cannot be loaded is told in the
        log, and the old one goes on."""
        with self._changed:
            self._tell(self._swap, checkpoint)

    def _cancel(self, submission: Submission, number: int) -> None:
        with self._changed:
            self._tell(self._drop, submission, number)

    def _tell(self, method: Callable, *arguments) -> None:
        self._inbox.append((method, *arguments))
        self._changed.notify()

    # What follows runs in the engine's thread.

    def _run(self) -> None:
        try:
            self._serve()
        except Exception as error:
            self.failure = error
            if self._loaded:
                log.exception("the engine ended")
            else:
                self._on_failure()
        finally:
            self._end()
            # Left to the end of the thread, this can meet the end of the process, which then aborts.
            mx.clear_streams()

    def _serve(self) -> None:
        engine = self._build()
        engine.warm_up()
        self._publish(engine)
        self._loaded = True
        log.info("ready")
        while not self._stopping and time.monotonic() < self._deadline:
            self._read_inbox(engine)
            if engine.has_work:
                self._step(engine)
            elif self._trouble:
                self._probe(engine)
            self._publish(engine)

    def _read_inbox(self, engine: Engines) -> None:
        """Do what came in; without work, wait for something to do."""
        with self._changed:
            if not (self._inbox or self._stopping or engine.has_work):
                self._changed.wait(PROBE_SECONDS if self._trouble else None)
            messages, self._inbox = self._inbox, []
            n_arrived = self._n_arriving
        for method, *arguments in messages:
            method(engine, *arguments)
        self._publish(engine, n_arrived)

    def _publish(self, engine: Engines, n_arrived: int = 0) -> None:
        with self._changed:
            self._n_arriving -= n_arrived
            self._n_queued, self.n_running = engine.n_waiting, engine.n_running
            self.checkpoint = engine.checkpoint

    def _admit(self, engine: Engines, submission: Submission) -> None:
        submission.checkpoint = submission.checkpoint or engine.checkpoint
        try:
            for number, (prompt, params) in enumerate(submission.jobs):
                id = submission.ids[number] = engine.add(prompt, params, submission.checkpoint)
                self._live[id] = (submission, number)
        except QueueFull as error:
            self._fail(engine, submission, error)
        except ValueError as error:
            self._fail(engine, submission, Refused(str(error)))
        except Exception:  # a checkpoint that does not fit into memory, say
            log.exception("a request could not be taken")
            self._fail(engine, submission, StepFailed("the engine failed on this request"))

    def _swap(self, engine: Engines, checkpoint: Path) -> None:
        try:
            engine.swap(checkpoint)
        except Exception:
            log.exception("%s could not be loaded; %s goes on", checkpoint, engine.checkpoint)
        else:
            log.info("%s answers from now on", checkpoint)

    def _drop(self, engine: Engines, submission: Submission, number: int) -> None:
        if self._live.pop(submission.ids.get(number), None):
            engine.cancel(submission.ids[number])

    def _fail(self, engine: Engines, submission: Submission, error: Exception) -> None:
        for number in submission.ids:
            self._drop(engine, submission, number)
        self._deliver([(submission, error)])

    def _step(self, engine: Engines) -> None:
        try:
            outputs = engine.step()
        except Exception as error:
            self._step_failed(engine, error)
            return
        self._trouble = None
        self._on_step(engine.n_running + sum(output.finish_reason is not None for output in outputs))
        events = []
        for output in outputs:
            if output.id in self._live:
                submission, number = self._live[output.id]
                events.append((submission, (number, output)))
                if output.finish_reason:
                    del self._live[output.id]
        self._deliver(events)

    def _step_failed(self, engine: Engines, error: Exception) -> None:
        """Fail the requests of the step, whole; the engine goes on with the others."""
        log.error("a step failed", exc_info=error)
        self._trouble = f"the last step failed: {type(error).__name__}"
        # An engine that cannot say who was in the step would fail the same way for ever: then all were.
        failed = engine.fail_step() or list(self._live)
        if not engine.has_work:
            failed = list(self._live)
        for submission in {self._live[id][0] for id in failed if id in self._live}:
            self._fail(engine, submission, StepFailed("the engine failed on this request"))

    def _probe(self, engine: Engines) -> None:
        """Find out whether an engine whose last step failed works again."""
        try:
            engine.warm_up()
        except Exception as error:
            self._step_failed(engine, error)
        else:
            self._trouble = None

    def _deliver(self, events: list[tuple[Submission, Event | Exception]]) -> None:
        """Hand events to the event loops that wait for them: there is one, and one call."""
        for loop in {submission.loop for submission, _ in events}:
            own = [(submission, event) for submission, event in events if submission.loop is loop]
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
                loop.call_soon_threadsafe(_put, own)

    def _end(self) -> None:
        """Tell every request that is left that there will be no more."""
        with self._changed:
            arrived = [arguments[0] for method, *arguments in self._inbox if method == self._admit]
            self._inbox, self._n_arriving, self._n_queued, self.n_running = [], 0, 0, 0
        submissions = {submission for submission, _ in self._live.values()} | set(arrived)
        self._live = {}
        self._deliver([(submission, Unavailable("the server has stopped")) for submission in submissions])


def _put(events: list[tuple[Submission, Event | Exception]]) -> None:
    for submission, event in events:
        submission.put(event)
