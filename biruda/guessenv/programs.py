"""What a program says in its ELF header: architecture, width, dynamic linker; and by that linker, the C library."""

import os

from biruda.guessenv.names import UNKNOWN, plain, version_number
from biruda.guessenv.tree import File, Tree

_PT_INTERP = 3
_PROGRAM_HEADERS = 128  # read at most; real programs have a dozen
_PROGRAM_TYPES = (2, 3)  # ET_EXEC, ET_DYN: objects and core files are not run

_SIZES = {32: 52, 64: 64}  # of the file header, by width
_FLAGS_AT = {32: 36, 64: 48}
# where the program headers' offset and entry size stand in the file header (their count follows); where p_offset and
# p_filesz stand in a program header; how wide offsets are
_LAYOUT = {32: (28, 42, 4, 16, 4), 64: (32, 54, 8, 32, 8)}

_MIPS_N32 = 0x20
_ARM_SOFT_FLOAT, _ARM_HARD_FLOAT = 0x200, 0x400

ARM_EITHER = "arm"
"""32-bit little-endian ARM whose header names no float ABI: programs built before about 2012, and musl's."""

# e_machine -> (its name, {(bits, little-endian): architecture})
_MACHINES: dict[int, tuple[str, dict[tuple[int, bool], str]]] = {
    2: ("SPARC", {(32, False): "sparc"}),
    3: ("Intel 80386", {(32, True): "i386"}),
    4: ("Motorola 68000", {(32, False): "m68k"}),
    8: ("MIPS", {(32, False): "mips", (32, True): "mipsel", (64, False): "mips64eb", (64, True): "mips64el"}),
    15: ("PA-RISC", {(32, False): "hppa", (64, False): "hppa"}),
    18: ("SPARC32PLUS", {(32, False): "sparc"}),
    20: ("PowerPC", {(32, False): "powerpc"}),
    21: ("PowerPC64", {(64, True): "ppc64el", (64, False): "ppc64"}),
    22: ("IBM S/390", {(64, False): "s390x", (32, False): "s390"}),
    40: ("ARM", {(32, True): ARM_EITHER, (32, False): "armeb"}),
    42: ("SuperH", {(32, True): "sh4"}),
    43: ("SPARC V9", {(64, False): "sparc64"}),
    50: ("IA-64", {(64, True): "ia64"}),
    62: ("x86-64", {(64, True): "amd64", (32, True): "x32"}),
    92: ("OpenRISC", {(32, False): "or1k"}),
    183: ("AArch64", {(64, True): "arm64", (64, False): "arm64be", (32, True): "arm64ilp32"}),
    195: ("ARCv2", {(32, True): "arc"}),
    243: ("RISC-V", {(64, True): "riscv64", (32, True): "riscv32"}),
    258: ("LoongArch", {(64, True): "loong64"}),
    0x9026: ("Alpha", {(64, True): "alpha"}),
}

_NAME_STARTS = (
    ("ld-musl-", "musl"),
    ("ld-uClibc", "uclibc"),
    ("ld64-uClibc", "uclibc"),
    ("ld-linux", "glibc"),
    ("ld-lsb", "glibc"),
    ("ld64.so", "glibc"),  # 64-bit PowerPC and s390x
    ("ld.so.1", "glibc"),  # PowerPC, s390, MIPS
    ("linker", "bionic"),
    ("ld-elf.so", "freebsd"),
    ("ld.elf_so", "netbsd"),
)

LINKERS = (
    "/lib64/ld-linux-x86-64.so.2",
    "/lib/ld-linux.so.2",
    "/lib/ld-linux-aarch64.so.1",
    "/lib/ld-linux-armhf.so.3",
    "/lib/ld-linux.so.3",
    "/lib/ld-linux-riscv64-lp64d.so.1",
    "/lib64/ld64.so.2",
    "/lib/ld64.so.1",
    "/lib64/ld.so.1",
    "/lib/ld.so.1",
    "/lib64/ld-linux-loongarch-lp64d.so.1",
    "/libx32/ld-linux-x32.so.2",
    "/lib/ld-musl-x86_64.so.1",
    "/lib/ld-musl-i386.so.1",
    "/lib/ld-musl-aarch64.so.1",
    "/lib/ld-musl-armhf.so.1",
    "/lib/ld-musl-riscv64.so.1",
)
"""Where they are, for trees without any program of ours to look at."""

LIBRARIES = ("/lib64/libc.so.6", "/lib/libc.so.6", "/usr/lib64/libc.so.6", "/usr/lib/libc.so.6")
_BANNER = b" release version "  # in ld.so since 2.33 and in libc.so.6 always: "... stable release version 2.36."
_LIBRARY_BYTES = 8 << 20


class Program:
    """One ELF program, as its header describes it."""

    __slots__ = ("arch", "bits", "interpreter", "little_endian", "machine")

    def __init__(self, *, arch: str, bits: int, little_endian: bool, machine: str, interpreter: str) -> None:
        self.arch = arch  # canonical, ARM_EITHER or "unknown"
        self.bits = bits
        self.little_endian = little_endian
        self.machine = machine
        self.interpreter = interpreter  # of the file system's encoding; "" for a static program

    def __str__(self) -> str:
        order = "" if self.little_endian else " big-endian"
        return f"ELF {self.bits}-bit{order} {self.machine}"


def read_program(file: File) -> Program | None:
    """The ELF program in file, or None when it is not one."""
    head = file.read_at(0, 64)
    if len(head) < 52 or head[:4] != b"\x7fELF" or head[4] not in (1, 2) or head[5] not in (1, 2):
        return None
    bits, little = 32 * head[4], head[5] == 1
    if len(head) < _SIZES[bits] or _number(head, 16, 2, little=little) not in _PROGRAM_TYPES:
        return None
    code = _number(head, 18, 2, little=little)
    machine, arches = _MACHINES.get(code, (f"machine {code}", {}))
    flags = _number(head, _FLAGS_AT[bits], 4, little=little)
    return Program(
        arch=_refine(arches.get((bits, little), UNKNOWN), flags),
        bits=bits,
        little_endian=little,
        machine=machine,
        interpreter=_interpreter(file, head, bits, little=little),
    )


def _number(data: bytes, start: int, size: int, *, little: bool) -> int:
    return int.from_bytes(data[start : start + size], "little" if little else "big")


def _refine(arch: str, flags: int) -> str:
    """The ABIs that share a machine and a width and differ in e_flags alone."""
    if arch == ARM_EITHER:
        return {_ARM_HARD_FLOAT: "armhf", _ARM_SOFT_FLOAT: "armel"}.get(flags & 0x600, ARM_EITHER)
    if arch in ("mips", "mipsel") and flags & _MIPS_N32:
        return arch.replace("mips", "mipsn32")
    return arch


def _interpreter(file: File, head: bytes, bits: int, *, little: bool) -> str:
    """The path in PT_INTERP, "" when there is none: a static program or a damaged one."""
    table_at, entry_size_at, offset_at, size_at, word = _LAYOUT[bits]
    table = _number(head, table_at, word, little=little)
    entry_size = _number(head, entry_size_at, 2, little=little)
    count = min(_number(head, entry_size_at + 2, 2, little=little), _PROGRAM_HEADERS)
    if entry_size < size_at + word:
        return ""
    headers = file.read_at(table, min(entry_size * count, 65536))
    for start in range(0, len(headers) - entry_size + 1, entry_size):
        if _number(headers, start, 4, little=little) == _PT_INTERP:
            offset = _number(headers, start + offset_at, word, little=little)
            size = _number(headers, start + size_at, word, little=little)
            return os.fsdecode(file.read_at(offset, min(size, 4096)).partition(b"\0")[0])
    return ""


def libc_kind(interpreter: str) -> str:
    """glibc, musl, bionic, ... by the path of the dynamic linker; "none" for static programs."""
    if not interpreter:
        return "none"
    if interpreter == "/usr/libexec/ld.so":
        return "openbsd"
    name = interpreter.rpartition("/")[2]
    for start, kind in _NAME_STARTS:
        if name.startswith(start):
            return kind
    return UNKNOWN


def glibc_version(tree: Tree, interpreter: str) -> tuple[str, str]:
    """(version, one sentence of evidence), both "" when neither ld.so nor libc.so.6 says it.

    Up to 2.33 the files were named after the version, ld-2.17.so, and the well-known names were symlinks to them.
    """
    beside = f"{interpreter.rpartition('/')[0]}/libc.so.6"
    for path in dict.fromkeys((interpreter, beside, *LIBRARIES)):
        where = tree.find(path)
        if where is None:
            continue
        name = where.rpartition("/")[2]
        version = version_number(name.removeprefix("ld-").removeprefix("libc-"))
        if version and name.endswith(".so"):
            return version, f"{plain(path)}: leads to {plain(name)} -> glibc {version}"
        version = _banner_version(tree, where)
        if version:
            return version, f"{plain(where)}: says release version {version} -> glibc {version}"
    return "", ""


def _banner_version(tree: Tree, path: str) -> str:
    found = tree.read(path, _LIBRARY_BYTES)
    if found is None:
        return ""
    after = found[1].partition(_BANNER)[2][:20]
    return version_number(after.decode("ascii", "replace"))
