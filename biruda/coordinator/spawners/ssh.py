"""Kind ssh: a worker on a host that ssh reaches, which leaves nothing there.

The worker is a process of that host; here there is only the client that carries its stream. When the client or the
connection ends, the worker's standard input does, and it ends itself and all that it made: nobody can come back to it.
What the client's end does not prove, that the worker has ended too, is asked for by a second connection.
"""

import asyncio
import json
import logging
import os
import signal
import socket
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from biruda import process
from biruda.config import Environment
from biruda.coordinator.spawners import ssh_client
from biruda.coordinator.spawners.host import Host, checked
from biruda.coordinator.spawners.injected import Said, birth, connect, executable, make_directory, opening_of
from biruda.coordinator.spawners.processes import is_alive, start_ticks
from biruda.coordinator.spawners.protocol import Capability, Place, Spawned
from biruda.coordinator.spawners.ssh_boot import END_SCRIPT, Boot, Landed
from biruda.coordinator.spawners.ssh_look import SYSTEM_SCRIPT, facts_of, kernel_arch
from biruda.coordinator.spawners.ssh_target import SshRefused, Target, parse_target, refusal
from biruda.errors import EnvironmentFault
from biruda.model import Facts, Kind, Limits
from biruda.worker.cleanup import remove_tree

log = logging.getLogger("biruda.coordinator")

OWN_END_S: Final = 20.0
"""How long a worker may take to end itself and all it made after its stream has ended."""

_END_LIMIT_S: Final = 60.0
_NOTE: Final = "ssh.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Note:
    """What a place's directory remembers of the other host; there before anything is made."""

    target: Target
    name: str  # of its directories over there
    landed: Landed | None = None

    def write(self, directory: str) -> None:
        values = {
            "target": asdict(self.target),
            "name": self.name,
            "landed": asdict(self.landed) if self.landed else None,
        }
        path = Path(directory, _NOTE)
        temporary = path.with_suffix(".new")
        temporary.write_text(json.dumps(values))
        temporary.replace(path)

    @classmethod
    def read(cls, directory: str) -> "_Note | None":
        """None where nothing was made."""
        try:
            values: dict[str, Any] = json.loads(Path(directory, _NOTE).read_text())
            target = values["target"]
            landed = values["landed"]
            return cls(
                target=Target(**{**target, "options": tuple(target["options"])}),
                name=values["name"],
                landed=Landed(**landed) if landed else None,
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None


class _Client:
    """The ssh that carries one worker's stream, and what it wrote to its standard error."""

    def __init__(self, place: Place, child: process.Child, ours: socket.socket, errors: int) -> None:
        self.place = place
        self.child = child
        self.said = Said()
        self._switch = ours.dup()
        self._switch.setblocking(False)
        self._errors = errors
        os.set_blocking(errors, False)
        asyncio.get_running_loop().add_reader(errors, self._read)

    def _read(self) -> None:
        try:
            piece = os.read(self._errors, 65536)
        except BlockingIOError:
            return
        if piece:
            self.said.add(piece)
        else:
            self._stop_reading()

    def _stop_reading(self) -> None:
        if self._errors >= 0:
            asyncio.get_running_loop().remove_reader(self._errors)
            os.close(self._errors)
            self._errors = -1

    def hang_up(self) -> None:
        """The worker's standard input ends, and so does it; what it still says goes nowhere, so it need not wait."""
        if self._switch.fileno() < 0:
            return
        with suppress(OSError):
            self._switch.shutdown(socket.SHUT_WR)
        asyncio.get_running_loop().add_reader(self._switch, self._drain)

    def _drain(self) -> None:
        try:
            if self._switch.recv(65536):
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        asyncio.get_running_loop().remove_reader(self._switch)

    async def status(self, limit_s: float) -> int | None:
        """With what it ended, 128+N for signal N; None: it has not within the limit."""
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        pidfd = self.child.pidfd
        if pidfd >= 0 and self.child.poll() is None:
            waiting = os.dup(pidfd)
            loop.add_reader(waiting, ended.set)
            try:
                async with asyncio.timeout(limit_s):
                    await ended.wait()
            except TimeoutError:
                return None
            finally:
                loop.remove_reader(waiting)
                os.close(waiting)
        found = self.child.poll()
        if found is None:
            return None
        return 128 + (found.signal or 0) if found.exit_status is None else found.exit_status

    def close(self) -> None:
        """It has ended on return, and nothing of it is open."""
        if self.child.poll() is None:
            ssh_client.end(self.child)
        if self._errors >= 0:
            self._read()
        self._stop_reading()
        if self._switch.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._switch)
        self._switch.close()
        self.child.close()


class SshSpawner:
    """Workers on other hosts, one connection each."""

    kind = Kind.SSH

    def __init__(self, host: Host) -> None:
        self._host = host
        self._clients: dict[str, _Client] = {}
        self._kernels: dict[str, str] = {}  # environment -> architecture of its host's kernel
        self._unsure: dict[str, Place] = {}  # places whose host could not be asked whether they have ended

    async def probe(self) -> Capability:
        """A real self-test of this kind on this host: that there is an ssh client, and that it runs."""
        began_s = time.monotonic()
        try:
            await asyncio.to_thread(_try_client)
        except EnvironmentFault as error:
            return Capability(usable=False, reason=f"{error}; {error.hint}")
        return Capability(usable=True, measured_ms=(time.monotonic() - began_s) * 1000)

    async def prepare(self, environment: Environment) -> Facts:
        """What the host over there is, by looking. Raises EnvironmentFault: not reached, or limits that cannot be."""
        _refuse_limits(f"environment {environment.name}", environment.memory_bytes, environment.pids, environment.cpus)
        target = target_of(environment)
        said = await asyncio.to_thread(ssh_client.run, target, SYSTEM_SCRIPT)
        if said.text("system") != "Linux":
            raise EnvironmentFault(
                f"{target}: it runs {said.text('system')[:40] or 'something unknown'}", hint="workers need Linux"
            )
        facts = await asyncio.to_thread(facts_of, said)
        self._kernels[environment.name] = kernel_arch(said)
        await executable(environment.arch or facts.arch, self._host.cache / "workers")
        return facts

    def plan(self, environment: Environment, worker: str, nonce: str, directory: Path) -> Place:
        """What spawn() will make here. Pure."""
        return Place(
            worker=checked(worker), kind=self.kind, environment=environment.name, nonce=nonce, directory=str(directory)
        )

    async def spawn(
        self, environment: Environment, place: Place, facts: Facts, *, lease_s: float, guess: bool
    ) -> Spawned:
        """Make it. Raises EnvironmentFault; then nothing of the place is left."""
        target = target_of(environment)
        arch = environment.arch or facts.arch
        program = await executable(arch, self._host.cache / "workers")
        kernel = self._kernels.get(environment.name, arch)
        note = _Note(target=target, name=f"biruda-{checked(self._host.instance)}-{checked(place.worker)}")
        make_directory(place)
        try:
            note.write(place.directory)
            boot = await asyncio.to_thread(Boot, str(target), note.name, program, cache=environment.cache)
            ours, client = _start(place, target, boot.command)
        except OSError as error:
            await asyncio.to_thread(remove_tree, place.directory)
            where = f"{error.filename}: " if error.filename else ""
            raise EnvironmentFault(f"{where}{os.strerror(error.errno or 0)}") from None
        self._clients[place.worker] = client
        try:
            try:
                landed = await boot.go(ours)
                replace(note, landed=landed).write(place.directory)
                opening = opening_of(
                    environment, place, self.kind, arch=arch, kernel_arch=kernel, lease_s=lease_s, guess=guess
                )
                opening = replace(opening, work=landed.work, owns_pids=False, subreaper=True)
                mark, incoming = connect(place.nonce)
                await asyncio.get_running_loop().sock_sendall(ours, birth(opening) + mark)
            except ConnectionError:
                raise await self._refusal(target, client) from None
            born = replace(place, pid=client.child.pid, start_ticks=start_ticks(client.child.pid))
            return Spawned(place=born, connection=ours, pidfd=os.dup(client.child.pidfd), incoming=incoming)
        except BaseException as error:
            ours.close()
            if isinstance(error, SshRefused):  # nothing was run over there
                self._drop(place)
            with suppress(EnvironmentFault):
                await self.kill(place)
                await self.dispose(place)
            raise

    async def _refusal(self, target: Target, client: _Client) -> EnvironmentFault:
        status = await client.status(ssh_client.CONNECT_S)
        client.close()
        return refusal(target, str(client.said), status or 0)

    async def attach(self, place: Place) -> Spawned:
        """Nobody comes back to a worker whose standard input has ended. Raises ConnectionError."""
        raise ConnectionResetError(f"worker {place.worker}: a connection by ssh is not made again")

    async def limit(self, place: Place, limits: Limits) -> None:
        """Raises EnvironmentFault for any limit on what is another host's to hold."""
        _refuse_limits(f"worker {place.worker}", limits.memory_bytes, limits.pids, limits.cpus, limits.disk_bytes)

    async def kill(self, place: Place) -> None:
        """The worker and all that it made have ended on return. Raises EnvironmentFault: nobody can tell."""
        client = self._clients.pop(place.worker, None)
        if client is not None:
            client.hang_up()
            status = await client.status(OWN_END_S)
            client.close()
            if status == 0:  # the worker's own: it has ended all that it made
                self._drop(place)
                return
        elif is_alive(place.pid, place.start_ticks):  # of an earlier process of this coordinator
            with suppress(ProcessLookupError):
                os.kill(place.pid, signal.SIGKILL)
        await self._make_sure(place)

    async def _make_sure(self, place: Place) -> None:
        note = _Note.read(place.directory)
        if note is None:
            self._unsure.pop(place.worker, None)
            return
        landed = note.landed or Landed(pid=0, start_ticks=0, work="")
        variables = {
            "pid": str(landed.pid),
            "began": str(landed.start_ticks),
            "work": landed.work,
            "name": note.name,
            "patience": str(int(OWN_END_S * 10)),
        }
        try:
            said = await asyncio.to_thread(ssh_client.run, note.target, END_SCRIPT, variables, limit_s=_END_LIMIT_S)
        except EnvironmentFault as error:
            self._unsure[place.worker] = place
            raise EnvironmentFault(
                f"worker {place.worker}: nobody can tell whether it has ended: {error}",
                hint="it ends itself when its lease is over; it is asked again when its host answers",
            ) from None
        if said.text("problem"):
            raise EnvironmentFault(f"worker {place.worker} on {note.target}: {said.text('problem')[:300]}")
        self._drop(place)

    def _drop(self, place: Place) -> None:
        """Nothing of it is left over there."""
        self._unsure.pop(place.worker, None)
        Path(place.directory, _NOTE).unlink(missing_ok=True)

    async def dispose(self, place: Place) -> None:
        """The directory of a dead place is gone on return."""
        client = self._clients.pop(place.worker, None)
        if client is not None:
            client.close()
        problems = await asyncio.to_thread(remove_tree, place.directory)
        if problems:
            raise EnvironmentFault(f"worker {place.worker}: cannot remove {problems[0]}")

    async def reap(self, owned: Collection[str]) -> list[str]:
        """End what no place owns, and ask again after the workers of which nobody could tell; a sentence for each.

        A worker of an earlier process has ended by itself: with that process its stream did.
        """
        found = []
        for worker in self._clients.keys() - set(owned):
            lost = self._clients[worker].place
            with suppress(EnvironmentFault):
                await self.kill(lost)
                await self.dispose(lost)
                found.append(f"ended what was left of worker {worker} (ssh)")
        for place in list(self._unsure.values()):
            with suppress(EnvironmentFault):
                await self._make_sure(place)
                await self.dispose(place)
                found.append(f"worker {place.worker} (ssh) has ended: its host answers again")
        return found


def target_of(environment: Environment) -> Target:
    """The host that an environment names. Raises EnvironmentFault."""
    target = parse_target(environment.host)
    if target is None:
        raise EnvironmentFault(f"environment {environment.name}: {environment.host!r} is no host")
    return replace(
        target,
        identity=environment.identity,
        known_hosts=environment.known_hosts,
        options=environment.ssh_options,
    )


def _start(place: Place, target: Target, command: str) -> tuple[socket.socket, _Client]:
    """A client that leads to a command over there, and our end of its stream."""
    ours, theirs = socket.socketpair()
    errors, stderr = os.pipe()
    try:
        child = process.start(
            ssh_client.argv_of(target, command),
            env=ssh_client.environment(),
            cwd="/",
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
            stderr=stderr,
        )
    except BaseException:
        ours.close()
        os.close(errors)
        raise
    finally:
        theirs.close()
        os.close(stderr)
    ours.setblocking(False)
    return ours, _Client(place, child, ours, errors)


def _try_client() -> None:
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        argv = [ssh_client.find_client(), "-V"]
        child = process.start(argv, env=ssh_client.environment(), cwd="/", stdin=null, stdout=null, stderr=null)
    except OSError as error:
        raise EnvironmentFault(f"ssh does not start: {error.strerror}") from None
    finally:
        os.close(null)
    status = ssh_client.wait(child)
    if status:
        raise EnvironmentFault(f"ssh -V ends with status {status}", hint="install openssh-client anew")


def _refuse_limits(what: str, *limits: float | None) -> None:
    if any(limits):
        raise EnvironmentFault(
            f"{what}: a limit on memory, processes, CPUs or disk space cannot be held on a host that only ssh reaches",
            hint="bring a coordinator there with biruda deploy, or take the limits out",
        )
