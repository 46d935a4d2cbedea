"""Templates: the memory of a machine that has booted and waits to be told what it is, from which others go on at once.

A template is a directory with the memory in a file, the state of the devices, and the disk for what is written as it
was at that moment. A clone maps the memory privately: it costs what it changes.
"""

import asyncio
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from biruda.coordinator.spawners.forked import remove_place
from biruda.coordinator.spawners.host import Host
from biruda.coordinator.spawners.qemu.argv import RAM, SCRATCH, Machine, Memory, argv_of, user_of
from biruda.coordinator.spawners.qemu.images import copy_sparse
from biruda.coordinator.spawners.qemu.qmp import Qmp, open_qmp
from biruda.coordinator.spawners.qemu.running import Running, end, hear_ready, start, throwaway
from biruda.errors import EnvironmentFault
from biruda.worker.machine import Ready

SAVE_LIMIT_S: Final = 60.0
RESTORE_LIMIT_S: Final = 20.0

_FORMAT: Final = 1
_SETTLE_S: Final = 0.3
_POLL_S: Final = 0.002
_STATE: Final = "state"
_CAPABILITIES: Final = {
    "capabilities": [{"capability": "x-ignore-shared", "state": True}, {"capability": "events", "state": True}]
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """One that is whole. Its directory is not written to any more."""

    directory: Path
    ready: Ready  # what its machine said, which none of its clones will say again

    @property
    def memory(self) -> Memory:
        """For a clone."""
        return Memory(path=str(self.directory / RAM), shared=False)

    @property
    def scratch(self) -> Path:
        """The disk for what is written, where its machines have one."""
        return self.directory / SCRATCH


def key_of(program: str, machine: Machine) -> str:
    """The name of the template for this machine: another program or file gives another one. Blocking."""
    facts = [_identity(path) for path in (program, machine.kernel, machine.initrd, machine.root) if path]
    argv = argv_of(program, machine, Memory(path=RAM, shared=True))
    text = json.dumps([_FORMAT, facts, argv, machine.scratch_bytes, os.uname().release])
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _identity(path: str) -> tuple[str, int, int, int]:
    about = os.stat(path)
    return path, about.st_ino, about.st_size, about.st_mtime_ns


def find(directory: Path, key: str) -> Template | None:
    """The template of this name, where there is one. Blocking."""
    try:
        about = json.loads((directory / key / "about.json").read_text())
        return Template(directory=directory / key, ready=Ready(boot_id=about["boot_id"], kernel=about["kernel"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


async def make(
    host: Host, program: str, machine: Machine, scratch: Path | None, directory: Path, key: str, limit_s: float
) -> Template:
    """Boot a machine and keep what it then is; templates of other names there go. Raises EnvironmentFault."""
    place = throwaway(host, "template")
    kept = Path(place.directory)
    try:
        user = user_of(place.worker)
        await asyncio.to_thread(furnish, kept, scratch, user)
        argv = argv_of(program, machine, Memory(path=RAM, shared=True), user=user)
        running = await start(host, place, argv, machine, writes_memory=True)
        try:
            ready = await hear_ready(running, limit_s)
            await asyncio.sleep(
                _SETTLE_S
            )  # what the machine still does after it is ready need not be done by each clone
            await _save(running)
        finally:
            running.close()
            await end(running.place)
        return await asyncio.to_thread(_keep, kept, directory, key, ready)
    except OSError as error:
        raise EnvironmentFault(f"{error.filename or kept}: {os.strerror(error.errno or 0)}") from None
    finally:
        await remove_place(host, place)


def furnish(directory: Path, scratch: Path | None, user: int) -> None:
    """Give a machine the disk for what is written: an empty one, or one as its template left it. Blocking.

    qemu opens it again by its name when it is that user, who may pass through the directory and see nothing else in it.
    Raises OSError.
    """
    directory.mkdir(parents=True, mode=0o700, exist_ok=True)
    directory.chmod(0o711)
    if scratch is not None and scratch.exists():
        copy_sparse(scratch, directory / SCRATCH)
        if user:
            os.chown(directory / SCRATCH, user, user)


async def _save(running: Running) -> None:
    """Stop a machine and write the state of its devices."""
    directory = running.place.directory
    fd = os.open(f"{directory}/{_STATE}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        async with asyncio.timeout(SAVE_LIMIT_S), open_qmp(directory) as qmp:
            await qmp.ask("stop")
            await qmp.ask("migrate-set-capabilities", _CAPABILITIES)
            await qmp.ask("getfd", {"fdname": _STATE}, fd=fd)
            await qmp.ask("migrate", {"uri": f"fd:{_STATE}"})
            await _migrated(qmp)
    except TimeoutError:
        raise EnvironmentFault(f"the machine's state was not written within {SAVE_LIMIT_S:g} s") from None
    finally:
        os.close(fd)


async def _migrated(qmp: Qmp) -> None:
    while True:
        event = await qmp.event("MIGRATION")
        status = event.get("data", {}).get("status")
        if status == "completed":
            return
        if status == "failed":
            about = await qmp.ask("query-migrate")
            raise EnvironmentFault(f"the machine's state cannot be moved: {about.get('error-desc', 'no reason given')}")


def _keep(made: Path, directory: Path, key: str, ready: Ready) -> Template:
    """Give a template its name. What else is there was of another content; its clones keep their memory mapped."""
    directory.mkdir(parents=True, exist_ok=True)
    new = directory / f".new-{os.getpid()}"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(mode=0o700)
    for name in (RAM, _STATE, SCRATCH):
        with suppress(FileNotFoundError):
            (made / name).rename(new / name)
    (new / "about.json").write_text(json.dumps({"boot_id": ready.boot_id, "kernel": ready.kernel}))
    for old in directory.iterdir():
        if old != new:
            shutil.rmtree(old, ignore_errors=True)
    new.rename(directory / key)
    return Template(directory=directory / key, ready=ready)


async def restore(running: Running, template: Template) -> None:
    """Let a machine that waits for it go on where the template stopped. Raises EnvironmentFault."""
    try:
        with _opened(template.directory / _STATE) as fd:
            async with asyncio.timeout(RESTORE_LIMIT_S), open_qmp(running.place.directory) as qmp:
                await qmp.ask("migrate-set-capabilities", _CAPABILITIES)
                await qmp.ask("getfd", {"fdname": _STATE}, fd=fd)
                await qmp.ask("migrate-incoming", {"uri": f"fd:{_STATE}"})
                await _migrated(qmp)
                # its last step has no event
                while (await qmp.ask("query-status")).get("status") == "inmigrate":  # noqa: ASYNC110 - qemu's state
                    await asyncio.sleep(_POLL_S)
                await qmp.ask("cont")
    except TimeoutError:
        raise EnvironmentFault(f"the machine did not go on within {RESTORE_LIMIT_S:g} s") from None


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise EnvironmentFault(f"{path}: {os.strerror(error.errno or 0)}") from None
    try:
        yield fd
    finally:
        os.close(fd)
