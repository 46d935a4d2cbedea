"""Coordinators and zygotes are killed; what they made lives on, and in the end nothing is left."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from biruda.convert import decode
from biruda.coordinator.spawners.protocol import Place, log_file
from biruda.model import Kind, Outcome
from tests.coordinator.spawners.making import Kit
from tests.coordinator.spawners.support import (
    SOURCE,
    assert_nothing_left,
    connect,
    kill_hard,
    need_root,
    new_instance,
    wait_exit,
)
from tests.worker.peer import is_dead


@dataclass
class Lone:
    """A coordinator in a process of its own, with one worker."""

    process: subprocess.Popen[bytes]
    place: Place
    zygote: int

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def lone_coordinator(kind: Kind, root: Path, directory: Path, lease_s: float = 30) -> Iterator[Lone]:
    need_root()
    arguments = (kind, str(root) if kind is Kind.CHROOT else "", str(directory / "place"), new_instance(), str(lease_s))
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.coordinator.spawners.lone_coordinator", *arguments],
        cwd=SOURCE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    said = json.loads(process.stdout.readline())
    lone = Lone(process, decode(Place, said["place"]), said["zygote"])
    try:
        yield lone
    finally:
        lone.kill()
        process.stdout.close()
        for path in lone.place.cgroups[:1]:
            if os.path.exists(f"{path}/cgroup.kill"):
                Path(f"{path}/cgroup.kill").write_text("1")
        wait_exit(lone.zygote)
        for path in lone.place.cgroups:
            assert not os.path.exists(os.path.dirname(path))


forked = pytest.mark.parametrize("kind", [Kind.PROCESS, Kind.CHROOT])


def log_name(place: Place) -> str:
    return os.path.basename(log_file(place, 7, 1))


@forked
def test_an_attempt_outlives_its_coordinator_and_is_found_again(kind: Kind, tiny_root: Path, tmp_path: Path) -> None:
    with lone_coordinator(kind, tiny_root, tmp_path) as lone:
        lone.kill()
        assert not is_dead(lone.place.pid)
        peer = connect(lone.place)
        hello = peer.attach()
        assert (hello.job, hello.ended) == (7, False)
        peer.want((0, 0))
        cwd = "build" if kind is Kind.CHROOT else lone.place.directory.lstrip("/") + "/work"
        Path(f"/proc/{lone.place.pid}/root/{cwd}/go").write_text("on\n")  # the step waits for it below
        peer.until(lambda: bytes(peer.log.head).endswith(b"on\n"))
        assert peer.result().outcome is Outcome.PASSED
        peer.record()
        peer.close()
        wait_exit(lone.place.pid)
        wait_exit(lone.zygote)
        assert_nothing_left(lone.place)
        assert set(os.listdir(lone.place.directory)) == {log_name(lone.place)}


@forked
def test_nothing_is_left_when_the_lease_is_over(kind: Kind, tiny_root: Path, tmp_path: Path) -> None:
    with lone_coordinator(kind, tiny_root, tmp_path, lease_s=0.3) as lone:
        lone.kill()
        wait_exit(lone.place.pid)
        wait_exit(lone.zygote)
        assert_nothing_left(lone.place)
        assert os.listdir(lone.place.directory) == [log_name(lone.place)]


def test_what_a_thread_started_dies_with_the_coordinator(tiny_root: Path, tmp_path: Path) -> None:
    with lone_coordinator(Kind.THREAD, tiny_root, tmp_path) as lone:
        (step,) = Path(lone.place.cgroups[0], "cgroup.procs").read_text().split()
        lone.kill()
        wait_exit(lone.zygote)
        assert is_dead(int(step))
        assert_nothing_left(lone.place)
        assert os.listdir(lone.place.directory) == [log_name(lone.place)]


async def test_a_killed_zygote_is_not_noticed_by_workers(kit: Kit) -> None:
    old = await kit.make()
    zygote = kit.host.zygote.pid
    kill_hard(zygote)
    wait_exit(zygote)
    new = await kit.make()
    assert kit.host.zygote.pid != zygote
    results = await asyncio.gather(old.run("echo old"), new.run("echo new"))
    assert [result.outcome for result in results] == [Outcome.PASSED, Outcome.PASSED]
    await kit.spawner.kill(old.place)
    assert_nothing_left(Place(worker="", kind=kit.kind, environment="", nonce="", directory="", pid=old.place.pid))


async def test_spawns_under_way_survive_the_zygote(kit: Kit) -> None:
    facts = await kit.spawner.prepare(kit.environment)
    await kit.make(facts=facts)

    async def make() -> Outcome:
        return (await (await kit.make(facts=facts)).run("echo made")).outcome

    tasks = [asyncio.get_running_loop().create_task(make()) for _ in range(8)]
    await asyncio.sleep(0)
    kill_hard(kit.host.zygote.pid)
    assert await asyncio.gather(*tasks) == [Outcome.PASSED] * 8


def test_a_zygote_without_workers_ends_with_its_coordinator() -> None:
    code = (
        "import asyncio\n"
        "from biruda.coordinator.spawners.host import open_host\n"
        "async def main():\n"
        "    async with open_host('test-short', cgroup='off') as host:\n"
        "        print(host.zygote.pid, flush=True)\n"
        "        await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=SOURCE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        zygote = int(process.stdout.readline())
        process.kill()
    wait_exit(zygote)


def test_no_descriptor_of_the_coordinator_is_held_by_what_survives(tiny_root: Path, tmp_path: Path) -> None:
    """Else `biruda up | cat` would wait for the last attempt."""
    with lone_coordinator(Kind.PROCESS, tiny_root, tmp_path) as lone:
        standard = {os.readlink(f"/proc/{pid}/fd/{fd}") for pid in (lone.zygote, lone.place.pid) for fd in (0, 1, 2)}
        assert standard == {"/dev/null"}
        assert lone.process.stdout is not None
        lone.kill()
        assert lone.process.stdout.read() == b""
