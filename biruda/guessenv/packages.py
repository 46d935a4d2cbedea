"""What the package databases of a tree say: its architecture and the version of its C library."""

from biruda.guessenv.names import canonical_arch, plain, version_number
from biruda.guessenv.tree import File, Tree

DPKG = "/var/lib/dpkg/status"
DPKG_SPLIT = "/var/lib/dpkg/status.d/libc6"  # distroless images
APK = ("/lib/apk/db/installed", "/usr/lib/apk/db/installed")
APK_ARCH = "/etc/apk/arch"
RPM_PLATFORM = "/etc/rpm/platform"

_DATABASE_BYTES = 64 << 20
_CHUNK = 64 << 10
_STANZA = 256 << 10  # no stanza is longer


class Database:
    """What one package database says. Fields are "" when it does not say."""

    __slots__ = ("arch", "libc", "sentence")

    def __init__(self, *, arch: str, libc: str, sentence: str) -> None:
        self.arch = arch  # canonical
        self.libc = libc  # "glibc 2.36", "musl 1.2.4"
        self.sentence = sentence


def read_database(tree: Tree) -> Database | None:
    """The first database there is: dpkg's, apk's, rpm's."""
    return _dpkg(tree) or _apk(tree) or _plain_arch(tree, RPM_PLATFORM)


def _dpkg(tree: Tree) -> Database | None:
    for path in (DPKG, DPKG_SPLIT):
        file = tree.open(path)
        if file is None:
            continue
        with file:
            found = _stanzas(file, {b"dpkg": b"Package: dpkg", b"libc6": b"Package: libc6"})
        dpkg, libc6 = found.get(b"dpkg", {}), found.get(b"libc6", {})
        # dpkg itself is of the native architecture; of libc6 a foreign one may stand first
        arch = dpkg.get("Architecture") or libc6.get("Architecture") or ""
        version = libc6.get("Version", "")
        libc = version_number(version.rpartition(":")[2])
        if arch or version:
            says = f"libc6 {version}, {arch}" if version else arch
            return _database(path, says, arch, f"glibc {libc}" if libc else "")
    return None


def _apk(tree: Tree) -> Database | None:
    for path in APK:
        file = tree.open(path)
        if file is None:
            continue
        with file:
            musl = _stanzas(file, {b"musl": b"P:musl"}).get(b"musl", {})
        if musl:
            arch, version = musl.get("A", ""), musl.get("V", "")
            return _database(path, f"musl {version}, {arch}", arch, f"musl {version_number(version)}".strip())
    return _plain_arch(tree, APK_ARCH)


def _plain_arch(tree: Tree, path: str) -> Database | None:
    """A file that holds one architecture, or one triplet, in its first line."""
    found = tree.read(path, 256)
    words = found[1].decode("ascii", "replace").split() if found else []
    return _database(path, words[0], words[0], "") if words and canonical_arch(words[0]) else None


def _database(path: str, says: str, arch: str, libc: str) -> Database:
    canonical = canonical_arch(arch) or ""
    concluded = ", ".join(part for part in (canonical, libc) if part) or "nothing"
    return Database(arch=canonical, libc=libc, sentence=f"{path}: {plain(says)} -> {concluded}")


def _stanzas(file: File, first_lines: dict[bytes, bytes]) -> dict[bytes, dict[str, str]]:
    """The stanzas that hold one of these whole lines, each the first that is installed, as their fields.

    Read in chunks and only as far as the last one wanted: a status file may have 30 MB.
    """
    found: dict[bytes, dict[str, str]] = {}
    wanted = {name: b"\n" + line + b"\n" for name, line in first_lines.items()}
    text, offset = b"\n", 0
    while wanted and offset < _DATABASE_BYTES:
        chunk = file.read_at(offset, _CHUNK)
        offset += len(chunk)
        text += chunk or b"\n\n"
        end = text.rfind(b"\n\n") + 1  # what follows is not complete yet
        for name, line in list(wanted.items()):
            at = text.find(line, 0, end)
            if at >= 0 and (fields := _fields(text, at)):
                found[name] = fields
                del wanted[name]
        if not chunk:
            break
        text = text[end:] if end else text[-_STANZA:]
    return found


def _fields(text: bytes, at: int) -> dict[str, str]:
    """The one-line fields of the stanza around at, none of them when the package is not installed."""
    start = text.rfind(b"\n\n", 0, at + 1) + 1
    lines = text[start : text.find(b"\n\n", at)].decode("utf-8", "replace").split("\n")
    pairs = (line.partition(":") for line in lines if line[:1].strip())
    fields = {key: value.strip() for key, _, value in pairs}
    return fields if fields.get("Status", "installed").endswith("installed") else {}
