"""Connections with limits: uvicorn has none on their number, nor on how long a request may take to come."""

import asyncio
from time import monotonic

from uvicorn.protocols.http.h11_impl import H11Protocol

from .limits import HEADER_SECONDS, SEND_SECONDS

_BUSY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nRetry-After: 1\r\nConnection: close\r\n\r\n"


class Connection(H11Protocol):
    """A connection that is closed where a request's headers take too long, or where nobody takes the answer.

    Where there are too many, a new one takes the place of the one that has been without a whole request for longest;
    if each has one, the new one is told to come again.

    Args:
        limit: the largest number of connections.
        arguments: those of uvicorn.
    """

    def __init__(self, limit: int, **arguments):
        super().__init__(**arguments)
        self._limit = limit
        self._since = 0.0  # when it began, or began to wait for another request
        self._timer: asyncio.TimerHandle | None = None  # ends a wait for headers
        self._taking: asyncio.TimerHandle | None = None  # ends a wait for the client to take an answer

    def connection_made(self, transport: asyncio.Transport) -> None:
        if len(self.connections) >= self._limit and not self._make_room():
            self.transport = transport
            transport.write(_BUSY)
            transport.close()
            return
        transport.set_write_buffer_limits(high=0)  # hear of every part that is not taken at once
        super().connection_made(transport)
        self._since = monotonic()
        self._timer = self.loop.call_later(HEADER_SECONDS, transport.abort)

    def data_received(self, data: bytes) -> None:
        if self.flow is None:  # it was told to come again
            return
        super().data_received(data)
        if self.cycle and not self.cycle.response_complete:
            self._stop_timer()
        elif self._timer is None:  # a further request has begun
            self._timer = self.loop.call_later(HEADER_SECONDS, self.transport.abort)

    def on_response_complete(self) -> None:
        self._since = monotonic()
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect_taken()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._taking.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        if self._taking:
            self._taking.cancel()
        if self.flow is not None:
            super().connection_lost(exc)

    def _expect_taken(self) -> None:
        """End the connection if nothing more of the answer is taken for SEND_SECONDS."""
        size = self.transport.get_write_buffer_size()
        self._taking = self.loop.call_later(SEND_SECONDS, self._abort_unless_taken, size)

    def _abort_unless_taken(self, size: int) -> None:
        if self.transport.get_write_buffer_size() == size:
            self.transport.abort()
        else:
            self._expect_taken()

    def _stop_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _make_room(self) -> bool:
        """End the connection that has been without a whole request for longest, if there is one."""
        idle = [c for c in self.connections if not c.cycle or c.cycle.response_complete or c.cycle.more_body]
        if not idle:
            return False
        oldest = min(idle, key=lambda connection: connection._since)
        self.connections.discard(oldest)
        oldest.transport.abort()
        return True
