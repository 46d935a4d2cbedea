"""Places to start an executable in: other roots, seen through an overlay, and mounts that refuse. Root only."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.coordinator.spawners.support import busybox_root

# The mounts are made in a mount namespace of the process, and go with it. $1 is the root, $2 a directory for the
# overlay, $3 the file to bring in, $4 whom to run as, $5 more mounts.
ENTER = """
root=$1 scratch=$2 file=$3 user=$4 more=$5
shift 5
mkdir -p "$scratch/upper" "$scratch/work" "$scratch/root"
mount -t overlay overlay -o "lowerdir=$root,upperdir=$scratch/upper,workdir=$scratch/work" "$scratch/root"
cp "$file" "$scratch/root/it"
chmod 755 "$scratch/root" "$scratch/root/it"
cd "$scratch/root"
eval "$more"
exec chroot $user "$scratch/root" /it "$@"
"""

WITH_PROC = "mkdir -p proc tmp; chmod 1777 tmp; mount -t proc proc proc"
READ_ONLY = 'mount --bind "$scratch/root" "$scratch/root"; mount -o remount,bind,ro "$scratch/root"; cd "$scratch/root"'
NOEXEC_TMP = "mkdir -p tmp; mount -t tmpfs -o noexec,mode=1777 tmpfs tmp"
UNPRIVILEGED = "--userspec=65534:65534"


@dataclass(frozen=True, slots=True)
class Place:
    """Where an executable is started; `tool` is a command of that root's own, "" where it has none."""

    argv: tuple[str, ...]
    tool: str = ""

    def run(self, *arguments: str, limit_s: float = 60.0) -> "subprocess.CompletedProcess[str]":
        """Run the executable there."""
        words = [*self.argv, *arguments]
        return subprocess.run(words, capture_output=True, text=True, check=False, timeout=limit_s)


class Maker:
    """Makes roots under one directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._made = 0

    def place(
        self, root: Path, executable: Path, *, user: str = "", mounts: Sequence[str] = (), tool: str = ""
    ) -> Place:
        """The executable in a copy-on-write view of a root tree."""
        self._made += 1
        scratch = self._directory / f"scratch{self._made}"
        enter = ("unshare", "--mount", "--propagation", "private", "sh", "-ec", ENTER, "enter")
        return Place((*enter, str(root), str(scratch), str(executable), user, "\n".join(mounts)), tool)

    def empty(self) -> Path:
        """A root with nothing in it."""
        root = self._directory / "empty"
        root.mkdir()
        return root

    def busybox(self) -> Path:
        return busybox_root(self._directory / "busybox")

    def musl(self) -> Path:
        """A root whose C library is musl, and whose one program needs it."""
        root = self._directory / "musl"
        compiler, loader = shutil.which("musl-gcc"), f"/lib/ld-musl-{os.uname().machine}.so.1"
        if compiler is None or not os.path.exists(loader):
            pytest.skip("needs a C library that is musl: apt-get install musl-tools")
        (root / "lib").mkdir(parents=True)
        (root / "bin").mkdir()
        shutil.copy(os.path.realpath(loader), root / loader.lstrip("/"))
        source = self._directory / "tool.c"
        source.write_text('#include <stdio.h>\nint main(void) { return puts("a tool of this root") < 0; }\n')
        subprocess.run([compiler, "-o", root / "bin" / "tool", source], check=True)
        return root


class BareHost:
    """A root tree as the root of a host: /proc, /dev and /tmp are what a kernel and an init give. Daemons may stay."""

    def __init__(self, root: Path, *, is_read_only: bool = False) -> None:
        self.root = root
        for name in ("proc", "dev", "tmp"):
            (root / name).mkdir(exist_ok=True)
        mounts = 'mount --bind "$1" "$1"; cd "$1"; mount -t proc proc proc; '
        if is_read_only:
            mounts += "mount -t tmpfs -o ro tmpfs dev; mount -o remount,bind,ro .; "
        else:
            mounts += "mount --rbind /dev dev; mount -t tmpfs -o mode=1777 tmpfs tmp; "
        mounts += "echo ready; exec sleep infinity"
        enter = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", mounts, "hold", str(root)]
        self._holder = subprocess.Popen(enter, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"ready\n"

    def run(self, *argv: str, limit_s: float = 60.0) -> "subprocess.CompletedProcess[str]":
        """Run a program of that root, with no variable but a PATH."""
        enter = ["nsenter", f"--target={self._holder.pid}", "--mount", "chroot", str(self.root)]
        return subprocess.run(
            [*enter, *argv],
            env={"PATH": "/bin:/usr/bin:/sbin:/usr/sbin"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=limit_s,
        )

    def close(self) -> None:
        """Its mounts are gone."""
        self._holder.kill()
        self._holder.communicate()
