"""The coordinator's end of its zygote: starts it, asks it, and starts another when it has died."""

import array
import asyncio
import json
import os
import socket
import sys
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final

import biruda
from biruda.convert import decode
from biruda.coordinator.spawners.requests import (
    BORN,
    MAX_BYTES,
    Address,
    Answer,
    Guard,
    Request,
    Settled,
    Stillbirth,
    pack,
    pack_request,
)
from biruda.errors import EnvironmentFault

_CONTROL_FD: Final = 3
_ERRORS_FD: Final = 4
_LIMIT_S: Final = 30.0  # to an answer; the zygote itself needs a fraction of a millisecond
_SAID_BYTES: Final = 4096


class ZygoteLost(EnvironmentFault):
    """The zygote died before it answered; asking again starts another."""


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer and the worker's pidfd, the caller's to close; -1 where there is none."""

    answer: Answer
    pidfd: int


class Zygote:
    """A zygote process, started when it is first needed and again when it has died; its workers do not notice."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], errors: str) -> None:
        self._argv = argv
        self._env = env
        self._errors = errors
        self._guards: dict[str, Guard] = {}
        self._waiting: dict[int, asyncio.Future[Answered]] = {}
        self._asked = 0
        self._unsent: deque[tuple[bytes, array.array[int]]] = deque()  # while the socket takes no more
        self._process: _Process | None = None

    @property
    def pid(self) -> int:
        """Of the process; 0 before the first request."""
        return self._process.pid if self._process else 0

    def start(self) -> None:
        """Start the process where there is none. Raises EnvironmentFault."""
        if self._process is None:
            self._process = _Process(self._argv, self._env, self._errors)
            asyncio.get_running_loop().add_reader(self._process.control, self._receive, self._process)
            for guard in self._guards.values():
                self._write(guard)

    def close(self) -> None:
        """Let go of the process: it ends as soon as no worker of its lives."""
        self._guards.clear()
        if self._process is not None:
            self._lose(self._process, "the coordinator is stopping")

    async def ask(self, request: Request, *sent: socket.socket) -> Answered:
        """Its answer. Raises EnvironmentFault where that is a problem, ZygoteLost when it died."""
        return await self.answer(self.send(request, *sent))

    def send(self, request: Request, *sent: socket.socket) -> "asyncio.Future[Answered]":
        """Ask; the sockets must stay open until answer() has returned. Starts the zygote where there is none."""
        self.start()
        future: asyncio.Future[Answered] = asyncio.get_running_loop().create_future()
        number = self._write(request, *sent)
        self._waiting[number] = future
        future.add_done_callback(lambda _: self._waiting.pop(number, None))
        return future

    async def answer(self, asked: "asyncio.Future[Answered]") -> Answered:
        """What ask() says. After a cancellation it can be waited for again: what was asked for is done all the same."""
        try:
            async with asyncio.timeout(_LIMIT_S):
                answered = await asyncio.shield(asked)
        except TimeoutError:
            asked.cancel()
            raise EnvironmentFault(f"the zygote did not answer within {_LIMIT_S:g} s") from None
        if answered.answer.problem:
            raise EnvironmentFault(answered.answer.problem, hint=answered.answer.hint)
        return answered

    async def guard(self, guard: Guard) -> None:
        """Have these cgroups ended when this process dies."""
        self._guards[guard.directory] = guard
        try:
            await self.ask(guard)
        except ZygoteLost:
            await self.ask(guard)

    def tell(self, request: Request, directory: str) -> None:
        """Send a request that has no answer, and lift the guard of a place that is gone."""
        self._guards.pop(directory, None)
        if self._process is not None:
            self._write(request)

    def settle(self, request: Settled) -> None:
        """Let what was launched outlive this process."""
        if self._process is not None:
            self._write(request)

    def _write(self, request: Request, *sent: socket.socket) -> int:
        """The request's number. The sockets must stay open until it is answered."""
        self._asked += 1
        rights = array.array("i", [each.fileno() for each in sent])
        self._unsent.append((pack_request(self._asked, request), rights))
        if len(self._unsent) == 1:
            self._flush()
        return self._asked

    def _flush(self) -> None:
        assert self._process is not None
        control, loop = self._process.control, asyncio.get_running_loop()
        while self._unsent:
            data, rights = self._unsent[0]
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if rights else []
            try:
                control.sendmsg([data], ancillary)
            except BlockingIOError:
                loop.add_writer(control, self._flush)
                return
            except OSError:
                pass  # it has died: _receive hears of that
            self._unsent.popleft()
        loop.remove_writer(control)

    def _receive(self, process: "_Process") -> None:
        try:
            data, fds, _, _ = socket.recv_fds(process.control, MAX_BYTES, 1, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        if not data:
            self._lose(process, process.last_words())
            return
        process.has_answered = True
        answer = decode(Answer, json.loads(data))
        future = self._waiting.get(answer.id)
        if future is not None and not future.done():
            future.set_result(Answered(answer, fds[0] if fds else -1))
        else:
            for fd in fds:
                os.close(fd)

    def _lose(self, process: "_Process", why: str) -> None:
        asyncio.get_running_loop().remove_reader(process.control)
        asyncio.get_running_loop().remove_writer(process.control)
        self._unsent.clear()
        process.close()
        self._process = None
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(ZygoteLost(f"the zygote has ended{': ' if why else ''}{why}"))
        if self._guards and process.has_answered:  # not one that cannot even start
            self.start()


class _Process:
    """One zygote process; what it says on stderr before it is ready is kept."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], errors: str) -> None:
        self.has_answered = False
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control.setblocking(False)
        self._said, said = os.pipe()
        os.set_blocking(self._said, False)
        actions = [
            (os.POSIX_SPAWN_DUP2, theirs.fileno(), _CONTROL_FD),
            (os.POSIX_SPAWN_DUP2, said, 2),
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
            (os.POSIX_SPAWN_OPEN, _ERRORS_FD, errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
        ]
        try:
            # Not by biruda.process: its children get the three standard descriptors only.
            self.pid = os.posix_spawn(
                argv[0], [*argv, str(_CONTROL_FD)], env, file_actions=actions, setsid=True, setsigmask=()
            )
        except OSError as error:
            self.control.close()
            os.close(self._said)
            raise EnvironmentFault(f"the zygote cannot be started: {argv[0]}: {error.strerror}") from None
        finally:
            os.close(said)
            theirs.close()
        self._pidfd = os.pidfd_open(self.pid)

    def last_words(self) -> str:
        """The last line that it printed before it was ready: why it could not start."""
        with suppress(OSError):
            lines = os.read(self._said, 1 << 16).decode("utf-8", "replace").split("\n")
            return next((line for line in reversed(lines) if line.strip()), "")[:_SAID_BYTES]
        return ""

    def close(self) -> None:
        """It may live on; its parent takes leave of it when it ends."""
        self.control.close()
        os.close(self._said)
        asyncio.get_running_loop().add_reader(self._pidfd, _bury, asyncio.get_running_loop(), self._pidfd)


def _bury(loop: asyncio.AbstractEventLoop, pidfd: int) -> None:
    loop.remove_reader(pidfd)
    with suppress(ChildProcessError):
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
    os.close(pidfd)


def own_argv() -> list[str]:
    """How the zygote is started: a frozen executable has an internal command for it."""
    if getattr(sys, "frozen", False):
        return [sys.executable, "--zygote"]
    return [sys.executable, "-m", "biruda.coordinator.spawners.zygote"]


def own_environment() -> dict[str, str]:
    """Environment of a zygote that is started from source: what it needs to find this package, and nothing else."""
    source = os.path.dirname(os.path.dirname(os.path.abspath(biruda.__file__)))
    return {"PATH": os.defpath, "LANG": "C.UTF-8", "PYTHONPATH": source}


@asynccontextmanager
async def open_zygote(
    argv: Sequence[str] = (), env: Mapping[str, str] | None = None, errors: str = os.devnull
) -> AsyncIterator[Zygote]:
    """A zygote for the length of a block; afterwards it lives as long as its workers.

    FD is appended to argv; the descriptor after it is `errors`, a file for what goes wrong in it and its workers.
    """
    zygote = Zygote(argv or own_argv(), own_environment() if env is None else env, errors)
    zygote.start()
    try:
        yield zygote
    finally:
        zygote.close()


async def hear(report: socket.socket, limit_s: float) -> None:
    """Wait until a newborn says that it is ready. Raises EnvironmentFault with what it says instead."""
    try:
        async with asyncio.timeout(limit_s):
            data = await asyncio.get_running_loop().sock_recv(report, MAX_BYTES)
    except TimeoutError:
        raise EnvironmentFault(f"the worker was not ready within {limit_s:g} s") from None
    if not data:
        raise EnvironmentFault("the worker died before it was ready")
    if data != BORN:
        said = decode(Stillbirth, json.loads(data))
        raise EnvironmentFault(said.problem, hint=said.hint)


def say_address(report: socket.socket, address: Address) -> None:
    """Tell a newborn that waits for it."""
    report.send(pack(address))
