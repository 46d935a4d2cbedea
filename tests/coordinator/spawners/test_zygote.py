"""The process that workers are forked from, and the coordinator's end of it."""

import asyncio
import os
import select
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from biruda.coordinator.spawners.host import Host
from biruda.coordinator.spawners.requests import Birth, Forget, Guard, Resize, pack_request, unpack_request
from biruda.coordinator.spawners.zygote_link import ZygoteLost, open_zygote, own_argv, own_environment
from biruda.errors import EnvironmentFault
from biruda.model import Kind
from biruda.worker.opening import Opening
from tests.coordinator.spawners.making import Kit
from tests.coordinator.spawners.support import wait_exit
from tests.worker.peer import wait_until

GUARD = Guard(directory="/nowhere", cgroups=())


def open_descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


@pytest.mark.parametrize(
    "request_",
    [
        Birth(directory="/d", opening=Opening(worker="w", nonce="n", kind=Kind.CHROOT, work="/build"), plan="[]"),
        Resize(pid=1, start_ticks=2, size_bytes=3),
        GUARD,
        Forget(directory="/d"),
    ],
)
def test_requests_are_the_same_after_they_were_sent(request_: Birth | Resize | Guard | Forget) -> None:
    assert unpack_request(pack_request(5, request_)) == (5, request_)


async def test_a_zygote_that_cannot_start_says_why() -> None:
    program = [sys.executable, "-c", "raise SystemExit('no such module: everything')"]
    async with open_zygote(program) as zygote:
        with pytest.raises(ZygoteLost, match="has ended: no such module: everything"):
            await zygote.ask(GUARD)


async def test_a_zygote_that_is_not_there_is_named() -> None:
    with pytest.raises(EnvironmentFault, match="cannot be started: /nowhere/python: No such file"):
        async with open_zygote(["/nowhere/python"]):
            raise AssertionError("it was started")


async def test_what_cannot_be_done_is_an_answer(host: Host) -> None:
    report, child = socket.socketpair()
    with report, child, pytest.raises(EnvironmentFault, match="the worker has ended"):
        await host.zygote.ask(Resize(pid=2**22 - 1, start_ticks=5, size_bytes=1), child)
    await host.zygote.ask(GUARD)


async def test_more_requests_than_the_socket_holds(host: Host) -> None:
    long = Guard(directory="/nowhere", cgroups=tuple("/nowhere" + "x" * 100 for _ in range(100)))
    answers = await asyncio.gather(*(host.zygote.ask(long) for _ in range(200)))
    assert len({answer.answer.id for answer in answers}) == 200


async def test_no_descriptor_is_left_open(process: Kit) -> None:
    pids = os.getpid(), process.host.zygote.pid

    async def turn() -> None:
        worker = await process.make()
        await worker.unmake()
        process.made.clear()
        await process.host.zygote.ask(GUARD)  # so that it has finished with what came before

    await turn()
    first = [open_descriptors(pid) for pid in pids]
    for _ in range(5):
        await turn()
    assert [open_descriptors(pid) for pid in pids] == first


async def test_a_worker_holds_what_is_its_own_and_no_more(process: Kit, chroot: Kit) -> None:
    for kit in (process, chroot):
        worker = await kit.make()
        worker.peer.attach()
        kinds = [os.readlink(path) for path in Path(f"/proc/{worker.place.pid}/fd").iterdir()]
        assert sum(kind.startswith("socket:") for kind in kinds) == 2, "the connection and the listener"
        assert sum(kind.startswith("pipe:") for kind in kinds) <= 2, "its signals"
        assert not any("cgroup" in kind for kind in kinds)
        assert len(kinds) <= 8


def test_answers_that_were_not_read_keep_nothing_from_being_removed(tmp_path: Path) -> None:
    """The kernel then says ECONNRESET where else the end of the requests is."""
    (tmp_path / "work").mkdir()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    control_fd, errors_fd = 500, 501
    os.dup2(theirs.fileno(), control_fd)
    os.dup2(2, errors_fd)
    argv = [*own_argv(), str(control_fd)]
    with subprocess.Popen(argv, env=own_environment(), pass_fds=[control_fd, errors_fd]) as process:
        os.closerange(control_fd, errors_fd + 1)
        with ours, theirs:
            ours.send(pack_request(1, Guard(directory=str(tmp_path), cgroups=())))
            assert select.select([ours], [], [], 10)[0]
        assert process.wait(10) == 0
    assert not tmp_path.exists()


async def test_an_idle_zygote_sleeps(host: Host) -> None:
    await host.zygote.ask(GUARD)
    pid = host.zygote.pid
    assert wait_until(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S")
    before = Path(f"/proc/{pid}/schedstat").read_text()
    await asyncio.sleep(0.3)  # as long as this, it does nothing
    assert Path(f"/proc/{pid}/schedstat").read_text() == before


async def test_the_zygote_ends_with_the_block() -> None:
    async with open_zygote() as zygote:
        await zygote.ask(GUARD)
        pid = zygote.pid
    await asyncio.to_thread(wait_exit, pid)
