"""Accepting TLS connections: every handshake that fails is told in words, and strangers are bounded.

asyncio's own servers swallow why a handshake failed; here each runs in a task of its own, and its end is known.
"""

import asyncio
import errno
import logging
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final

from biruda.trust.tls import alert_of, words_of

log = logging.getLogger("biruda.trust.tls")

HANDSHAKE_S: Final = 10.0
MOST_HANDSHAKES: Final = 256
"""So many may be going on at once on one address; who comes then waits in the kernel."""

GUEST_S: Final = 30.0
MOST_GUESTS: Final = 256
"""So many connections without a certificate within GUEST_S, after which each is cut. A host that joins needs two."""

FAREWELL_S: Final = 2.0
FAREWELL_READS: Final = 16

RETELL_S: Final = 60.0
MOST_TOLD: Final = 1024

_NO_ROOM: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Complaints:
    """Tells the log what is wrong with whom, the same at most once in a minute, and of so many peers at once."""

    def __init__(self) -> None:
        self._told: dict[tuple[str, str], float] = {}

    def tell(self, peer: str, sentence: str) -> None:
        now_s = time.monotonic()
        self._told = {key: at_s for key, at_s in self._told.items() if now_s - at_s < RETELL_S}
        if (peer, sentence) in self._told or len(self._told) >= MOST_TOLD:
            return
        self._told[peer, sentence] = now_s
        log.warning("refused %s: %s", peer, sentence)


class _Guests:
    """Connections whose peer has shown no certificate."""

    def __init__(self) -> None:
        self.count = 0

    def take(self, transport: asyncio.BaseTransport) -> bool:
        if self.count >= MOST_GUESTS:
            return False
        self.count += 1
        asyncio.get_running_loop().call_later(GUEST_S, self._end, transport)
        return True

    def _end(self, transport: asyncio.BaseTransport) -> None:
        self.count -= 1
        assert isinstance(transport, asyncio.Transport)
        if not transport.is_closing():
            transport.abort()


@asynccontextmanager
async def accepting(
    listeners: Sequence[socket.socket],
    context: ssl.SSLContext,
    make_protocol: Callable[[], asyncio.BaseProtocol],
    complaints: Complaints,
) -> AsyncIterator[None]:
    """Serve connections to these sockets, which are closed on exit; what runs over them then is the protocol's."""
    guests = _Guests()
    try:
        async with asyncio.TaskGroup() as tasks:
            running: set[asyncio.Task[None]] = set()

            def shake_hands(connection: socket.socket, peer: str) -> asyncio.Task[None]:
                work = _shake_hands(connection, peer, context, make_protocol, complaints, guests)
                task = tasks.create_task(work, name="TLS handshake")
                running.add(task)
                task.add_done_callback(running.discard)
                return task

            for listener in listeners:
                running.add(tasks.create_task(_accept(listener, shake_hands), name="TLS listener"))
            try:
                yield
            finally:
                for task in running:
                    task.cancel()
    finally:
        for listener in listeners:
            listener.close()


async def _accept(listener: socket.socket, shake_hands: Callable[[socket.socket, str], asyncio.Task[None]]) -> None:
    loop = asyncio.get_running_loop()
    listener.setblocking(False)
    room = asyncio.Semaphore(MOST_HANDSHAKES)
    while True:
        await room.acquire()
        try:
            connection, address = await loop.sock_accept(listener)
        except OSError as error:
            room.release()
            if error.errno in _NO_ROOM:
                log.error("no more connections can be taken: %s", error.strerror)
                await asyncio.sleep(1)
            continue
        shake_hands(connection, str(address[0])).add_done_callback(lambda _: room.release())


async def _shake_hands(
    connection: socket.socket,
    peer: str,
    context: ssl.SSLContext,
    make_protocol: Callable[[], asyncio.BaseProtocol],
    complaints: Complaints,
    guests: _Guests,
) -> None:
    try:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        again = connection.dup()  # asyncio closes its own when the handshake fails
    except OSError:
        connection.close()
        return
    with again:
        try:
            transport, _ = await asyncio.get_running_loop().connect_accepted_socket(
                make_protocol, connection, ssl=context, ssl_handshake_timeout=HANDSHAKE_S, ssl_shutdown_timeout=2.0
            )
        except ssl.SSLError as error:
            complaints.tell(peer, words_of(error))
            await _say_farewell(again, alert_of(error))
            return
        except OSError:
            complaints.tell(peer, "it went away within the TLS handshake, as a host of another farm does")
            return
    if transport.is_closing():  # by the first bytes that came; Python 3.11 raises for one that was closed twice
        return
    if not transport.get_extra_info("peercert") and not guests.take(transport):
        complaints.tell(peer, f"more than {MOST_GUESTS} connections without a certificate in {GUEST_S:g} s")
        assert isinstance(transport, asyncio.Transport)
        transport.abort()


async def _say_farewell(connection: socket.socket, alert: bytes) -> None:
    """Send the alert, and let it arrive: closed at once, with bytes of the peer unread, it would be thrown away."""
    loop = asyncio.get_running_loop()
    connection.setblocking(False)
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(FAREWELL_S):
            await loop.sock_sendall(connection, alert)
            connection.shutdown(socket.SHUT_WR)
            for _ in range(FAREWELL_READS):
                if not await loop.sock_recv(connection, 65536):
                    break
