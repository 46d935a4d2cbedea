"""Kind docker: what only it has. What all kinds keep to is in test_contract.py."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from biruda.config import Environment, Network
from biruda.convert import decode
from biruda.coordinator.spawners import docker as spawner_module
from biruda.coordinator.spawners import injected
from biruda.coordinator.spawners.docker import DockerSpawner
from biruda.coordinator.spawners.docker_api import Demultiplexer, Docker
from biruda.coordinator.spawners.docker_container import Image, narrowed, specification
from biruda.coordinator.spawners.host import Host
from biruda.coordinator.spawners.limits import Bounds
from biruda.coordinator.spawners.protocol import Place
from biruda.errors import EnvironmentFault, Unreachable
from biruda.model import Kind, Limits, Outcome
from tests.coordinator.spawners.conftest import TINY_IMAGE
from tests.coordinator.spawners.making import Kit, Made
from tests.coordinator.spawners.support import SOURCE, new_instance, wait_exit
from tests.dockerd import Dockerd, need_worker
from tests.worker.peer import NONCE, Peer, is_dead, recipe_of, shell, wait_until

IMAGE = Image(id="sha256:" + "0" * 64, arch="amd64", env={})


def environment(**fields: Any) -> Environment:
    return Environment(name="here", kind=Kind.DOCKER, image=TINY_IMAGE, **fields)


async def test_a_job_sees_a_container_and_what_its_image_declares(
    docker: Kit, dockerd: Dockerd, tiny_root: Path
) -> None:
    dockerd.import_tree(tiny_root, "biruda-tests/declares", "ENV COLOUR=blue PATH=/x:/bin HOME=/no", "USER 1000")
    worker = await docker.make(replace(docker.environment, image="biruda-tests/declares", hostname="box"))
    result = await worker.run(
        "echo $COLOUR $PATH $HOME; hostname; id -u; ls /; cat /proc/self/status | grep -c NoNewPrivs:.1"
    )
    assert result.outcome is Outcome.PASSED
    assert worker.output.startswith("blue /x:/bin /build\nbox\n0\n")
    assert worker.output.endswith("\n1\n")


async def test_the_image_is_the_one_that_its_name_meant_when_it_was_looked_up(
    docker: Kit, dockerd: Dockerd, tiny_root: Path, tmp_path: Path
) -> None:
    (tmp_path / "first").mkdir()
    (tmp_path / "first/one").touch()
    pinned = dockerd.import_tree(tmp_path / "first", "biruda-tests/moving")
    facts = await docker.spawner.prepare(replace(docker.environment, image="biruda-tests/moving"))
    assert facts.content == pinned
    assert facts.evidence == (f"image biruda-tests/moving: {pinned}, for amd64",)
    dockerd.import_tree(tiny_root, "biruda-tests/moving")
    worker = await docker.make(replace(docker.environment, image="biruda-tests/moving"), facts)
    about = json.loads(dockerd.request("GET", f"/containers/biruda-{docker.host.instance}-{worker.place.worker}/json"))
    assert about["Image"] == pinned


async def test_where_the_daemon_does_not_see_our_files_the_worker_is_uploaded(docker: Kit) -> None:
    spawner = docker.spawner
    assert isinstance(spawner, DockerSpawner)
    spawner._uploads = True
    worker = await docker.make()
    result = await worker.run("ls -l /.biruda | cut -c1-10; mount | grep -c ' /.biruda '")
    assert (result.outcome, worker.output) == (Outcome.FAILED, "-r-xr-xr-x\n0\n")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("no program\n", "exec format error"),
        ("#!/bin/sh\necho 'biruda: not today' >&2; exit 70\n", "biruda: not today"),
    ],
)
async def test_a_worker_that_ends_at_once_says_why(
    content: str, said: str, docker: Kit, dockerd: Dockerd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/amd64").write_text(content)
    (tmp_path / "bad/amd64").chmod(0o755)
    monkeypatch.setenv("BIRUDA_WORKERS", str(tmp_path / "bad"))
    try:
        worker = await docker.make()
    except EnvironmentFault as fault:
        assert said in str(fault)  # noqa: PT017 - either is right
    else:  # it was seen alive for a moment
        await asyncio.to_thread(worker.peer.wait_closed)
        assert worker.spawned.incoming is not None
        assert said in worker.spawned.incoming.said
    assert said in (await docker.spawner.probe()).reason or content.startswith("#!")  # there is no shell either
    await docker.close()
    docker.made.clear()
    assert wait_until(lambda: not dockerd.containers(), 10)


async def test_a_missing_image_a_missing_worker_and_a_limit_are_said_before_anything_runs(
    docker: Kit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    prepare = docker.spawner.prepare
    with pytest.raises(EnvironmentFault, match="there is no image nobody/has:it on this host") as absent:
        await prepare(replace(docker.environment, image="nobody/has:it"))
    assert absent.value.hint.startswith("docker pull nobody/has:it, or biruda env build")
    with pytest.raises(EnvironmentFault, match="there is no worker executable for s390x on this host") as foreign:
        await injected.executable("s390x", tmp_path)
    assert "./build-static.sh" in foreign.value.hint


async def test_nobody_there_is_one_sentence(tmp_path: Path, host: Host) -> None:
    spawner = DockerSpawner(replace(host, docker_socket=str(tmp_path / "nobody")))
    capability = await spawner.probe()
    assert not capability.usable
    assert capability.reason == (
        f"no Docker daemon answers at {tmp_path}/nobody (no such file or directory); "
        "install docker.io and start it, or set [coordinator] docker_socket"
    )
    with pytest.raises(Unreachable):
        await spawner.prepare(environment())
    assert await spawner.reap([]) == []
    tcp = DockerSpawner(replace(host, docker_socket="tcp://10.0.0.1:2375"))
    assert "only Docker's Unix socket is spoken to" in (await tcp.probe()).reason


@pytest.mark.parametrize(
    "answer", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{x}", b"HTTP/1.1 500 No\r\n\r\n"]
)
async def test_who_answers_nonsense_is_one_sentence(answer: bytes, tmp_path: Path) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    async with await asyncio.start_unix_server(talk, tmp_path / "sock"):
        docker = Docker(str(tmp_path / "sock"))
        with pytest.raises(EnvironmentFault):
            await docker.call("GET", "/info")
        if b" 200 " not in answer:
            with pytest.raises(EnvironmentFault):
                await docker.attach("x")


async def test_limits_are_lowered_and_never_raised(docker: Kit, dockerd: Dockerd) -> None:
    worker = await docker.make(environment(memory_bytes=128 << 20, pids=100, cpus=1.5))
    await docker.spawner.limit(worker.place, Limits(memory_bytes=64 << 20, pids=200, cpus=0.5))
    about = json.loads(dockerd.request("GET", f"/containers/biruda-{docker.host.instance}-{worker.place.worker}/json"))
    limits = about["HostConfig"]
    assert (limits["Memory"], limits["MemorySwap"], limits["PidsLimit"], limits["NanoCpus"]) == (
        64 << 20,
        64 << 20,
        100,
        500_000_000,
    )
    with pytest.raises(EnvironmentFault, match="disk space"):
        await docker.spawner.limit(worker.place, Limits(disk_bytes=1 << 20))
    result = await worker.run("tail /dev/zero; echo $?")
    assert (result.outcome, worker.output) == (Outcome.PASSED, "Killed\n137\n")


async def test_a_bounded_disk_is_full_and_the_host_notices_nothing(docker: Kit) -> None:
    worker = await docker.make(environment(disk_bytes=8 << 20))
    await worker.run(
        "for d in . /tmp /var/tmp /run; do dd if=/dev/zero of=$d/big bs=1M count=20 2>&1 | grep -o 'No space.*'; done;"
        "touch /etc/x /x 2>&1 | grep -c Read-only"
    )
    assert worker.output == "No space left on device\n" * 4 + "2\n"


async def test_steps_run_as_a_user_by_number_and_by_name(docker: Kit) -> None:
    for user in ("1000", "builder"):
        worker = await docker.make(environment(user=user))
        result = await worker.run("id -u; touch f; ls -n f | cut -d' ' -f5-8; echo x > /etc/passwd")
        assert result.outcome is Outcome.FAILED
        assert worker.output.startswith("1000\n")


async def test_read_only_without_capabilities_and_as_another_user_it_works_all_the_same(
    docker: Kit, dockerd: Dockerd
) -> None:
    """As an administrator may harden it by hand: the worker itself needs nothing."""
    body = specification(environment(), "hard", await _image(docker), docker.host.instance, need_worker())
    body["User"] = "1234:1234"
    body["HostConfig"] |= {"ReadonlyRootfs": True, "CapDrop": ["ALL"], "Tmpfs": {"/build": "mode=0777,exec"}}
    docker_api = Docker(dockerd.socket)
    place = docker.spawner.plan(docker.environment, "hard", NONCE, docker.directory / "hard")
    await docker_api.call("POST", "/containers/create", body=body, name=f"biruda-{docker.host.instance}-hard")
    mark, incoming = injected.connect(NONCE, Demultiplexer())
    connection, _ = await docker_api.attach(f"biruda-{docker.host.instance}-hard")
    opening = injected.opening_of(
        docker.environment, place, Kind.DOCKER, arch="amd64", kernel_arch="amd64", lease_s=20, guess=True
    )
    await asyncio.get_running_loop().sock_sendall(connection, injected.birth(replace(opening, work="/build/w")) + mark)
    await docker_api.call("POST", f"/containers/biruda-{docker.host.instance}-hard/start")
    peer = Peer(connection, incoming)
    result = await asyncio.to_thread(peer.run, ("/bin/sh", "-c", "id -u; grep CapEff /proc/self/status; touch f && ls"))
    assert result.outcome is Outcome.PASSED, bytes(peer.log.head)
    assert bytes(peer.log.head) == b"1234\nCapEff:\t0000000000000000\nf\n"
    peer.close()
    await docker.spawner.kill(place)
    await docker.spawner.dispose(place)


async def _image(docker: Kit) -> Image:
    facts = await docker.spawner.prepare(docker.environment)
    return Image(id=facts.content, arch="amd64", env={})


async def test_a_job_cannot_take_the_workers_streams(docker: Kit) -> None:
    worker = await docker.make()
    result = await worker.run(
        "ls /proc/1/fd 2>&1; cat /proc/1/environ; head -c1 /proc/1/mem; echo x > /proc/1/fd/3; exit 0"
    )
    assert result.outcome is Outcome.PASSED
    assert "Permission denied" in worker.output


async def test_it_is_attached_to_again_and_again(docker: Kit) -> None:
    worker = await docker.make()
    await worker.begin("mkfifo go; echo ready; read line < go; echo $line")
    peer = worker.peer
    for _ in range(3):
        again = await docker.spawner.attach(worker.place)
        os.close(again.pidfd)
        peer.close()
        peer = Peer(again.connection, again.incoming)
        hello = await asyncio.to_thread(peer.attach)
        assert (hello.job, hello.ended) == (7, False)
    peer.want((0, 6))
    Path(f"/proc/{worker.place.pid}/root/build/go").write_text("on\n")
    result = await asyncio.to_thread(peer.result)
    assert (result.outcome, bytes(peer.log.head)) == (Outcome.PASSED, b"on\n")
    peer.close()


async def test_the_end_is_seen_where_processes_are_counted_elsewhere(
    docker: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spawner_module, "_is_of", lambda pid, number: False)
    worker = await docker.make()
    assert worker.place.pid == 0
    assert (await worker.run("echo x")).outcome is Outcome.PASSED
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(worker.spawned.pidfd, ended.set)
    assert not ended.is_set()
    await docker.spawner.kill(worker.place)
    async with asyncio.timeout(5):
        await ended.wait()
    asyncio.get_running_loop().remove_reader(worker.spawned.pidfd)
    with pytest.raises(OSError, match=r".*"):
        await docker.spawner.attach(worker.place)


async def test_a_spawn_that_is_cancelled_leaves_nothing_however_slow_the_daemon_is(
    docker: Kit, dockerd: Dockerd, tmp_path: Path
) -> None:
    asked, may_answer, answered = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A daemon that takes its time to create a container, and does so whether or not anybody waits for it."""
        request = await reader.readuntil(b"\r\n\r\n")
        if b"/containers/create" in request:
            asked.set()
            await may_answer.wait()
        back, forth = await asyncio.open_unix_connection(dockerd.socket)
        with closing(forth), closing(writer):
            forth.write(request)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(pour(reader, forth))
                tasks.create_task(pour(back, writer))
        if b"/containers/create" in request:
            answered.set()

    async def pour(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await source.read(65536):
                target.write(data)
                await target.drain()
            target.write_eof()

    async with await asyncio.start_unix_server(relay, tmp_path / "slow"):
        slow = DockerSpawner(replace(docker.host, docker_socket=str(tmp_path / "slow")))
        facts = await slow.prepare(docker.environment)
        place = slow.plan(docker.environment, "late", NONCE, tmp_path / "late")
        spawning = asyncio.create_task(slow.spawn(docker.environment, place, facts, lease_s=20, guess=False))
        await asked.wait()
        spawning.cancel()
        await asyncio.wait((spawning,), timeout=0.5)  # it may have given up
        may_answer.set()
        with pytest.raises(asyncio.CancelledError):
            await spawning
        await answered.wait()
        names = [each["Names"][0] for each in dockerd.containers()]
        assert f"/biruda-{docker.host.instance}-late" not in names
        assert not (tmp_path / "late").exists()


async def test_how_fast_it_is(docker: Kit) -> None:
    """Printed; judged only so coarsely that a busy machine passes too."""
    facts = await docker.spawner.prepare(docker.environment)
    cold, warm, kills = [], [], []
    for _ in range(7):
        began_s = time.perf_counter()
        worker = await docker.make(facts=facts)
        await asyncio.to_thread(worker.peer.attach)
        cold.append(time.perf_counter() - began_s)
        await asyncio.sleep(0.1)
        began_s = time.perf_counter()
        await asyncio.to_thread(_first_byte, worker)
        warm.append(worker.peer.first_data_at - began_s)
        began_s = time.perf_counter()
        await docker.spawner.kill(worker.place)
        kills.append(time.perf_counter() - began_s)
    print(f"\ncold hello {_ms(cold)}; warm first byte {_ms(warm)}; kill {_ms(kills)}")
    assert sorted(cold)[3] < 1.0
    assert sorted(warm)[3] < 0.1


def _first_byte(worker: Made) -> None:
    worker.peer.assign(recipe_of(shell("echo x; sleep 1")))
    worker.peer.until(lambda: worker.peer.log.size > 0)


def _ms(times: list[float]) -> str:
    middle = sorted(times)[len(times) // 2]
    return f"{middle * 1000:.1f} ms ({min(times) * 1000:.1f} to {max(times) * 1000:.1f})"


async def test_how_much_goes_through(docker: Kit) -> None:
    worker = await docker.make()
    result = await worker.run("dd if=/dev/zero bs=1000000 count=400 2>/dev/null")
    assert result.log.bytes == 400_000_000
    took_s = result.steps[0].wall_s
    print(f"\n{result.log.bytes / took_s / 1e6:.0f} MB/s of log through docker attach")
    assert result.log.bytes / took_s > 20e6


# --- without a daemon


def test_what_docker_is_told(tmp_path: Path) -> None:
    made = specification(environment(network=Network.NONE), "w1", IMAGE, "i", tmp_path / "amd64")
    host = made["HostConfig"]
    assert (made["Entrypoint"], made["Cmd"]) == ([], ["/.biruda", "--worker"])
    assert (made["OpenStdin"], made["StdinOnce"], made["Tty"], made["NetworkDisabled"]) == (True, False, False, True)
    assert (host["NetworkMode"], host["LogConfig"]["Type"], host["AutoRemove"]) == ("none", "none", True)
    assert (host["SecurityOpt"], host["Init"], host["PidsLimit"]) == (["no-new-privileges"], False, 4096)
    assert made["Labels"] == {"biruda.instance": "i", "biruda.worker": "w1", "biruda.environment": "here"}
    assert host["Mounts"] == [{"Type": "bind", "Source": f"{tmp_path}/amd64", "Target": "/.biruda", "ReadOnly": True}]
    assert "Privileged" not in host
    assert "Hostname" not in specification(environment(network=Network.HOST), "w", IMAGE, "i", None)


@pytest.mark.parametrize(
    ("now", "wanted", "change"),
    [
        ({"Memory": 0}, Bounds(memory_bytes=10), {"Memory": 10, "MemorySwap": 10}),
        ({"Memory": 5, "MemorySwap": 5}, Bounds(memory_bytes=10), {}),
        ({"Memory": 20, "MemorySwap": 20}, Bounds(memory_bytes=10), {"Memory": 10, "MemorySwap": 10}),
        ({"PidsLimit": None, "NanoCpus": 0}, Bounds(pids=7, cpus=0.5), {"PidsLimit": 7, "NanoCpus": 500_000_000}),
        ({"PidsLimit": -1}, Bounds(pids=7), {"PidsLimit": 7}),
    ],
)
def test_limits_are_only_narrowed(now: dict[str, Any], wanted: Bounds, change: dict[str, int]) -> None:
    assert narrowed(now, wanted) == change


@pytest.mark.parametrize(
    ("answer", "arch"),
    [
        ({"Architecture": "amd64"}, "amd64"),
        ({"Architecture": "386", "Variant": ""}, "i386"),
        ({"Architecture": "arm", "Variant": "v7"}, "armhf"),
        ({"Architecture": "arm64", "Variant": "v8"}, "arm64"),
        ({"Architecture": "ppc64le"}, "ppc64el"),
        ({"Architecture": "toaster"}, "unknown"),
        ({}, "unknown"),
    ],
)
def test_architectures_in_the_words_of_images(answer: dict[str, str], arch: str) -> None:
    assert Image.of({"Id": "x", **answer}).arch == arch


# --- a coordinator that is killed


@contextmanager
def lone_coordinator(dockerd: Dockerd, directory: Path, lease_s: float) -> Iterator[tuple[Any, Place, str]]:
    instance = new_instance()
    arguments = ("docker", TINY_IMAGE, str(directory / "place"), instance, str(lease_s), dockerd.socket)
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.coordinator.spawners.lone_coordinator", *arguments],
        cwd=SOURCE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    said = json.loads(process.stdout.readline())
    try:
        yield process, decode(Place, said["place"]), instance
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


async def test_an_attempt_outlives_its_coordinator_and_is_found_again(
    dockerd: Dockerd, host: Host, tmp_path: Path
) -> None:
    with lone_coordinator(dockerd, tmp_path, 30) as (process, place, instance):
        process.kill()
        process.wait()
        assert not is_dead(place.pid)
        spawner = DockerSpawner(replace(host, instance=instance, docker_socket=dockerd.socket))
        found = await spawner.attach(place)
        os.close(found.pidfd)
        peer = Peer(found.connection, found.incoming)
        hello = await asyncio.to_thread(peer.attach)
        assert (hello.job, hello.ended) == (7, False)
        peer.want((0, hello.log_start))
        Path(f"/proc/{place.pid}/root/build/go").write_text("on\n")
        result = await asyncio.to_thread(peer.result)
        assert result.outcome is Outcome.PASSED
        assert result.log.bytes == 9
        peer.record()
        await asyncio.to_thread(peer.wait_closed)
        peer.close()
        wait_exit(place.pid)
        assert wait_until(lambda: not [each for each in dockerd.containers() if place.worker in each["Names"][0]], 10)
        await spawner.dispose(place)


def test_nothing_is_left_when_the_lease_is_over(dockerd: Dockerd, tmp_path: Path) -> None:
    with lone_coordinator(dockerd, tmp_path, 1.0) as (process, place, instance):
        process.kill()
        process.wait()
        wait_exit(place.pid)
        mine = f"/biruda-{instance}-{place.worker}"
        assert wait_until(lambda: mine not in [each["Names"][0] for each in dockerd.containers()], 10)
        assert os.listdir(place.directory) == []


async def test_a_log_larger_than_all_rooms_is_whole(docker: Kit) -> None:
    worker = await docker.make()
    made = await asyncio.to_thread(
        worker.peer.run, ("/bin/sh", "-c", "i=0; while [ $i -lt 30000 ]; do echo $i; i=$((i+1)); done")
    )
    expected = b"".join(b"%d\n" % number for number in range(30000))
    assert made.log.bytes == len(expected)
    assert bytes(worker.peer.log.head) == expected
