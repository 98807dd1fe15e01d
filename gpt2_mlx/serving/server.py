"""`Server`: uvicorn, and how it is asked to end."""

import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

KEEP_ALIVE = 75  # seconds an idle connection stays open: longer than clients keep theirs
GRACE = 5  # seconds beyond the drain's, to tell those whose requests were cut short


class Server(uvicorn.Server):
    """Serves an app until SIGTERM, which ends `run` quietly, or Ctrl-C.

    Args:
        app: what to serve.
        drain_seconds: how long requests that run may go on after a signal.
        on_signal: called at each signal, from its handler.
    """

    def __init__(self, app: ASGIApp, drain_seconds: int, on_signal: Callable[[], None]):
        limits = {"timeout_keep_alive": KEEP_ALIVE, "timeout_graceful_shutdown": drain_seconds + GRACE}
        quiet = {"log_config": None, "log_level": "warning", "access_log": False}
        super().__init__(uvicorn.Config(app, ws="none", lifespan="off", **limits, **quiet))
        self.on_signal = on_signal

    def handle_exit(self, number: int, frame: FrameType | None) -> None:
        self.on_signal()
        if number == signal.SIGTERM:
            self.should_exit = True  # uvicorn itself would raise the signal again in the end
        else:
            super().handle_exit(number, frame)


def listen(host: str, port: int) -> socket.socket:
    """A TCP socket that listens. Raises OSError where the address is taken or not ours."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family)
