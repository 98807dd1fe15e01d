"""`Service`: what every request needs."""

import functools
import time
from dataclasses import dataclass, field
from functools import cached_property

import tiktoken

from .. import pretrained
from ..pretrained import LoadConfig
from ..tokenizer import Vocabulary
from .async_engine import AsyncEngine
from .audit import Audits
from .examiner import Examiner
from .receipts import Receipts
from .served_adapters import NO_ADAPTERS, ServedAdapters
from .served_run import ServedRun
from .telemetry import Telemetry

_vocabulary = functools.cache(pretrained.vocabulary)


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
    adapters: ServedAdapters = NO_ADAPTERS  # those that requests may name
    how: LoadConfig = field(default_factory=LoadConfig)  # how the engine loads its models
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def encoding(self) -> tiktoken.Encoding:
        return self.vocabulary.encoding

    def vocabulary_of(self, adapter: str | None) -> Vocabulary:
        """That of an adapter, which may have a chat template of its own, or of the model."""
        return _vocabulary(self.adapters.folders[adapter]) if adapter else self.vocabulary

    @cached_property
    def receipts(self) -> Receipts:
        return Receipts(self.how, self.adapters)

    @cached_property
    def audits(self) -> Audits:
        """What draws answers again."""
        return Audits(self.engine, self.encoding, self.receipts, self.telemetry, self.audit)

    @cached_property
    def examiner(self) -> Examiner:
        """What examines the constraints of requests."""
        return Examiner(self.encoding)
