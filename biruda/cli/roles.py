"""The roles put together: what `up`, `master` and `coordinator` run until they are told to stop."""

import asyncio
import contextlib
import fcntl
import gc
import logging
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from biruda.cli.dialling import dialler
from biruda.config import Config, docker_socket
from biruda.coordinator.credentials import Credentials
from biruda.errors import ConfigError, UserError
from biruda.process import ignore_alone

if TYPE_CHECKING:
    from biruda.coordinator.service import Coordinator
    from biruda.master.service import Master

log = logging.getLogger("biruda")

READY_S = 30.0
GC_OBJECTS = 10_000


def serve(home: Path, config: Config, *, master: bool, coordinator: bool) -> int:
    """Run the roles in the foreground until SIGTERM or SIGINT. Raises BirudaError when they cannot start."""
    config = as_joined(home, config)
    if coordinator and works_elsewhere(config):
        master = False  # `up` on a host of another master's farm
    os.umask(0o077)  # a fresh process of its own: nothing shares it yet
    ignore_alone()
    _make_home(home)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    with contextlib.ExitStack() as locks:
        for role, wanted in (("master", master), ("coordinator", coordinator)):
            if wanted:
                locks.enter_context(_only_one(home, role))
        try:
            asyncio.run(_until_stopped(home, config, master=master, coordinator=coordinator))
        except* asyncio.CancelledError:
            pass
    return 0


def _make_home(home: Path) -> None:
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        (home / "log").mkdir(exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{home}: the home directory cannot be made: {error.strerror}",
            hint="name another with --home or BIRUDA_HOME",
        ) from error


@contextmanager
def _only_one(home: Path, role: str) -> Iterator[None]:
    """Hold the role of this home; the kernel gives it back however this process ends."""
    path = home / f"{role}.lock"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
            raise UserError(
                f"biruda is already running here: {role} with pid {pid}, home {home}",
                hint="biruda status shows it, biruda down stops it, --home DIR starts another beside it",
            ) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)


def kept_secret(path: Path, size_bytes: int) -> str:
    """A random text that is made once and kept, readable by this user alone."""
    with contextlib.suppress(FileNotFoundError):
        text = path.read_text("ascii").strip()
        if text:
            return text
    temporary = path.with_suffix(".new")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    text = secrets.token_hex(size_bytes)
    with os.fdopen(fd, "w") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    return text


async def _until_stopped(home: Path, config: Config, *, master: bool, coordinator: bool) -> None:
    main = asyncio.current_task()
    assert main is not None
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, main.cancel)
    for warning in config.warnings:
        log.warning("%s", warning)
    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(_master(home, config, alone=not coordinator)) if master else None
        if coordinator:
            host = await stack.enter_async_context(_coordinator(home, config, running))
            try:
                async with asyncio.timeout(READY_S):
                    await host.ready.wait()
                    while running is not None and not running.farm.knows(host.host):
                        await running.changed()
            except TimeoutError:  # to end would help nobody: the next start would meet the same
                log.warning("workers of an earlier run or environments have not answered in %g s; going on", READY_S)
        _settle_memory()
        _say_ready()
        log.info("ready: home=%s", home)
        await loop.create_future()


def _settle_memory() -> None:
    """What is loaded now stays: the collector need not look at it again, nor run for every few hundred messages."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_OBJECTS, 20, 20)


def _say_ready() -> None:
    """Tell who started this daemon, if anybody waits for it."""
    fd = os.environ.pop("BIRUDA_READY_FD", "")
    if fd.isdigit():
        with contextlib.suppress(OSError):
            os.write(int(fd), b"ready\n")
            os.close(int(fd))


def as_joined(home: Path, config: Config) -> Config:
    """The configuration with what `biruda join` has left, where the file does not say otherwise."""
    settings, joined = config.coordinator, Credentials(home).joined()
    if joined is None or (settings.master and not settings.master.startswith("https://")):
        return config
    settings = replace(settings, master=settings.master or joined.url, host=settings.host or joined.host)
    return replace(config, coordinator=settings)


def works_elsewhere(config: Config) -> bool:
    """Whether the coordinator has a master that is not this home's."""
    return bool(config.coordinator.master) or config.coordinator.listen is not None


def host_name(config: Config) -> str:
    """What this host is called in the farm."""
    return config.coordinator.host or socket.gethostname() or "localhost"


@asynccontextmanager
async def _master(home: Path, config: Config, *, alone: bool) -> AsyncIterator["Master"]:
    from biruda.master import api
    from biruda.master.access import Role
    from biruda.master.linking import linking
    from biruda.master.service import Master
    from biruda.master.sources import Sources
    from biruda.master.spool import Spool
    from biruda.master.store import Store
    from biruda.webui import routes as webui

    settings = config.master
    store = Store(home / "master.db", event_history=settings.event_history)
    try:
        spool = Spool(Path(settings.spool) if settings.spool else home / "spool")
        sources = Sources(home / "sources", settings.source_cache_bytes)
        try:
            master = Master(
                store, spool, lease_s=settings.lease_s, sources=sources, infra_retries=settings.infra_retries
            )
        except OSError as error:
            raise ConfigError(
                f"{error.filename or spool.directory}: the master cannot start: {error.strerror}",
                hint="make room there; nothing is lost, and the next start goes on",
            ) from error
        listen = (settings.listen.host, settings.listen.port) if settings.listen else None
        about = api.About(
            home=home,
            host=host_name(config),
            started_s=time.time(),
            pids={"master": os.getpid()} | ({} if alone else {"coordinator": os.getpid()}),
        )
        anonymous = Role.VIEWER if settings.anonymous_read else None
        app = api.application(master, about, kept_secret(home / "token", 32), anonymous, git_files=settings.git_files)
        if settings.web:
            webui.mount(app)
        async with (
            master.running(),
            linking(home, settings, host_name(config), master, app),
            api.serving(app, home / "master.sock", listen),
        ):
            yield master
    finally:
        store.close()


@asynccontextmanager
async def _coordinator(home: Path, config: Config, master: "Master | None") -> AsyncIterator["Coordinator"]:
    from biruda.coordinator.service import Coordinator
    from biruda.coordinator.spawners import SPAWNERS
    from biruda.coordinator.spawners.host import open_host

    instance = kept_secret(home / "instance", 8)
    async with AsyncExitStack() as stack:
        settings = config.coordinator
        means = await stack.enter_async_context(
            open_host(
                instance,
                cgroup=settings.cgroup,
                bridge_subnet=settings.bridge_subnet,
                room_bytes=settings.outbox_bytes,
                docker_socket=docker_socket(settings.docker_socket, os.environ),
                cache=home / "coordinator" / "cache",
                errors=os.fspath(home / "log" / "workers.log"),
            )
        )
        spawners = {kind: make(means) for kind, make in SPAWNERS.items()}
        dial = await stack.enter_async_context(dialler(home, config, host_name(config), master))
        coordinator = Coordinator(home, config, host_name(config), spawners, instance)
        yield await stack.enter_async_context(coordinator.running(dial))
