"""Environments from tarballs, directories and suites; what may go wrong, and that nothing half built ever counts."""

import bz2
import fcntl
import gzip
import io
import lzma
import os
import shutil
import socket
import stat
import sys
import tarfile
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st

from biruda.config import load
from biruda.coordinator.envbuild import build, listing, remove, tree
from biruda.coordinator.envbuild.shelf import Shelf
from biruda.coordinator.envbuild.sources import host_sources
from biruda.coordinator.envbuild.suite import check_arch, host_apt_options
from biruda.coordinator.envbuild.tools import SEARCH_PATH, Tools, run_tool
from biruda.coordinator.envbuild.tree import DamagedArchive
from biruda.errors import UserError
from biruda.guessenv import guess
from biruda.model import Kind

IS_ROOT = os.geteuid() == 0
HOST_ARCH = guess("/").arch
OS_RELEASE = b'ID=debian\nVERSION_ID="12"\nVERSION_CODENAME=bookworm\n'
SHELL = Path("/bin/sh").resolve().read_bytes()


class Farm:
    """A home to build in, and what was said meanwhile."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.environments = home / "environments"
        self.said: list[str] = []

    def build(self, name: str = "e", **options: Any) -> Path:
        self.said.clear()
        return build(self.home, name, kind=Kind.CHROOT, progress=self.said.append, **options)

    def refused(self, name: str = "e", **options: Any) -> str:
        with pytest.raises(UserError) as caught:
            self.build(name, **options)
        return f"{caught.value} | {caught.value.hint}"

    def names(self) -> list[str]:
        """Everything in the directory of environments but the lock and the cache."""
        found = sorted(os.listdir(self.environments)) if self.environments.exists() else []
        return [name for name in found if name not in (".lock", ".cache")]


@pytest.fixture
def farm(tmp_path: Path) -> Farm:
    return Farm(tmp_path / "home")


Entry = tuple[str, bytes | str | None, dict[str, Any]]


def entry(name: str, content: bytes | str | None = None, **fields: Any) -> Entry:
    """A file of these bytes, a link to this text or, without content, a directory."""
    return name, content, fields


SMALL = (
    entry("./", mode=0o755),
    entry("./bin", "usr/bin"),
    entry("./usr/bin/sh", SHELL, mode=0o755, mtime=1_000_000_000),
    entry("./usr/bin/su", b"su", mode=0o4755),
    entry("./usr/bin/dash", "./usr/bin/sh", type=tarfile.LNKTYPE),
    entry("./bin/later", b"through the link"),
    entry("./etc/os-release", OS_RELEASE),
    entry("./closed", mode=0o555),
    entry("./closed/file", b"x", mode=0o400),
    entry("./dev/null", b"", type=tarfile.CHRTYPE),
)


def tar_bytes(entries: tuple[Entry, ...]) -> bytes:
    """A tar archive."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content, fields in entries:
            member = tarfile.TarInfo(name)
            member.type = tarfile.DIRTYPE if content is None else tarfile.SYMTYPE
            member.mode = 0o755
            if isinstance(content, bytes):
                member.type, member.size, member.mode = tarfile.REGTYPE, len(content), 0o644
            elif content is not None:
                member.linkname = content
            for field, value in fields.items():
                setattr(member, field, value)
            tar.addfile(member, io.BytesIO(content) if isinstance(content, bytes) else None)
    return buffer.getvalue()


@pytest.fixture
def tarball(tmp_path: Path) -> Callable[..., Path]:
    def make(*entries: Entry, name: str = "root.tar") -> Path:
        path = tmp_path / name
        path.write_bytes(tar_bytes(entries or SMALL))
        return path

    return make


# --- tarballs


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [
        (".tar", lambda content: content),
        (".tar.gz", gzip.compress),
        (".tar.xz", lzma.compress),
        (".tar.bz2", bz2.compress),
        (".tar.zst", zstd.compress),
        (".misnamed", zstd.compress),
    ],
)
def test_a_tarball_becomes_an_environment(
    farm: Farm, tmp_path: Path, suffix: str, compress: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / f"root{suffix}"
    path.write_bytes(compress(tar_bytes(SMALL)))
    place = farm.build("deb", tarball=path)
    root = place / "root"
    assert place == farm.environments / "deb"
    assert (root / "etc/os-release").read_bytes() == OS_RELEASE
    assert os.readlink(root / "bin") == "usr/bin"
    assert (root / "usr/bin/later").read_bytes() == b"through the link"
    assert (root / "usr/bin/dash").samefile(root / "usr/bin/sh")
    assert (root / "usr/bin/sh").stat().st_mtime == 1_000_000_000
    assert stat.S_IMODE((root / "usr/bin/su").stat().st_mode) == (0o4755 if IS_ROOT else 0o755)
    assert stat.S_IMODE((root / "closed").stat().st_mode) == 0o555
    assert os.listdir(root / "dev") == []
    assert "1 device nodes left out: a worker sees a /dev of its own" in farm.said
    assert farm.said[-1] == "environment deb is ready"
    assert [(each.name, each.kind, each.root) for each in load(None, home=farm.home).environments] == [
        ("host", Kind.PROCESS, ""),
        ("deb", Kind.CHROOT, str(root)),
    ]
    (listed,) = listing(farm.home)
    assert (listed.name, listed.directory) == ("deb", place)
    assert listed.about.startswith(f"{HOST_ARCH} debian12, made on 2")
    assert listed.about.endswith(f"from the tarball {path}")


def test_a_tree_has_the_directories_that_things_are_mounted_on(farm: Farm, tarball: Callable[..., Path]) -> None:
    root = farm.build(tarball=tarball(entry("usr/bin/sh", SHELL))) / "root"
    assert sorted(os.listdir(root)) == ["dev", "proc", "sys", "tmp", "usr"]
    assert stat.S_IMODE((root / "tmp").stat().st_mode) == 0o1777
    assert stat.S_IMODE(root.stat().st_mode) == 0o755
    assert "warning: it has no /bin/sh, so steps that are lines of shell cannot run in it" in farm.said


def test_a_tarball_may_be_called_anything(farm: Farm, tarball: Callable[..., Path]) -> None:
    farm.build(tarball=tarball(name="a\nb\x01 \udcff.tar"))
    assert load(None, home=farm.home).environments[1].name == "e"
    assert listing(farm.home)[0].about.endswith("/a b ?.tar")


def test_a_single_directory_at_the_top_is_taken_off(farm: Farm, tarball: Callable[..., Path]) -> None:
    root = farm.build(tarball=tarball(entry("root.x86_64/usr/bin/sh", SHELL), entry("root.x86_64/etc"))) / "root"
    assert (root / "usr/bin/sh").exists()
    assert not (root / "root.x86_64").exists()


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        ([entry("/etc/evil", b"x")], "'/etc/evil' leads out of the tree"),
        ([entry("usr/../../evil", b"x")], "'usr/../../evil' leads out of the tree"),
        ([entry("a", "/tmp/x", type=tarfile.LNKTYPE)], "'/tmp/x' leads out of the tree"),
        ([entry("a", "../x", type=tarfile.LNKTYPE)], "'../x' leads out of the tree"),
        ([entry("a", "b", type=tarfile.LNKTYPE)], "'a' is a link to 'b', which is no file before it"),
        ([entry("a", b"x"), entry("a/b", b"x")], "'a' is no directory, yet something is to be in it"),
        ([entry("a", "b"), entry("b", "a"), entry("a/c", b"x")], "'a' is no directory, yet something is to be in it"),
        ([entry("a/b", b"x"), entry("a", b"x")], "'a' is a directory and then something else"),
        ([entry("./", b"x")], "'./' is not a directory"),
    ],
)
def test_an_archive_cannot_lie_about_its_tree(
    farm: Farm, tarball: Callable[..., Path], entries: list[Entry], why: str
) -> None:
    assert why in farm.refused(tarball=tarball(*SMALL, *entries))
    assert farm.names() == []
    assert list((farm.environments).glob(".cache/*")) == []


def test_links_of_an_archive_lead_nowhere_else(farm: Farm, tarball: Callable[..., Path], tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    up = "../" * 30
    entries = (
        entry("abs", str(outside)),
        entry("abs/evil", b"x"),
        entry("up", f"{up}{outside}"),
        entry("up/evil2", b"x"),
        entry("file", f"{outside}/evil3"),
        entry("file", b"a file in the place of the link"),
        entry("hard", "abs", type=tarfile.LNKTYPE),
        entry("hard", b"not written through it"),
    )
    root = farm.build(tarball=tarball(*SMALL, *entries)) / "root"
    assert os.listdir(outside) == []
    inside = root / str(outside).lstrip("/")
    assert sorted(os.listdir(inside)) == ["evil", "evil2"]
    assert (root / "file").read_bytes() == b"a file in the place of the link"
    assert os.readlink(root / "abs") == str(outside)


NAMES = st.sampled_from(["a", "b", "c", "a/b", "b/a", "a/b/c", "./a", "a//b", "c/.", "a/../b", "../b", "/b", ".", ""])
TARGETS = st.sampled_from(["a", "b", "c", "a/b", ".", "..", "../..", "../outside", "/", "OUTSIDE", "OUTSIDE/precious"])
ENTRIES = st.one_of(
    st.builds(entry, NAMES),
    st.builds(entry, NAMES, st.just(b"overwritten")),
    st.builds(entry, NAMES, TARGETS),
    st.builds(entry, NAMES, TARGETS, type=st.just(tarfile.LNKTYPE)),
    st.builds(entry, NAMES, st.just(b""), type=st.sampled_from([tarfile.FIFOTYPE, tarfile.CHRTYPE])),
)


@given(st.lists(ENTRIES, max_size=8))
@settings(max_examples=300, deadline=None)
def test_no_archive_touches_anything_outside_of_its_tree(entries: list[Entry]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        top = Path(directory)
        (top / "outside").mkdir()
        (top / "outside/precious").write_bytes(b"precious")
        placed = [
            (name, content.replace("OUTSIDE", f"{top}/outside") if isinstance(content, str) else content, fields)
            for name, content, fields in entries
        ]
        (top / "a.tar").write_bytes(tar_bytes(tuple(placed)))
        with suppress(DamagedArchive):
            tree.unpack(top / "a.tar", top / "tree", "the archive")
        assert sorted(os.listdir(top)) == ["a.tar", "outside", "tree"]
        assert [(path.name, path.read_bytes()) for path in (top / "outside").iterdir()] == [("precious", b"precious")]
        seen = (top / "outside/precious").stat()
        assert (stat.S_IMODE(seen.st_mode) & 0o777, seen.st_nlink) == (0o644, 1)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"not an archive at all" * 100, "no tar archive, or damaged"),
        (b"", "no tar archive, or damaged"),
        (tar_bytes(SMALL)[:5000], "no tar archive, or damaged"),
        (gzip.compress(tar_bytes(SMALL))[:-20], "damaged"),
        (zstd.compress(tar_bytes(SMALL))[:-20], "damaged"),
        (lzma.compress(tar_bytes(SMALL))[:-20], "damaged"),
        (b"BZhnot bzip2", "broken.tar: damaged: Invalid data stream"),
        (b"\x1f\x8bnot gzip", "broken.tar: damaged: Unknown compression method"),
        (tar_bytes((entry("./"),)), "there is nothing in it"),
    ],
)
def test_a_damaged_archive_is_refused(farm: Farm, tmp_path: Path, content: bytes, why: str) -> None:
    (tmp_path / "broken.tar").write_bytes(content)
    assert why in farm.refused(tarball=tmp_path / "broken.tar")
    assert farm.names() == []


def test_a_file_that_is_not_there_is_named(farm: Farm, tmp_path: Path) -> None:
    assert f"{tmp_path}/none: no such file or directory: nothing was built" in farm.refused(tarball=tmp_path / "none")


# --- one content is packed once


def test_a_second_environment_comes_from_the_cache(farm: Farm, tarball: Callable[..., Path]) -> None:
    path = tarball()
    farm.build("one", tarball=path)
    renamed = path.rename(path.with_name("other-name"))
    farm.build("two", tarball=renamed)
    assert any(sentence.startswith("from cache, built 2") for sentence in farm.said)
    farm.build("three", tarball=renamed, fresh=True)
    assert not any("from cache" in sentence for sentence in farm.said)
    assert [each.name for each in listing(farm.home)] == ["one", "three", "two"]
    path.write_bytes(tar_bytes((*SMALL, entry("more", b"more"))))
    farm.build("four", tarball=path)
    assert not any("from cache" in sentence for sentence in farm.said)


def test_a_damaged_cache_is_made_anew(farm: Farm, tarball: Callable[..., Path]) -> None:
    farm.build("one", tarball=tarball())
    (cached,) = (farm.environments / ".cache").iterdir()
    cached.write_bytes(cached.read_bytes()[:-10])
    place = farm.build("two", tarball=tarball())
    assert "what the cache holds is damaged: building anew" in farm.said
    assert (place / "root/usr/bin/later").read_bytes() == b"through the link"


def test_the_cache_keeps_the_eight_used_last(farm: Farm, tarball: Callable[..., Path]) -> None:
    shelf = Shelf(farm.environments)
    for number in range(10):
        path = tarball(*SMALL, entry("number", str(number).encode()))
        farm.build("e", tarball=path, replace=True)
        for cached in (farm.environments / ".cache").iterdir():
            os.utime(cached, (cached.stat().st_atime - 100, cached.stat().st_mtime - 100))
    assert len(list(shelf.cached("x").parent.iterdir())) == 8


# --- names, replacing, interruptions


@pytest.mark.parametrize("name", ["", ".", "..", ".cache", "a/b", "../e", "-rf", "a b", "é", "a\n"])
def test_a_name_stays_in_its_directory(farm: Farm, tarball: Callable[..., Path], name: str) -> None:
    assert "cannot be the name of an environment" in farm.refused(name, tarball=tarball())
    with pytest.raises(UserError, match="cannot be the name"):
        remove(farm.home, name)


def test_an_environment_is_replaced_only_when_asked(farm: Farm, tarball: Callable[..., Path]) -> None:
    path = tarball()
    (farm.build(tarball=path) / "root/mark").touch()
    assert "there is already an environment 'e'" in farm.refused(tarball=path)
    assert "'/x' leads out of the tree" in farm.refused(tarball=tarball(entry("/x", b""), name="bad.tar"), replace=True)
    assert (farm.environments / "e/root/mark").exists()
    farm.build(tarball=path, replace=True)
    assert not (farm.environments / "e/root/mark").exists()
    assert farm.names() == ["e"]


def test_what_makes_no_sense_is_refused(farm: Farm, tarball: Callable[..., Path], tmp_path: Path) -> None:
    exactly_one = "built from exactly one of a suite, a tarball and a directory"
    assert exactly_one in farm.refused()
    assert exactly_one in farm.refused(tarball=tarball(), directory=tmp_path)
    with pytest.raises(UserError, match="kind process has no root tree"):
        build(farm.home, "e", kind=Kind.PROCESS, tarball=tarball(), progress=print)
    assert "asked for s390x, but the tree is for" in farm.refused(tarball=tarball(), arch="s390x")
    assert farm.names() == []


class Stop(Exception):
    pass


def test_an_interrupted_build_leaves_nothing(farm: Farm, tarball: Callable[..., Path]) -> None:
    def stop(sentence: str) -> None:
        if sentence.startswith("it is"):
            raise Stop

    with pytest.raises(Stop):
        build(farm.home, "e", kind=Kind.CHROOT, tarball=tarball(), progress=stop)
    assert farm.names() == []


def test_what_a_dead_build_left_is_swept_and_a_living_one_is_not(farm: Farm, tarball: Callable[..., Path]) -> None:
    dead = farm.environments / ".building-1-dead"
    (dead / "made/root/closed").mkdir(parents=True)
    (dead / "made/root/closed").chmod(0)
    alive = farm.environments / ".building-2-alive"
    alive.mkdir()
    lock = os.open(alive, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert listing(farm.home) == ()
        assert [each.name for each in load(None, home=farm.home).environments] == ["host"]
        farm.build(tarball=tarball())
        assert farm.names() == [".building-2-alive", "e"]
    finally:
        os.close(lock)
    farm.build("f", tarball=tarball())
    assert farm.names() == ["e", "f"]


def test_an_environment_without_its_file_does_not_count(farm: Farm) -> None:
    (farm.environments / "half/root").mkdir(parents=True)
    assert listing(farm.home) == ()
    assert listing(farm.home / "nowhere") == ()


# --- directories


@pytest.fixture
def tree_directory(tmp_path: Path) -> Path:
    top = tmp_path / "tree"
    (top / "usr/bin").mkdir(parents=True)
    (top / "usr/bin/sh").write_bytes(SHELL)
    (top / "usr/bin/sh").chmod(0o755)
    os.link(top / "usr/bin/sh", top / "usr/bin/dash")
    (top / "bin").symlink_to("usr/bin")
    (top / "dangling").symlink_to("/nowhere")
    (top / "name \udcff").write_bytes(b"not UTF-8")
    (top / "sticky").mkdir()
    (top / "sticky").chmod(0o1777)
    if IS_ROOT:
        os.chown(top / "sticky", 1234, 4321)
    os.mkfifo(top / "fifo")
    return top


def test_a_directory_is_copied(farm: Farm, tree_directory: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(os.path.relpath(tree_directory / "socket"))
    listener.close()
    root = farm.build(directory=tree_directory) / "root"
    assert (root / "usr/bin/dash").samefile(root / "usr/bin/sh")
    assert os.readlink(root / "dangling") == "/nowhere"
    assert (root / "name \udcff").read_bytes() == b"not UTF-8"
    sticky = (root / "sticky").stat()
    assert stat.S_IMODE(sticky.st_mode) == 0o1777
    assert (sticky.st_uid, sticky.st_gid) == ((1234, 4321) if IS_ROOT else (os.geteuid(), os.getegid()))
    assert stat.S_ISFIFO((root / "fifo").stat().st_mode)
    assert not (root / "socket").exists()
    assert not (root / "usr/bin/sh").samefile(tree_directory / "usr/bin/sh")


def test_a_directory_that_changed_is_copied_anew(farm: Farm, tree_directory: Path) -> None:
    farm.build("one", directory=tree_directory)
    farm.build("two", directory=tree_directory)
    assert any("from cache" in sentence for sentence in farm.said)
    (tree_directory / "usr/bin/more").touch()
    assert (farm.build("three", directory=tree_directory) / "root/usr/bin/more").exists()


def test_a_directory_that_holds_the_environments_is_refused(farm: Farm, tarball: Callable[..., Path]) -> None:
    farm.build("one", tarball=tarball())
    for directory in (Path("/"), farm.home, farm.environments, farm.home / "environments/.."):
        assert "holds the environments themselves" in farm.refused("two", directory=directory)
    assert "there is no such directory" in farm.refused("two", directory=farm.home / "none")
    assert (farm.build("two", directory=farm.environments / "one/root") / "root/usr/bin/later").exists()


def test_a_fingerprint_follows_no_link_and_sees_what_matters(tree_directory: Path) -> None:
    first = tree.fingerprint(tree_directory)
    assert tree.fingerprint(tree_directory) == first
    (tree_directory / "sticky").chmod(0o755)
    second = tree.fingerprint(tree_directory)
    (tree_directory / "dangling").unlink()
    (tree_directory / "dangling").symlink_to("/elsewhere")
    assert len({first, second, tree.fingerprint(tree_directory)}) == 3


# --- removing


def test_remove_takes_all_of_one_environment(farm: Farm, tarball: Callable[..., Path]) -> None:
    path = tarball()
    farm.build("one", tarball=path)
    farm.build("two", tarball=path)
    remove(farm.home, "one")
    assert farm.names() == ["two"]
    with pytest.raises(UserError, match="no built environment 'one'"):
        remove(farm.home, "one")


def test_remove_follows_no_link(farm: Farm, tmp_path: Path, tarball: Callable[..., Path]) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").touch()
    place = farm.build("e", tarball=tarball())
    (place / "root/link").symlink_to(precious)
    (farm.environments / "linked").symlink_to(precious)
    with pytest.raises(UserError, match="a symbolic link"):
        remove(farm.home, "linked")
    remove(farm.home, "e")
    assert (precious / "file").exists()


def test_mounts_are_found(tmp_path: Path) -> None:
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_text(
        "22 1 0:20 / / rw - ext4 /dev/vda rw\n"
        f"23 22 0:21 / {tmp_path}/e/root/proc rw - proc proc rw\n"
        f"24 22 0:22 / {tmp_path}/e/a\\040b rw - tmpfs tmpfs rw\n"
        f"25 22 0:23 / {tmp_path}/early rw - tmpfs tmpfs rw\n"
    )
    assert tree.mounts_below(tmp_path / "e", mountinfo) == [f"{tmp_path}/e/a b", f"{tmp_path}/e/root/proc"]
    assert tree.mounts_below(tmp_path / "e/root/proc", mountinfo) == [f"{tmp_path}/e/root/proc"]
    assert tree.mounts_below(tmp_path / "e/root/usr", mountinfo) == []


@pytest.mark.skipif(not IS_ROOT, reason="mounting takes root")
def test_remove_refuses_where_something_is_mounted(farm: Farm, tarball: Callable[..., Path]) -> None:
    place = farm.build("e", tarball=tarball())
    script = (
        f"mount -t tmpfs none {place}/root/proc || exit 77; touch {place}/root/proc/precious;"
        f' python3=$0; "$python3" -c "$1" 2>&1; ls {place}/root/proc'
    )
    program = (
        "import sys; from pathlib import Path; from biruda.coordinator.envbuild import remove\n"
        f"try: remove(Path({str(farm.home)!r}), 'e')\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    lines: list[str] = []
    argv = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, sys.executable, program]
    env = {"PATH": SEARCH_PATH, "PYTHONPATH": str(Path(__file__).parents[2])}
    status = run_tool(argv, env, lambda line: lines.append(line.rstrip()))
    if status in (1, 77) and len(lines) == 1:
        pytest.skip(f"this kernel forbids mounting: {lines}")
    assert lines == [
        f"UserError {place}/root/proc: something is mounted there: nothing is removed",
        "precious",
    ]
    assert farm.names() == ["e"]


# --- suites, with tools that are small scripts


@pytest.fixture
def tools(tmp_path: Path) -> Callable[..., str]:
    """Make programs by name from shell text; the search path on which only they and the shell's own are found."""
    directory = tmp_path / "tools"
    directory.mkdir()
    for name in ("cat", "cp", "env", "mkdir", "sh", "sleep", "tar", "touch", "true"):
        found = shutil.which(name, path=SEARCH_PATH)
        assert found
        (directory / name).symlink_to(found)

    def make(**scripts: str) -> str:
        for name, text in scripts.items():
            (directory / name.replace("_", "-")).write_text(f"#!/bin/sh\n{text}\n")
            (directory / name.replace("_", "-")).chmod(0o755)
        return str(directory)

    return make


FIND_ARCHIVE = 'for word; do case $word in */tree.tar) archive=$word;; esac; done; printf "%s\\n" "$@" >> "$LOG"\n'


def fake_mmdebstrap(tmp_path: Path, before: str = "") -> str:
    """A mmdebstrap that gives the small tree."""
    (tmp_path / "small.tar").write_bytes(tar_bytes(SMALL))
    log = tmp_path / "argv"
    return f"LOG={log}; {FIND_ARCHIVE}{before}\ncp {tmp_path}/small.tar $archive"


SPEAK = """
echo 'I: running apt-get update...'
echo 'Get:1 http://mirror/debian bookworm InRelease [151 kB]'
echo '0 upgraded, 69 newly installed, 0 to remove and 0 not upgraded.'
echo 'W: something odd' >&2
"""


@pytest.mark.skipif(not IS_ROOT, reason="without root the tool needs a range of user numbers")
def test_a_suite_is_built_once(farm: Farm, tmp_path: Path, tools: Callable[..., str]) -> None:
    path = tools(
        mmdebstrap=fake_mmdebstrap(tmp_path, SPEAK), apt_config="""echo 'Acquire::http::Proxy "http://p:1";'"""
    )
    options: dict[str, Any] = {"suite": "bookworm", "mirror": "http://mirror/debian", "search_path": path}
    farm.build("one", include=["b", "a"], **options)
    assert farm.said[:4] == [
        f"building bookworm {HOST_ARCH} (buildd) with a b",
        "reading the lists of packages",
        "fetching 69 packages",
        "warning: something odd",
    ]
    argv = (tmp_path / "argv").read_text().splitlines()
    assert "--include=a,b" in argv
    assert '--aptopt=Acquire::http::Proxy "http://p:1"' in argv
    assert argv[-1] == "http://mirror/debian"
    farm.build("two", include=["a", "b"], **options)
    assert any("from cache" in sentence for sentence in farm.said)
    farm.build("three", **options)
    assert not any("from cache" in sentence for sentence in farm.said)
    assert f"from bookworm {HOST_ARCH} (buildd)" in (farm.environments / "three/environment.toml").read_text()


MIRROR_OUT_OF_STEP = """
case "$*" in *-security*)
    echo 'Get:1 http://mirror/debian bookworm InRelease [151 kB]'
    echo 'Err:6 http://mirror/debian-security bookworm-security/main amd64 Packages'
    echo '  File has unexpected size (1 != 2). Mirror sync in progress? [IP: 192.0.2.1 80]'
    echo 'E: Some index files failed to download.'
    exit 25;;
esac
"""


@pytest.mark.skipif(not IS_ROOT, reason="without root the tool needs a range of user numbers")
def test_a_suite_is_built_without_a_pocket_whose_index_is_broken(
    farm: Farm, tmp_path: Path, tools: Callable[..., str], etc: Path
) -> None:
    (etc / "apt/sources.list").write_text(
        "deb http://mirror/debian bookworm main\ndeb http://mirror/debian-security bookworm-security main\n"
    )
    options: dict[str, Any] = {"suite": "bookworm", "etc": etc}
    options["search_path"] = tools(mmdebstrap=fake_mmdebstrap(tmp_path, MIRROR_OUT_OF_STEP))
    place = farm.build("one", **options)
    why = "File has unexpected size (1 != 2). Mirror sync in progress?"
    assert f"bookworm-security cannot be read from the mirror ({why}): building without it" in farm.said
    assert "without bookworm-security" in (place / "environment.toml").read_text()
    farm.build("two", **options)
    assert any("from cache" in sentence for sentence in farm.said)
    tools(mmdebstrap=fake_mmdebstrap(tmp_path))
    place = farm.build("three", **options)
    assert "without" not in (place / "environment.toml").read_text()


@pytest.mark.skipif(not IS_ROOT, reason="without root the tool needs a range of user numbers")
@pytest.mark.parametrize(
    ("says", "message", "hint"),
    [
        ("E: Unable to locate package nope", "E: Unable to locate package nope", "has no package nope"),
        ("E: x NO_PUBKEY 123", "E: x NO_PUBKEY 123", "give the file with the keys by --keyring"),
        ("No space left on device", "No space left on device", "make room"),
        ("E: The repository 'http://m nope Release' does not have a Release file.", "Release file.", "--mirror URL"),
        ("only this", "only this", ""),
    ],
)
def test_a_failed_tool_is_quoted(farm: Farm, tools: Callable[..., str], says: str, message: str, hint: str) -> None:
    path = tools(mmdebstrap=f'echo "{says}"; exit 25')
    said = farm.refused(suite="bookworm", mirror="http://mirror/debian", search_path=path)
    assert said.startswith(f"mmdebstrap cannot build bookworm {HOST_ARCH} (exit status 25):\n  ")
    assert message in said
    assert hint in said
    assert farm.names() == []


@pytest.mark.skipif(not IS_ROOT, reason="debootstrap takes root")
def test_debootstrap_does_where_there_is_nothing_better(farm: Farm, tmp_path: Path, tools: Callable[..., str]) -> None:
    (tmp_path / "small.tar").write_bytes(tar_bytes(SMALL[:-1]))
    script = f"""
        for word; do case $word in */debootstrap) directory=$word;; esac; done
        echo "I: Retrieving libc6"; mkdir "$directory"; tar -C "$directory" -xf {tmp_path}/small.tar"""
    path = tools(debootstrap=script)
    place = farm.build(suite="bookworm", mirror="http://mirror/debian", search_path=path)
    assert "fetching packages" in farm.said
    assert (place / "root/usr/bin/later").exists()


@pytest.mark.skipif(not IS_ROOT, reason="debootstrap takes root")
@pytest.mark.parametrize("tool", ["mmdebstrap", "debootstrap"])
def test_a_keyring_is_given_to_the_tool(
    farm: Farm, tmp_path: Path, tools: Callable[..., str], tool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("keys.gpg").touch()
    path = tools(**{tool: 'for word; do case $word in --keyring=*) echo "E: $word"; exit 1;; esac; done'})
    options = {"suite": "jammy", "mirror": "http://mirror/ubuntu", "search_path": path}
    assert f"E: --keyring={tmp_path}/keys.gpg" in farm.refused(**options, keyring=Path("keys.gpg"))


def test_without_a_tool_the_line_to_install_one_is_named(farm: Farm, tools: Callable[..., str]) -> None:
    said = farm.refused(suite="bookworm", mirror="http://mirror/debian", search_path=tools())
    assert said.endswith("and neither is installed | apt-get install mmdebstrap")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"suite": "../x"}, "cannot be the name of a suite"),
        ({"suite": "-x"}, "cannot be the name of a suite"),
        ({"suite": "bookworm", "include": ["--x"]}, "cannot be the name of a package"),
        ({"suite": "bookworm", "mirror": "copy:///x"}, "cannot be a mirror"),
        ({"suite": "bookworm", "keyring": Path("/no/keys.gpg")}, "/no/keys.gpg: there is no keyring that can be read"),
        ({"suite": "bookworm", "variant": "tiny"}, "there is no variant 'tiny'"),
        ({"suite": "bookworm", "arch": "s390x"}, "cannot run programs for s390x"),
    ],
)
def test_what_no_suite_can_be_is_refused(farm: Farm, options: dict[str, Any], why: str) -> None:
    assert why in farm.refused(**options)


def test_an_architecture_runs_natively_or_by_a_handler(tmp_path: Path) -> None:
    told: list[str] = []

    def check(arch: str, host_arch: str) -> None:
        check_arch(arch, host_arch, told.append, directory=str(tmp_path))

    check("amd64", "amd64")
    check("i386", "amd64")
    with pytest.raises(UserError, match="cannot run programs for amd64"):
        check("amd64", "i386")
    (tmp_path / "register").touch()
    with pytest.raises(UserError, match="qemu-aarch64 is not registered") as caught:
        check("arm64", "amd64")
    assert "--emulate" in caught.value.hint
    (tmp_path / "qemu-aarch64").write_text("disabled\ninterpreter /usr/bin/qemu-aarch64-static\nflags: OCF\n")
    with pytest.raises(UserError, match="but disabled"):
        check("arm64", "amd64")
    (tmp_path / "qemu-aarch64").write_text("enabled\ninterpreter /usr/bin/qemu-aarch64-static\nflags: OCF\n")
    check("arm64", "amd64")
    assert told == []


# --- what this host's apt knows

DEBIAN_SOURCES = """\
# comment
Types: deb deb-src
URIs: http://mirror.example/debian/
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc

Enabled: no
Types: deb
URIs: http://off.example/debian
Suites: bookworm
Components: main
"""


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    directory = tmp_path / "etc"
    (directory / "apt/sources.list.d").mkdir(parents=True)
    (directory / "os-release").write_bytes(OS_RELEASE)
    return directory


def test_the_sources_of_the_host_are_used_for_its_distribution(etc: Path) -> None:
    (etc / "apt/sources.list.d/debian.sources").write_text(DEBIAN_SOURCES)
    (etc / "apt/sources.list.d/other.list").write_text(
        "deb https://download.other.example/linux/debian bookworm stable\n"
        "deb [arch=amd64 signed-by=/etc/x.gpg] https://vendor.example bookworm main\n"
    )
    (etc / "apt/sources.list.d/off.sources.disabled").write_text(DEBIAN_SOURCES)
    keyring = "[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] "

    def lines(suite: str, arch: str = "amd64") -> list[str]:
        return [str(source) for source in host_sources(suite, arch, "amd64", etc)]

    assert lines("bookworm") == [
        f"deb {keyring}http://mirror.example/debian/ bookworm main contrib",
        f"deb {keyring}http://mirror.example/debian/ bookworm-updates main contrib",
        "deb http://mirror.example/debian-security bookworm-security main",
    ]
    assert lines("trixie", "arm64")[2] == "deb http://mirror.example/debian-security trixie-security main"
    assert lines("sid") == [f"deb {keyring}http://mirror.example/debian/ sid main contrib"]
    assert lines("noble") == []


def test_sources_of_one_line_and_of_another_distribution(etc: Path) -> None:
    (etc / "apt/sources.list").write_text(
        "# deb http://commented.example/ubuntu noble main\n"
        "deb [ arch=amd64 ] http://mirror.example/ubuntu noble main universe # why not\n"
        "deb-src http://mirror.example/ubuntu noble main\n"
        "deb cdrom:[Ubuntu]/ubuntu noble main\n"
    )
    assert host_sources("noble", "amd64", "amd64", etc) == ()
    (etc / "os-release").write_text("ID=ubuntu\nVERSION_CODENAME=noble\n")
    assert [str(source) for source in host_sources("noble", "amd64", "amd64", etc)] == [
        "deb http://mirror.example/ubuntu noble main universe"
    ]
    assert host_sources("noble", "arm64", "amd64", etc) == ()
    assert host_sources("bookworm", "amd64", "amd64", etc) == ()
    assert host_sources("noble", "amd64", "amd64", etc / "none") == ()


def test_the_options_of_the_hosts_apt(tools: Callable[..., str]) -> None:
    dump = (
        'APT::Architecture "amd64";\nAcquire::http::Proxy "http://p:1";\nAcquire::http::Proxy::host "DIRECT";\n'
        'Acquire::https "";\nAcquire::Check-Valid-Until "false";\nAcquire::Languages "none";\n'
    )
    found = host_apt_options(Tools(search_path=tools(apt_config=f"cat <<'END'\n{dump}END")))
    assert found == (
        'Acquire::http::Proxy "http://p:1"',
        'Acquire::http::Proxy::host "DIRECT"',
        'Acquire::Check-Valid-Until "false"',
    )
    assert host_apt_options(Tools(search_path="/nowhere")) == ()


# --- running tools


def test_a_tool_sees_only_the_environment_built_for_it(tools: Callable[..., str]) -> None:
    lines: list[str] = []
    runner = Tools(search_path=tools(), proxies={"http_proxy": "http://p:1"})
    assert runner.run(["env"], {"A": "1"}, lambda line: lines.append(line.rstrip())) == 0
    names = {line.partition("=")[0] for line in lines}
    assert names <= {"PATH", "LC_ALL", "HOME", "http_proxy", "A", "PWD", "SHLVL", "_"}


def test_the_exit_status_of_a_tool(tools: Callable[..., str]) -> None:
    env = {"PATH": tools()}
    assert run_tool(["sh", "-c", "exit 3"], env, print) == 3
    assert run_tool(["sh", "-c", "kill -9 $$"], env, print) == 137
    with pytest.raises(UserError, match="nosuch: cannot be started"):
        run_tool(["nosuch"], env, print)


def test_a_tool_ends_when_its_listener_raises(tools: Callable[..., str], tmp_path: Path) -> None:
    def stop(line: str) -> None:
        (tmp_path / "pid").write_text(line)
        raise Stop

    with pytest.raises(Stop):
        run_tool(["sh", "-c", "echo $$; exec sleep 600"], {"PATH": tools()}, stop)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_what_unshare_mode_lacks_is_named(tools: Callable[..., str], tmp_path: Path) -> None:
    def lacking(runner: Tools) -> str:
        with pytest.raises(UserError) as caught:
            runner.check_unshare_mode(tmp_path / "subuid", tmp_path)
        return str(caught.value)

    runner = Tools(search_path=tools())
    assert "newuidmap is not installed" in lacking(runner)
    tools(newuidmap="")
    assert "has no range of user numbers" in lacking(runner)
    for name in ("subuid", "subgid"):
        (tmp_path / name).write_text(f"{os.geteuid()}:100000:65536\n")
    runner.check_unshare_mode(tmp_path / "subuid", tmp_path)
    (tmp_path / "user").mkdir()
    (tmp_path / "user/max_user_namespaces").write_text("0\n")
    assert "forbid user namespaces" in lacking(runner)


# --- the real thing


@pytest.mark.system
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_real_suite(farm: Farm) -> None:
    if not IS_ROOT:
        pytest.skip("building a chroot that can be entered takes root")
    if not Tools().find("mmdebstrap"):
        pytest.skip("mmdebstrap is not installed")
    try:
        place = farm.build("deb12", suite="bookworm", arch="amd64", variant="minbase")
    except UserError as error:
        if "Could not resolve" in str(error) or "Could not connect" in str(error):
            pytest.skip(f"no mirror can be reached: {error}")
        raise
    root = place / "root"
    facts = guess(root)
    assert (facts.arch, facts.platform) == ("amd64", "debian12")
    assert os.listdir(root / "dev") == []
    assert not (root / "etc/apt/apt.conf.d/99mmdebstrap").exists()
    assert tree.mounts_below(farm.home) == []
    lines: list[str] = []
    status = run_tool(["chroot", str(root), "dpkg", "--audit"], {"PATH": SEARCH_PATH}, lines.append)
    assert (status, lines) == (0, [])
    again = farm.build("again", suite="bookworm", arch="amd64", variant="minbase")
    assert any("from cache" in sentence for sentence in farm.said)
    assert tree_of(again / "root") == tree_of(root)
    remove(farm.home, "deb12")
    assert farm.names() == ["again"]


def tree_of(root: Path) -> list[tuple[str, int, int, int, int]]:
    """Name, mode, owners and size of everything in a tree."""
    found = [(path, path.lstat()) for path in sorted(root.rglob("*"))]
    return [
        (str(path.relative_to(root)), seen.st_mode, seen.st_uid, seen.st_gid, 0 if path.is_dir() else seen.st_size)
        for path, seen in found
    ]
