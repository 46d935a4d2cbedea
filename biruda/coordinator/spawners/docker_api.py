"""The part of Docker's Engine API that is used here, over its Unix socket. Podman's compatible socket speaks it too.

What cannot be reached is Unreachable and may come back; what is refused is a DockerRefused with the daemon's own words.
Paths carry no version: every daemon then takes the latest that it knows.
"""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Mapping
from typing import Any, BinaryIO, Final
from urllib.parse import quote, urlencode

import aiohttp

from biruda.coordinator.spawners.injected import Said
from biruda.errors import EnvironmentFault, Unreachable

CALL_LIMIT_S: Final = 60.0

_MOST_HEAD_BYTES: Final = 16 * 1024
_MOST_ANSWER_BYTES: Final = 16 << 20
_TAR: Final = {"Content-Type": "application/x-tar"}


class DockerRefused(EnvironmentFault):
    """The daemon answered, with a refusal."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Docker:
    """The daemon behind one socket."""

    def __init__(self, address: str) -> None:
        self.address = address.removeprefix("unix://")

    def unreachable(self, why: str) -> Unreachable:
        """The sentence about a daemon that does not answer."""
        if "://" in self.address:
            return Unreachable(f"{self.address}: only Docker's Unix socket is spoken to", hint=_SOCKET_HINT)
        return Unreachable(f"no Docker daemon answers at {self.address} ({why})", hint=_SOCKET_HINT)

    async def call(
        self, method: str, path: str, *, limit_s: float = CALL_LIMIT_S, body: Any = None, **query: Any
    ) -> Any:
        """The JSON of an answer, None for an empty one. Raises Unreachable, DockerRefused."""
        answers = [answer async for answer in self._answer(method, path, query, limit_s, body=body)]
        return answers[-1] if answers else None

    async def follow(
        self, method: str, path: str, *, data: BinaryIO | bytes | None = None, **query: Any
    ) -> AsyncIterator[Any]:
        """Each line of an answer that comes line by line, without a limit. Raises Unreachable, DockerRefused."""
        async for line in self._answer(method, path, query, None, data=data, by_line=True):
            if isinstance(line, dict) and "error" in line:
                raise DockerRefused(500, str(line["error"]))
            yield line

    async def put_archive(self, container: str, tar: BinaryIO) -> None:
        """Unpack a tar archive at a container's root. Raises Unreachable, DockerRefused."""
        async for _ in self._answer("PUT", f"/containers/{container}/archive", {"path": "/"}, CALL_LIMIT_S, data=tar):
            pass

    async def _answer(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any],
        limit_s: float | None,
        *,
        body: Any = None,
        data: BinaryIO | bytes | None = None,
        by_line: bool = False,
    ) -> AsyncIterator[Any]:
        if not self.address.startswith("/"):
            raise self.unreachable("no path")
        connector = aiohttp.UnixConnector(self.address)
        timeout = aiohttp.ClientTimeout(total=limit_s, sock_connect=5.0)
        url = "http://docker" + _target(path, query)
        try:
            async with (
                aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
                session.request(
                    method, url, json=body, data=data, headers=_TAR if data is not None else None
                ) as answer,
            ):
                if answer.status >= 400:
                    raise DockerRefused(answer.status, _message(await answer.content.read(_MOST_HEAD_BYTES)))
                if by_line:
                    async for line in answer.content:
                        if line.strip():
                            yield _json(line)
                    return
                yield _json(await _whole(answer))
        except TimeoutError:
            raise self.unreachable(f"{method} {path} took longer than {limit_s:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise self.unreachable(_words(error)) from None

    async def attach(self, container: str) -> tuple[socket.socket, bytes]:
        """A container's standard streams as a socket, and what came already. Raises Unreachable, DockerRefused."""
        return await self._hijack(f"/containers/{container}/attach", stream=1, stdin=1, stdout=1, stderr=1)

    async def watch(self, container: str) -> socket.socket:
        """A socket that becomes readable when a container has ended. Raises Unreachable, DockerRefused."""
        connection, early = await self._hijack(f"/containers/{container}/wait", condition="not-running")
        if early:
            connection.close()
            raise DockerRefused(409, f"container {container} has ended")
        return connection

    async def _hijack(self, path: str, **query: Any) -> tuple[socket.socket, bytes]:
        """The connection of a request, from behind the head of its answer on."""
        loop = asyncio.get_running_loop()
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        connection.setblocking(False)
        request = (
            f"POST {_target(path, query)} HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"
            "Content-Length: 0\r\n\r\n"
        )
        came = b""
        try:
            async with asyncio.timeout(CALL_LIMIT_S):
                await loop.sock_connect(connection, self.address)
                await loop.sock_sendall(connection, request.encode())
                while b"\r\n\r\n" not in came:
                    piece = await loop.sock_recv(connection, 4096)
                    if not piece or len(came) > _MOST_HEAD_BYTES:
                        raise self.unreachable("it sent no answer")
                    came += piece
            head, _, rest = came.partition(b"\r\n\r\n")
            status = int(head.split(b" ", 2)[1])
            if status not in (101, 200):
                raise DockerRefused(status, _message(rest))
        except TimeoutError:
            connection.close()
            raise self.unreachable(f"{path} took longer than {CALL_LIMIT_S:g} s") from None
        except OSError as error:
            connection.close()
            raise self.unreachable(_words(error)) from None
        except (ValueError, IndexError):
            connection.close()
            raise self.unreachable("what answers is no HTTP server") from None
        except BaseException:
            connection.close()
            raise
        return connection, rest


_SOCKET_HINT: Final = "install docker.io and start it, or set [coordinator] docker_socket"


def _target(path: str, query: Mapping[str, Any]) -> str:
    given = {name: json.dumps(value) if isinstance(value, dict) else str(value) for name, value in query.items()}
    return quote(path, safe="/:@") + (f"?{urlencode(given)}" if given else "")


async def _whole(answer: aiohttp.ClientResponse) -> bytes:
    pieces = bytearray()
    async for piece in answer.content.iter_chunked(1 << 16):
        pieces += piece
        if len(pieces) > _MOST_ANSWER_BYTES:
            raise DockerRefused(500, "the daemon's answer is longer than anything it has to say")
    return bytes(pieces)


def _json(text: bytes) -> Any:
    if not text.strip():
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise DockerRefused(500, "the daemon's answer is no JSON") from None


def _message(text: bytes) -> str:
    try:
        message = str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError, RecursionError):
        message = text.decode("utf-8", "replace")
    return " ".join(message.split())[:500] or "the daemon gave no reason"


def _words(error: BaseException) -> str:
    inner = getattr(error, "os_error", error)
    return (getattr(inner, "strerror", None) or str(inner) or type(error).__name__).lower()


class Demultiplexer:
    """Of an attached container's stream the standard output, which is the worker's wire; and of its standard error
    the last words. Each piece has a head of eight bytes: the number of the stream, three zeros, the piece's length.
    """

    def __init__(self) -> None:
        self._said = Said()
        self._head = b""
        self._left_bytes = 0
        self._stream = 0

    @property
    def said(self) -> str:
        return str(self._said)

    def feed(self, data: bytes) -> bytes:
        """The standard output in the stream's next bytes."""
        view, at, pieces = memoryview(data), 0, []
        while at < len(view):
            if not self._left_bytes:
                missing = 8 - len(self._head)
                self._head += view[at : at + missing]
                at += missing
                if len(self._head) == 8:
                    self._stream, self._left_bytes = self._head[0], int.from_bytes(self._head[4:], "big")
                    self._head = b""
                continue
            piece = view[at : at + self._left_bytes]
            at += len(piece)
            self._left_bytes -= len(piece)
            if self._stream == 1:
                pieces.append(piece)
            elif self._stream == 2:
                self._said.add(bytes(piece))
        return b"".join(pieces)
