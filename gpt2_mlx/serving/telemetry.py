"""What the server tells its operator: metrics for Prometheus and log lines; a request id in these and in answers."""

import json
import logging
import math
import re
import time
import uuid
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from urllib.parse import quote

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .. import checkpoint
from ..generation.prefixes import PrefixCounts
from .async_engine import AsyncEngine
from .errors import ApiError

CLIENT_LEFT = 499  # the status that is logged for a client that did not wait for its answer
_GIVEN_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)

request_id: ContextVar[str] = ContextVar("request_id", default="-")
log = logging.getLogger(__name__)


class Telemetry:
    """The server's metrics, in a registry of their own."""

    def __init__(self):
        self.registry = CollectorRegistry()
        made = {"registry": self.registry}
        self.requests = Counter("gpt2_requests", "Answers, by route and status", ("route", "status"), **made)
        self.seconds = Histogram("gpt2_request_seconds", "Time to the end of an answer", buckets=_SECONDS, **made)
        self.prompt_tokens = Counter("gpt2_prompt_tokens", "Tokens read", **made)
        self.completion_tokens = Counter("gpt2_completion_tokens", "Tokens written", **made)
        self.first_token_seconds = Histogram(
            "gpt2_time_to_first_token_seconds", "From the request to a text's first token", buckets=_SECONDS, **made
        )
        self.token_seconds = Histogram(
            "gpt2_time_per_token_seconds",
            "Between a text's tokens after the first, on average",
            buckets=_SECONDS,
            **made,
        )
        self.batch_size = Histogram("gpt2_batch_size", "Sequences in a step", buckets=_ROWS, **made)
        self.prefix_hits = Counter(
            "gpt2_prefix_cache_hits", "Blocks of prompts that were found in the prefix cache", **made
        )
        self.prefix_misses = Counter(
            "gpt2_prefix_cache_misses", "Blocks that had to be computed, which the prefix cache then took", **made
        )
        self.prefix_bytes = Gauge("gpt2_prefix_cache_bytes", "Bytes of the blocks in the prefix cache", **made)
        self.drafted = Counter("gpt2_drafted_tokens", "Tokens that were drafted, to be verified together", **made)
        self.accepted = Counter("gpt2_accepted_tokens", "Those of them that were drawn, and so are in a text", **made)
        self.audited = Counter("gpt2_audits", "Answers that were drawn again and compared", **made)
        self.differing = Counter("gpt2_audits_differing", "Those of them that came out otherwise", **made)
        self.unaudited = Counter("gpt2_audits_dropped", "Answers that were to be audited and could not be", **made)
        self.restarts = Counter("gpt2_engine_restarts", "Processes of the engine that took another's place", **made)

    def watch(self, engine: AsyncEngine) -> None:
        """Count the engine's steps and restarts, and add the gauges that read its state."""
        engine.on_step, engine.on_restart = self._note_step, self.restarts.inc
        waiting = Gauge("gpt2_queue_depth", "Sequences that wait for a slot", registry=self.registry)
        waiting.set_function(lambda: engine.n_waiting)
        running = Gauge("gpt2_running", "Sequences that have a slot", registry=self.registry)
        running.set_function(lambda: engine.n_running)
        step = Gauge("gpt2_checkpoint_step", "Training step of the checkpoint that answers", registry=self.registry)
        step.set_function(lambda: _step(engine.checkpoint))

    def _note_step(self, n_sequences: int, prefixes: PrefixCounts) -> None:
        self.batch_size.observe(n_sequences)
        self.prefix_hits.inc(prefixes.hits)
        self.prefix_misses.inc(prefixes.misses)
        self.prefix_bytes.set(prefixes.n_bytes)

    def text(self) -> bytes:
        """All metrics, in the text format of Prometheus."""
        return generate_latest(self.registry)


def _step(folder: Path) -> float:
    step = checkpoint.step(folder.name)
    return math.nan if step is None else step


class Observed:
    """ASGI middleware: gives every request an id, an answer whatever happens, a log line and its place in the metrics.

    Args:
        app: what answers.
        telemetry: where to count.
        routes: the paths to count by name; all others are counted together.
    """

    def __init__(self, app: ASGIApp, telemetry: Telemetry, routes: frozenset[str]):
        self.app = app
        self.telemetry = telemetry
        self.routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        token = request_id.set(given if _GIVEN_ID.fullmatch(given) else uuid.uuid4().hex)
        began, status = time.monotonic(), CLIENT_LEFT

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = request_id.get()
            await send(message)

        try:
            await self._answer(scope, receive, send_with_id, lambda: status != CLIENT_LEFT)
        finally:
            self._note(scope, status, time.monotonic() - began)
            request_id.reset(token)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, has_begun: Callable[[], bool]) -> None:
        try:
            await self.app(scope, receive, send)
        except ClientDisconnect:  # nobody listens any more
            pass
        except Exception:
            log.exception("no answer could be made")
            if not has_begun():
                await ApiError(500, "the server failed on this request").response(scope, receive, send)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route = scope["path"] if scope["path"] in self.routes else "other"
        self.telemetry.requests.labels(route, str(status)).inc()
        self.telemetry.seconds.observe(seconds)
        facts = {"method": scope["method"], "path": quote(scope["path"])[:200], "status": status}
        facts["seconds"] = round(seconds, 4)
        log.info(" ".join(map(str, facts.values())), extra={"facts": facts})


class TextFormatter(logging.Formatter):
    """Lines for people."""

    def __init__(self):
        super().__init__("%(asctime)s %(levelname)s %(request_id)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        record.request_id = request_id.get()
        return super().format(record)


class JsonFormatter(logging.Formatter):
    """Lines for machines: one JSON object each."""

    def format(self, record: logging.LogRecord) -> str:
        facts = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname,
            "request_id": request_id.get(),
            "message": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            facts["traceback"] = self.formatException(record.exc_info)
        return json.dumps(facts, ensure_ascii=False)


def configure_logging(style: str) -> None:
    """Log to stderr, as "text" or as "json"."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
