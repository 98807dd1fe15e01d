"""`Audits`: answers that are drawn again while nothing else is to do, alone and without a shortcut, and compared."""

import asyncio
import dataclasses
import logging
import random
from collections import deque

import tiktoken

from .answers import ReceiptText
from .async_engine import AsyncEngine
from .limits import MAX_AUDITS
from .receipts import Answered, Receipts, difference
from .submission import EngineFailed, QueueFull, Refused, Submission, Unavailable
from .telemetry import Telemetry

log = logging.getLogger(__name__)


class Audits:
    """A share of the answers is kept, the newest MAX_AUDITS of it, and audited while no request is under way.

    A request ends the audit in progress between two steps; it begins anew later.

    Args:
        engine: what draws the texts.
        encoding: its tokenizer.
        receipts: makes the receipt of an answer that comes out otherwise.
        telemetry: where to count.
        share: of the answers, 0 to 1.
    """

    def __init__(
        self, engine: AsyncEngine, encoding: tiktoken.Encoding, receipts: Receipts, telemetry: Telemetry, share: float
    ):
        self._engine, self._encoding, self._receipts, self._telemetry = engine, encoding, receipts, telemetry
        self._share = share
        self._draw = random.Random(0).random  # apart from what requests draw
        self._kept: deque[Answered] = deque()
        self._n_requests = 0  # under way
        self._task: asyncio.Task | None = None
        self._submission: Submission | None = None  # of the audit in progress

    def give_way(self) -> None:
        """End the audit in progress: a request comes."""
        if self._submission:
            self._submission.close()
        if self._task:
            self._task.cancel()
        self._submission = self._task = None

    def enter(self) -> None:
        """A request is under way; it has to `leave`."""
        self._n_requests += 1

    def leave(self, answered: Answered | None) -> None:
        """A request has ended, with all its texts if these are given."""
        self._n_requests -= 1
        if answered and self._draw() < self._share:
            self._kept.append(answered)
            if len(self._kept) > MAX_AUDITS:
                self._drop()
        if self._kept and not self._n_requests:
            self.give_way()
            self._task = asyncio.get_running_loop().create_task(self._run())

    def _drop(self) -> None:
        self._kept.popleft()
        self._telemetry.unaudited.inc()

    async def _run(self) -> None:
        while self._kept:
            try:
                await self._audit(self._kept[0])
                self._kept.popleft()
            except Unavailable:  # the server ends
                return
            except (EngineFailed, QueueFull, Refused):  # the checkpoint is gone, say
                self._drop()

    async def _audit(self, answered: Answered) -> None:
        receipt = await self._receipts.make(answered)
        found = difference(answered.texts, await self._texts(answered))
        self._telemetry.audited.inc()
        if found:
            self._telemetry.differing.inc()
            told = receipt.model_dump_json(exclude_unset=True) if receipt else "none, since its files are gone"
            log.error("an audit found a difference: %s; the receipt: %s", found, told)

    async def _texts(self, answered: Answered) -> list[ReceiptText]:
        """The texts, drawn one after the other."""
        texts = []
        for (prompt, params), choice in answered.choices(self._encoding):
            job = prompt, dataclasses.replace(params, cold=True)
            with self._engine.submit([job], answered.checkpoint) as self._submission:
                async for _, output in self._submission:
                    if choice.take(output).finish_reason:
                        break
            texts.append(choice.record)
        return texts
