"""A host that systemd runs: Debian, booted in namespaces, with its own sshd."""

import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from tests.system.sshd import START_S, SshHost

UNIFIED = ("/sys/fs/cgroup/unified", "/sys/fs/cgroup")
SUITE = "bookworm"
PACKAGES = "openssh-server,systemd,systemd-sysv,dbus"
CHANGING = (
    "var/log",
    "var/lib/systemd",
    "var/tmp",
    "var/cache/ldconfig",
    "etc/machine-id",
    "etc/.updated",
    "var/.updated",
)

INIT = """
set -e
echo 0 > {cgroup}/cgroup.procs
exec unshare --mount --uts --ipc --pid --cgroup --fork --kill-child=KILL --propagation private sh -ec '
hostname {name}
mount --bind {root} {root}
mount -t proc proc {root}/proc
mount --bind {root}/proc/sys {root}/proc/sys
mount -o remount,ro,bind {root}/proc/sys
mount -t sysfs sysfs {root}/sys
mount -t cgroup2 cgroup2 {root}/sys/fs/cgroup
for directory in run tmp dev; do mount -t tmpfs -o mode=755 tmpfs {root}/$directory; done
chmod 1777 {root}/tmp
for device in null zero full random urandom tty; do
    touch {root}/dev/$device
    mount --bind /dev/$device {root}/dev/$device
done
mkdir {root}/dev/pts {root}/dev/shm
mount -t devpts -o newinstance,ptmxmode=666 devpts {root}/dev/pts
ln -s pts/ptmx {root}/dev/ptmx
mount -t tmpfs -o mode=1777 tmpfs {root}/dev/shm
touch {root}/dev/console
cd {root}
pivot_root . .old
umount -l .old
exec env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot . /sbin/init
'
"""


def unified() -> Path:
    """Where control groups of version 2 are; skips where there are none."""
    for top in UNIFIED:
        if Path(top, "cgroup.procs").exists():
            return Path(top)
    pytest.skip("no control groups of version 2 are mounted")


def make_debian(root: Path) -> None:
    """A root tree with systemd and sshd."""
    if shutil.which("mmdebstrap") is None:
        pytest.skip("no mmdebstrap: apt-get install mmdebstrap")
    argv = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={PACKAGES}", SUITE, os.fspath(root)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"mmdebstrap cannot build {SUITE}: {done.stderr.strip()[-300:]}")


@dataclass
class SystemdHost(SshHost):
    """Made from a tree that make_debian() built, of which it has a copy."""

    tree: Path = Path("/nowhere")

    changing: ClassVar[Sequence[str]] = CHANGING

    @property
    def cgroup(self) -> Path:
        return unified() / f"test-{self.name}-{os.getpid()}"

    def make_tree(self) -> None:
        """A copy of the tree."""
        subprocess.run(["cp", "-a", "--reflink=auto", self.tree, self.root], check=True)
        (self.root / ".old").mkdir()
        (self.root / "etc" / "hostname").write_text(f"{self.name}\n")

    def argv(self) -> list[str]:
        """Boots it."""
        self.cgroup.mkdir()
        return [*self.prefix, "sh", "-c", INIT.format(name=self.name, root=self.root, cgroup=self.cgroup)]

    def stop(self) -> None:
        """Switch it off at once, and remove its control groups."""
        super().stop()
        if not self.cgroup.exists():
            return
        (self.cgroup / "cgroup.kill").write_text("1")
        deadline = time.monotonic() + START_S
        while self.cgroup.exists():
            for directory, _, _ in os.walk(self.cgroup, topdown=False):
                try:
                    Path(directory).rmdir()
                except OSError:  # the last process is not quite gone
                    assert time.monotonic() < deadline, f"{directory} is still in use"
                    time.sleep(0.02)
