"""`Service`: what every request needs."""

import time
from dataclasses import dataclass, field
from functools import cached_property

import tiktoken

from ..pretrained import LoadConfig
from ..tokenizer import Vocabulary
from .async_engine import AsyncEngine
from .audit import Audits
from .examiner import Examiner
from .receipts import Receipts
from .served_run import ServedRun
from .telemetry import Telemetry


@dataclass(frozen=True)
class Service:
    """What every request needs."""

    engine: AsyncEngine
    vocabulary: Vocabulary
    telemetry: Telemetry
    run: ServedRun
    api_key: str | None = None
    watches: bool = False  # whether a new best checkpoint of the run takes over
    audit: float = 0.0  # the share of the requests that is audited
    how: LoadConfig = field(default_factory=LoadConfig)  # how the engine loads its models
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def encoding(self) -> tiktoken.Encoding:
        return self.vocabulary.encoding

    @cached_property
    def receipts(self) -> Receipts:
        return Receipts(self.how)

    @cached_property
    def audits(self) -> Audits:
        """What draws answers again."""
        return Audits(self.engine, self.encoding, self.receipts, self.telemetry, self.audit)

    @cached_property
    def examiner(self) -> Examiner:
        """What examines the constraints of requests."""
        return Examiner(self.encoding)
