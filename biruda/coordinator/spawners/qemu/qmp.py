"""A client of qemu's machine protocol: JSON objects, one to a line, over its Unix socket."""

import array
import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from biruda.errors import EnvironmentFault

_MOST_BYTES: Final = 1 << 20  # of one line: qemu is what a job inside would take over first


class Qmp:
    """One conversation; commands are asked one after the other."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._heard = bytearray()

    async def greet(self) -> str:
        """Begin; qemu's version."""
        hello = await self._line()
        await self.ask("qmp_capabilities")
        version = hello.get("QMP", {}).get("version", {}).get("qemu", {})
        return ".".join(str(version.get(part, "?")) for part in ("major", "minor", "micro"))

    async def ask(self, command: str, arguments: dict[str, Any] | None = None, *, fd: int = -1) -> Any:
        """What a command returns; fd goes with it. Raises EnvironmentFault with qemu's own words."""
        text = json.dumps({"execute": command, **({"arguments": arguments} if arguments else {})})
        await self._send(text.encode() + b"\n", fd)
        while True:
            said = await self._line()
            if "return" in said:
                return said["return"]
            if "error" in said:
                raise EnvironmentFault(f"qemu refuses {command}: {str(said['error'].get('desc', ''))[:500]}")

    async def tell(self, command: str) -> None:
        """Send a command whose answer nobody waits for."""
        await self._send(json.dumps({"execute": command}).encode() + b"\n", -1)

    async def event(self, *names: str) -> dict[str, Any]:
        """The next event of one of these names; others are dropped."""
        while True:
            said = await self._line()
            if said.get("event") in names:
                return said

    async def _send(self, data: bytes, fd: int) -> None:
        try:
            if fd >= 0:
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
                sent = self._connection.sendmsg([data], rights)  # a fresh line in an empty socket: it is taken whole
                data = data[sent:]
            await asyncio.get_running_loop().sock_sendall(self._connection, data)
        except OSError as error:
            raise EnvironmentFault(f"qemu does not listen any more: {os.strerror(error.errno or 0)}") from None

    async def _line(self) -> dict[str, Any]:
        while b"\n" not in self._heard:
            try:
                data = await asyncio.get_running_loop().sock_recv(self._connection, 65536)
            except OSError:
                data = b""
            if not data or len(self._heard) > _MOST_BYTES:
                raise EnvironmentFault("qemu ended the conversation")
            self._heard += data
        line, _, rest = self._heard.partition(b"\n")
        self._heard = bytearray(rest)
        try:
            said = json.loads(line)
        except ValueError:
            said = None
        if not isinstance(said, dict):
            raise EnvironmentFault("qemu speaks no QMP")
        return said


@asynccontextmanager
async def open_qmp(directory: str) -> AsyncIterator[Qmp]:
    """A conversation by the socket `qmp` in a place's directory. Raises EnvironmentFault, also for none there."""
    connection = connect(directory, "qmp")
    try:
        qmp = Qmp(connection)
        await qmp.greet()
        yield qmp
    finally:
        connection.close()


def connect(directory: str, name: str) -> socket.socket:
    """A non-blocking connection to a Unix socket in a directory whose path may be long. Raises EnvironmentFault."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            connection.connect(f"/proc/self/fd/{fd}/{name}")
        finally:
            os.close(fd)
    except OSError as error:
        connection.close()
        raise EnvironmentFault(f"the machine does not answer: {directory}/{name}: {error.strerror}") from None
    connection.setblocking(False)
    return connection
