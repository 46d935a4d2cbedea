"""Making an environment: something to pack, a cache of what was packed, and a tree unpacked from there.

Whatever a tree is made from, it is packed first and unpacked then: an environment from the cache and a new one are made
by the same steps, and a second one takes seconds.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Final, Protocol

from biruda.coordinator.envbuild import container, machine, tree
from biruda.coordinator.envbuild import kernel as kernels
from biruda.coordinator.envbuild import suite as suites
from biruda.coordinator.envbuild.shelf import Built, Shelf, exists
from biruda.coordinator.envbuild.sources import Source, host_sources
from biruda.coordinator.envbuild.suite import Progress, Suite, Unreadable
from biruda.coordinator.envbuild.tools import SEARCH_PATH, Run, Tools, run_tool
from biruda.errors import UserError
from biruda.guessenv import Guess, canonical_arch, guess
from biruda.model import Kind

_FORMAT: Final = 1  # of what is in the cache: another number forgets all of it
_MOUNT_POINTS: Final = ("dev", "proc", "sys", "tmp")  # a spawner cannot make them in a tree it never writes to
_PACKAGE: Final = re.compile(r"[a-z0-9][a-z0-9.+-]*(?::[a-z0-9]+)?")
_SUITE: Final = re.compile(r"[a-z0-9][a-z0-9.-]*")
_MIRROR: Final = re.compile(r"(?:https?|file)://\S+")


class Origin(Protocol):
    """What a tree is made from."""

    @property
    def about(self) -> str:
        """It, for people."""

    def key(self) -> str:
        """The name of the packed tree in the cache: the same for the same content."""

    def pack(self, archive: Path, work: Path, progress: Progress) -> None:
        """Write the packed tree. Raises UserError, OSError, Unreadable."""


def build(
    home: Path,
    name: str,
    *,
    kind: Kind,
    suite: str | None = None,
    arch: str | None = None,
    include: Sequence[str] = (),
    tarball: Path | None = None,
    directory: Path | None = None,
    mirror: str | None = None,
    keyring: Path | None = None,
    variant: str = "buildd",
    replace: bool = False,
    fresh: bool = False,
    emulate: bool = False,
    kernel: Path | None = None,
    image: str | None = None,
    docker: str = "",
    proxies: Mapping[str, str] | None = None,
    progress: Progress,
    run: Run = run_tool,
    search_path: str = SEARCH_PATH,
    etc: Path = Path("/etc"),
) -> Path:
    """HOME/environments/NAME, made from a suite, a tarball or a directory, with `root` and environment.toml in it.

    `run` starts programs, `search_path` is where they are, `etc` tells of this host's distribution and its sources. The
    same content is packed once and kept; `fresh` packs it again. `emulate` registers an emulator for a foreign arch.
    Of kind qemu there is an image of the root instead, and a kernel: `kernel`, or that of the suite. Of kind docker the
    root is an image in the care of the daemon at the socket `docker`, which may also be had by name: `image`.
    Progress is told in short sentences; an exception that it raises ends the build. Raises UserError; then nothing new
    is left but what may be in the cache.
    """
    shelf = Shelf(home / "environments")
    place = shelf.place(name)
    if kind not in (Kind.CHROOT, Kind.QEMU, Kind.DOCKER):
        raise UserError(f"an environment of kind {kind} has no root tree to build", hint="build one of kind chroot")
    if [suite, tarball, directory, image].count(None) != 3:
        more = ", a directory and an image" if kind is Kind.DOCKER else " and a directory"
        raise UserError(f"an environment is built from exactly one of a suite, a tarball{more}")
    if image is not None and kind is not Kind.DOCKER:
        raise UserError(f"an image is for an environment of kind docker, not {kind}")
    if os.path.lexists(place):
        if not replace:
            raise exists(name)
        tree.check_nothing_mounted(place)
    arch = canonical_arch(arch) or arch if arch else None
    tools = Tools(run_with=run, search_path=search_path, proxies=proxies or {})
    if kind is Kind.QEMU:
        machine.check_tools(tools)
    try:
        origin: Origin
        if image is not None:
            return _install_image(shelf, name, image, docker, progress, replace=replace, fresh=fresh)
        if suite is not None:
            wanted = _suite(suite, arch, include, keyring, variant)
            origin = _suite_origin(wanted, mirror, tools, etc, progress, emulate=emulate)
        elif tarball is not None:
            origin = Tarball(tarball)
        else:
            origin = Directory(directory or Path(), shelf.directory)
        with shelf.working() as work:
            made, about = _make(shelf, origin, arch, work, progress, fresh=fresh)
            settings = {"kind": "chroot", "root": "root"}
            if kind is Kind.QEMU:
                facts = guess(made / "root")
                if kernel is not None:
                    taken = kernels.given(kernel, work, progress)
                else:
                    order = _kernel_order(origin, made / "root", facts, mirror, etc)
                    taken = kernels.fetch(order, shelf, work, tools, progress, fresh=fresh)
                settings = machine.furnish(made, taken, facts, tools, progress)
            elif kind is Kind.DOCKER:
                settings = container.make(docker, home, name, made / "root", guess(made / "root"), work, progress)
            result = shelf.install(made, name, about, settings, replace=replace)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise UserError(f"{where}{(error.strerror or str(error)).lower()}: nothing was built") from error
    progress(f"environment {name} is ready")
    return result


def _install_image(
    shelf: Shelf, name: str, image: str, docker: str, progress: Progress, *, replace: bool, fresh: bool
) -> Path:
    settings, about = container.pull(docker, image, progress, fresh=fresh)
    with shelf.working() as work:
        made = work / "made"
        made.mkdir()
        result = shelf.install(made, name, about, settings, replace=replace)
    progress(f"environment {name} is ready")
    return result


def remove(home: Path, name: str) -> str:
    """Remove a built environment; the container image that was made for it, "" for none, which is still there.

    Raises UserError: no such name, a link, or something is mounted in it.
    """
    shelf = Shelf(home / "environments")
    image = container.image_of(shelf.place(name))
    try:
        shelf.remove(name)
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be removed: {(error.strerror or '').lower()}") from error
    return image


def listing(home: Path) -> tuple[Built, ...]:
    """The built environments of a home by name."""
    return tuple(Shelf(home / "environments").listing())


def _make(
    shelf: Shelf, origin: Origin, arch: str | None, work: Path, progress: Progress, *, fresh: bool
) -> tuple[Path, str]:
    """A directory with a good tree in `root`, and a sentence about it."""
    made = work / "made"
    cached = shelf.cached(origin.key())
    if cached.exists() and not fresh:
        day = datetime.fromtimestamp(cached.stat().st_mtime, UTC).date()
        progress(f"from cache, built {day}")
        try:
            _unpack(cached, made, origin.about, progress)
        except tree.DamagedArchive:
            progress("what the cache holds is damaged: building anew")
            tree.remove(made)
        else:
            shelf.used(cached)
            return made, _about(origin, _checked(made / "root", arch, progress), day)
    archive = work / "tree.tar.zst"
    try:
        origin.pack(archive, work, progress)
    except Unreadable as failed:
        without = " and ".join(failed.without)
        progress(f"{without} cannot be read from the mirror ({failed}): building without it")
        return _make(shelf, _without(origin, failed), arch, work, progress, fresh=fresh)
    _unpack(archive, made, origin.about, progress)
    facts = _checked(made / "root", arch, progress)
    shelf.keep(archive, origin.key())
    return made, _about(origin, facts, datetime.now(UTC).date())


def _unpack(archive: Path, made: Path, name: str, progress: Progress) -> None:
    progress("unpacking the tree")
    made.mkdir()
    left_out = tree.unpack(archive, made / "root", name)
    if left_out:
        progress(f"{left_out} device nodes left out: a worker sees a /dev of its own")
    _flatten(made / "root")
    for name in _MOUNT_POINTS:
        if not os.path.lexists(made / "root" / name):
            (made / "root" / name).mkdir()
            (made / "root" / name).chmod(0o1777 if name == "tmp" else 0o755)


def _flatten(root: Path) -> None:
    """Take the tree out of the single directory in which some archives have it."""
    names = os.listdir(root)
    inner = root / names[0] if len(names) == 1 else root
    if inner is root or inner.is_symlink() or not inner.is_dir() or inner.name in ("usr", "bin", "etc", "opt"):
        return
    if any(os.path.lexists(inner / name) for name in ("usr", "bin", "etc")):
        inner.rename(root.with_name("inner"))
        root.rmdir()
        root.with_name("inner").rename(root)


def _checked(root: Path, arch: str | None, progress: Progress) -> Guess:
    """What the tree is; UserError where it is empty or not what was asked for."""
    if set(os.listdir(root)) <= set(_MOUNT_POINTS):
        raise UserError("there is nothing in it: an environment needs a root tree with programs")
    facts = guess(root)
    if arch and facts.arch != arch:
        raise UserError(f"asked for {arch}, but the tree is for {facts.arch}: {'; '.join(facts.evidence[:2])}")
    if not os.path.lexists(root / "bin/sh"):
        progress("warning: it has no /bin/sh, so steps that are lines of shell cannot run in it")
    progress(f"it is {facts.arch} {facts.platform}, {facts.libc}")
    return facts


def _about(origin: Origin, facts: Guess, day: date) -> str:
    text = f"{facts.arch} {facts.platform}, made on {day} from {origin.about}"
    return re.sub(r"[\s\0-\x1f\x7f]+", " ", text).encode("utf-8", "replace").decode()  # one line of a TOML comment


def _digest(*facts: object) -> str:
    return hashlib.sha256(json.dumps([_FORMAT, *facts]).encode()).hexdigest()[:24]


@dataclass(frozen=True, slots=True)
class Tarball:
    """A tar archive, compressed or not."""

    path: Path

    @property
    def about(self) -> str:
        return f"the tarball {self.path}"

    def key(self) -> str:
        """By its bytes."""
        with self.path.open("rb") as file:
            return f"tarball-{_digest(hashlib.file_digest(file, 'sha256').hexdigest())}"

    def pack(self, archive: Path, work: Path, progress: Progress) -> None:
        """Compress it as everything in the cache is."""
        progress(f"reading {self.path.name}")
        tree.recompress(self.path, archive)


@dataclass(frozen=True, slots=True)
class Directory:
    """A directory that holds a root tree."""

    path: Path
    shelf: Path

    @property
    def about(self) -> str:
        return f"the directory {self.path}"

    def key(self) -> str:
        """By the names, modes, owners, sizes and times of all in it."""
        self._check()
        return f"directory-{_digest(tree.fingerprint(self.path))}"

    def _check(self) -> None:
        top = os.path.realpath(self.path)
        if not os.path.isdir(top):
            raise UserError(f"{self.path}: there is no such directory")
        if top == "/" or os.path.realpath(self.shelf).startswith(f"{top}/") or top == os.path.realpath(self.shelf):
            raise UserError(f"{self.path}: holds the environments themselves and cannot become one of them")
        if mounts := tree.mounts_below(self.path):
            raise UserError(f"{mounts[0]}: something is mounted there and would be copied", hint=f"umount {mounts[0]}")

    def pack(self, archive: Path, work: Path, progress: Progress) -> None:
        """Copy it, links and owners kept."""
        progress(f"copying {self.path}")
        if left_out := tree.pack(Path(os.path.realpath(self.path)), archive):
            progress(f"{left_out} device nodes and sockets left out")


@dataclass(frozen=True, slots=True)
class SuiteOrigin:
    """A suite of a distribution, from certain sources."""

    suite: Suite
    sources: tuple[Source, ...]
    tools: Tools
    without: tuple[str, ...] = ()

    @property
    def about(self) -> str:
        packages = f" with {' '.join(self.suite.include)}" if self.suite.include else ""
        missing = f", without {' '.join(self.without)}" if self.without else ""
        return f"{self.suite} ({self.suite.variant}){packages}{missing}"

    def key(self) -> str:
        """By what was asked for, whatever the date."""
        wanted = self.suite
        digest = _digest(wanted.name, wanted.arch, wanted.include, wanted.variant, [str(each) for each in self.sources])
        return f"{wanted.name}-{wanted.arch}-{digest}"

    def pack(self, archive: Path, work: Path, progress: Progress) -> None:
        """Have it made by the tool that is there."""
        progress(f"building {self.about}")
        suites.fetch(self.suite, self.sources, archive, work, self.tools, progress)


def _without(origin: Origin, failed: Unreadable) -> Origin:
    assert isinstance(origin, SuiteOrigin)
    return replace(origin, sources=failed.sources, without=failed.without)


def _kernel_order(origin: Origin, root: Path, facts: Guess, mirror: str | None, etc: Path) -> kernels.KernelOrder:
    """The kernel that goes with a tree: of its own suite, from where its packages came."""
    if isinstance(origin, SuiteOrigin):
        suite, sources = origin.suite.name, origin.sources
    else:
        suite = machine.suite_of(root, facts)
        sources = (Source(uri=mirror),) if mirror else host_sources(suite, facts.arch, facts.arch, etc)
    digest = _digest(suite, facts.arch, [str(each) for each in sources])
    return kernels.KernelOrder(suite=suite, arch=facts.arch, sources=sources, digest=digest)


def _suite(name: str, arch: str | None, include: Sequence[str], keyring: Path | None, variant: str) -> Suite:
    if not _SUITE.fullmatch(name):
        raise UserError(f"{name!r} cannot be the name of a suite", hint="such as bookworm, trixie or noble")
    wrong = [package for package in include if not _PACKAGE.fullmatch(package)]
    if wrong:
        raise UserError(f"{wrong[0]!r} cannot be the name of a package")
    if variant not in suites.VARIANTS:
        raise UserError(f"there is no variant {variant!r}", hint=f"one of {', '.join(suites.VARIANTS)}")
    if keyring is not None and not os.access(keyring, os.R_OK):
        raise UserError(f"{keyring}: there is no keyring that can be read")
    own = guess("/").arch  # of a 32-bit system under a 64-bit kernel, the system's
    return Suite(
        name=name,
        arch=arch or (_host_arch() if own == "unknown" else own),
        include=tuple(sorted(set(include))),
        variant=variant,
        keyring=os.path.abspath(keyring) if keyring is not None else "",
    )


def _host_arch() -> str:
    kernel = os.uname().machine
    return canonical_arch(kernel) or kernel


def _suite_origin(
    suite: Suite, mirror: str | None, tools: Tools, etc: Path, progress: Progress, *, emulate: bool
) -> SuiteOrigin:
    if mirror is not None and not _MIRROR.fullmatch(mirror):
        raise UserError(f"{mirror!r} cannot be a mirror", hint="such as http://deb.debian.org/debian")
    host_arch = _host_arch()
    suites.check_arch(suite.arch, host_arch, progress, emulate=emulate)
    sources = host_sources(suite.name, suite.arch, host_arch, etc) if mirror is None else (Source(uri=mirror),)
    return SuiteOrigin(suite, sources, tools)
