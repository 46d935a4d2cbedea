"""The plan of a root: what is done in which order, before anything is."""

from dataclasses import replace

import pytest

from biruda.config import Bind
from biruda.coordinator.spawners import operations as op
from biruda.coordinator.spawners.operations import describe, dump_plan, load_plan
from biruda.coordinator.spawners.roots import Root, root_plan

ROOT = Root(directory="/srv/deb12", size_bytes=1 << 30, hostname="deb12", network="none")
ROOTS = [
    ROOT,
    replace(ROOT, network="host", size_bytes=0),
    replace(ROOT, network="bridge", personality32=True),
    replace(
        ROOT, binds=(Bind("/srv/cache", "/cache"), Bind("/etc/hosts", "/etc/hosts", read_only=True)), rootless=True
    ),
]


@pytest.mark.parametrize("root", ROOTS)
def test_a_plan_is_the_same_after_it_was_sent(root: Root) -> None:
    plan = root_plan(root)
    assert load_plan(dump_plan(plan)) == plan
    assert len(describe(plan).splitlines()) == len(plan)


def test_a_plan_can_be_read() -> None:
    lines = describe(root_plan(ROOT)).splitlines()
    assert lines[0] == "mount --make-rprivate /"
    assert "mount -t tmpfs -o nosuid,nodev,mode=700,size=1073741824 tmpfs ." in lines
    assert "mount -t overlay -o lowerdir=/srv/deb12,upperdir=upper,workdir=work,nodev overlay merged" in lines
    assert "mount --rbind /dev/null /dev/null" in lines
    assert "mount --bind -o ro /proc/sys /proc/sys" in lines
    assert lines[-1] == "setpriv --no-new-privs"


@pytest.mark.parametrize("root", ROOTS)
def test_what_must_come_before_what(root: Root) -> None:
    plan = root_plan(root)

    def at(kind: type) -> int:
        return next(index for index, each in enumerate(plan) if isinstance(each, kind))

    def last(kind: type) -> int:
        return max(index for index, each in enumerate(plan) if isinstance(each, kind))

    assert at(op.MakeMountsPrivate) == 0, "or the host would see what is mounted"
    assert last(op.Keep) < at(op.PivotRoot) < at(op.Bind), "binds are made where links of the root lead inside"
    assert last(op.Bind) < at(op.DetachOldRoot), "the kernel binds from no detached mount"
    assert at(op.DetachOldRoot) < at(op.KeepCapabilities) < at(op.ForbidNewPrivileges)
    assert not [each for each in plan[at(op.KeepCapabilities) :] if isinstance(each, op.Mount | op.SetUpInterface)]


@pytest.mark.parametrize("root", ROOTS)
def test_every_bind_was_kept(root: Root) -> None:
    plan = root_plan(root)
    kept = {each.path for each in plan if isinstance(each, op.Keep)}
    assert {each.kept for each in plan if isinstance(each, op.Bind)} | {root.directory} == kept


def test_networks_differ_in_what_they_need() -> None:
    none, host, bridge = (root_plan(replace(ROOT, network=network)) for network in ("none", "host", "bridge"))
    sysfs = [
        [each.type for each in plan if isinstance(each, op.Mount) and each.type == "sysfs"] for plan in (none, host)
    ]
    assert sysfs == [["sysfs"], []], "the host's devices are not shown to a job in the host's network"
    assert op.Bind(kept="/etc/resolv.conf", target="/etc/resolv.conf", read_only=True) in host
    assert op.RaiseLoopback() not in host
    assert op.SetUpInterface(name="eth0") in bridge
    assert op.SetUpInterface(name="eth0") not in none


def test_equal_roots_have_one_plan() -> None:
    binds = (Bind("/srv/cache", "/cache"),)
    assert hash(replace(ROOT, binds=binds)) == hash(replace(ROOT, binds=(Bind("/srv/cache", "/cache"),)))
