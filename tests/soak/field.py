"""A farm to do harm to: a master and two hosts, each with network, disk and clock of its own, and who restarts them."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from tests.soak.places import HERE, IMAGE, SOURCE, Places, tmpfs

DISK_BYTES = {"m": 128 << 20, "a": 128 << 20, "b": 640 << 20}  # b keeps the memory of its machines' template there
START_S = 60.0
HOSTS = ("a", "b")
FAKETIME = next((str(path) for path in Path("/usr/lib").glob("*/faketime/libfaketime.so.1")), "")

COMMON = """
[coordinator]
host = "{host}"
slots = 3
{docker}

[[environment]]
name = "host-{host}"
env = {{ WITNESS = "{witness}", PATH = "{programs}:/usr/bin:/bin" }}

[[environment]]
name = "thread-{host}"
kind = "thread"
env = {{ WITNESS = "{witness}", PATH = "{programs}:/usr/bin:/bin" }}

[[environment]]
name = "tiny-{host}"
kind = "chroot"
root = "{root}"
binds = ["{witness}:/witness/file"]
env = {{ WITNESS = "/witness/file", PATH = "/bin" }}
"""

BRIDGED = """
[[environment]]
name = "net-{host}"
kind = "chroot"
root = "{root}"
network = "bridge"
binds = ["{witness}:/witness/file"]
env = {{ WITNESS = "/witness/file", PATH = "/bin" }}
"""

BOX = f"""
[[environment]]
name = "box-a"
kind = "docker"
image = "{IMAGE}"
env = {{{{ WITNESS = "/witness/file", PATH = "/bin" }}}}
binds = ["{{witness}}:/witness/file"]
slots = 2
"""


@dataclass
class Role:
    """One daemon, which is started again whenever it ends, as a service manager does."""

    name: str  # m, a, b
    argv: list[str]
    env: dict[str, str]
    log: Path
    pid: int = 0
    pause_s: float = 0.3  # before it is started again
    killed: bool = False  # its next end is our doing
    wanted: asyncio.Event = field(default_factory=asyncio.Event)
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    ends: list[str] = field(default_factory=list)  # that nobody asked for
    starts: int = 0

    async def keep_running(self) -> None:
        """For ever; on cancellation it has ended."""
        process: asyncio.subprocess.Process | None = None
        try:
            while True:
                await self.wanted.wait()
                read_fd, write_fd = os.pipe()
                env = {**self.env, "BIRUDA_READY_FD": str(write_fd)}
                with self.log.open("ab") as file:
                    process = await asyncio.create_subprocess_exec(
                        *self.argv, env=env, stdin=asyncio.subprocess.DEVNULL, stdout=file, stderr=file,
                        pass_fds=(write_fd,), start_new_session=True,
                    )  # fmt: skip
                os.close(write_fd)
                self.starts += 1
                self.pid, self.killed = process.pid, False
                asyncio.get_running_loop().add_reader(read_fd, self._note_ready, read_fd)
                status = await process.wait()
                self.ready.clear()
                self.pid = 0
                if not self.killed:
                    self.ends.append(f"{self.name} ended with status {status}")
                await asyncio.sleep(self.pause_s)
                self.pause_s = 0.3
        finally:
            if process is not None and process.returncode is None:
                with suppress(ProcessLookupError):
                    process.send_signal(signal.SIGCONT)
                    process.terminate()
                try:
                    async with asyncio.timeout(20):
                        await process.wait()
                except TimeoutError:
                    self.ends.append(f"{self.name} did not end within 20 s of SIGTERM")
                    process.kill()
                    await process.wait()

    def _note_ready(self, fd: int) -> None:
        asyncio.get_running_loop().remove_reader(fd)
        if os.read(fd, 100) == b"ready\n":
            self.ready.set()
        os.close(fd)

    def signal(self, number: int) -> None:
        """Send it a signal, if it runs."""
        if self.pid:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def end(self, number: int, pause_s: float) -> None:
        """Send it a signal that ends it; it comes back after a pause."""
        if self.pid:
            self.killed, self.pause_s = True, pause_s
            self.ready.clear()
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGCONT)
                os.kill(self.pid, number)


@dataclass
class Worker:
    """What a host's ledger says of a worker."""

    worker: str
    kind: str
    pid: int = 0
    job: int = 0


class Field:
    """The farm. Roles by name: m is the master."""

    def __init__(self, places: Places, directory: Path, *, lease_s: float, faked_clock: bool, plant: str) -> None:
        self.places = places
        self.directory = directory
        self.lease_s = lease_s
        self.faked_clock = faked_clock and bool(FAKETIME)
        self.plant = plant
        self.homes = {name: directory / name for name in ("m", *HOSTS)}
        self.witness = directory / "witness"
        self.roles: dict[str, Role] = {}
        self.namespaces: dict[str, int] = {}
        self._wire: asyncio.subprocess.Process | None = None
        self.session: aiohttp.ClientSession | None = None
        self._keepers: list[asyncio.Task[None]] = []

    @asynccontextmanager
    async def running(self, seed: str) -> AsyncIterator["Field"]:
        """All three at work and linked; all has been told to end when the block ends."""
        async with AsyncExitStack() as stack:
            self.directory.mkdir()
            self.witness.touch()
            for name, home in self.homes.items():
                stack.enter_context(tmpfs(home, DISK_BYTES[name]))
                (self.directory / f"tmp-{name}").mkdir()
                self.set_clock(name, 0)
            await self._open_network(stack, seed)
            self._configure()
            self.session = await stack.enter_async_context(
                aiohttp.ClientSession(
                    connector=aiohttp.UnixConnector(str(self.homes["m"] / "master.sock"), limit=0),
                    timeout=aiohttp.ClientTimeout(total=10),
                )
            )
            roles = await stack.enter_async_context(asyncio.TaskGroup())
            keepers = [roles.create_task(role.keep_running(), name=role.name) for role in self.roles.values()]
            self._keepers = keepers
            stack.push_async_callback(self.stop)
            await self._bring_up()
            yield self

    async def stop(self) -> None:
        """End the daemons by SIGTERM: hosts first, then the master. They have ended on return."""
        for keeper in reversed(self._keepers):
            keeper.cancel()
            await asyncio.wait([keeper])

    def helpers(self) -> list[int]:
        """The processes that belong to the soak and not to the farm."""
        return [self._wire.pid] if self._wire is not None else []

    async def _open_network(self, stack: AsyncExitStack, seed: str) -> None:
        own = os.readlink("/proc/self/ns/net")
        for name in self.homes:
            holder = await asyncio.create_subprocess_exec("unshare", "--net", "sleep", "infinity")
            stack.push_async_callback(_finish, holder)
            self.namespaces[name] = holder.pid
            while os.readlink(f"/proc/{holder.pid}/ns/net") == own:
                await asyncio.sleep(0.005)
            await _run(*self.inside(name), "ip", "link", "set", "lo", "up")
        hosts = [f"{name}={self.namespaces[name]}" for name in HOSTS]
        self._wire = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.soak.wire", seed, str(self.namespaces["m"]), *hosts),
            cwd=SOURCE,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        stack.push_async_callback(_finish, self._wire)
        assert self._wire.stdout is not None
        assert await self._wire.stdout.readline() == b"ready\n"
        for number, name in enumerate(HOSTS, start=1):
            for place, device, end in (("m", f"w{name}", 1), (name, "eth0", 2)):
                inside = self.inside(place)
                await _run(*inside, "ip", "addr", "add", f"10.99.{number}.{end}/24", "dev", device)
                await _run(*inside, "ip", "link", "set", device, "up")

    def inside(self, name: str) -> list[str]:
        """What puts a command into a host's network."""
        return ["nsenter", f"--net=/proc/{self.namespaces[name]}/ns/net"]

    def treat(self, link: str, **manner: Any) -> None:
        """From now on a link treats its packets so; nothing: as usual."""
        assert self._wire is not None
        assert self._wire.stdin is not None
        self._wire.stdin.write(json.dumps({"link": link, **manner}).encode() + b"\n")

    def set_clock(self, name: str, offset_s: float) -> None:
        """What a role takes for the time, from now on."""
        path = self.directory / f"clock-{name}"
        new = path.with_suffix(".new")
        new.write_text(f"{offset_s:+g}\n")
        new.replace(path)

    def _configure(self) -> None:
        master = f'[master]\nlink_listen = ":7879"\nlease_s = {self.lease_s}\ninfra_retries = 30\n'
        (self.homes["m"] / "biruda.conf").write_text(master)
        dockerd, machine = self.places.dockerd, self.places.machine
        for name in HOSTS:
            text = COMMON + (BRIDGED if name == "b" else "") + (BOX if dockerd is not None and name == "a" else "")
            if machine is not None and name == "b":
                text += machine.toml("vm-b", slots=2).replace("{", "{{").replace("}", "}}")
                (self.homes[name] / "coordinator").mkdir()
                if self.places.machine_cache.exists():
                    _copy(self.places.machine_cache, self.homes[name] / "coordinator" / "cache")
            text = text.format(
                host=name,
                witness=self.witness,
                programs=self.places.programs,
                root=self.places.root,
                docker=f'docker_socket = "{dockerd.socket}"' if dockerd is not None else "",
            )
            (self.homes[name] / "biruda.conf").write_text(text)
        for name, home in self.homes.items():
            what = "master" if name == "m" else "coordinator"
            self.roles[name] = Role(name, self.argv(name, what), self.env(name), home.parent / f"log-{name}")

    def argv(self, name: str, *args: str) -> list[str]:
        """A command of a role's own, in its network."""
        return [*self.inside(name), sys.executable, "-m", "biruda", "--home", str(self.homes[name]), *args]

    def env(self, name: str) -> dict[str, str]:
        env = {
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "PYTHONPATH": f"{HERE / 'plants'}:{SOURCE}",
            "BIRUDA_SOAK_PLANT": self.plant,
            "TMPDIR": str(self.directory / f"tmp-{name}"),
        }
        if "BIRUDA_WORKERS" in os.environ:
            env["BIRUDA_WORKERS"] = os.environ["BIRUDA_WORKERS"]
        if self.faked_clock:
            env |= {
                "LD_PRELOAD": FAKETIME,
                "FAKETIME_TIMESTAMP_FILE": str(self.directory / f"clock-{name}"),
                "FAKETIME_NO_CACHE": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
                "DONT_FAKE_MONOTONIC": "1",
                "NO_FAKE_STAT": "1",
            }
        return env

    async def _bring_up(self) -> None:
        self.roles["m"].wanted.set()
        await self._until_ready("m")
        for number, name in enumerate(HOSTS, start=1):
            token = json.loads(await _run(*self.argv("m", "token", "--json"), env=self.env("m")))["token"]
            url = f"https://10.99.{number}.1:7879"
            join = self.argv(name, "join", url, "--token", token, "--name", name)
            await _run(*join, env=self.env(name))
            self.roles[name].wanted.set()
        for name in HOSTS:
            await self._until_ready(name)
        await self.until_linked(usable=True)
        if self.places.machine is not None:
            await self._until_cloned()

    async def _until_cloned(self) -> None:
        """Virtual machines are clones of a template from now on; the first farm of a run makes it for all."""
        async with asyncio.timeout(2 * START_S):
            while not any("clones" in text for text in (await self.get("/api/v1/environments/vm-b"))["evidence"]):
                await asyncio.sleep(0.1)
        if not self.places.machine_cache.exists():
            await asyncio.to_thread(_copy, self.homes["b"] / "coordinator" / "cache", self.places.machine_cache)

    async def _until_ready(self, name: str) -> None:
        async with asyncio.timeout(START_S):
            await self.roles[name].ready.wait()

    async def until_linked(self, *, usable: bool = False) -> None:
        """Both hosts are connected, as the processes that they are now; usable: and every environment too."""
        try:
            async with asyncio.timeout(START_S):
                while not await self._are_linked(usable=usable):
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"not linked within {START_S:g} s: {await self.trouble()}") from None

    async def _are_linked(self, *, usable: bool) -> bool:
        with suppress(OSError, aiohttp.ClientError, TimeoutError):
            seen = {item["host"]: item for item in (await self.get("/api/v1/coordinators"))["coordinators"]}
            if any(not seen.get(name, {}).get("connected") for name in HOSTS):
                return False
            if any(seen[name]["pid"] != self.roles[name].pid for name in HOSTS):
                return False
            return not usable or not await self.trouble()
        return False

    async def trouble(self) -> list[str]:
        """Environments that cannot be used, and why."""
        with suppress(OSError, aiohttp.ClientError, TimeoutError):
            offered = (await self.get("/api/v1/environments"))["environments"]
            return [f"{item['name']}: {item['problem']}" for item in offered if not item["usable"]]
        return ["the master does not answer"]

    # The API.

    async def get(self, path: str) -> Any:
        assert self.session is not None
        async with self.session.get(f"http://m{path}") as answer:
            answer.raise_for_status()
            return await answer.json()

    async def post(self, path: str, body: Any) -> tuple[int, Any]:
        assert self.session is not None
        async with self.session.post(f"http://m{path}", json=body) as answer:
            return answer.status, await answer.json()

    # Who is there.

    def workers(self, host: str) -> list[Worker]:
        """The workers of a host that its ledger knows."""
        found: dict[str, Worker] = {}
        path = self.homes[host] / "coordinator" / "ledger"
        for line in path.read_text().splitlines() if path.exists() else ():
            with suppress(ValueError, KeyError):
                record = json.loads(line)
                if record["is"] == "planned":
                    place = record["place"]
                    found[record["worker"]] = Worker(record["worker"], place["kind"], place.get("pid", 0))
                elif record["is"] == "spawned":
                    found[record["worker"]].pid = record["pid"]
                elif record["is"] == "given":
                    found[record["worker"]].job = record["given"]["job"] if record["given"] else 0
                elif record["is"] == "gone":
                    found.pop(record["worker"], None)
        return [item for item in found.values() if item.pid > 1 and item.kind != "thread"]

    def zygotes(self, host: str) -> list[int]:
        """The zygotes of a host that its coordinator has started."""
        return [
            pid
            for pid in children_of(self.roles[host].pid)
            if b"spawners.zygote" in _read(f"/proc/{pid}/cmdline") and _read(f"/proc/{pid}/stat")
        ]


def _copy(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-a", "--sparse=always", source, target], check=True)


def children_of(pid: int) -> list[int]:
    """The children of a process; none for 0."""
    text = _read(f"/proc/{pid}/task/{pid}/children") if pid else b""
    return [int(child) for child in text.split()]


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


async def _run(*argv: str, env: dict[str, str] | None = None) -> str:
    process = await asyncio.create_subprocess_exec(
        *argv, env=env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    assert process.returncode == 0, f"{' '.join(argv)}: {process.returncode} {err.decode(errors='replace')}"
    return out.decode()


async def _finish(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        process.kill()
    await process.wait()
