"""Control groups of both versions, and of none."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from biruda.coordinator.spawners import cgroup
from biruda.coordinator.spawners.host import Host
from biruda.coordinator.spawners.limits import Bounds, Cgroups, detect, require
from biruda.coordinator.spawners.requests import CgroupOrder
from biruda.errors import EnvironmentFault
from biruda.model import Kind, Outcome
from tests.coordinator.spawners.conftest import kit_of
from tests.coordinator.spawners.support import need_root, new_instance
from tests.worker.peer import marked, wait_until

BOTH = Cgroups(unified="/v2/biruda/i", version1={"memory": "/m/biruda/i", "pids": "/p/biruda/i"})
PURE = Cgroups(unified="/v2/biruda/i", controllers=frozenset({"memory", "pids", "cpu"}))
ALL = Bounds(memory_bytes=1 << 26, pids=64, cpus=1.5)


def test_bounds_go_where_their_controller_is() -> None:
    first, joined = BOTH.orders("process-w", Bounds(memory_bytes=1 << 26, pids=64))
    assert first == CgroupOrder(path="/v2/biruda/i/process-w")
    assert joined == (
        CgroupOrder(
            path="/m/biruda/i/process-w",
            settings={"memory.limit_in_bytes": "67108864", "memory.memsw.limit_in_bytes": "67108864"},
        ),
        CgroupOrder(path="/p/biruda/i/process-w", settings={"pids.max": "64"}),
    )
    first, joined = PURE.orders("process-w", ALL)
    assert first is not None
    assert dict(first.settings) == {
        "memory.max": "67108864",
        "memory.swap.max": "0",
        "pids.max": "64",
        "cpu.max": "150000 100000",
    }
    assert joined == ()


def test_everything_that_may_come_to_be_is_named_beforehand() -> None:
    assert BOTH.directories("w") == ("/v2/biruda/i/w", "/m/biruda/i/w", "/p/biruda/i/w")
    assert replace(BOTH, version1={"memory": "/c/i", "pids": "/c/i"}).directories("w") == ("/v2/biruda/i/w", "/c/i/w")
    assert Cgroups().directories("w") == ()


def test_a_bound_that_no_controller_holds_is_a_fault() -> None:
    require(PURE, ALL)
    require(BOTH, Bounds(pids=3))
    with pytest.raises(EnvironmentFault, match="a limit on CPU was asked for, but no cpu controller"):
        require(BOTH, ALL)
    with pytest.raises(EnvironmentFault) as caught:
        require(Cgroups(problem='cgroup = "off"'), ALL)
    assert caught.value.hint == 'cgroup = "off"'


def fake_proc(directory: Path, *lines: str) -> str:
    """A /proc/self with these mounts."""
    (directory / "mountinfo").write_text("".join(f"{line}\n" for line in lines))
    (directory / "cgroup").write_text("5:memory:/x\n0::/user.slice/own\n")
    return str(directory)


def test_mounts_are_read_as_they_are(tmp_path: Path) -> None:
    for name in ("uni fied", "mem", "cpu"):
        (tmp_path / name).mkdir()
    escaped = str(tmp_path / "uni fied").replace(" ", "\\040")
    proc = fake_proc(
        tmp_path,
        f"30 23 0:27 / {escaped} rw,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate",
        f"31 23 0:28 / {tmp_path}/mem rw,relatime - cgroup cgroup rw,memory",
        f"32 23 0:29 / {tmp_path}/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct",
    )
    found = detect("i", "/farm", proc=proc)
    assert found.unified == f"{tmp_path}/uni fied/farm/i"
    assert found.version1 == {"memory": f"{tmp_path}/mem/farm/i", "cpu": f"{tmp_path}/cpu/farm/i"}
    assert found.controllers == frozenset()
    assert detect("i", f"{tmp_path}/uni fied/farm", proc=proc).unified == found.unified


def test_off_and_nothing_mounted(tmp_path: Path) -> None:
    assert detect("i", "off").directories("w") == ()
    nothing = detect("i", proc=fake_proc(tmp_path, "22 27 0:21 / /proc rw - proc proc rw"))
    assert (nothing.directories("w"), nothing.problem) == ((), "no cgroup version 2 tree is mounted")


def test_a_daemon_without_rights_uses_its_own_group(tmp_path: Path) -> None:
    proc = fake_proc(tmp_path, f"30 23 0:27 / {tmp_path} rw - cgroup2 cgroup2 rw")
    expected = "/biruda/i" if os.geteuid() == 0 else "/user.slice/own/biruda/i"
    assert detect("i", proc=proc).unified == f"{tmp_path}{expected}"


@pytest.fixture
def real() -> Iterator[Cgroups]:
    need_root()
    cgroups = detect(new_instance())
    if not cgroups.unified:
        pytest.skip(cgroups.problem)
    yield cgroups
    cgroup.remove(cgroups.unified)


def sleeper_in(path: str) -> subprocess.Popen[bytes]:
    child = subprocess.Popen(["sleep", "1000"])
    cgroup.write(f"{path}/cgroup.procs", str(child.pid))
    return child


def test_groups_below_are_ended_and_removed_too(real: Cgroups) -> None:
    path = f"{real.unified}/w"
    for directory in (path, f"{path}/a", f"{path}/a/b"):
        cgroup.make(CgroupOrder(path=directory))
    with sleeper_in(f"{path}/a/b") as child:
        cgroup.end(path, 5)
        assert child.wait() == -signal.SIGKILL
    cgroup.remove(path)
    assert not os.path.exists(path)
    cgroup.end(path, 5)
    cgroup.remove(path)


def test_a_group_with_a_process_is_not_removed(real: Cgroups) -> None:
    path = f"{real.unified}/w"
    cgroup.make(CgroupOrder(path=path))
    with sleeper_in(path) as child:
        with pytest.raises(EnvironmentFault, match=f"do not end: {child.pid}"):
            cgroup.remove(path, limit_s=0.02)
        child.kill()
    cgroup.remove(path)


def test_a_kernel_without_cgroup_kill(real: Cgroups) -> None:
    path = f"{real.unified}/w"
    cgroup.make(CgroupOrder(path=path))
    with sleeper_in(path) as child:
        cgroup._end_frozen(path, f"{path}/cgroup.freeze", ("1", "0"), time.monotonic() + 5)
        assert child.wait() == -signal.SIGKILL


def test_a_base_that_was_removed_is_made_again(real: Cgroups) -> None:
    cgroup.remove_base(real.unified)
    assert not os.path.exists(real.unified)
    assert cgroup.make_directory(f"{real.unified}/w")
    assert not cgroup.make_directory(f"{real.unified}/w")


@pytest.mark.parametrize("legacy", [False, True])
def test_a_child_is_born_in_its_group(real: Cgroups, legacy: bool) -> None:
    path = f"{real.unified}/w"
    cgroup.make(CgroupOrder(path=path))
    fd = os.open(path, os.O_RDONLY)
    reader, writer = os.pipe()
    code = (  # in a process without threads
        "import os, sys; sys.path.insert(0, '.')\n"
        "from biruda.coordinator.spawners.syscalls import CLONE_NEWPID, clone\n"
        f"cloned = clone(CLONE_NEWPID, {fd}, legacy={legacy})\n"
        "if cloned.pid == 0:\n"
        f"    if not cloned.in_cgroup: open('{path}/cgroup.procs', 'w').write('0')\n"
        f"    os.write({writer}, open('/proc/self/cgroup', 'rb').read() + b'pid %d' % os.getpid()); os._exit(7)\n"
        f"assert cloned.in_cgroup is {not legacy}\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(cloned.pid, 0)[1]) == 7 and cloned.pidfd > 2\n"
    )
    subprocess.run([sys.executable, "-c", code], pass_fds=(fd, writer), check=True)
    os.close(writer)
    said = os.read(reader, 4096).decode()
    os.close(reader)
    os.close(fd)
    assert f"0::/{path.partition('/biruda/')[1].strip('/')}" in said
    assert said.endswith("pid 1")


def without_unified(host: Host, directory: Path) -> Host:
    """The same host, as if it had no version 2 tree."""
    lines = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if " - cgroup2 " not in line]
    cgroups = detect(host.instance, proc=fake_proc(directory, *lines))
    if "freezer" not in cgroups.version1:
        pytest.skip("needs the freezer of cgroup version 1")
    return replace(host, cgroups=cgroups)


@pytest.mark.parametrize("kind", [Kind.PROCESS, Kind.CHROOT])
async def test_the_freezer_of_version_1_kills_as_well(
    kind: Kind, host: Host, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    need_root()
    old = without_unified(host, tmp_path)
    kit = kit_of(old, kind, tmp_path, request)
    try:
        kit.environment = replace(kit.environment, pids=48)
        worker, seconds = await kit.make(), f"8765432.{os.getpid()}"
        assert "/freezer/" in "".join(worker.place.cgroups)
        await worker.begin(f"setsid sleep {seconds} & bomb() {{ bomb | bomb & }}; echo ready; bomb; sleep 1000")
        assert wait_until(lambda: marked(seconds))
        await kit.spawner.kill(worker.place)
        assert marked(seconds) == []
        other = await kit.make()
        assert (await other.run("echo on")).outcome is Outcome.PASSED
    finally:
        await kit.close()
