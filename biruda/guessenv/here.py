"""The guess from inside: the root tree, and what only a running program is told."""

import os
import sys

from biruda.guessenv.answer import Guess
from biruda.guessenv.names import NARROW, UNKNOWN, canonical_arch, family, plain, safe_name, version_number
from biruda.guessenv.static import guess
from biruda.guessenv.tree import Tree

_LIBC_BY_SYSTEM = {"Darwin": "libsystem", "Windows": "ucrt"}

_WINDOWS_SERVERS = ((26100, "2025"), (20348, "2022"), (17763, "2019"), (14393, "2016"), (9600, "2012_r2"), (0, ""))

# Lines of /proc/cpuinfo that one family alone has
_CPUINFO_MARKS = ((b"\ncpu family\t", "x86"), (b"\nCPU implementer\t", "arm"), (b"\nisa\t\t: rv", "riscv"))


class Seen:
    """What the running interpreter and the kernel say of themselves."""

    __slots__ = ("bits", "cpuinfo", "implementation", "machine", "multiarch", "release", "system", "version")

    def __init__(
        self,
        *,
        system: str,
        machine: str,
        release: str = "",
        version: str = "",
        bits: int = 64,
        multiarch: str = "",
        implementation: str = "",
        cpuinfo: bytes = b"",
    ) -> None:
        self.system = system  # uname -s; "Windows"
        self.machine = machine  # uname -m, which lies to 32-bit programs and under qemu-user
        self.release = release  # uname -r
        self.version = version  # of macOS and Windows, for people: "14.1", "11", "server2022"
        self.bits = bits  # of this interpreter's pointers
        self.multiarch = multiarch  # the triplet this interpreter was built for, "" where it was not recorded
        self.implementation = implementation
        self.cpuinfo = cpuinfo  # the start of /proc/cpuinfo


def look() -> Seen:
    """What this process can see of itself and its kernel."""
    bits = 64 if sys.maxsize > 1 << 32 else 32
    multiarch = str(getattr(sys.implementation, "_multiarch", ""))
    implementation = f"{sys.implementation.name} {'.'.join(str(part) for part in sys.version_info[:3])}"
    if os.name == "nt":
        return _look_at_windows(bits, implementation)
    uname = os.uname()
    version, cpuinfo = "", b""
    if uname.sysname == "Darwin":
        import platform  # here: slow, and not wanted on Linux

        version = platform.mac_ver()[0]
    if uname.sysname == "Linux":
        with Tree("/") as tree:
            # opened relative to /proc: qemu-user replaces the file only where it is opened by its whole path
            found = tree.read("/proc/cpuinfo", 4096)
            cpuinfo = found[1] if found else b""
    return Seen(
        system=uname.sysname,
        machine=uname.machine,
        release=uname.release,
        version=version,
        bits=bits,
        multiarch=multiarch,
        implementation=implementation,
        cpuinfo=cpuinfo,
    )


def _look_at_windows(bits: int, implementation: str) -> Seen:
    import platform  # here: slow, and not wanted on Linux

    # getattr: the checker runs for Linux, where the function does not exist
    windows = getattr(sys, "getwindowsversion")()  # noqa: B009
    return Seen(
        system="Windows",
        machine=platform.machine(),
        release=f"{windows.major}.{windows.minor}.{windows.build}",
        version=windows_name(windows.major, windows.minor, windows.build, server=windows.product_type == 3),
        bits=bits,
        implementation=implementation,
    )


def windows_name(major: int, minor: int, build: int, *, server: bool) -> str:
    """What people call this Windows: "11", "10", "7", "server2022". Inside, 11 still counts as 10.0."""
    if server:
        return "server" + next(name for least, name in _WINDOWS_SERVERS if build >= least)
    if major == 10:
        return "11" if build >= 22000 else "10"
    return {(6, 3): "8.1", (6, 2): "8", (6, 1): "7"}.get((major, minor), f"{major}.{minor}")


def guess_here(seen: Seen | None = None, root: str | os.PathLike[str] = "/") -> Guess:
    """What the environment of this very process is: guess("/"), and the interpreter's and kernel's own words.

    The root tree decides, for the interpreter may be a static one of another architecture that was put into it.
    `emulated`: the programs' machine family is not the kernel's; 32-bit on 64-bit of one family is not emulated.
    """
    seen = look() if seen is None else seen
    static = Guess() if seen.system in ("Windows", "Darwin") else guess(root)
    evidence = [*static.evidence, _interpreter_sentence(seen), _uname_sentence(seen)]
    own = _own_arch(seen)
    arch = static.arch if static.arch != UNKNOWN else own
    if own not in (arch, UNKNOWN):
        evidence.append(f"the running interpreter is {own} and the programs of / are {arch}: the programs decide")
    platform, pretty_name = static.platform, static.pretty_name
    if platform == UNKNOWN:
        platform, pretty_name = _platform(seen)
        if platform != UNKNOWN:
            evidence.append(f"the kernel calls itself {plain(pretty_name)} -> {platform}")
    foreign = _emulation_sentence(arch, seen)
    return Guess(
        arch=arch,
        platform=platform,
        libc=static.libc if static.libc != UNKNOWN else _LIBC_BY_SYSTEM.get(seen.system, UNKNOWN),
        bits=static.bits or seen.bits,
        emulated=bool(foreign),
        evidence=(*evidence, foreign) if foreign else tuple(evidence),
        system_id=static.system_id,
        system_version=static.system_version,
        pretty_name=pretty_name,
    )


def _own_arch(seen: Seen) -> str:
    """Of the interpreter: what it was built for, or the machine, narrowed to the width of its pointers."""
    built_for = canonical_arch(seen.multiarch)
    if built_for:
        return built_for
    machine = canonical_arch(seen.machine) or UNKNOWN
    return NARROW.get(machine, machine) if seen.bits == 32 else machine


def _platform(seen: Seen) -> tuple[str, str]:
    """(platform, pretty name) of systems without any release file; Linux is no platform by itself."""
    if seen.system == "Darwin":
        parts = seen.version.split(".")
        number = ".".join(parts[:2]) if parts[0] == "10" else parts[0]  # 10.15, then 11, 12, ...
        return safe_name(f"macos{number}") or UNKNOWN, f"macOS {seen.version}"
    if seen.system == "Windows":
        return safe_name(f"windows{seen.version}") or UNKNOWN, f"Windows {seen.version} ({seen.release})"
    if seen.system in ("Linux", ""):
        return UNKNOWN, ""
    number = version_number(seen.release)
    return safe_name(f"{seen.system.lower()}{number}") or UNKNOWN, f"{seen.system} {seen.release}"


def _interpreter_sentence(seen: Seen) -> str:
    triplet = seen.multiarch or "no recorded triplet"
    return f"the running interpreter: {plain(seen.implementation)}, {seen.bits}-bit, {plain(triplet)}"


def _uname_sentence(seen: Seen) -> str:
    said = plain(f"{seen.system} {seen.release} {seen.machine}")
    machine = canonical_arch(seen.machine)
    wide = seen.bits == 32 and machine in NARROW
    return f"uname: {said}" + (", which a 64-bit kernel also says to 32-bit programs" if wide else "")


def _emulation_sentence(arch: str, seen: Seen) -> str:
    """Why programs of arch are emulated here, "" when they are not.

    Under qemu-user uname names the emulated machine; the kernel's release and /proc/cpuinfo are still the host's.
    """
    if arch == UNKNOWN:
        return ""
    said_by = [("uname", canonical_arch(seen.machine)), ("the kernel's release", _release_arch(seen.release))]
    families = [(source, family(said)) for source, said in said_by if said]
    families += [("/proc/cpuinfo", name) for mark, name in _CPUINFO_MARKS if mark in seen.cpuinfo]
    for source, name in families:
        if name != family(arch):
            return f"{source} says that the machine is {name}, the programs are {arch} -> emulated"
    return ""


def _release_arch(release: str) -> str | None:
    """Distributions end it with the architecture: `6.1.0-18-amd64`, `6.5.6-300.fc39.x86_64`."""
    last = release.rpartition("-")[2]
    for word in (last, last.rpartition(".")[2]):
        arch = canonical_arch(word)
        # "alpha" and "386" are words and numbers too
        if arch and family(arch) != arch and not word.isdigit():
            return arch
    return None
