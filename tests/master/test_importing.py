"""Tarballs and git repositories that become source packs, and what hostile ones do not do."""

import io
import os
import subprocess
import tarfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from biruda.errors import BirudaError, UserError
from biruda.master.importing import Importing, unpack
from biruda.master.sources import Sources
from biruda.sourcepack.unpack import Unpacker

Members = Callable[[tarfile.TarFile], None]


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 1000):
        yield data[start : start + 1000]


def tar_of(fill: Members, mode: str = "w:gz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:  # type: ignore[call-overload]
        fill(tar)
    return buffer.getvalue()


def add(tar: tarfile.TarFile, name: str, content: bytes = b"", **fields: object) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    tar.addfile(info, io.BytesIO(content))


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    return Sources(tmp_path / "sources", 1 << 30)


@pytest.fixture
def importing(sources: Sources, tmp_path: Path) -> Importing:
    return Importing(sources, tmp_path / "importing", file_urls=True)


def tree_of(sources: Sources, digest: str, directory: Path) -> dict[str, bytes]:
    """The files of a pack."""
    directory.mkdir()
    with sources.packs.open(digest) as file, Unpacker(directory) as unpacker:
        while piece := file.read(65536):
            unpacker.feed(piece)
    return {
        os.fspath(path.relative_to(directory)): os.readlink(path).encode() if path.is_symlink() else path.read_bytes()
        for path in directory.rglob("*")
        if not path.is_dir() or path.is_symlink()
    }


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
async def test_a_tarball_becomes_the_tree_in_it(
    importing: Importing, sources: Sources, tmp_path: Path, mode: str
) -> None:
    def fill(tar: tarfile.TarFile) -> None:
        add(tar, "hello-1.0/src/main.c", b"int main;\n")
        add(tar, "hello-1.0/configure", b"#!/bin/sh\n", mode=0o755)
        add(tar, "hello-1.0/link", type=tarfile.SYMTYPE, linkname="src/main.c")

    digest = await importing.tarball(pieces(tar_of(fill, mode)))
    assert tree_of(sources, digest, tmp_path / "out") == {
        "src/main.c": b"int main;\n",
        "configure": b"#!/bin/sh\n",
        "link": b"src/main.c",
    }
    assert os.access(tmp_path / "out" / "configure", os.X_OK)
    assert list((tmp_path / "importing").iterdir()) == []


HOSTILE: dict[str, Members] = {
    "climbs": lambda tar: add(tar, "a/../../evil", b"x"),
    "absolute": lambda tar: add(tar, "/evil", b"x"),
    "device": lambda tar: add(tar, "a/null", type=tarfile.CHRTYPE),
    "fifo": lambda tar: add(tar, "a/pipe", type=tarfile.FIFOTYPE),
    "hard link out": lambda tar: add(tar, "a/passwd", type=tarfile.LNKTYPE, linkname="/etc/passwd"),
    "twice": lambda tar: (add(tar, "a/x", b"1"), add(tar, "a/x", b"2"))[-1],
    "through a link": lambda tar: (
        add(tar, "a", type=tarfile.SYMTYPE, linkname="/tmp"),
        add(tar, "a/evil", b"x"),
    )[-1],
}


@pytest.mark.parametrize("fill", HOSTILE.values(), ids=HOSTILE)
async def test_a_hostile_tarball_is_refused_and_makes_nothing(
    importing: Importing, tmp_path: Path, fill: Members
) -> None:
    with pytest.raises(BirudaError):
        await importing.tarball(pieces(tar_of(fill)))
    assert not (tmp_path / "evil").exists()
    assert not Path("/tmp/evil").exists()
    assert list((tmp_path / "importing").iterdir()) == []


async def test_a_git_directory_of_a_tarball_is_left_out(importing: Importing, sources: Sources, tmp_path: Path) -> None:
    def fill(tar: tarfile.TarFile) -> None:
        add(tar, ".git", b"gitdir: /etc\n")
        add(tar, "file", b"x")

    digest = await importing.tarball(pieces(tar_of(fill)))
    assert tree_of(sources, digest, tmp_path / "out") == {"file": b"x"}


async def test_a_release_keeps_what_its_ignore_files_name(
    importing: Importing, sources: Sources, tmp_path: Path
) -> None:
    """Whoever packed it put in what was generated, and left the ignore file of the repository there."""
    files = {
        ".gitignore": b"configure\n/sub/\n",
        "configure": b"#!/bin/sh\n",
        "sub/.birudaignore": b"*\n",
        "sub/x": b"x",
    }

    def fill(tar: tarfile.TarFile) -> None:
        for name, content in files.items():
            add(tar, f"hello-1.0/{name}", content)

    digest = await importing.tarball(pieces(tar_of(fill)))
    assert tree_of(sources, digest, tmp_path / "out") == files


@pytest.mark.parametrize("data", [b"", b"no tar at all" * 100, tar_of(HOSTILE["climbs"])[:40]])
def test_what_is_no_tarball_says_so(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "tree").mkdir()
    with pytest.raises((UserError, tarfile.TarError, EOFError)):
        unpack(io.BytesIO(data), tmp_path / "tree")


def git(directory: Path, *argv: str) -> str:
    env = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_ALLOW_PROTOCOL": "file"}
    names = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main")
    return subprocess.run(
        ["git", *names, *argv], cwd=directory, env=env, check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    path = tmp_path / "repository"
    path.mkdir()
    git(path, "init", "-q")
    (path / "file").write_text("one\n")
    git(path, "add", ".")
    git(path, "commit", "-qm", "one")
    git(path, "tag", "v1")
    (path / "file").write_text("two\n")
    git(path, "commit", "-qam", "two")
    return path


async def test_a_repository_becomes_its_tree(
    importing: Importing, sources: Sources, repository: Path, tmp_path: Path
) -> None:
    digest, commit = await importing.git(f"file://{repository}", "")
    assert commit == git(repository, "rev-parse", "HEAD")
    assert tree_of(sources, digest, tmp_path / "out")["file"] == b"two\n"
    digest, commit = await importing.git(f"file://{repository}", "v1")
    assert commit == git(repository, "rev-parse", "v1")
    assert tree_of(sources, digest, tmp_path / "out1")["file"] == b"one\n"
    assert list((tmp_path / "importing").iterdir()) == []


async def test_a_hostile_repository_runs_nothing(importing: Importing, repository: Path, tmp_path: Path) -> None:
    """Neither a filter that it asks for, nor a submodule, whose address would run a command."""
    (repository / ".gitattributes").write_text("* filter=evil\n")
    (repository / ".gitmodules").write_text(
        f'[submodule "s"]\n\tpath = s\n\turl = ext::sh -c "touch {tmp_path}/evil"\n\tupdate = !touch {tmp_path}/evil\n'
    )
    git(repository, "add", ".")
    git(repository, "update-index", "--add", "--cacheinfo", f"160000,{git(repository, 'rev-parse', 'HEAD')},s")
    git(repository, "commit", "-qm", "three")
    await importing.git(f"file://{repository}", "")
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    ("url", "ref"),
    [
        ("ext::sh -c touch%20/tmp/evil", ""),
        ("git://example.org/x", ""),
        ("--upload-pack=touch /tmp/evil", ""),
        ("/etc", ""),
        ("https://example.org/x y", ""),
        ("https://example.org/x", "--upload-pack=touch /tmp/evil"),
        ("https://example.org/x", "-x"),
    ],
)
async def test_what_is_no_address_is_not_tried(importing: Importing, tmp_path: Path, url: str, ref: str) -> None:
    with pytest.raises(UserError, match=r"is no address to clone from|is no branch, tag or commit"):
        await importing.git(url, ref)
    assert not (tmp_path / "importing").exists()


async def test_files_of_the_master_are_not_cloned_unless_that_is_configured(
    sources: Sources, repository: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="is no address to clone from"):
        await Importing(sources, tmp_path / "importing", file_urls=False).git(f"file://{repository}", "")


async def test_what_git_says_is_told(importing: Importing, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"git fetch: fatal: .*does not appear to be a git repository"):
        await importing.git(f"file://{tmp_path}/nothing", "")
