"""Small root trees, made by hand: an ELF header is enough of a program for something that executes nothing."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import NamedTuple


class Machine(NamedTuple):
    """What stands in the ELF header of one architecture's programs."""

    code: int
    bits: int = 64
    little: bool = True
    flags: int = 0
    interpreter: str = ""


MACHINES = {
    "amd64": Machine(62, interpreter="/lib64/ld-linux-x86-64.so.2"),
    "i386": Machine(3, 32, interpreter="/lib/ld-linux.so.2"),
    "x32": Machine(62, 32, interpreter="/libx32/ld-linux-x32.so.2"),
    "arm64": Machine(183, interpreter="/lib/ld-linux-aarch64.so.1"),
    "armhf": Machine(40, 32, flags=0x05000400, interpreter="/lib/ld-linux-armhf.so.3"),
    "armel": Machine(40, 32, flags=0x05000200, interpreter="/lib/ld-linux.so.3"),
    "riscv64": Machine(243, flags=5, interpreter="/lib/ld-linux-riscv64-lp64d.so.1"),
    "loong64": Machine(258, flags=0x43, interpreter="/lib64/ld-linux-loongarch-lp64d.so.1"),
    "ppc64el": Machine(21, flags=2, interpreter="/lib64/ld64.so.2"),
    "ppc64": Machine(21, little=False, flags=1, interpreter="/lib64/ld64.so.1"),
    "powerpc": Machine(20, 32, little=False, interpreter="/lib/ld.so.1"),
    "s390x": Machine(22, little=False, interpreter="/lib/ld64.so.1"),
    "mips64el": Machine(8, flags=0x80000007, interpreter="/lib64/ld.so.1"),
    "mips64eb": Machine(8, little=False, flags=0x80000007, interpreter="/lib64/ld.so.1"),
    "mipsn32el": Machine(8, 32, flags=0x80000027, interpreter="/lib32/ld.so.1"),
    "mipsel": Machine(8, 32, flags=0x70001007, interpreter="/lib/ld.so.1"),
    "sparc64": Machine(43, little=False, interpreter="/lib64/ld-linux.so.2"),
}


def elf(machine: Machine, *, kind: int = 3) -> bytes:
    """An ELF header, and one program header that names the interpreter when there is one."""
    order = "<" if machine.little else ">"
    wide = machine.bits == 64
    path = machine.interpreter.encode() + b"\0" if machine.interpreter else b""
    header_size, entry_size, entries = (64, 56, 1 if path else 0) if wide else (52, 32, 1 if path else 0)
    ident = b"\x7fELF" + bytes([machine.bits // 32, 1 if machine.little else 2, 1]) + bytes(9)
    word = "Q" if wide else "I"
    header = struct.pack(
        f"{order}HHI{word}{word}{word}IHHHHHH",
        *(kind, machine.code, 1, 0, header_size, 0, machine.flags, header_size, entry_size, entries, 0, 0, 0),
    )
    at = header_size + entry_size
    if wide:
        interp = struct.pack(f"{order}IIQQQQQQ", 3, 4, at, 0, 0, len(path), len(path), 1)
    else:
        interp = struct.pack(f"{order}IIIIIIII", 3, at, 0, 0, len(path), len(path), 4, 1)
    return ident + header + (interp + path if path else b"")


class RootTree:
    """A root tree under construction; every path is absolute inside it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)

    def __fspath__(self) -> str:
        return str(self.path)

    def at(self, path: str) -> Path:
        return self.path / path.lstrip("/")

    def file(self, path: str, content: str | bytes = "") -> RootTree:
        target = self.at(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content.encode() if isinstance(content, str) else content)
        return self

    def link(self, path: str, leads_to: str) -> RootTree:
        link = self.at(path)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(leads_to)
        return self

    def program(self, path: str, arch: str, **changes: object) -> RootTree:
        """One program of arch; changes are fields of its Machine. Its interpreter is put there too."""
        machine = MACHINES[arch]._replace(**changes)  # type: ignore[arg-type]
        if machine.interpreter and not self.at(machine.interpreter).exists():
            self.file(machine.interpreter, elf(machine._replace(interpreter="")))
        return self.file(path, elf(machine))

    def os_release(self, text: str) -> RootTree:
        return self.file("/etc/os-release", text)

    def dpkg(self, arch: str, version: str = "2.36-9+deb12u4") -> RootTree:
        return self.file("/var/lib/dpkg/status", dpkg_status(arch, version))


def dpkg_status(arch: str, version: str) -> str:
    stanzas = (("base-files", "12.4"), ("dpkg", "1.21.22"), ("libc6", version), ("zlib1g", "1:1.2.13"))
    return "".join(
        f"Package: {name}\nStatus: install ok installed\nArchitecture: {arch}\nVersion: {number}\n"
        f"Description: of {name}\n with a second line\n\n"
        for name, number in stanzas
    )
