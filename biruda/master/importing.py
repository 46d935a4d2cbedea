"""Source trees that do not come from a command line: a tarball that was uploaded, a git repository. All is hostile.

Both become a directory of their own for as long as they are packed, and are then packed as `biruda run` packs one.
"""

import asyncio
import lzma
import os
import re
import select
import shutil
import signal
import tarfile
import tempfile
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from biruda import process
from biruda.errors import PeerError, UserError
from biruda.master.sources import Sources
from biruda.sourcepack.names import fault_in_path, fault_in_target, shown
from biruda.sourcepack.places import Place, place_for

MOST_BYTES: Final = 8 << 30
MOST_ENTRIES: Final = 1_000_000
CLONE_S: Final = 600.0
SAID_BYTES: Final = 2000

PROTOCOLS: Final = ("https", "http", "ssh")
GIT_URL: Final = re.compile(r"(?P<protocol>[a-z]+)://[!-~]{1,2000}")
REF: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./+@-]{0,200}")

_DAMAGED: Final = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, ValueError, OverflowError)


class Importing:
    """Turns what was given into source packs. file_urls: repositories on the master's own disk may be named."""

    def __init__(self, sources: Sources, directory: Path, *, file_urls: bool) -> None:
        self._sources = sources
        self._directory = directory
        self._file_urls = file_urls
        self._alone = asyncio.Semaphore(2)  # each takes a processor and a disk for a while

    async def tarball(self, body: AsyncIterator[bytes]) -> str:
        """The digest of the tree in a tar file, packed by gzip, bzip2, xz or nothing. Raises UserError."""
        async with self._alone:
            with self._scratch() as scratch, tempfile.TemporaryFile(dir=scratch) as file:
                size = 0
                async for piece in body:
                    size += len(piece)
                    if size > MOST_BYTES:
                        raise UserError(f"the tarball is larger than {MOST_BYTES >> 30} GiB")
                    await asyncio.to_thread(file.write, piece)
                file.seek(0)
                return await asyncio.to_thread(self._unpack, file, scratch / "tree")

    def _unpack(self, file: IO[bytes], tree: Path) -> str:
        tree.mkdir()
        try:
            unpack(file, tree)
        except _DAMAGED as error:
            raise UserError(
                f"this is no tar file, or a damaged one: {' '.join(str(error).split())[:200]}",
                hint="send a .tar, .tar.gz, .tar.bz2 or .tar.xz",
            ) from None
        inside = list(tree.iterdir())
        only = inside[0] if len(inside) == 1 and inside[0].is_dir() and not inside[0].is_symlink() else tree
        return self._sources.add_directory(only, whole=True)  # a release leaves out nothing that it has

    async def git(self, url: str, ref: str) -> tuple[str, str]:
        """(digest, commit) of a repository's tree at a branch, tag or commit; "": its own default. Raises UserError."""
        allowed = (*PROTOCOLS, "file") if self._file_urls else PROTOCOLS
        match = GIT_URL.fullmatch(url)
        if match is None or match["protocol"] not in allowed:
            raise UserError(
                f"{url[:200]!r} is no address to clone from",
                hint=f"write {', '.join(f'{each}://…' for each in allowed)}",
            )
        if ref and not REF.fullmatch(ref):
            raise UserError(f"{ref[:200]!r} is no branch, tag or commit")
        async with self._alone:
            with self._scratch() as scratch:
                tree = scratch / "tree"
                tree.mkdir()
                await self._git(scratch, allowed, "init", "--quiet", "--template=", "--", str(tree))
                fetch = (
                    "fetch",
                    "--quiet",
                    "--depth=1",
                    "--no-tags",
                    "--no-recurse-submodules",
                    "--",
                    url,
                    ref or "HEAD",
                )
                await self._git(tree, allowed, *fetch)
                await self._git(tree, allowed, "checkout", "--quiet", "--detach", "FETCH_HEAD")
                commit = (tree / ".git" / "HEAD").read_text("ascii").strip()
                return await asyncio.to_thread(self._sources.add_directory, tree), commit

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        self._directory.mkdir(mode=0o700, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._directory, ignore_cleanup_errors=True) as scratch:
            yield Path(scratch)

    async def _git(self, directory: Path, allowed: tuple[str, ...], *argv: str) -> None:
        """One git command that runs no hook, no filter, no submodule and asks nobody. Raises UserError."""
        git = shutil.which("git", path="/usr/local/bin:/usr/bin:/bin")
        if git is None:
            raise UserError("the master's host has no git", hint="install git there, or upload a tarball")
        settings = (
            *("-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false", "-c", "submodule.recurse=false"),
            *("-c", "protocol.allow=never", "-c", "credential.helper=", "-c", "core.symlinks=true"),
            *(word for each in allowed for word in ("-c", f"protocol.{each}.allow=always")),
        )
        env = {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "HOME": os.fspath(directory),
            "LC_ALL": "C.UTF-8",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_SSH_COMMAND": "ssh -o BatchMode=yes",
            "GIT_ALLOW_PROTOCOL": ":".join(allowed),
        }
        with tempfile.TemporaryFile() as said:
            nothing = os.open(os.devnull, os.O_RDONLY)
            try:
                where = os.fspath(directory)
                child = process.start([git, *settings, *argv], env=env, cwd=where, stdin=nothing, stdout=said.fileno())
            finally:
                os.close(nothing)
            status = await _ended(child)
            said.seek(0)
            words = " ".join(said.read(SAID_BYTES).decode("utf-8", "replace").split())
        if status != 0:
            raise UserError(f"git {argv[0]}: {words or f'ended with {status}'}", hint="check the address and the name")


async def _ended(child: process.Child) -> int | None:
    """The exit status of a child; it has ended when this returns or raises. Raises UserError when it takes too long."""
    try:
        async with asyncio.timeout(CLONE_S):
            while (ended := child.poll()) is None:
                await asyncio.to_thread(select.select, [child.pidfd], [], [], 1.0)
            return ended.exit_status
    except TimeoutError:
        raise UserError(f"git has not ended within {CLONE_S:g} s") from None
    finally:
        if child.poll() is None:
            child.signal_group(signal.SIGKILL)
            await asyncio.shield(asyncio.to_thread(_reap, child))


def _reap(child: process.Child) -> None:
    while child.poll() is None:
        select.select([child.pidfd], [], [], 1.0)


def unpack(file: IO[bytes], directory: Path) -> None:
    """Make the files, directories and links of a tar file below a directory, and nothing outside of it.

    Raises UserError for an entry that leads elsewhere, and what tarfile raises for a damaged file.
    """
    place = place_for(directory)
    made: set[bytes] = set()
    left = MOST_BYTES
    try:
        with tarfile.open(fileobj=file, mode="r|*") as tar:
            for count, member in enumerate(tar, start=1):
                left -= max(0, member.size)
                if count > MOST_ENTRIES or left < 0:
                    raise UserError(f"the tarball has more than {MOST_ENTRIES} entries or {MOST_BYTES >> 30} GiB")
                path = os.fsencode(member.name).removeprefix(b"./").rstrip(b"/")
                if path in (b"", b".") or path.split(b"/")[0] == b".git":
                    continue
                if fault := fault_in_path(path):
                    raise UserError(f"{shown(path[:200])}: refused in a tarball: {fault}")
                try:
                    _make(place, tar, member, path, made)
                except OSError as error:
                    raise UserError(f"{shown(path[:200])}: cannot be unpacked: {error.strerror}") from error
    finally:
        place.close()


def _make(place: Place, tar: tarfile.TarFile, member: tarfile.TarInfo, path: bytes, made: set[bytes]) -> None:
    parts = path.split(b"/")
    for end in range(1, len(parts) + member.isdir()):
        parent = b"/".join(parts[:end])
        if parent not in made:
            place.make_directory(parent)
            made.add(parent)
    if member.issym():
        target = os.fsencode(member.linkname)
        if fault := fault_in_target(target):
            raise UserError(f"{shown(path[:200])}: refused in a tarball: {fault}")
        place.make_link(path, target, int(member.mtime))
    elif member.isreg():
        content = tar.extractfile(member)
        assert content is not None
        descriptor = place.create_file(path)
        try:
            while piece := content.read(1 << 20):
                os.write(descriptor, piece)
        except BaseException:
            os.close(descriptor)
            raise
        place.finish_file(descriptor, path, 0o755 if member.mode & 0o100 else 0o644, int(member.mtime))
    elif not member.isdir():
        raise PeerError(f"{shown(path[:200])}: neither a file nor a directory nor a symbolic link")
