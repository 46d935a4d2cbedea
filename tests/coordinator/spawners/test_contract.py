"""What every kind of environment must keep to, with the real worker in it."""

import asyncio
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from biruda.coordinator.spawners.host import open_host
from biruda.coordinator.spawners.protocol import Place
from biruda.errors import EnvironmentFault
from biruda.messages import WorkerIdle
from biruda.model import Kind, Limits, Outcome
from tests.coordinator.spawners.conftest import kit_of
from tests.coordinator.spawners.making import Kit
from tests.coordinator.spawners.support import assert_nothing_left, kill_hard, new_instance, wait_exit
from tests.worker.peer import marked, wait_until

ONCE = (Kind.CHROOT, Kind.DOCKER, Kind.SSH)
"""Their workers serve one attempt."""

MARK = iter(range(10**6, 10**7))


def mark() -> str:
    """Seconds to sleep that no other process sleeps."""
    return f"{next(MARK)}.{os.getpid()}"


async def test_probe_makes_a_real_worker(kit: Kit) -> None:
    capability = await kit.spawner.probe()
    assert capability.usable, capability.reason
    assert capability.measured_ms > 0


async def test_a_worker_says_its_nonce_and_runs_a_job(kit: Kit) -> None:
    worker = await kit.make()
    result = await worker.run("echo hello; exit 3")
    assert (result.outcome, result.exit_status, worker.output) == (Outcome.FAILED, 3, "hello\n")


async def test_what_is_made_is_in_the_plan(kit: Kit) -> None:
    worker = await kit.make()
    planned = kit.spawner.plan(kit.environment, worker.place.worker, worker.place.nonce, Path(worker.place.directory))
    assert replace(worker.place, pid=0, start_ticks=0) == planned
    assert kit.spawner.plan(kit.environment, "w9", "n", Path("/d")) == kit.spawner.plan(
        kit.environment, "w9", "n", Path("/d")
    )


async def test_two_at_once_do_not_see_each_other(kit: Kit) -> None:
    one, two = await kit.make(), await kit.make()
    results = await asyncio.gather(one.run("echo one > f; cat f"), two.run("echo two > f; cat f"))
    assert [result.outcome for result in results] == [Outcome.PASSED, Outcome.PASSED]
    assert (one.output, two.output) == ("one\n", "two\n")


async def test_ten_are_spawned_at_once(kit: Kit) -> None:
    facts = await kit.spawner.prepare(kit.environment)
    workers = await asyncio.gather(*(kit.make(facts=facts) for _ in range(10)))
    assert len({worker.place.pid for worker in workers}) == (1 if kit.kind is Kind.THREAD else 10)


async def test_kill_ends_a_daemon_that_left_its_session(kit: Kit) -> None:
    worker, seconds = await kit.make(), mark()
    await worker.begin(f"setsid sh -c 'sleep {seconds} & sleep {seconds}' & sleep {seconds} & echo ready; wait")
    assert wait_until(lambda: len(marked(seconds)) >= 3)
    await kit.spawner.kill(worker.place)
    assert marked(seconds) == []
    assert_nothing_left(replace(worker.place, cgroups=()))


async def test_kill_ends_a_fork_bomb(kit: Kit) -> None:
    if kit.kind is Kind.SSH:
        pytest.skip("a bomb must be bounded, and there is no bound on a host that only ssh reaches")
    if kit.kind is Kind.THREAD and "pids" not in kit.host.cgroups.controllers:
        pytest.skip("a bomb must be bounded, and version 2 of cgroups does not hold the number of processes here")
    worker = await kit.make(replace(kit.environment, pids=48))
    await worker.begin("bomb() { bomb | bomb & }; echo ready; bomb; sleep 1000")
    began_s = time.monotonic()
    await kit.spawner.kill(worker.place)
    assert time.monotonic() - began_s < 1.0
    await kit.spawner.dispose(worker.place)
    assert_nothing_left(worker.place)


async def test_killing_and_disposing_twice_is_no_error(kit: Kit) -> None:
    worker = await kit.make()
    for _ in range(2):
        await kit.spawner.kill(worker.place)
    for _ in range(2):
        await kit.spawner.dispose(worker.place)
    await kit.spawner.kill(worker.place)
    assert_nothing_left(worker.place)
    assert not os.path.exists(worker.place.directory)


async def test_what_was_never_made_can_be_killed_and_disposed_of(kit: Kit, tmp_path: Path) -> None:
    place = kit.spawner.plan(kit.environment, "never", "n", tmp_path / "never")
    await kit.spawner.kill(place)
    await kit.spawner.dispose(place)


async def test_the_end_of_a_worker_is_seen(kit: Kit) -> None:
    worker = await kit.make()
    if kit.kind is Kind.THREAD:
        assert worker.spawned.pidfd == -1
        return
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(worker.spawned.pidfd, ended.set)
    kill_hard(worker.place.pid)
    async with asyncio.timeout(5):
        await ended.wait()
    asyncio.get_running_loop().remove_reader(worker.spawned.pidfd)


async def test_a_worker_that_is_done_ends_without_a_word(kit: Kit) -> None:
    """A word would be in the host's file of errors."""
    worker = await kit.make()
    await worker.run("true")
    worker.peer.record()
    worker.peer.until(lambda: kit.kind in ONCE or worker.peer.of(WorkerIdle))
    worker.peer.close()
    await asyncio.to_thread(wait_exit, worker.place.pid or 2**22 - 1)


async def test_a_later_process_kills_by_the_place_alone(kit: Kit, request: pytest.FixtureRequest) -> None:
    if kit.kind is Kind.THREAD:
        pytest.skip("a thread ends with its process")
    worker, seconds = await kit.make(), mark()
    await worker.begin(f"sleep {seconds} & echo ready; wait")
    async with open_host(kit.host.instance, docker_socket=kit.host.docker_socket) as later:
        other = kit_of(later, kit.kind, kit.directory, request)
        await other.spawner.kill(worker.place)
        assert marked(seconds) == []
        await other.spawner.dispose(worker.place)
    assert_nothing_left(worker.place)


async def test_reap_ends_what_nobody_owns(kit: Kit) -> None:
    owned, lost, seconds = await kit.make(), await kit.make(), mark()
    await lost.begin(f"sleep {seconds} & echo ready; wait")
    sentences = await kit.spawner.reap([owned.place.worker])
    assert marked(seconds) == []
    assert any(lost.place.worker in sentence for sentence in sentences)
    assert [path for path in lost.place.cgroups if os.path.exists(path)] == []
    assert (await owned.run("echo alive")).outcome is Outcome.PASSED
    assert await kit.spawner.reap([owned.place.worker, lost.place.worker]) == []


async def test_reap_leaves_other_instances_and_kinds_alone(kit: Kit, request: pytest.FixtureRequest) -> None:
    worker = await kit.make()
    async with open_host(new_instance(), docker_socket=kit.host.docker_socket) as other:
        assert await kit_of(other, kit.kind, kit.directory, request).spawner.reap([]) == []
    assert (await worker.run("echo alive")).outcome is Outcome.PASSED


async def test_a_spawn_that_is_cancelled_leaves_nothing(kit: Kit, tmp_path: Path) -> None:
    facts = await kit.spawner.prepare(kit.environment)
    place = kit.spawner.plan(kit.environment, "gone", "n", tmp_path / "gone")

    async def spawn() -> None:
        await kit.spawner.spawn(kit.environment, place, facts, lease_s=20, guess=False)
        raise AssertionError("it was not cancelled in time")

    await kit.make()  # the zygote is there
    task = asyncio.get_running_loop().create_task(spawn())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert_nothing_left(place)
    assert not os.path.exists(place.directory)


async def test_a_limit_that_cannot_be_held_is_a_fault(kit: Kit, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    if kit.kind is Kind.DOCKER:
        pytest.skip("the daemon's control groups hold it, whatever the coordinator may")
    async with open_host(new_instance(), cgroup="off", docker_socket=kit.host.docker_socket) as bare:
        other = kit_of(bare, kit.kind, tmp_path / "bare", request)
        limited = replace(kit.environment, memory_bytes=64 << 20)
        with pytest.raises(EnvironmentFault, match="memory"):
            await other.spawner.prepare(limited)
        worker = await other.make()
        for limits in (Limits(memory_bytes=64 << 20), Limits(pids=10), Limits(cpus=0.5)):
            with pytest.raises(EnvironmentFault, match="limit on"):
                await other.spawner.limit(worker.place, limits)
        await other.close()


async def test_kill_works_without_cgroups(kit: Kit, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    async with open_host(new_instance(), cgroup="off", docker_socket=kit.host.docker_socket) as bare:
        other = kit_of(bare, kit.kind, tmp_path / "bare", request)
        worker, seconds = await other.make(), mark()
        assert worker.place.cgroups == ()
        await worker.begin(f"setsid sh -c 'sleep {seconds} & sleep {seconds}' & sleep {seconds} & echo ready; wait")
        assert wait_until(lambda: len(marked(seconds)) >= 3)
        await other.spawner.kill(worker.place)
        assert marked(seconds) == []
        await other.close()


async def test_a_killed_worker_without_cgroups_leaves_no_orphans(
    kit: Kit, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    if kit.kind is Kind.THREAD:
        pytest.skip("a thread is not killed")
    async with open_host(new_instance(), cgroup="off", docker_socket=kit.host.docker_socket) as bare:
        other = kit_of(bare, kit.kind, tmp_path / "bare", request)
        worker, seconds = await other.make(), mark()
        await worker.begin(f"setsid sleep {seconds} & echo ready; wait")
        assert wait_until(lambda: marked(seconds))
        (daemon,) = marked(seconds)
        descriptor = os.pidfd_open(daemon)
        ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(descriptor, ended.set)
        kill_hard(worker.place.pid)
        async with asyncio.timeout(5):
            await ended.wait()
        asyncio.get_running_loop().remove_reader(descriptor)
        os.close(descriptor)
        await other.close()


async def test_names_that_are_no_names_are_refused(kit: Kit) -> None:
    for name in ("", "../up", "a/b", ".hidden"):
        with pytest.raises(ValueError, match="path"):
            kit.spawner.plan(kit.environment, name, "n", Path("/d"))


def test_a_place_says_everything_in_json(host_place: Place) -> None:
    from biruda.convert import decode, encode

    assert decode(Place, encode(host_place)) == host_place


@pytest.fixture
def host_place() -> Place:
    return Place(
        worker="w", kind=Kind.CHROOT, environment="e", nonce="n", directory="/d", cgroups=("/c",), veth="br0", pid=3
    )
