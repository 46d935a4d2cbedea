"""What a job in a root tree of its own can see, use up and do."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from biruda.config import Bind, Network
from biruda.errors import EnvironmentFault
from biruda.model import Facts, Limits, Outcome
from tests.coordinator.spawners.making import Kit
from tests.coordinator.spawners.support import assert_nothing_left, need_root

MIB = 1 << 20
KEPT = {0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 29, 31}
"""Neither sys_admin (21) nor net_admin (12), mknod (27), sys_ptrace (19), sys_module (16) ... are among them."""
DEVICES = {"fd", "full", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty", "urandom", "zero"}


def fingerprint(root: Path) -> list[tuple[str, int, int, int, int]]:
    """Everything of a tree that a job could have changed."""
    found = []
    for directory, names, files in os.walk(root):
        for name in (".", *names, *files):
            status = os.lstat(Path(directory, name))
            found.append(
                (f"{directory}/{name}", status.st_mode, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            )
    return sorted(found)


async def test_the_root_tree_stays_as_it_was(chroot: Kit, tiny_root: Path) -> None:
    before = fingerprint(tiny_root)
    worker = await chroot.make()
    result = await worker.run(
        "echo x > /etc/new; rm /bin/ls; mkdir /a; touch /tmp/t; echo y >> /etc/passwd; chmod 700 /"
    )
    assert result.outcome is Outcome.PASSED
    await chroot.spawner.kill(worker.place)
    await chroot.spawner.dispose(worker.place)
    assert fingerprint(tiny_root) == before
    assert_nothing_left(worker.place)


async def test_nothing_is_mounted_where_the_host_sees_it(chroot: Kit) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    worker = await chroot.make()
    await worker.begin("echo ready; sleep 100")
    assert Path("/proc/self/mountinfo").read_text() == before
    assert set(os.listdir(worker.place.directory)) == {"sock", "log"}


async def test_only_the_devices_that_builds_need(chroot: Kit) -> None:
    worker = await chroot.make()
    await worker.run(
        "ls /dev; echo >/dev/null; head -c 4 /dev/urandom | wc -c; ls -l /dev/fd/0 >/dev/null; test -c /dev/ptmx"
    )
    *names, count = worker.output.split()
    assert set(names) == DEVICES
    assert count == "4"


async def test_namespaces_and_names_are_its_own(chroot: Kit) -> None:
    worker = await chroot.make(replace(chroot.environment, hostname="builder7"))
    result = await worker.run(
        "hostname; echo $$; for n in mnt pid ipc uts net; do readlink /proc/self/ns/$n; done; ls /sys/class/net"
    )
    assert result.outcome is Outcome.PASSED
    name, pid, *namespaces, interface = worker.output.split()
    assert (name, interface) == ("builder7", "lo")
    assert int(pid) < 10
    assert not set(namespaces) & {os.readlink(f"/proc/self/ns/{name}") for name in ("mnt", "pid", "ipc", "uts", "net")}


async def test_the_loopback_interface_is_up(chroot: Kit) -> None:
    worker = await chroot.make()
    await worker.run("ip addr show lo; (echo hello | nc -l -p 4000 127.0.0.1 &) ; ip link")
    assert "inet 127.0.0.1/8" in worker.output
    assert "LOOPBACK,UP" in worker.output


async def test_the_hosts_own_network_where_it_is_asked_for(chroot: Kit) -> None:
    worker = await chroot.make(replace(chroot.environment, network=Network.HOST))
    await worker.run(
        "readlink /proc/self/ns/net; cat /etc/resolv.conf; ls /sys 2>/dev/null; echo x > /etc/resolv.conf || echo kept"
    )
    assert worker.output.splitlines()[0] == os.readlink("/proc/self/ns/net")
    assert Path("/etc/resolv.conf").read_text().strip() in worker.output
    assert worker.output.splitlines()[-1] == "kept"


async def test_capabilities_are_those_of_a_container(chroot: Kit) -> None:
    worker = await chroot.make()
    await worker.run(
        "cat /proc/self/status; mknod /tmp/disk b 254 0 || echo no mknod; mount -t tmpfs x /tmp || echo no mount"
    )
    fields = dict(line.split(":\t", 1) for line in worker.output.splitlines() if ":\t" in line)
    mask = sum(1 << capability for capability in KEPT)
    for name in ("CapPrm", "CapEff", "CapBnd"):
        assert int(fields[name], 16) == mask & int(fields[name], 16)
    assert (int(fields["CapInh"], 16), int(fields["CapAmb"], 16), fields["NoNewPrivs"]) == (0, 0, "1")
    assert "no mknod" in worker.output
    assert "no mount" in worker.output


async def test_the_worker_is_out_of_reach(chroot: Kit) -> None:
    worker = await chroot.make()
    await worker.run(
        "exec 2>/dev/null; for f in fd/0 fd/5 cwd root exe mem environ; do"
        " readlink /proc/1/$f || cat /proc/1/$f || echo refused; done"
    )
    assert worker.output.split() == ["refused"] * 7
    result = (await chroot.make()).run("kill -9 1; sleep 0.1; echo alive")
    assert (await result).outcome is Outcome.PASSED


async def test_sensitive_parts_of_proc_and_sys_are_shut(chroot: Kit) -> None:
    worker = await chroot.make()
    await worker.run(
        "exec 2>/dev/null; for f in sys/kernel/hostname sysrq-trigger irq/default_smp_affinity; do"
        "  (echo 1 > /proc/$f) || echo kept; done; cat /proc/kcore /proc/keys | wc -c; touch /sys/x || echo kept;"
        "ls /sys/firmware"
    )
    assert worker.output.split() == ["kept", "kept", "kept", "0", "kept"]


async def test_the_layer_is_full_at_its_bound_and_the_host_is_not(chroot: Kit) -> None:
    worker = await chroot.make(replace(chroot.environment, disk_bytes=16 * MIB))
    await worker.run(
        "dd if=/dev/zero of=/big bs=64k; wc -c < /big; rm /big; echo again > /small;"
        "dd if=/dev/zero of=/dev/shm/x bs=64k"
    )
    assert "No space left on device" in worker.output
    sizes = [int(line) for line in worker.output.split() if line.isdigit()]
    assert 15 * MIB < sizes[0] <= 16 * MIB
    assert worker.output.count("No space left") == 2


async def test_an_attempt_makes_the_layer_smaller_but_never_larger(chroot: Kit) -> None:
    worker = await chroot.make(replace(chroot.environment, disk_bytes=16 * MIB))
    await chroot.spawner.limit(worker.place, Limits(disk_bytes=64 * MIB))
    await chroot.spawner.limit(worker.place, Limits(disk_bytes=4 * MIB))
    await worker.run("dd if=/dev/zero of=/big bs=64k; wc -c < /big")
    assert 3 * MIB < int(worker.output.split()[-1]) <= 4 * MIB


async def test_binds_are_seen_and_read_only_ones_are_kept(chroot: Kit, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out, with: odd").mkdir()
    (tmp_path / "in/file").write_text("given\n")
    binds = (
        Bind(str(tmp_path / "in"), "/data/in", read_only=True),
        Bind(str(tmp_path / "out, with: odd"), "/data/out"),
        Bind(str(tmp_path / "in/file"), "/etc/given", read_only=True),
    )
    worker = await chroot.make(replace(chroot.environment, binds=binds))
    await worker.run(
        "cat /data/in/file /etc/given; touch /data/in/x || echo kept; (echo y > /etc/given) || echo kept;"
        "echo z > /data/out/made"
    )
    assert worker.output.split("\n")[:2] == ["given", "given"]
    assert worker.output.count("kept") == 2
    assert (tmp_path / "out, with: odd/made").read_text() == "z\n"


async def test_a_link_in_the_root_cannot_lead_a_mount_out_of_it(chroot: Kit, tiny_root: Path, tmp_path: Path) -> None:
    root, outside = tmp_path / "root, odd: name", tmp_path / "outside"
    shutil.copytree(tiny_root, root, symlinks=True)
    outside.mkdir()
    (root / "data").symlink_to(outside)
    (root / "etc/resolv.conf").symlink_to("/run/nowhere/resolv.conf")
    binds = (Bind("/etc/hostname", "/data/below/hostname"),)
    environment = replace(chroot.environment, root=str(root), binds=binds, network=Network.HOST)
    worker = await chroot.make(environment)
    assert (await worker.run("cat /data/below/hostname /etc/resolv.conf")).outcome is Outcome.PASSED
    assert os.listdir(outside) == []


async def test_steps_run_as_the_environments_user(chroot: Kit) -> None:
    worker = await chroot.make(replace(chroot.environment, user="builder"))
    await worker.run("id -u; touch mine; touch /etc/x || echo kept; grep CapEff /proc/self/status")
    assert worker.output.split()[0] == "1000"
    assert "kept" in worker.output
    assert worker.output.split()[-1] == "0" * 16


async def test_uname_is_that_of_a_32_bit_machine(chroot: Kit) -> None:
    if os.uname().machine != "x86_64":
        pytest.skip("needs an amd64 kernel")
    environment = replace(chroot.environment, arch="i386")
    worker = await chroot.make(environment, Facts(arch="i386", platform="tiny1"))
    await worker.run("uname -m")
    assert worker.output == "i686\n"


async def test_a_memory_limit_ends_the_hog_and_not_the_worker(chroot: Kit) -> None:
    need_root()
    worker = await chroot.make(replace(chroot.environment, memory_bytes=64 * MIB))
    result = await worker.run("dd if=/dev/zero of=/dev/null bs=200M count=1; echo status $?")
    assert result.outcome is Outcome.PASSED
    assert "status 137" in worker.output


async def test_an_attempts_limits_are_held(chroot: Kit) -> None:
    need_root()
    worker = await chroot.make()
    await chroot.spawner.limit(worker.place, Limits(memory_bytes=64 * MIB, pids=20, cpus=0.5))
    await worker.run(
        "dd if=/dev/zero of=/dev/null bs=200M count=1; echo status $?;"
        "i=0; while [ $i -lt 30 ]; do sleep 5 & i=$((i+1)); done; kill $(jobs -p)"
    )
    assert "status 137" in worker.output
    assert "can't fork" in worker.output


async def test_a_root_of_a_real_distribution(chroot: Kit) -> None:
    root = Path("/tmp/roots/deb12")
    if not (root / "usr/bin/dpkg").exists():
        pytest.skip(f"needs a root tree: mmdebstrap --variant=minbase bookworm {root}")
    environment = replace(chroot.environment, root=str(root))
    assert (await chroot.spawner.prepare(environment)).platform == "debian12"
    worker = await chroot.make(environment)
    result = await worker.run(
        "mkdir -p p/DEBIAN; cat > p/DEBIAN/control <<-END\n"
        "Package: p\nVersion: 1\nArchitecture: all\nMaintainer: m <m@m>\nDescription: d\nEND\n"
        "dpkg-deb -b p && dpkg -i p.deb && dpkg -s p"
    )
    assert result.outcome is Outcome.PASSED, worker.output
    assert "Status: install ok installed" in worker.output


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"root": "/nowhere/at all"}, "the root /nowhere/at all does not exist"),
        ({"root": "/etc/passwd"}, "is not a directory"),
        ({"binds": (Bind("/nowhere", "/x"),)}, "/nowhere, which it binds, does not exist"),
        ({"arch": "s390x"}, "its programs are for s390x and this host is"),
    ],
)
async def test_what_is_wrong_with_an_environment_is_said(chroot: Kit, change: dict[str, str], says: str) -> None:
    with pytest.raises(EnvironmentFault, match=says) as caught:
        await chroot.spawner.prepare(replace(chroot.environment, **change))
    assert caught.value.hint


async def test_empty_and_strange_roots_are_refused(chroot: Kit, tmp_path: Path) -> None:
    tmp_path = tmp_path / "strange"
    tmp_path.mkdir()
    with pytest.raises(EnvironmentFault, match="is empty"):
        await chroot.spawner.prepare(replace(chroot.environment, root=str(tmp_path)))
    (tmp_path / "README").touch()
    with pytest.raises(EnvironmentFault, match="tells its architecture"):
        await chroot.spawner.prepare(replace(chroot.environment, root=str(tmp_path)))
    assert (
        await chroot.spawner.prepare(replace(chroot.environment, root=str(tmp_path), arch="amd64"))
    ).arch == "unknown"


async def test_a_spawn_that_fails_says_at_what_and_leaves_nothing(chroot: Kit, tmp_path: Path) -> None:
    facts = await chroot.spawner.prepare(chroot.environment)
    environment = replace(chroot.environment, binds=(Bind("/nowhere", "/x"),))
    place = chroot.spawner.plan(environment, "w1", "n", tmp_path / "w1")
    with pytest.raises(EnvironmentFault, match="`keep /nowhere` failed: No such file or directory"):
        await chroot.spawner.spawn(environment, place, facts, lease_s=5, guess=False)
    assert_nothing_left(place)
    assert not os.path.exists(place.directory)


async def test_executed_facts_are_those_of_the_root(chroot: Kit) -> None:
    from biruda.messages import WorkerHello
    from tests.worker.peer import NONCE, Peer

    facts = await chroot.spawner.prepare(chroot.environment)
    assert (facts.platform, facts.libc) == ("tiny1", "none")
    place = chroot.spawner.plan(chroot.environment, "w1", NONCE, chroot.directory / "w1")
    spawned = await chroot.spawner.spawn(chroot.environment, place, facts, lease_s=5, guess=True)
    peer = Peer(spawned.connection)
    hello = peer.next(WorkerHello)
    assert hello.facts is not None
    assert (hello.pid, hello.facts.platform) == (1, "tiny1")
    peer.close()
    os.close(spawned.pidfd)
    await chroot.spawner.kill(spawned.place)
    await chroot.spawner.dispose(spawned.place)
