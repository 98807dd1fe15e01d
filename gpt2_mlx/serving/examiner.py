"""`Examiner`: examines a constraint before the engine gets it, in a process that may hang or die of it.

A short pattern can take minutes to compile, or overflow the stack. A constraint that cost no more than its limits here
costs the engine no more either.
"""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from typing import BinaryIO

from tiktoken import Encoding

from ..generation.constraints import Matchers, examine
from ..generation.params import Constraint
from . import messages
from .limits import EXAM_BYTES, EXAM_SECONDS, EXAM_TOKENS, EXAM_WAIT, MAX_EXAMINED, MAX_EXAMS
from .submission import QueueFull

SLOW = f"it takes more than {EXAM_SECONDS:g} s to be compiled and followed for {EXAM_TOKENS} tokens"
LARGE = "it is too large or too deep"


class Examiner:
    """Says what is wrong with a constraint. Its process is started when it is first asked; one event loop owns it.

    Args:
        encoding: the tokenizer.
    """

    def __init__(self, encoding: Encoding):
        self._encoding = encoding
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()
        self._exams: dict[Constraint, asyncio.Task[str | None]] = {}  # under way
        self._examined: dict[Constraint, str | None] = {}  # what is wrong with each, the last used last

    async def examine(self, constraint: Constraint) -> str | None:
        """What is wrong with a constraint, and where; None if nothing is. Those who ask for the same share its exam.

        Raises:
            QueueFull: too many others wait for their turn.
        """
        if constraint in self._examined:
            wrong = self._examined[constraint] = self._examined.pop(constraint)
            return wrong
        if constraint not in self._exams:
            if (n := len(self._exams)) >= MAX_EXAMS:
                raise QueueFull(f"{n} constraints wait to be examined; at most {MAX_EXAMS} may")
            exam = self._exams[constraint] = asyncio.create_task(self._exam(constraint))
            exam.add_done_callback(lambda _: self._exams.pop(constraint))
        return await asyncio.shield(self._exams[constraint])  # whoever leaves does not end it for the others

    async def stop(self) -> None:
        """End the process."""
        if process := self._process:
            self._kill()
            await process.wait()

    def _kill(self) -> None:
        if self._process and self._process.returncode is None:
            self._process.kill()
        self._process = None

    async def _exam(self, constraint: Constraint) -> str | None:
        async with self._turn:
            try:
                answer = await asyncio.wait_for(self._ask(constraint), EXAM_WAIT)
            except asyncio.TimeoutError:  # of a busy machine, perhaps: it may be asked again
                self._kill()
                return f"its exam did not end within {EXAM_WAIT:g} s"
            except BaseException:  # an answer that nobody has read would be taken for the next one's
                self._kill()
                raise
            if answer is None:
                how, self._process = await self._process.wait(), None
                answer = (SLOW if how == -signal.SIGPROF else LARGE,)
        (wrong,) = answer
        self._examined[constraint] = wrong
        if len(self._examined) > MAX_EXAMINED:
            del self._examined[next(iter(self._examined))]
        return wrong

    async def _ask(self, constraint: Constraint) -> tuple | None:
        """The process' answer; None where it died."""
        if not self._process or self._process.returncode is not None:  # it died meanwhile, of something else
            await self._start()
        self._process.stdin.write(messages.pack(constraint))
        return await messages.receive(self._process.stdout)

    async def _start(self) -> None:
        command, how = messages.process(__name__)
        self._process = await asyncio.create_subprocess_exec(*command, **how)
        self._process.stdin.write(messages.pack(self._encoding))
        if await messages.receive(self._process.stdout) is None:
            raise RuntimeError("the process that examines constraints did not start")


def main() -> None:
    """The process: reads the tokenizer, then constraints, and writes what is wrong with each."""
    os.nice(10)  # the engine comes first
    source, sink = messages.own_pipes()
    encoding = messages.read(source)
    for answer in _answers(Matchers(encoding, encoding.n_vocab), source):
        sink.write(messages.pack(answer))
        sink.flush()


def _answers(matchers: Matchers, source: BinaryIO) -> Iterator[tuple]:
    _ = matchers.vocabulary
    limit_memory()
    yield ()  # it is ready
    while constraint := messages.read(source):
        yield (_wrong(matchers, constraint),)


def limit_memory() -> None:
    """Have the system refuse this process more than EXAM_BYTES of memory of its own, where it can: Linux does."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    most = EXAM_BYTES if hard == resource.RLIM_INFINITY else min(EXAM_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (most, hard))


def _wrong(matchers: Matchers, constraint: Constraint) -> str | None:
    began = time.process_time()
    signal.setitimer(signal.ITIMER_PROF, 2 * EXAM_SECONDS)  # the system ends what hangs inside a single token
    try:
        for _ in examine(matchers, constraint, EXAM_TOKENS):
            if time.process_time() - began > EXAM_SECONDS:
                return SLOW
    except ValueError as error:
        return str(error)
    except MemoryError:
        return LARGE
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return None
