"""How many connections the API has at once, and how long each may say nothing: others are served all the same."""

import asyncio
import logging
import os
import resource
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from aiohttp import web
from aiohttp.http import HttpProcessingError

from biruda.errors import ConfigError
from biruda.master.responses import problem

HEADERS_S: Final = 15.0
"""So long a new connection may take until its first request is there with all of its headers."""

LEAST: Final = 32
BACKLOG: Final = 512
AT_ONCE: Final = 64
"""So many connections are accepted before the first of them is looked at."""


def _is_our_fault(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError | ConnectionError))


log = logging.getLogger("biruda.http")
"""For aiohttp, which would write a traceback for each request that is no HTTP, and for who leaves before his answer."""

log.addFilter(_is_our_fault)


def most_connections() -> int:
    """How many of each listener this process may hold open beside all else that it opens."""
    return max(LEAST, min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 1 << 16) // 4)


def listen_at(host: str, port: int, key: str) -> list[socket.socket]:
    """Sockets for every address of the host's name; for "" one for each family that the kernel has.

    Raises ConfigError, which says what is wrong with this key of [master].
    """
    listeners: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in found:
            if family == socket.AF_INET6 and not host and not Path("/proc/net/if_inet6").exists():
                continue
            listener = socket.socket(family, kind, protocol)
            listeners.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind((address[0], port, *address[2:]))
            listener.listen(BACKLOG)
            port = port or listener.getsockname()[1]  # the second family gets the port that the first was given
    except OSError as error:
        for listener in listeners:
            listener.close()
        words = "this name has no address" if isinstance(error, socket.gaierror) else (error.strerror or "").lower()
        raise ConfigError(
            f"[master] {key}: {host}:{port} cannot be used: {words}",
            hint="name a free port, or stop what listens there",
        ) from error
    return listeners


class Door:
    """Makes the protocols of one listener's connections, and turns away those that are too many or too slow."""

    def __init__(self, server: web.Server, most: int) -> None:
        self._server = server
        self._most = most
        self._look_again = LEAST
        self._open: set[web.RequestHandler] = set()  # and some that have closed since
        self._silent: dict[web.RequestHandler, float] = {}  # by when the first request is due, the first due first
        self._timer: asyncio.TimerHandle | None = None

    def __call__(self) -> asyncio.Protocol:
        """The protocol of a connection that has just been accepted."""
        if len(self._open) >= self._look_again:
            self._open = {each for each in self._open if each.transport is not None}
            self._look_again = min(self._most, max(LEAST, 2 * len(self._open)))
        if len(self._open) >= self._most:
            return _Full(self._most)
        handler: web.RequestHandler = self._server()
        self._open.add(handler)
        self._silent[handler] = asyncio.get_running_loop().time() + HEADERS_S
        if self._timer is None:
            self._wait()
        return handler

    @property
    def open_count(self) -> int:
        """How many connections of this listener are open."""
        return sum(1 for each in self._open if each.transport is not None)

    def heard(self, handler: web.RequestHandler) -> None:
        """A request has come over this connection; from now on aiohttp's own limit for idle ones holds."""
        self._silent.pop(handler, None)

    def _wait(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_at(next(iter(self._silent.values())), self._cut)

    def _cut(self) -> None:
        now = asyncio.get_running_loop().time()
        self._timer = None
        for handler, due in list(self._silent.items()):
            if due > now:
                break
            del self._silent[handler]
            if handler.transport is not None:
                handler.transport.abort()
        if self._silent:
            self._wait()

    def close(self) -> None:
        """Wait for nobody any more."""
        if self._timer is not None:
            self._timer.cancel()


@asynccontextmanager
async def open_door(server: web.Server, listener: socket.socket) -> AsyncIterator["Door"]:
    """Take connections of one listener."""
    door = Door(server, most_connections())
    serving = await asyncio.get_running_loop().create_server(door, sock=listener, backlog=AT_ONCE)
    listener.listen(BACKLOG)  # asyncio has one number for both
    try:
        yield door
    finally:
        serving.close()
        door.close()


def listen_locally(path: Path) -> socket.socket:
    """A Unix socket for this user alone; bound by a short name, as its address has room for 107 bytes only."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    path.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        listener.bind(f"/proc/self/fd/{directory}/{path.name}")
    finally:
        os.close(directory)
    path.chmod(0o600)
    return listener


class _Full(asyncio.Protocol):
    """Says that there is no room."""

    def __init__(self, most: int) -> None:
        self._most = most

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        body = problem(503, f"{self._most} connections are open already", "try again later").body
        assert isinstance(body, bytes)
        head = f"Content-Type: application/problem+json\r\nContent-Length: {len(body)}\r\nRetry-After: 5"
        transport.write(
            b"HTTP/1.1 503 Service Unavailable\r\n%b\r\nConnection: close\r\n\r\n%b" % (head.encode(), body)
        )
        transport.close()
