"""The guess that executes nothing, and the key that says whether it has to be made again."""

import os
import stat

from biruda.guessenv.answer import Guess
from biruda.guessenv.names import NARROW, UNKNOWN, plain
from biruda.guessenv.packages import APK, APK_ARCH, DPKG, DPKG_SPLIT, RPM_PLATFORM, Database, read_database
from biruda.guessenv.programs import ARM_EITHER, LIBRARIES, LINKERS, Program, glibc_version, libc_kind, read_program
from biruda.guessenv.systems import OS_RELEASE, RELEASE_FILES, identify
from biruda.guessenv.tree import Tree

PROGRAMS = (
    "/bin/sh",
    "/bin/busybox",
    "/usr/bin/env",
    "/usr/bin/sh",
    "/bin/bash",
    "/bin/ls",
    "/sbin/init",
    "/init",
    "/lib/systemd/systemd",
    "/usr/lib/systemd/systemd",
    "/bin/toybox",
    "/system/bin/sh",
)

_SCRIPTS = 4  # a script of a script of ...; the kernel allows as many
_REFUSALS_SHOWN = 16

_WIDE = {*NARROW, "ppc64el", "arm64be", "loong64", "ia64", "alpha"}
_TELLING_ARM_LINKERS = (("armhf", "armhf"), ("ld-linux.so.3", "armel"), ("ld-musl-arm.so", "armel"))

_WATCHED = (
    *PROGRAMS,
    *LINKERS,
    *LIBRARIES,
    *RELEASE_FILES,
    DPKG,
    DPKG_SPLIT,
    *APK,
    APK_ARCH,
    RPM_PLATFORM,
    "/var/lib/rpm",
    "/var/lib/rpm/Packages",
    "/var/lib/rpm/rpmdb.sqlite",
    "/usr/lib/sysimage/rpm",
    "/usr/lib/sysimage/rpm/rpmdb.sqlite",
    "/var/lib/pacman/local",
    "/var/lib/xbps",
    "/var/db/pkg",
    "/var/lib/pkgtools/packages",
    "/nix/var/nix/profiles/system",
    "/usr",
    "/usr/bin",
    "/usr/lib",
    "/usr/local/bin",
    "/opt",
)


def guess(root: str | os.PathLike[str] = "/") -> Guess:
    """What the root tree at this directory is; reads it and executes nothing of it.

    Whatever the tree holds, this ends soon, reads nothing outside it and answers "unknown" rather than raise.
    Raises FileNotFoundError or NotADirectoryError when root itself is no directory.
    """
    with Tree(os.fspath(root)) as tree:
        evidence: list[str] = []
        program = _deciding_program(tree, evidence)
        database = read_database(tree)
        arch = _arch(program, database, evidence)
        libc = _libc(tree, program, database, evidence)
        system = identify(tree)
        evidence.append(system.evidence if system else f"no {' or '.join(OS_RELEASE)} nor any older release file")
        evidence += tree.refused[:_REFUSALS_SHOWN]
    return Guess(
        arch=arch,
        platform=system.platform if system else UNKNOWN,
        libc=libc,
        bits=program.bits if program else _bits(arch),
        evidence=tuple(evidence),
        system_id=system.id if system else "",
        system_version=system.version if system else "",
        pretty_name=system.pretty_name if system else "",
    )


def fingerprint(root: str | os.PathLike[str] = "/") -> str:
    """A key of the tree's content, 64 hex digits: another one after packages or the system itself have changed.

    Of inode, mtime and size alone: of what guess() reads, the package databases, the directories that installing
    changes and those on the way. Raises as guess() does.
    """
    import hashlib  # here: dearer than a guess, which does not need it

    with Tree(os.fspath(root)) as tree:
        for path in _WATCHED:
            tree.find(path)
        top = os.stat(tree.root)
        lines = [f"/ {top.st_ino} {top.st_mtime_ns} {top.st_size}"]
        for (directory, name), found in tree.lstats.items():
            if found is not None:
                kind = stat.S_IFMT(found.st_mode)
                lines.append(f"{directory}/{name} {kind} {found.st_ino} {found.st_mtime_ns} {found.st_size}")
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def _deciding_program(tree: Tree, evidence: list[str]) -> Program | None:
    """The first dynamic program of a known machine: a static one may be a helper of another architecture."""
    seen: list[tuple[str, Program]] = []
    for path in PROGRAMS:
        found = _read_program(tree, path)
        if found is not None:
            seen.append(found)
            if found[1].interpreter and found[1].arch != UNKNOWN:
                break
    if not seen:
        linker = _linker(tree, evidence)
        if linker is not None:
            return linker
        evidence.append(f"no program to look at: {', '.join(PROGRAMS)} are missing or no ELF programs")
        return None
    where, program = min(seen, key=lambda found: (found[1].arch == UNKNOWN, not found[1].interpreter))
    for other_where, other in seen:
        if other.arch != program.arch:
            evidence.append(f"{plain(other_where)}: {other}, set aside for {plain(where)}")
    linked = f"interpreter {plain(program.interpreter)}" if program.interpreter else "statically linked"
    evidence.append(f"{plain(where)}: {program}, {linked} -> {program.arch}, {libc_kind(program.interpreter)}")
    if program.interpreter and tree.find(program.interpreter) is None:
        evidence.append(f"{plain(program.interpreter)}: missing here, so programs of this tree cannot start")
    return program


def _linker(tree: Tree, evidence: list[str]) -> Program | None:
    """A dynamic linker, as if it were a program that it links: for trees that hold nothing but an application."""
    for path in LINKERS:
        found = _read_program(tree, path)
        if found is not None and found[1].arch != UNKNOWN:
            program = found[1]
            program.interpreter = path
            kind = libc_kind(path)
            evidence.append(f"{path}: {program}, a dynamic linker, no program beside it -> {program.arch}, {kind}")
            return program
    return None


def _read_program(tree: Tree, path: str) -> tuple[str, Program] | None:
    """(where it lies, the program that runs when path is executed): scripts are followed to their interpreter."""
    for _ in range(_SCRIPTS):
        file = tree.open(path)
        if file is None:
            return None
        with file:
            program = read_program(file)
            if program is not None:
                return file.path, program
            first_line = file.read_at(0, 256).partition(b"\n")[0]
        words = first_line[2:].split()
        if not first_line.startswith(b"#!") or not words:
            return None
        path = os.fsdecode(words[0])
    return None


def _arch(program: Program | None, database: Database | None, evidence: list[str]) -> str:
    """The programs decide; the package database only where their headers do not tell."""
    recorded = database.arch if database else ""
    if database:
        evidence.append(database.sentence)
    if program is None or program.arch == UNKNOWN:
        return recorded or UNKNOWN
    arch = program.arch
    if arch == ARM_EITHER:
        linkers = [arch for part, arch in _TELLING_ARM_LINKERS if part in program.interpreter]
        arch = linkers[0] if linkers else recorded if recorded in ("armhf", "armel") else "armel"
        evidence.append(f"the ELF flags name no float ABI; the linker's name and the packages say {arch}")
    if recorded and recorded != arch:
        evidence.append(f"the packages are recorded as {recorded}, but the programs are {arch}: the programs decide")
    return arch


def _libc(tree: Tree, program: Program | None, database: Database | None, evidence: list[str]) -> str:
    recorded = database.libc if database else ""
    if program is None:
        return recorded or UNKNOWN
    kind = libc_kind(program.interpreter)
    if recorded and (kind == "none" or recorded.startswith(f"{kind} ")):
        return recorded  # a static shell beside an installed C library: that is what a build will use
    if kind == "glibc":
        version, sentence = glibc_version(tree, program.interpreter)
        if version:
            evidence.append(sentence)
            return f"glibc {version}"
    return kind


def _bits(arch: str) -> int:
    if arch == UNKNOWN:
        return 0
    return 64 if arch in _WIDE else 32
