"""Names of architectures and platforms. Canonical architectures are Debian's; every other custom is an alias."""

TYPE_CHECKING = False  # the literal name is what type checkers look for; importing typing costs more than a guess
if TYPE_CHECKING:
    from collections.abc import Mapping

UNKNOWN = "unknown"

_NAMES = """
    amd64       x86_64 x86-64 x64
    i386        i486 i586 i686 386 x86
    x32
    arm64       aarch64
    arm64be     aarch64_be
    arm64ilp32
    armhf       armv7l armv7 armv7a armv7h armv7hl armhfp armv6hl armv8l arm/v7 arm/v8 arm
    armel       armv4t armv4tl armv5 armv5l armv5te armv5tel armv5tejl armv6 armv6l arm/v5 arm/v6
    armeb
    riscv64
    riscv32
    loong64     loongarch64
    ppc64el     ppc64le powerpc64le
    ppc64       powerpc64
    powerpc     ppc
    s390x
    s390
    mips64el    mips64 mips64le
    mips64eb
    mipsn32el
    mipsn32
    mipsel      mipsle
    mips
    sparc64
    sparc       sparcv8 sparcv9
    ia64
    alpha
    hppa        parisc parisc64
    m68k
    sh4         sh4a
    arc
    or1k        openrisc
"""

ALIASES: dict[str, str] = {
    name: names[0] for names in (line.split() for line in _NAMES.strip().splitlines()) for name in names
}
"""Every single-word name -> the canonical one. Triplets are taken apart by canonical_arch()."""

# GNU triplets in which the last word, not the CPU, decides
_ABI_ENDINGS = (
    ("gnux32", "x86_64", "x32"),
    ("gnu_ilp32", "aarch64", "arm64ilp32"),
    ("gnuabin32", "mips64el", "mipsn32el"),
    ("gnuabin32", "mips64", "mipsn32"),
    ("gnuabi64", "mips64el", "mips64el"),
    ("gnuabi64", "mips64", "mips64eb"),
)

_OCI_SYSTEMS = ("linux", "windows", "darwin", "freebsd", "netbsd", "openbsd")

_FAMILIES = {
    "x86": ("amd64", "i386", "x32"),
    "arm": ("arm64", "arm64be", "arm64ilp32", "armhf", "armel", "armeb"),
    "riscv": ("riscv64", "riscv32"),
    "power": ("ppc64el", "ppc64", "powerpc"),
    "s390": ("s390x", "s390"),
    "mips": ("mips64el", "mips64eb", "mipsn32el", "mipsn32", "mipsel", "mips"),
    "sparc": ("sparc64", "sparc"),
}
_FAMILY_BY_ARCH = {arch: family for family, arches in _FAMILIES.items() for arch in arches}

# 32-bit programs whose 64-bit kernel answers uname with its own machine until personality(PER_LINUX32)
_PERSONALITY32 = {
    ("i386", "amd64"),
    ("armhf", "arm64"),
    ("armel", "arm64"),
    ("powerpc", "ppc64"),
    ("s390", "s390x"),
    ("mipsel", "mips64el"),
    ("mips", "mips64eb"),
    ("sparc", "sparc64"),
}
# Another ABI of the very same kernel: nothing to set. Whether x32 is enabled is the kernel's choice at boot.
_NATIVE = {("x32", "amd64"), ("mipsn32el", "mips64el"), ("mipsn32", "mips64eb"), ("armel", "armhf")}

NARROW = {
    "amd64": "i386",
    "arm64": "armhf",
    "ppc64": "powerpc",
    "s390x": "s390",
    "mips64el": "mipsel",
    "mips64eb": "mips",
    "sparc64": "sparc",
    "riscv64": "riscv32",
}
"""What a 32-bit program is when the machine under it has this 64-bit name."""


def canonical_arch(name: str) -> str | None:
    """The canonical name of an architecture by any of its names, or None: Debian, GNU triplet, uname, OCI, Go."""
    text = name.strip().lower()
    if text in ALIASES:
        return ALIASES[text]
    if "/" in text:
        return _from_oci(text)
    cpu, dash, system = text.partition("-")
    return _from_triplet(cpu, system) if dash else None


def _from_oci(text: str) -> str | None:
    parts = text.split("/")
    if parts[0] in _OCI_SYSTEMS:
        del parts[0]
    whole = ALIASES.get("/".join(parts))
    if whole or len(parts) != 2:
        return whole
    cpu, variant = parts
    if cpu == "arm" or not (variant[:1] == "v" and variant[1:].isdigit()):
        return None  # arm without a variant that is known could be either float ABI
    return ALIASES.get(cpu)


def _from_triplet(cpu: str, system: str) -> str | None:
    for ending, wanted_cpu, arch in _ABI_ENDINGS:
        if cpu == wanted_cpu and system.endswith(ending):
            return arch
    if cpu.startswith("arm") and cpu != "arm64":
        if system.endswith("eabihf"):
            return "armhf"
        if system.endswith("eabi"):
            return "armel"
    return ALIASES.get(cpu)


def family(arch: str) -> str:
    """The machine family: what one kernel can run without emulation. An architecture alone is its own family."""
    return _FAMILY_BY_ARCH.get(arch, arch)


def relation(arch: str, host_arch: str) -> str:
    """How a host runs programs of arch: "native", "personality32" (set PER_LINUX32 before exec) or "foreign"."""
    guest, host = canonical_arch(arch), canonical_arch(host_arch)
    if guest is None or host is None:
        return "foreign"
    if guest == host or (guest, host) in _NATIVE:
        return "native"
    return "personality32" if (guest, host) in _PERSONALITY32 else "foreign"


def compare(declared: "Mapping[str, object]", guessed: "Mapping[str, object]") -> tuple[str, ...]:
    """One sentence for each declared arch or platform that contradicts the guess; the declared value is to be used.

    Left out, empty and "unknown" contradict nothing, nor do aliases of one architecture, nor a platform that is
    only less exact than the other: `debian` and `debian12`, `alpine3.19` and `alpine3.19.1`.
    """
    warnings = []
    for key, contradict in (("arch", _arches_differ), ("platform", _platforms_differ)):
        said, seen = str(declared.get(key) or ""), str(guessed.get(key) or "")
        if UNKNOWN in (said, seen) or not said or not seen or not contradict(said, seen):
            continue
        warnings.append(f"declared {key} {plain(said)!r} is used, but the environment looks like {plain(seen)!r}")
    return tuple(warnings)


def _arches_differ(said: str, seen: str) -> bool:
    return (canonical_arch(said) or said) != (canonical_arch(seen) or seen)


def _platforms_differ(said: str, seen: str) -> bool:
    shorter, longer = sorted((safe_name(said).lower(), safe_name(seen).lower()), key=len)
    rest = longer.removeprefix(shorter)
    if not rest:
        return False
    more_exact = rest[0] == "." or (rest[0].isdigit() and not shorter[-1:].isdigit())
    return not (longer.startswith(shorter) and shorter and more_exact)


def safe_name(text: str) -> str:
    """text as part of a platform's name: [A-Za-z0-9._] only, "_" for the rest, starting with a letter or digit."""
    mapped = "".join(c if c.isascii() and (c.isalnum() or c in "._") else "_" for c in text[:64])
    return mapped.lstrip("._")


def plain(text: str, limit: int = 160) -> str:
    """text that may be shown on a terminal: one line, printable, not longer than limit."""
    shown = text[: limit + 1]
    if not shown.isprintable():
        shown = "".join(c if c.isprintable() else "?" for c in shown)
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."


def version_number(text: str) -> str:
    """The digits and dots at the start of text, or "": `2.36-9+deb12u4` -> `2.36`."""
    end = 0
    while end < min(len(text), 20) and text[end] in "0123456789.":
        end += 1
    return text[:end].strip(".")
