"""`Service`: what every request needs."""

import time
from dataclasses import dataclass, field
from functools import cached_property

import tiktoken

from .async_engine import AsyncEngine
from .examiner import Examiner
from .served_run import ServedRun
from .telemetry import Telemetry


@dataclass(frozen=True)
class Service:
    """What every request needs."""

    engine: AsyncEngine
    encoding: tiktoken.Encoding
    telemetry: Telemetry
    run: ServedRun
    api_key: str | None = None
    watches: bool = False  # whether a new best checkpoint of the run takes over
    created: int = field(default_factory=lambda: int(time.time()))

    @cached_property
    def examiner(self) -> Examiner:
        """What checks the constraints of requests."""
        return Examiner(self.encoding)
