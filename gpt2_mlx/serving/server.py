"""`Server`: uvicorn, and how it is asked to end."""

import functools
import signal
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from .async_engine import AsyncEngine
from .connections import Connection
from .limits import MAX_CONNECTIONS

KEEP_ALIVE = 75  # seconds an idle connection stays open: longer than clients keep theirs
OTHER_FILES = 64  # that the service has open beside its connections
GRACE = 5  # seconds beyond the drain's, to tell those whose requests were cut short


class Server(uvicorn.Server):
    """Serves an app until SIGTERM, which ends `serve` quietly, or Ctrl-C. A second signal does not wait for the drain.

    Args:
        app: what to serve.
        drain_seconds: how long requests that run may go on after a signal.
        engine: takes no more requests after a signal.
    """

    def __init__(self, app: ASGIApp, drain_seconds: int, engine: AsyncEngine):
        limits = {"timeout_keep_alive": KEEP_ALIVE, "timeout_graceful_shutdown": drain_seconds + GRACE}
        quiet = {"log_config": None, "log_level": "warning", "access_log": False}
        http = functools.partial(Connection, connection_limit())
        super().__init__(uvicorn.Config(app, http=http, ws="none", lifespan="off", **limits, **quiet))
        self._drain_seconds, self._engine = drain_seconds, engine

    def handle_exit(self, number: int, frame: FrameType | None) -> None:
        if self.should_exit:
            self.force_exit = True
        self._engine.drain(self._drain_seconds)
        if number == signal.SIGTERM:
            self.should_exit = True  # uvicorn itself would raise the signal again in the end
        else:
            super().handle_exit(number, frame)


def connection_limit() -> int:
    """How many connections the system's limit on open files leaves room for, once that is raised as far as allowed."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return MAX_CONNECTIONS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + OTHER_FILES
    if soft < wanted and soft != resource.RLIM_INFINITY:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else max(1, min(MAX_CONNECTIONS, soft - OTHER_FILES))
