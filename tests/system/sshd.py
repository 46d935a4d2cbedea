"""Hosts that ssh reaches: each has its own network, host name, process numbers, root tree and sshd, and no biruda."""

import contextlib
import hashlib
import os
import shutil
import stat
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

SSHD = Path("/usr/sbin/sshd")
BUSYBOX = Path("/bin/busybox")
NEEDED = (SSHD, BUSYBOX, Path("/usr/bin/ssh"), Path("/usr/bin/ssh-keygen"))
USER = "builder"
START_S = 20.0
CHANGING = ("proc", "dev", "sys", "run/sshd.pid", "var/log")

SSHD_CONFIG = """
Port {port}
HostKey /etc/ssh/host_key
PidFile /run/sshd.pid
AuthorizedKeysFile /etc/ssh/authorized_keys
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
StrictModes no
PermitRootLogin yes
MaxStartups 50:30:100
LoginGraceTime 20
"""

INIT = """
set -e
hostname {name}
mount --bind {root} {root}
mount -t proc proc {root}/proc
mount --rbind /dev {root}/dev
mount -t tmpfs -o mode=1777 tmpfs {root}/dev/shm
mount --rbind /sys {root}/sys
{binds}
cd {root}
pivot_root . .old
umount -l .old
exec chroot . /usr/sbin/sshd -D -e 2>>/var/log/sshd
"""


def needs() -> None:
    """Skip where this machine cannot make such hosts."""
    if os.getuid() != 0:
        pytest.skip("hosts made of namespaces need root")
    missing = [str(path) for path in NEEDED if not path.exists()]
    if missing:
        pytest.skip(f"no {', '.join(missing)}: apt-get install openssh-server openssh-client busybox-static")


def libraries_of(program: Path) -> list[Path]:
    """What the dynamic linker loads for a program, and itself."""
    listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    words = [word for line in listed.splitlines() for word in line.split() if word.startswith("/")]
    return [Path(word) for word in words]


def make_root(root: Path) -> None:
    """A root tree with a static busybox, this machine's sshd and what that loads, and nothing else."""
    for name in ("bin", "etc/ssh", "proc", "sys", "dev", "run/sshd", "var/empty", "var/log", "root", ".old", "usr"):
        (root / name).mkdir(parents=True)
    for name in ("tmp", "var/tmp"):
        (root / name).mkdir(parents=True)
        (root / name).chmod(0o1777)
    for name in (
        "usr/local/bin",
        "usr/local/sbin",
        "usr/bin",
        "usr/sbin",
        "sbin",
        "var/lib",
        "var/cache",
        "home/builder",
    ):
        (root / name).mkdir(parents=True)
    shutil.copy(BUSYBOX, root / "bin" / "busybox")
    for applet in subprocess.run([BUSYBOX, "--list"], capture_output=True, text=True, check=True).stdout.split():
        if applet != "busybox":
            (root / "bin" / applet).symlink_to("/bin/busybox")
    for path in (SSHD, *libraries_of(SSHD)):
        target = root / os.fspath(path).lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    os.chown(root / "home" / "builder", 1000, 1000)
    (root / "run" / "sshd").chmod(0o755)
    (root / "etc" / "os-release").write_text('ID=busybox\nVERSION_ID="1.35"\n')
    (root / "etc" / "passwd").write_text(
        "root:x:0:0:root:/root:/bin/sh\nsshd:x:100:65534::/run/sshd:/bin/false\n"
        f"{USER}:x:1000:1000::/home/builder:/bin/sh\n"
    )
    (root / "etc" / "group").write_text(f"root:x:0:\n{USER}:x:1000:\n")
    (root / "etc" / "shadow").write_text(f"root:*:19000:0:::::\nsshd:*:19000::::::\n{USER}:*:19000:0:::::\n")


@dataclass
class SshHost:
    """A host with its own sshd, in the network namespace that prefix enters."""

    name: str
    directory: Path
    address: str
    prefix: Sequence[str]
    port: int = 22
    process: "subprocess.Popen[bytes] | None" = None
    extra: str = ""  # more lines of sshd_config
    binds: Sequence[str] = ()  # directories of this machine that it sees too

    changing: ClassVar[Sequence[str]] = CHANGING  # paths that change by themselves

    @property
    def root(self) -> Path:
        return self.directory / "root"

    @property
    def identity(self) -> Path:
        """The private key that it takes."""
        return self.directory / "identity"

    @property
    def known_hosts(self) -> Path:
        return self.directory / "known_hosts"

    @property
    def key_name(self) -> str:
        return self.address if self.port == 22 else f"[{self.address}]:{self.port}"

    def make(self) -> None:
        """Its tree and its keys."""
        self.make_tree()
        make_key(self.root / "etc" / "ssh" / "host_key")
        make_key(self.identity)
        shutil.copy(self.identity.with_suffix(".pub"), self.root / "etc" / "ssh" / "authorized_keys")
        public = (self.root / "etc" / "ssh" / "host_key.pub").read_text().split()
        self.known_hosts.write_text(f"{self.key_name} {public[0]} {public[1]}\n")

    def make_tree(self) -> None:
        """Its root tree."""
        make_root(self.root)

    def argv(self) -> list[str]:
        """What boots it."""
        apart = ("--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child=KILL", "--propagation", "private")
        init = INIT.format(name=self.name, root=self.root, binds=self._binds())
        return [*self.prefix, "unshare", *apart, "sh", "-c", init]

    def start(self) -> None:
        """Boot it; sshd answers on return."""
        config = self.root / "etc" / "ssh" / "sshd_config"
        config.write_text(SSHD_CONFIG.format(port=self.port) + self.extra)
        with (self.directory / "console").open("ab") as console:
            self.process = subprocess.Popen(self.argv(), stdin=subprocess.DEVNULL, stdout=console, stderr=console)
        deadline = time.monotonic() + START_S
        while subprocess.run(self.ssh("true"), capture_output=True, check=False).returncode != 0:
            words = (self.directory / "console").read_text() + self.log()
            assert self.process.poll() is None, f"{self.name} ended: {words}"
            assert time.monotonic() < deadline, f"{self.name} does not answer: {words}"
            time.sleep(0.05)  # sshd says nowhere that it listens

    def _binds(self) -> str:
        lines = [f"mkdir -p {self.root}{path} && mount --rbind {path} {self.root}{path}" for path in self.binds]
        return "\n".join(lines)

    def ssh(self, command: str, user: str = "root") -> list[str]:
        """How a test itself looks at it."""
        options = [f"UserKnownHostsFile={self.known_hosts}", "GlobalKnownHostsFile=/dev/null", "BatchMode=yes"]
        options += [f"IdentityFile={self.identity}", "IdentitiesOnly=yes", f"Port={self.port}", "LogLevel=ERROR"]
        words = [word for option in options for word in ("-o", option)]
        return [*middle(self.prefix), "ssh", "-F", "/dev/null", *words, f"{user}@{self.address}", command]

    def run(self, command: str, user: str = "root") -> str:
        """What a command over there says; AssertionError where it fails."""
        done = subprocess.run(self.ssh(command, user), capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def log(self) -> str:
        path = self.root / "var" / "log" / "sshd"
        return path.read_text(errors="replace") if path.exists() else ""

    def stop(self) -> None:
        """Switch it off at once: everything in it ends."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(START_S)
            self.process = None

    # What is there.

    def files(self) -> dict[str, str]:
        """Every file of the host by its path: what it is, and a digest of what is in it."""
        found: dict[str, str] = {}
        pid = self.init_pid()
        for top, base in ((self.root, ""), (Path(f"/proc/{pid}/root/dev/shm"), "dev/shm")):
            for directory, names, files in os.walk(top):
                inside = os.path.normpath(os.path.join(base, os.path.relpath(directory, top)))
                if base == "":
                    names[:] = [name for name in names if os.path.normpath(f"{inside}/{name}") not in self.changing]
                for name in (*names, *files):
                    path = os.path.normpath(f"{inside}/{name}")
                    if path not in self.changing:
                        found[path] = _what(os.path.join(directory, name))
        return found

    def init_pid(self) -> int:
        """The process of this machine that is number 1 over there."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0])

    def processes(self) -> list[str]:
        """The command lines of all that runs over there, but for sshd and those that look."""
        namespace = os.readlink(f"/proc/{self.init_pid()}/ns/pid")
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and os.readlink(entry / "ns" / "pid") == namespace:
                    words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                    if words and not words.startswith("sshd:") and "/usr/sbin/sshd" not in words:
                        found.append(words)
        return sorted(found)


def cgroups(instance: str) -> list[Path]:
    """All control groups of a farm on this machine; others may be here too."""
    return [path for top in Path("/sys/fs/cgroup").rglob("biruda") for path in top.glob(f"{instance}*")]


def middle(prefix: Sequence[str]) -> list[str]:
    """From which network a host is looked at: that of the star's middle."""
    return [f"{word[:-1]}m" if word.startswith("--net=") else word for word in prefix]


def _what(path: str) -> str:
    try:
        found = os.lstat(path)
        if stat.S_ISLNK(found.st_mode):
            return f"link to {os.readlink(path)}"
        if not stat.S_ISREG(found.st_mode):
            return f"{stat.filemode(found.st_mode)}"
        with open(path, "rb") as file:
            return f"{stat.filemode(found.st_mode)} {hashlib.file_digest(file, 'sha256').hexdigest()}"
    except FileNotFoundError:
        return "gone"


def make_key(path: Path) -> Path:
    """A fresh key pair."""
    path.unlink(missing_ok=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", path], check=True)
    return path


@contextlib.contextmanager
def hosts(*made: SshHost) -> Iterator[None]:
    """They run; at the end nothing of them does."""
    try:
        for host in made:
            host.make()
            host.start()
        yield
    finally:
        for host in made:
            host.stop()
