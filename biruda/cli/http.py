"""One HTTP/1.1 exchange over a Unix socket or TCP, for commands that must start fast.

http.client would double the start of a command: it imports the mail parser and ssl. Here ssl is imported for an https
URL only. One connection carries one exchange; bodies stream both ways in bounded memory.
"""

import select
from collections.abc import Iterable, Mapping
from socket import socket

from biruda.cli.address import Address, reason_of
from biruda.cli.text import escape
from biruda.errors import NoMaster, PeerError

RECEIVE_BYTES = 256 * 1024
HEAD_BYTES = 64 * 1024


class ConnectionLost(NoMaster):
    """The connection broke before the answer was whole. Asking again may help."""


class Exchange:
    """One request and its answer over a connection, which it closes. Failures are a ConnectionLost or a PeerError."""

    def __init__(self, address: Address, connection: socket) -> None:
        self.address = address
        self.status = 0
        self.phrase = ""
        self.headers: dict[str, str] = {}
        self._buffer = b""
        self._chunked = False
        self._chunk_ended = False
        self._left: int | None = 0  # bytes of the body or of its current chunk; None: until the connection closes
        self._socket = connection

    def __enter__(self) -> "Exchange":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def set_timeout(self, timeout_s: float | None) -> None:
        """How long one read or write may take from now on."""
        self._socket.settimeout(timeout_s)

    def send(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes | Iterable[bytes] | None = None
    ) -> None:
        """Send a request. A body given in pieces is sent chunked, and stops when the other end answers early."""
        lines = [f"{method} {self.address.base}{target} HTTP/1.1", f"Host: {self.address.host_header}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        lines.append("Connection: close")
        if isinstance(body, bytes):
            lines.append(f"Content-Length: {len(body)}")
        elif body is not None:
            lines.append("Transfer-Encoding: chunked")
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
        try:
            self._socket.sendall(head + body if isinstance(body, bytes) else head)
            if body is not None and not isinstance(body, bytes):
                self._send_chunks(body)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it may have answered before it closed: answer() tells
        except OSError as error:
            raise self._lost(error) from error

    def _send_chunks(self, pieces: Iterable[bytes]) -> None:
        for piece in pieces:
            if self.readable(0):
                return
            if piece:
                self._socket.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
        self._socket.sendall(b"0\r\n\r\n")

    def readable(self, within_s: float) -> bool:
        """Whether the next read will not block; waits at most that long."""
        if self._buffer or (self._tls_pending() > 0):
            return True
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(within_s * 1000))

    def _tls_pending(self) -> int:
        pending = getattr(self._socket, "pending", None)
        return int(pending()) if pending else 0

    def answer(self) -> int:
        """The status, with `headers` filled; interim answers are skipped."""
        self.status = 100
        while self.status // 100 == 1:
            self._read_head()
        length = self.headers.get("content-length")
        self._chunked = self.headers.get("transfer-encoding", "").lower() == "chunked"
        if self._chunked or self.status in (204, 304):
            self._left = 0
        elif length is None:
            self._left = None
        elif length.isascii() and length.isdigit():
            self._left = int(length)
        else:
            raise self._nonsense(f"a Content-Length of {length!r}")
        return self.status

    def _read_head(self) -> None:
        while b"\r\n\r\n" not in self._buffer:
            if len(self._buffer) > HEAD_BYTES:
                raise self._nonsense("headers without an end")
            if self._buffer and not b"HTTP/1.".startswith(self._buffer[:7]):
                raise self._nonsense(repr(self._buffer[:20])[1:])
            self._fill()
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        version, _, rest = first.partition(" ")
        status, _, self.phrase = rest.partition(" ")
        if version not in ("HTTP/1.0", "HTTP/1.1") or len(status) != 3 or not (status.isascii() and status.isdigit()):
            raise self._nonsense(repr(first[:40]))
        self.status = int(status)
        self.headers = {}
        for line in lines:
            name, _, value = line.partition(":")
            self.headers[name.strip().lower()] = value.strip()

    def read_some(self) -> bytes:
        """The next bytes of the body as they come, b"" at its end."""
        if self._chunked and self._left == 0 and not self._next_chunk():
            return b""
        if self._left == 0:
            return b""
        if not self._buffer:
            try:
                self._fill()
            except ConnectionLost:
                if self._left is None:
                    return b""  # that close was the end
                raise
        if self._left is None:
            data, self._buffer = self._buffer, b""
            return data
        data, self._buffer = self._buffer[: self._left], self._buffer[self._left :]
        self._left -= len(data)
        if self._chunked and self._left == 0:
            self._chunk_ended = True
        return data

    def read_all(self, most_bytes: int) -> bytes:
        """The whole body; PeerError when it has more bytes than that."""
        pieces, size = [], 0
        while piece := self.read_some():
            pieces.append(piece)
            size += len(piece)
            if size > most_bytes:
                raise self._nonsense(f"more than {most_bytes} bytes")
        return b"".join(pieces)

    def _next_chunk(self) -> bool:
        if self._chunk_ended:  # its CRLF is read only now: the data before it is wanted at once
            if self._line():
                raise self._nonsense("a chunk longer than it said")
            self._chunk_ended = False
        line = self._line().split(b";")[0].strip()
        if not line or line.strip(b"0123456789abcdefABCDEF") or len(line) > 15:
            raise self._nonsense(f"a chunk of {line[:20]!r} bytes")
        self._left = int(line, 16)
        if self._left:
            return True
        while self._line():
            pass  # trailers
        self._chunked = False
        return False

    def _line(self) -> bytes:
        while b"\r\n" not in self._buffer:
            if len(self._buffer) > HEAD_BYTES:
                raise self._nonsense("a chunk without a size")
            self._fill()
        line, _, self._buffer = self._buffer.partition(b"\r\n")
        return line

    def _fill(self) -> None:
        try:
            data = self._socket.recv(RECEIVE_BYTES)
        except OSError as error:
            raise self._lost(error) from error
        if not data:
            raise self._lost(None)
        self._buffer += data

    def _lost(self, error: OSError | None) -> ConnectionLost:
        reason = "it closed the connection" if error is None else reason_of(error)
        return ConnectionLost(f"the master at {escape(self.address.shown)} stopped answering: {reason}")

    def _nonsense(self, what: str) -> PeerError:
        return PeerError(
            f"what answers at {escape(self.address.shown)} is no biruda master: it sent {escape(what)}",
            hint="check --url and $BIRUDA_URL",
        )
