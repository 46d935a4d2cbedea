"""What all spawners of one coordinator share: names that carry its instance, cgroups, the zygote and the bridge."""

import os
import re
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from biruda.coordinator.spawners.limits import Cgroups, detect
from biruda.coordinator.spawners.network import Bridge
from biruda.coordinator.spawners.zygote_link import Zygote, open_zygote
from biruda.model import Kind
from biruda.worker.room import FILE_LIMIT_BYTES

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """One coordinator's means on its host."""

    instance: str  # marks everything that is made, for ever the same for one coordinator's home
    cgroups: Cgroups
    zygote: Zygote
    bridge: Bridge
    docker_socket: str  # where Docker's daemon listens
    cache: Path  # unpacked worker executables, templates of machines
    room_bytes: int = FILE_LIMIT_BYTES  # how much of a log an attempt may keep that nobody has acknowledged

    def cgroup_name(self, kind: Kind, worker: str) -> str:
        """The last part of the path of a worker's cgroups."""
        return f"{kind}-{checked(worker)}"


def checked(name: str) -> str:
    """A worker's or an instance's id as part of a path. Raises ValueError."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} cannot be part of a path")
    return name


@asynccontextmanager
async def open_host(
    instance: str,
    *,
    cgroup: str = "auto",
    bridge_subnet: str = "10.87.0.0/24",
    room_bytes: int = FILE_LIMIT_BYTES,
    docker_socket: str = "/var/run/docker.sock",
    cache: Path | None = None,
    zygote_argv: Sequence[str] = (),
    zygote_env: Mapping[str, str] | None = None,
    errors: str = os.devnull,
) -> AsyncIterator[Host]:
    """The shared means for the length of a block. Workers that live on at its end keep what they have.

    cgroup and bridge_subnet are keys of [coordinator], room_bytes is its outbox_bytes. cache is a directory of this
    user's for what is made once; left out, it is gone at the end. zygote_argv starts the zygote and gets its
    descriptor's number appended; left out, both zygote_argv and zygote_env are those of a start from source. errors is
    a file to which the tracebacks of the zygote and of workers are appended.
    """
    cgroups = detect(checked(instance), cgroup)
    async with open_zygote(zygote_argv, zygote_env, errors) as zygote:
        with nullcontext(cache) if cache else tempfile.TemporaryDirectory(prefix="biruda-cache-") as directory:
            yield Host(
                instance=instance,
                cgroups=cgroups,
                zygote=zygote,
                bridge=Bridge(instance, bridge_subnet),
                room_bytes=room_bytes,
                docker_socket=docker_socket,
                cache=Path(directory),
            )
