"""Root trees as files: pack one, unpack one safely, fingerprint one, remove one."""

import bz2
import gzip
import hashlib
import lzma
import os
import re
import shutil
import stat
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

from backports import zstd

from biruda.errors import UserError

_CHUNK: Final = 1 << 20
_MOST_LINKS: Final = 40  # as the kernel
_OCTAL: Final = re.compile(rb"\\([0-3][0-7]{2})")
_OPENERS: Final[dict[bytes, Any]] = {
    b"\x1f\x8b": gzip.open,
    b"\xfd7zXZ\x00": lzma.open,
    b"BZh": bz2.open,
    b"\x28\xb5\x2f\xfd": zstd.open,
}
_DAMAGED: Final = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, zstd.ZstdError, ValueError, OverflowError)
_ZSTD_OPTIONS: Final[dict[int, int]] = {
    zstd.CompressionParameter.compression_level: 3,
    zstd.CompressionParameter.checksum_flag: 1,
    zstd.CompressionParameter.nb_workers: min(4, os.cpu_count() or 1),
}


class DamagedArchive(UserError):
    """An archive that is not what it should be; what was unpacked of it is of no use."""


@contextmanager
def _damage_reported(name: str) -> Iterator[None]:
    try:
        yield
    except _DAMAGED as error:
        raise DamagedArchive(f"{name}: no tar archive, or damaged: {error}") from None
    except OSError as error:
        if error.errno is not None:
            raise
        raise DamagedArchive(f"{name}: damaged: {error}") from None  # so say gzip and bz2


@contextmanager
def open_archive(path: Path) -> Iterator[IO[bytes]]:
    """The bytes of a tar archive, whatever it is compressed with: its first bytes tell, not its name."""
    with path.open("rb") as file:
        start = file.read(8)
    opener = next((each for magic, each in _OPENERS.items() if start.startswith(magic)), None)
    with path.open("rb") if opener is None else opener(path, "rb") as file:
        yield file


@contextmanager
def _writing(archive: Path) -> Iterator[Any]:
    """A zstd file that is on the disk on return."""
    with archive.open("wb") as file:
        with zstd.open(file, "wb", options=_ZSTD_OPTIONS) as compressed:
            yield compressed
        file.flush()
        os.fsync(file.fileno())


def recompress(source: Path, archive: Path) -> None:
    """Write a tar archive once more, as zstd."""
    with _damage_reported(str(source)), open_archive(source) as original, _writing(archive) as compressed:
        shutil.copyfileobj(original, compressed, _CHUNK)


def pack(directory: Path, archive: Path) -> int:
    """Write a tree as tar and zstd, links and owners kept; how many device nodes and sockets were left out."""
    left_out = 0

    def wanted(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        nonlocal left_out
        left_out += member.isdev() and not member.isfifo()
        return None if member.isdev() and not member.isfifo() else member

    with (
        _writing(archive) as compressed,
        tarfile.open(fileobj=compressed, mode="w|", bufsize=_CHUNK, format=tarfile.PAX_FORMAT) as tar,
    ):
        tar.add(directory, arcname=".", filter=wanted)
    return left_out


def unpack(archive: Path, root: Path, name: str) -> int:
    """Make `root` from a tar archive, called `name` in messages; how many device nodes were left out.

    Nothing is written outside of root, whatever the archive says: absolute names and ".." are refused, and links on the
    way to a file are followed as a process with this root would. Owners are kept only when this process is root. Raises
    DamagedArchive and OSError; then a part of the tree is left.
    """
    root.mkdir()
    root.chmod(0o755)
    unpacker = _Unpacker(os.fspath(root), name)
    with _damage_reported(name), open_archive(archive) as file:
        with tarfile.open(fileobj=file, mode="r|", bufsize=_CHUNK) as tar:
            for member in tar:
                unpacker.add(tar, member)
        unpacker.finish()
    return unpacker.left_out


class _Unpacker:
    """Writes members below one directory."""

    def __init__(self, root: str, name: str) -> None:
        self.root = root
        self.name = name
        self.left_out = 0
        self.is_root = os.geteuid() == 0
        self._directories: dict[str, tarfile.TarInfo] = {}  # their modes and times come last, or nothing could be added
        self._parents: dict[tuple[str, ...], str] = {}

    def add(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        parts = self._parts(member.name)
        if member.isdir():
            self._directories[self._directory(parts)] = member
            return
        if not parts:
            self._refuse(member.name, "is not a directory")
        if member.isdev() and not member.isfifo():
            self.left_out += 1
            return
        path = os.path.join(self._directory(parts[:-1]), parts[-1])
        if os.path.lexists(path):
            self._make_way(path, member)
        if member.issym():
            os.symlink(member.linkname, path)
        elif member.islnk():
            self._link(member, path)
            return  # one file under two names: what the first said holds
        elif member.isfifo():
            os.mkfifo(path, 0o600)
        elif member.isreg():
            self._write(tar, member, path)
        else:
            self.left_out += 1
            return
        self._finish(path, member)

    def finish(self) -> None:
        """Give the directories their owners, modes and times."""
        for path, member in reversed(self._directories.items()):
            self._finish(path, member)

    def _refuse(self, name: str, why: str) -> None:
        raise DamagedArchive(f"{self.name}: refused: {name!r} {why}")

    def _parts(self, name: str) -> tuple[str, ...]:
        parts = name.split("/")
        if name.startswith("/") or ".." in parts:
            self._refuse(name, "leads out of the tree")
        return tuple(part for part in parts if part not in ("", "."))

    def _directory(self, parts: tuple[str, ...]) -> str:
        """The directory of this name as a process with this root would find it; made where it is missing."""
        known = self._parents.get(parts)
        if known is not None:
            return known
        at: list[str] = []
        rest = list(reversed(parts))
        links = 0
        while rest:
            part = rest.pop()
            if part in ("", ".", ".."):  # the dots come from link targets; the root is its own parent
                at = at[:-1] if part == ".." else at
                continue
            path = os.path.join(self.root, *at, part)
            mode = self._mode_or_made(path)
            if stat.S_ISLNK(mode):
                links += 1
                target = os.readlink(path)
                at = [] if target.startswith("/") else at
                rest.extend(reversed(target.split("/")))
            elif stat.S_ISDIR(mode):
                at.append(part)
            if links > _MOST_LINKS or not (stat.S_ISDIR(mode) or stat.S_ISLNK(mode)):
                self._refuse("/".join(parts), "is no directory, yet something is to be in it")
        self._parents[parts] = os.path.join(self.root, *at)
        return self._parents[parts]

    def _mode_or_made(self, path: str) -> int:
        try:
            return os.lstat(path).st_mode
        except FileNotFoundError:
            os.mkdir(path, 0o700)
            os.chmod(path, 0o755)  # until its own entry comes; not by umask, which threads share
            return stat.S_IFDIR

    def _make_way(self, path: str, member: tarfile.TarInfo) -> None:
        if stat.S_ISDIR(os.lstat(path).st_mode):
            self._refuse(member.name, "is a directory and then something else")
        os.unlink(path)  # a later entry of the same name replaces an earlier one

    def _link(self, member: tarfile.TarInfo, path: str) -> None:
        target = self._parts(member.linkname)
        try:
            os.link(os.path.join(self._directory(target[:-1]), *target[-1:]), path, follow_symlinks=False)
        except (FileNotFoundError, IsADirectoryError, PermissionError):
            self._refuse(member.name, f"is a link to {member.linkname!r}, which is no file before it")

    def _write(self, tar: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> None:
        content = tar.extractfile(member)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb", buffering=0) as file:
            if content is not None:
                shutil.copyfileobj(content, file, _CHUNK)

    def _finish(self, path: str, member: tarfile.TarInfo) -> None:
        if self.is_root:
            os.chown(path, member.uid, member.gid, follow_symlinks=False)
        if not member.issym():
            # setuid to an owner that is not the one it was meant for would be a trap
            os.chmod(path, stat.S_IMODE(member.mode) & (0o7777 if self.is_root else 0o1777))
        os.utime(path, (member.mtime, member.mtime), follow_symlinks=False)


def fingerprint(directory: Path) -> str:
    """A digest of everything in a tree but the bytes of its files, for which size, mtime and ctime stand."""
    digest = hashlib.sha256()
    top = os.fspath(directory)
    for parent, directories, files in os.walk(top, onerror=_raise):
        directories.sort()
        for name in sorted((*directories, *files)):
            path = os.path.join(parent, name)
            seen = os.lstat(path)
            facts: tuple[object, ...] = (seen.st_mode, seen.st_uid, seen.st_gid, seen.st_size, seen.st_mtime_ns)
            if stat.S_ISLNK(seen.st_mode):
                facts = (*facts, os.readlink(path))
            elif stat.S_ISREG(seen.st_mode):
                facts = (*facts, seen.st_ctime_ns, seen.st_ino if seen.st_nlink > 1 else 0)
            digest.update(repr((path[len(top) :], facts)).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _raise(error: OSError) -> None:
    raise error


def mounts_below(directory: Path, mountinfo: Path = Path("/proc/self/mountinfo")) -> list[str]:
    """Where something is mounted on a directory or below it."""
    top = os.path.realpath(directory)
    points = [line.split(b" ")[4] for line in mountinfo.read_bytes().splitlines()]
    unescaped = [os.fsdecode(_OCTAL.sub(lambda match: bytes([int(match[1], 8)]), point)) for point in points]
    return sorted(point for point in unescaped if point == top or point.startswith(top.rstrip("/") + "/"))


def check_nothing_mounted(directory: Path) -> None:
    """UserError where something is mounted on a directory that is to be removed, or below it."""
    if mounts := mounts_below(directory):
        raise UserError(f"{mounts[0]}: something is mounted there: nothing is removed", hint=f"umount {mounts[0]}")


def remove(directory: Path) -> None:
    """Remove a tree, never through a link and never what is mounted in it. Raises UserError, OSError."""
    check_nothing_mounted(directory)
    try:
        shutil.rmtree(directory)
    except PermissionError:
        _make_writable(os.fspath(directory))
        shutil.rmtree(directory)


def _make_writable(directory: str) -> None:
    """Let the owner empty every directory: a tree may hold some that their own owner cannot write to."""
    os.chmod(directory, 0o700)
    for parent, names, _ in os.walk(directory):
        for path in (os.path.join(parent, name) for name in names):
            if not os.path.islink(path):
                os.chmod(path, 0o700)
