"""Programs of a foreign architecture: whether the kernel hands them to an emulator, inside a root that has none.

What the kernel knows of it is in binfmt_misc, see Documentation/admin-guide/binfmt-misc.rst of Linux.
"""

import os
from collections.abc import Sequence
from typing import Final

from biruda.errors import EnvironmentFault

BINFMT: Final = "/proc/sys/fs/binfmt_misc"
_ENTRIES: Final = ("/etc/binfmt.d", "/run/binfmt.d", "/usr/local/lib/binfmt.d", "/usr/lib/binfmt.d")  # binfmt.d(5)
_CPUS: Final = {
    "amd64": "x86_64",
    "arm64": "aarch64",
    "armhf": "arm",
    "armel": "arm",
    "ppc64el": "ppc64le",
    "powerpc": "ppc",
    "loong64": "loongarch64",
    "mips64el": "mips64el",
    "mips64eb": "mips64",
}


def emulator_of(arch: str) -> str:
    """What qemu calls its user mode for an architecture."""
    return f"qemu-{_CPUS.get(arch, arch)}"


def require(where: str, arch: str, host_arch: str, directory: str = BINFMT) -> None:
    """Raises EnvironmentFault, which says what is missing, unless an emulator of arch works inside of any root."""
    problem = missing(arch, directory)
    if problem:
        raise EnvironmentFault(
            f"{where}: its programs are for {arch} and this host is {host_arch}: {problem}",
            hint=f"apt-get install qemu-user-static binfmt-support, so that {emulator_of(arch)} is registered with "
            "flag F; or biruda env build --emulate, as root",
        )


def missing(arch: str, directory: str = BINFMT) -> str:
    """Why programs of arch are not emulated inside of any root; "" when they are."""
    emulator = emulator_of(arch)
    try:
        names = os.listdir(directory)
    except OSError:
        names = []
    if "register" not in names:
        return f"binfmt_misc is not mounted on {directory}"
    if _read(f"{directory}/status").strip() == "disabled":
        return "binfmt_misc is disabled"
    found = [text for name in names if emulator in _interpreter(text := _read(f"{directory}/{name}"))]
    if not found:
        return f"{emulator} is not registered with binfmt_misc"
    enabled = [text for text in found if text.startswith("enabled")]
    if not enabled:
        return f"{emulator} is registered with binfmt_misc, but disabled"
    if not any("F" in _field(text, "flags:") for text in enabled):
        return f"{emulator} is registered with binfmt_misc without flag F, so it is not found inside a root"
    return ""


def register(arch: str, directory: str = BINFMT, entries: Sequence[str] = _ENTRIES) -> str:
    """Have the kernel hand programs of arch to the emulator that is installed; what was done, "" for nothing.

    Until the next boot, and for the whole host: only for who asks for it. Raises EnvironmentFault.
    """
    if not missing(arch, directory):
        return ""
    emulator = emulator_of(arch)
    if os.geteuid() != 0:
        raise EnvironmentFault(f"{emulator} cannot be registered: that takes root", hint="run it with sudo")
    line = _entry(emulator, entries)
    try:
        if not os.path.exists(f"{directory}/register"):
            from biruda.coordinator.spawners import syscalls

            syscalls.mount("binfmt_misc", directory, "binfmt_misc")
        own = f"{directory}/{line.split(':')[1]}"
        if os.path.exists(own):  # disabled, or without flag F
            _write(own, "-1")
        if _read(f"{directory}/status").strip() == "disabled":
            _write(f"{directory}/status", "1")
        _write(f"{directory}/register", line)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        words = (error.strerror or str(error)).lower()
        raise EnvironmentFault(
            f"{emulator} cannot be registered: {where}{words}", hint="does this kernel have CONFIG_BINFMT_MISC?"
        ) from error
    problem = missing(arch, directory)
    if problem:
        raise EnvironmentFault(f"{emulator} was registered, and yet {problem}", hint="look at its entry in binfmt.d")
    return f"{emulator} is registered with the kernel until the next boot: programs for {arch} run emulated"


def _entry(emulator: str, directories: Sequence[str]) -> str:
    """The line for `register` that the emulator's package brought, with flag F. Raises EnvironmentFault."""
    for directory in directories:
        for line in _read(f"{directory}/{emulator}.conf").splitlines():
            fields = line.split(":")  # :name:type:offset:magic:mask:interpreter:flags
            if len(fields) == 8 and not fields[0] and fields[1] and "/" not in fields[1]:
                flags = fields[7] if "F" in fields[7] else fields[7] + "F"
                return ":".join([*fields[:7], flags])
    raise EnvironmentFault(f"{emulator} is not installed here", hint="apt-get install qemu-user-static")


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _interpreter(text: str) -> tuple[str, ...]:
    """The names that an entry's interpreter counts as."""
    name = os.path.basename(_field(text, "interpreter"))
    base = name.removesuffix("-static").removesuffix("-binfmt-P")
    return name, base, f"qemu-{base}"


def _field(text: str, key: str) -> str:
    return next((line[len(key) :].strip() for line in text.splitlines() if line.startswith(key)), "")


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
