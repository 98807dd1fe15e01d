"""`Examiner`: tries a constraint out before the engine gets it, in a process that may hang or die of it.

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

from ..generation.constraints import Matchers, try_out
from ..generation.params import Constraint
from . import messages
from .limits import EXAM_SECONDS, EXAM_TOKENS, MAX_EXAMS, MAX_VERDICTS
from .submission import QueueFull

SLOW = f"it takes more than {EXAM_SECONDS:g} s to be compiled and followed for {EXAM_TOKENS} tokens"


class Examiner:
    """Says what is wrong with a constraint. Its process is started when it is first asked; one event loop owns it.

    Args:
        encoding: the tokenizer.
    """

    def __init__(self, encoding: Encoding):
        self._encoding = encoding
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()
        self._n_waiting = 0
        self._verdicts: dict[Constraint, str | None] = {}  # the last used last

    async def examine(self, constraint: Constraint) -> str | None:
        """What is wrong with a constraint, and where; None if nothing is.

        Raises:
            QueueFull: too many others wait for their turn.
        """
        if constraint in self._verdicts:
            return self._known(constraint)
        if self._n_waiting >= MAX_EXAMS:
            raise QueueFull(f"{self._n_waiting} constraints wait to be checked; at most {MAX_EXAMS} may")
        self._n_waiting += 1
        try:
            async with self._turn:
                return self._known(constraint) if constraint in self._verdicts else await self._ask(constraint)
        finally:
            self._n_waiting -= 1

    async def stop(self) -> None:
        """End the process."""
        if process := self._process:
            self._kill()
            await process.wait()

    def _kill(self) -> None:
        if self._process and self._process.returncode is None:
            self._process.kill()
        self._process = None

    def _known(self, constraint: Constraint) -> str | None:
        verdict = self._verdicts[constraint] = self._verdicts.pop(constraint)
        return verdict

    async def _ask(self, constraint: Constraint) -> str | None:
        try:
            if not self._process or self._process.returncode is not None:  # it died meanwhile, of something else
                await self._start()
            self._process.stdin.write(messages.pack(constraint))
            answer = await messages.receive(self._process.stdout)
        except BaseException:  # an answer that nobody has read would be taken for the next one's
            self._kill()
            raise
        if answer is None:
            how, self._process = await self._process.wait(), None
            answer = (SLOW if how == -signal.SIGPROF else "it is too large or too deep",)
        (self._verdicts[constraint],) = answer
        if len(self._verdicts) > MAX_VERDICTS:
            del self._verdicts[next(iter(self._verdicts))]
        return self._verdicts[constraint]

    async def _start(self) -> None:
        command, how = messages.process(__name__)
        self._process = await asyncio.create_subprocess_exec(*command, **how)
        self._process.stdin.write(messages.pack(self._encoding))
        if await messages.receive(self._process.stdout) is None:
            raise RuntimeError("the process that checks constraints did not start")


def main() -> None:
    """The process: reads the tokenizer, then constraints, and writes a verdict on each."""
    os.nice(10)  # the engine comes first
    source, sink = messages.own_pipes()
    encoding = messages.read(source)
    for answer in _answers(Matchers(encoding, encoding.n_vocab), source):
        sink.write(messages.pack(answer))
        sink.flush()


def _answers(matchers: Matchers, source: BinaryIO) -> Iterator[tuple]:
    _ = matchers.vocabulary
    yield ()  # it is ready
    while constraint := messages.read(source):
        yield (_verdict(matchers, constraint),)


def _verdict(matchers: Matchers, constraint: Constraint) -> str | None:
    began = time.process_time()
    signal.setitimer(signal.ITIMER_PROF, 2 * EXAM_SECONDS)  # the system ends what hangs inside a single token
    try:
        for _ in try_out(matchers, constraint, EXAM_TOKENS):
            if time.process_time() - began > EXAM_SECONDS:
                return SLOW
    except ValueError as error:
        return str(error)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return None
