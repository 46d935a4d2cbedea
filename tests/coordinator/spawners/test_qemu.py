"""Virtual machines with a real worker in them, under emulation where nothing better passes its test.

One environment, and one template of it, for all tests of a session.
"""

import asyncio
import hashlib
import os
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from biruda.config import Network
from biruda.coordinator.spawners.forked import remove_place
from biruda.coordinator.spawners.host import Host, open_host
from biruda.coordinator.spawners.qemu import newc
from biruda.coordinator.spawners.qemu.argv import argv_of
from biruda.coordinator.spawners.qemu.running import end, start, throwaway
from biruda.coordinator.spawners.qemu.spawner import QemuSpawner
from biruda.messages import Cancel, WorkerHello
from biruda.model import AttemptResult, Limits, Outcome, Recipe
from tests.coordinator.spawners.making import Kit, Made, script
from tests.coordinator.spawners.support import assert_nothing_left, need_root, new_instance, wait_exit
from tests.machines import MachineFiles, busybox_of, image_of, make_files, need_machines
from tests.worker.peer import Peer, recipe_of

pytestmark = pytest.mark.timeout(300)  # the first one's template: emulated machines boot several times


@pytest.fixture
async def machines(machine_cache: Path, tmp_path: Path) -> AsyncIterator[Host]:
    errors = tmp_path / "errors"
    async with open_host(new_instance(), errors=str(errors), cache=machine_cache) as host:
        yield host
    assert errors.read_text() == ""
    if host.cgroups.unified:
        assert not os.path.exists(host.cgroups.unified), "the instance left a cgroup"
    assert list((machine_cache / "machines/running").glob("*")) == [], "a machine that was no worker left its directory"


@pytest.fixture
async def kit(machines: Host, machine_files: MachineFiles, tmp_path: Path) -> AsyncIterator[Kit]:
    """Machines that are clones of the session's template."""
    kit = Kit(machines, QemuSpawner(machines), machine_files.environment(), tmp_path)
    notes = await spawner_of(kit).warm(kit.environment)
    assert any("clones of a RAM template" in note for note in notes), notes
    yield kit
    await kit.close()


def spawner_of(kit: Kit) -> QemuSpawner:
    assert isinstance(kit.spawner, QemuSpawner)
    return kit.spawner


async def booted(kit: Kit, **changes: object) -> Made:
    """A machine that is no clone: each name has a template of its own, and this one has none."""
    return await kit.make(replace(kit.environment, name="booted", **changes))  # type: ignore[arg-type]


async def run(worker: Made, text: str, limits: Limits = Limits(), timeout_s: float = 60) -> AttemptResult:  # noqa: B008
    """Run one step of shell within limits, and wait for it as long as an emulated machine may take."""

    def talk() -> AttemptResult:
        worker.peer.attach()
        worker.peer.assign(Recipe(steps=(script(text),), limits=limits))
        return worker.peer.result(timeout_s)

    return await asyncio.to_thread(talk)


async def test_qemu_is_there(kit: Kit) -> None:
    capability = await kit.spawner.probe()
    assert capability.usable, capability.reason
    assert capability.measured_ms > 0


async def test_a_machine_boots_and_has_nothing_but_lo(kit: Kit) -> None:
    began_s = time.monotonic()
    worker = await booted(kit)
    print(f"booted: its worker could be spoken to after {time.monotonic() - began_s:.2f} s")
    result = await worker.run("echo hello; ls /sys/class/net; id -u; cat /proc/1/comm; pwd; exit 3")
    assert (result.outcome, result.exit_status) == (Outcome.FAILED, 3)
    assert worker.output == "hello\nlo\n0\ninit\n/build\n"


async def test_a_clone_starts_at_once(kit: Kit) -> None:
    took_ms = []
    for _ in range(3):
        began_s = time.perf_counter()
        worker = await kit.make()
        await worker.begin("echo ready")
        assert str(kit.host.cache) in Path(f"/proc/{worker.place.pid}/maps").read_text(), "it has a memory of its own"
        took_ms.append((worker.peer.first_data_at - began_s) * 1000)
        await worker.unmake()
    print(f"clone to first log byte: {' '.join(f'{each:.0f}' for each in took_ms)} ms")


async def test_clones_differ_where_they_must(kit: Kit) -> None:
    one, two = await kit.make(), await kit.make()
    ask = "date +%s; hostname; head -c 16 /dev/urandom | od -An -tx1; cat /proc/sys/kernel/random/boot_id"
    now_s = time.time()
    await asyncio.gather(one.run(ask), two.run(ask))
    said = [worker.output.splitlines() for worker in (one, two)]
    for lines in said:
        assert abs(int(lines[0]) - now_s) < 5
    assert said[0][1] != said[1][1], "the same host name"
    assert said[0][2] != said[1][2], "the same random bytes"
    assert said[0][3] == said[1][3], "clones of one template share its boot"


async def test_many_random_bytes_of_two_clones_have_nothing_in_common(kit: Kit) -> None:
    one, two = await kit.make(), await kit.make()
    ask = "head -c 4096 /dev/urandom | od -An -v -tx8 -w8"
    await asyncio.gather(one.run(ask), two.run(ask))
    words = [set(worker.output.split()) for worker in (one, two)]
    assert len(words[0]) == len(words[1]) == 512
    assert words[0].isdisjoint(words[1])


async def test_a_spare_has_rehearsed(kit: Kit) -> None:
    """What it is asked for it has done before: an emulated processor has translated it, others have it at hand."""
    used_s = {}
    for rests in (False, True):
        worker = await kit.make()
        await asyncio.to_thread(worker.peer.attach)
        if rests:
            turns_at_rest = 0
            while turns_at_rest < 4:
                before_s = cpu_s(worker.place.pid)
                await asyncio.to_thread(worker.peer.pump, 0.5)
                turns_at_rest = turns_at_rest + 1 if cpu_s(worker.place.pid) - before_s < 0.05 else 0
        began_s, began_cpu_s = time.perf_counter(), cpu_s(worker.place.pid)
        worker.peer.assign(recipe_of(script("echo ready; sleep 1000")))
        await asyncio.to_thread(worker.peer.until_size, 6)
        used_s[rests] = cpu_s(worker.place.pid) - began_cpu_s
        print(f"{'a spare' if rests else 'a clone'}: assignment to first byte", end=" ")
        print(f"{(worker.peer.first_data_at - began_s) * 1000:.0f} ms, {used_s[rests] * 1000:.0f} ms of CPU")
        await worker.unmake()
    assert used_s[True] < used_s[False]


def cpu_s(pid: int) -> float:
    """What a process has used so far, in the clock's ticks."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def test_a_log_is_whole(kit: Kit) -> None:
    worker = await kit.make()
    result = await run(worker, "dd if=/dev/zero bs=64k count=160 2>/dev/null")
    size, took_s = 160 << 16, result.steps[0].wall_s
    print(f"{size / 1e6:.0f} MB of log: {took_s:.1f} s, {size / took_s / 1e6:.0f} MB/s")
    assert result.outcome is Outcome.PASSED
    assert (result.log.bytes, result.log.complete) == (size, True)
    assert result.log.sha256 == worker.peer.log.sha256.hexdigest() == hashlib.sha256(bytes(size)).hexdigest()


@pytest.mark.slow
async def test_how_much_the_port_itself_carries(kit: Kit, machine_files: MachineFiles) -> None:
    """Without a worker: the init of this machine is a shell that writes zeros to the port."""
    made = (await spawner_of(kit)._look_at(kit.environment)).made
    count = 200_000_000 >> 15
    init = (
        "#!/busybox sh\n"
        "/busybox mount -t devtmpfs dev /dev\n"
        "for module in /modules/*; do /busybox insmod $module; done\n"
        "while [ ! -e /dev/vport1p1 ] && [ ! -e /dev/vport0p1 ]; do /busybox usleep 1000; done\n"
        f"/busybox dd if=/dev/zero of=$(echo /dev/vport*p1) bs=32k count={count}\n"
        "/busybox poweroff -f\n"
    )
    entries = [newc.directory(name) for name in ("dev", "modules")]
    entries += [newc.file("busybox", Path("/bin/busybox").read_bytes(), executable=True)]
    entries += [newc.file("init", init.encode(), executable=True)]
    modules = sorted(machine_files.modules.glob("*.ko"))
    entries += [newc.file(f"modules/{path.name}", path.read_bytes()) for path in modules]
    initrd = kit.directory / "initrd"
    initrd.write_bytes(newc.archive(entries))
    place = throwaway(kit.host, "port")
    Path(place.directory).mkdir(parents=True)
    machine = replace(made.machine, initrd=str(initrd), root="", scratch_bytes=0)
    running = await start(kit.host, place, argv_of(made.program, machine), machine)
    try:
        running.connection.setblocking(True)
        running.connection.settimeout(60)
        first = await asyncio.to_thread(running.connection.recv, 1 << 20)
        began_s, began_cpu_s, size = time.monotonic(), cpu_s(running.place.pid), len(first)
        while size < count << 15:
            size += len(await asyncio.to_thread(running.connection.recv, 1 << 20))
        took_s, used_s = time.monotonic() - began_s, cpu_s(running.place.pid) - began_cpu_s
        print(f"the port itself: {size / took_s / 1e6:.0f} MB/s, {size / used_s / 1e6:.0f} MB a second of qemu's CPU")
        assert size == count << 15
        await asyncio.to_thread(wait_exit, running.place.pid)
    finally:
        running.close()
        await end(running.place)
        await remove_place(kit.host, running.place)


async def test_another_connection_goes_on_in_the_middle(kit: Kit) -> None:
    worker = await kit.make()
    await worker.begin("echo ready; i=0; while [ $i -lt 50 ]; do echo line $i; i=$((i+1)); sleep 0.01; done")
    worker.peer.socket.close()
    again = await kit.spawner.attach(worker.place)
    peer = Peer(again.connection, again.incoming)
    try:
        hello = await asyncio.to_thread(peer.attach)
        assert (hello.job, hello.attempt) == (7, 1)
        peer.want((0, hello.log_start))
        result = await asyncio.to_thread(peer.result)
        assert result.outcome is Outcome.PASSED
        assert bytes(peer.log.head).endswith(b"line 48\nline 49\n")
    finally:
        peer.close()
        os.close(again.pidfd)


@pytest.mark.slow
async def test_what_was_half_said_does_not_harm_the_next_connection(kit: Kit) -> None:
    worker = await kit.make()
    await worker.begin("echo ready; sleep 1000")
    worker.peer.raw(b"\0\0\xff\xff\x06 half a frame")
    worker.peer.socket.close()
    again = await kit.spawner.attach(worker.place)
    peer = Peer(again.connection, again.incoming)
    hello = await asyncio.to_thread(peer.attach)
    assert hello.job == 7
    peer.close()
    os.close(again.pidfd)


async def test_a_machine_whose_work_is_done_powers_off(kit: Kit) -> None:
    worker = await kit.make()
    await worker.run("true")
    worker.peer.record()
    began_s = time.monotonic()
    await asyncio.to_thread(wait_exit, worker.place.pid)
    print(f"powered off within {(time.monotonic() - began_s) * 1000:.0f} ms")


async def test_a_machine_whose_lease_is_over_powers_off(kit: Kit) -> None:
    worker = await kit.make()
    worker.peer.attach(lease_s=1)
    worker.peer.assign(recipe_of(script("echo ready; sleep 1000")), lease_s=1)
    await asyncio.to_thread(worker.peer.until_size, 6)
    worker.peer.socket.close()
    await asyncio.to_thread(wait_exit, worker.place.pid)


async def test_kill_is_sure_and_may_be_repeated(kit: Kit) -> None:
    worker = await kit.make()
    await worker.begin("echo ready; sleep 1000")
    began_s = time.monotonic()
    await kit.spawner.kill(worker.place)
    print(f"killed within {(time.monotonic() - began_s) * 1000:.0f} ms")
    await kit.spawner.kill(worker.place)
    for _ in range(2):
        await kit.spawner.dispose(worker.place)
    assert_nothing_left(worker.place)
    assert not os.path.exists(worker.place.directory)


@pytest.mark.slow
async def test_a_fork_bomb_is_bounded_and_can_be_cancelled(kit: Kit) -> None:
    worker = await kit.make(replace(kit.environment, pids=64))
    await worker.begin("bomb() { bomb | bomb & }; echo ready; bomb; sleep 1000")
    worker.peer.say(Cancel(job=7, attempt=1, outcome="cancelled", reason="enough"))
    result = await asyncio.to_thread(worker.peer.result)
    assert result.outcome is Outcome.CANCELLED


@pytest.mark.slow
async def test_memory_that_is_not_there_costs_the_process_and_not_the_machine(kit: Kit) -> None:
    worker = await kit.make()
    hog = 'awk \'BEGIN { s = sprintf("%1000000s", ""); while (1) a[i++] = s i }\''
    result = await run(worker, f"{hog}; echo it ended with $?", limits=Limits(memory_bytes=64 << 20))
    assert result.outcome is Outcome.PASSED
    assert worker.output.endswith("it ended with 137\n")


@pytest.mark.slow
async def test_a_full_disk_is_the_jobs_own(kit: Kit) -> None:
    worker = await kit.make()
    fill = "dd if=/dev/zero of=/build/big bs=1M count=1000 2>&1 | grep -o 'No space left on device'"
    result = await run(worker, f"{fill}; rm /build/big; echo room again > /build/f; cat /build/f")
    assert (result.outcome, worker.output) == (Outcome.PASSED, "No space left on device\nroom again\n")


@pytest.mark.slow
async def test_an_attempt_may_have_less_disk_than_the_machine(kit: Kit) -> None:
    worker = await kit.make()
    fill = "dd if=/dev/zero of=/build/big bs=1M count=200 2>/dev/null; wc -c < /build/big"
    result = await run(worker, fill, Limits(disk_bytes=32 << 20))
    assert result.outcome is Outcome.PASSED
    assert 24 << 20 < int(worker.output) <= 32 << 20


async def test_reap_ends_what_nobody_owns(kit: Kit) -> None:
    owned, lost = await kit.make(), await kit.make()
    sentences = await kit.spawner.reap([owned.place.worker])
    assert any(lost.place.worker in sentence for sentence in sentences)
    await asyncio.to_thread(wait_exit, lost.place.pid)
    assert (await owned.run("echo alive")).outcome is Outcome.PASSED


async def test_a_spawn_that_is_cancelled_leaves_nothing(kit: Kit, tmp_path: Path) -> None:
    facts = await kit.spawner.prepare(kit.environment)
    place = kit.spawner.plan(kit.environment, "gone", "n", tmp_path / "gone")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await kit.spawner.spawn(kit.environment, place, facts, lease_s=20, guess=False)
    assert_nothing_left(place)
    assert not os.path.exists(place.directory)


@pytest.mark.slow
async def test_a_template_that_cannot_be_used_is_done_without(kit: Kit) -> None:
    known = spawner_of(kit)._known[kit.environment.name]
    assert known.template is not None
    known.template = replace(known.template, directory=kit.directory / "nowhere")
    worker = await kit.make()
    assert (await worker.run("echo booted")).outcome is Outcome.PASSED
    (_, note) = spawner_of(kit).about(kit.environment)
    assert "each machine boots" in note


@pytest.mark.parametrize("settled", [pytest.param(False, marks=pytest.mark.slow), True])
async def test_what_nobody_has_told_what_it_is_ends_with_the_coordinator(kit: Kit, settled: bool) -> None:
    """A machine that was told ends by its lease; one that was not would stay for ever."""
    async with open_host(kit.host.instance, cache=kit.host.cache) as brief:
        other = Kit(brief, QemuSpawner(brief), kit.environment, kit.directory / "brief")
        if settled:
            made = await other.make()
            await made.begin("echo ready; sleep 1000")
            place = made.place
        else:
            known = await spawner_of(other)._look_at(kit.environment)
            planned = other.spawner.plan(kit.environment, "never-told", "n", kit.directory / "never-told")
            running = await spawner_of(other)._boot(known, planned)
            running.close()
            place = running.place
    if settled:
        made.close()
        await asyncio.sleep(0.5)
        again = await kit.spawner.attach(place)
        again.connection.close()
        os.close(again.pidfd)
        await kit.spawner.kill(place)
        await kit.spawner.dispose(place)
    await asyncio.to_thread(wait_exit, place.pid)
    until_gone = time.monotonic() + 5
    while os.path.exists(place.directory):
        assert time.monotonic() < until_gone, "the zygote left its directory"
        await asyncio.sleep(0.01)
    assert_nothing_left(place)


async def test_without_qemu_one_sentence_says_what_to_install(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("biruda.coordinator.spawners.qemu.argv._SEARCH_PATH", "/nonexistent")
    capability = await QemuSpawner(kit.host).probe()
    assert not capability.usable
    assert capability.reason == "machines: qemu-system-x86_64 is not installed; apt-get install qemu-system-x86"


@pytest.mark.slow
async def test_a_machine_that_can_reach_the_host_by_declaration(kit: Kit) -> None:
    worker = await booted(kit, network=Network.USER)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(20)
        port = server.getsockname()[1]
        running = asyncio.create_task(worker.run(f"echo hello | nc -w 5 10.0.2.2 {port}; ip -o -4 addr show dev eth0"))
        connection, _ = await asyncio.to_thread(server.accept)
        with connection:
            assert connection.recv(100) == b"hello\n"
        assert (await running).outcome is Outcome.PASSED
    assert "10.0.2.15/24" in worker.output


@pytest.mark.slow
async def test_a_machine_on_the_bridge_has_an_address_there(kit: Kit) -> None:
    need_root()
    if not os.path.exists("/dev/net/tun"):
        pytest.skip("no /dev/net/tun: modprobe tun")
    worker = await booted(kit, network=Network.BRIDGE)
    result = await run(worker, "ip -o -4 addr show dev eth0; ip route; ping -c 1 -w 5 10.87.0.1")
    assert result.outcome is Outcome.PASSED, worker.output
    assert "10.87.0." in worker.output
    assert "default via 10.87.0.1" in worker.output
    assert os.path.exists(f"/sys/class/net/{worker.place.veth}")
    await worker.unmake()
    assert_nothing_left(worker.place)
    await kit.host.bridge.reap([])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["q35", "microvm"])
async def test_other_types_of_machine(kit: Kit, kind: str) -> None:
    environment = replace(kit.environment, name=kind, machine=kind)
    notes = await spawner_of(kit).warm(environment)
    assert any("clones of a RAM template" in note for note in notes), notes
    worker = await kit.make(environment)
    assert (await run(worker, "echo hello")).outcome is Outcome.PASSED
    worker.peer.record()
    await asyncio.to_thread(wait_exit, worker.place.pid)


@pytest.mark.slow
async def test_a_32_bit_root_under_a_64_bit_kernel(
    machines: Host, machine_files: MachineFiles, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    need_machines("i386")
    tree = busybox_of(tmp_path_factory.mktemp("i386"), "i386")
    await one_job(machines, image_of(tree, tmp_path, machine_files, "i386"), tmp_path, "i686")


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "machine"), [("i386", "i686"), ("arm64", "aarch64")])
async def test_a_machine_of_another_architecture(
    machines: Host, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, arch: str, machine: str
) -> None:
    need_machines(arch)
    directory = tmp_path_factory.mktemp(arch)
    tree = busybox_of(directory, arch)
    await one_job(machines, make_files(directory / "files", tree, arch), tmp_path, machine)


async def one_job(host: Host, files: MachineFiles, directory: Path, machine: str) -> None:
    """A booted machine and a clone say what they are."""
    kit = Kit(host, QemuSpawner(host), files.environment(files.arch), directory)
    facts = await kit.spawner.prepare(kit.environment)
    assert (facts.arch, facts.platform, facts.emulated) == (files.arch, "tiny1", files.arch == "arm64")
    try:
        for _ in range(2):
            began_s = time.monotonic()
            worker = await kit.make()
            hello = await asyncio.to_thread(worker.peer.next, WorkerHello)
            print(f"{files.arch}: hello after {time.monotonic() - began_s:.2f} s")
            worker.peer.messages.append(hello)
            assert hello.arch == files.arch
            assert (await run(worker, "uname -m")).outcome is Outcome.PASSED
            assert worker.output == f"{machine}\n"
            notes = await spawner_of(kit).warm(kit.environment)
        assert any("clones of a RAM template" in note for note in notes), notes
    finally:
        await kit.close()
