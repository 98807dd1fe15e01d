"""Keeps web pages from using a service that is not theirs. A browser sends what any page asks it to."""

import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from .errors import ApiError


class Guard:
    """ASGI middleware: refuses requests of other pages with 403.

    A page's request names its origin, which must be our own, that is the Host of the request, or an allowed one. The
    page of a host whose name was made to lead to this machine ("DNS rebinding") has its own Host: on a loopback address
    the Host must therefore be a loopback name or an allowed one. Programs send no Origin, and their Host is what they
    were given.

    Args:
        app: what answers.
        host: the address that the service listens on.
        allowed_hosts: further names for it.
        allowed_origins: of pages that may use it; "*" is all.
    """

    def __init__(self, app: ASGIApp, host: str, allowed_hosts: tuple[str, ...], allowed_origins: tuple[str, ...]):
        self.app = app
        self._checks_host = _is_loopback(host)
        self._hosts = {name.lower() for name in (host, *allowed_hosts)}
        self._origins = allowed_origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (reason := self._refusal(Headers(scope=scope))):
            await ApiError(403, reason, code="forbidden").response(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _refusal(self, headers: Headers) -> str | None:
        host, origin = headers.get("host", "").lower(), headers.get("origin")
        try:
            name, theirs = urlsplit(f"//{host}").hostname or "", urlsplit(origin or "").netloc.lower()
        except ValueError:
            return f"the Host is {host[:80]!r} and the Origin {(origin or '')[:80]!r}; one of them is no address"
        if self._checks_host and name and name not in self._hosts and not _is_loopback(name):
            return f"the Host is {host[:80]!r}; it must be a loopback name, or one given with --allowed-host"
        if origin is None or "*" in self._origins or origin in self._origins or theirs == host:
            return None
        return f"the Origin is {origin[:80]!r}; it must be this server's own, or one given with --cors-origin"


def _is_loopback(name: str) -> bool:
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
