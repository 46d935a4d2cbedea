"""Environments of every kind behind one seam, `protocol.Spawner`. SPAWNERS has one line for each kind.

    protocol.py     the seam                      process.py, chroot.py, thread.py   one kind each
    host.py         what the kinds share          forked.py, selftest.py             what they have in common
    zygote.py       the parent of all workers     birth.py                           what its children do first
    zygote_link.py  the coordinator's end of it   requests.py                        what is said between them
    roots.py        the plan of a root            operations.py, namespaces.py       its steps, carried out
    limits.py       what one worker may use       cgroup.py, processes.py            what ends it surely
    network.py, emulation.py, syscalls.py         one subject of the host each
    launching.py    programs that are no workers  qemu/                              virtual machines

The zygote imports this package too, and must stay small: the kinds are loaded when they are asked for.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from biruda.model import Kind

if TYPE_CHECKING:
    from biruda.coordinator.spawners.host import Host
    from biruda.coordinator.spawners.protocol import Spawner


def _thread(host: "Host") -> "Spawner":
    from biruda.coordinator.spawners.thread import ThreadSpawner

    return ThreadSpawner(host)


def _process(host: "Host") -> "Spawner":
    from biruda.coordinator.spawners.process import ProcessSpawner

    return ProcessSpawner(host)


def _chroot(host: "Host") -> "Spawner":
    from biruda.coordinator.spawners.chroot import ChrootSpawner

    return ChrootSpawner(host)


def _docker(host: "Host") -> "Spawner":
    from biruda.coordinator.spawners.docker import DockerSpawner

    return DockerSpawner(host)


def _qemu(host: "Host") -> "Spawner":
    from biruda.coordinator.spawners.qemu.spawner import QemuSpawner

    return QemuSpawner(host)


def _ssh(host: "Host") -> "Spawner":
    from biruda.coordinator.spawners.ssh import SshSpawner

    return SshSpawner(host)


SPAWNERS: "Final[Mapping[Kind, Callable[[Host], Spawner]]]" = {
    Kind.THREAD: _thread,
    Kind.PROCESS: _process,
    Kind.CHROOT: _chroot,
    Kind.DOCKER: _docker,
    Kind.QEMU: _qemu,
    Kind.SSH: _ssh,
}
