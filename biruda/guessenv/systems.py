"""Which system a tree holds: os-release, and the files that systems had before it."""

from biruda.guessenv.names import UNKNOWN, plain, safe_name, version_number
from biruda.guessenv.tree import Tree

OS_RELEASE = ("/etc/os-release", "/usr/lib/os-release")

# These have no releases, whatever their VERSION_ID counts: snapshots, images, the version of one package
_ROLLING = (
    "arch",
    "artix",
    "cachyos",
    "endeavouros",
    "gentoo",
    "manjaro",
    "opensuse-microos",
    "opensuse-slowroll",
    "opensuse-tumbleweed",
    "void",
)

# One platform under another name for another architecture
_SAME_PLATFORM = {"arch32": "arch", "archarm": "arch"}

_RELEASE_NAMES = (  # how the line in *-release starts -> os-release's ID of the same system
    ("red hat enterprise", "rhel"),
    ("oracle", "ol"),
    ("amazon", "amzn"),
)


class System:
    """What is installed. `platform` is safe as a name; id and version are as the file has them."""

    __slots__ = ("evidence", "id", "platform", "pretty_name", "version")

    def __init__(self, id: str, version: str = "", pretty_name: str = "", *, source: str, note: str = "") -> None:
        name = _SAME_PLATFORM.get(id, id)
        rolling = name in _ROLLING
        self.id, self.version, self.pretty_name = plain(id, 64), plain(version, 64), plain(pretty_name)
        self.platform = safe_name(safe_name(name) + ("" if rolling else version)) if safe_name(name) else UNKNOWN
        said = f"ID {self.id}, " + (f"VERSION_ID {self.version}" if version else "no VERSION_ID")
        notes = [note, "rolling" if rolling and version else ""]
        self.evidence = "".join((f"{source}: {said}", *(f", {n}" for n in notes if n), f" -> {self.platform}"))


def identify(tree: Tree) -> System | None:
    """The system in the tree, or None when no file that is known here tells."""
    for path in OS_RELEASE:
        system = _os_release(tree, path)
        if system is not None:
            return system
    for path, parse in _FALLBACKS:
        found = tree.read(path, 65536)
        if found is not None:
            system = parse(path, found[1].decode("utf-8", "replace"))
            if system is not None:
                return system
    return None


def _os_release(tree: Tree, path: str) -> System | None:
    found = tree.read(path)
    if found is None:
        return None
    where, text = found
    fields = parse_os_release(text.decode("utf-8", "replace"))
    id, version = fields.get("ID", ""), fields.get("VERSION_ID", "")
    if not safe_name(id):
        return None
    codename = plain(fields.get("VERSION_CODENAME", ""), 64)
    if fields.get("BUILD_ID") == "rolling":
        version = ""
    # Debian's testing and unstable have a codename and no VERSION_ID
    note = f"codename {codename}" if codename and not version else ""
    return System(id, version, fields.get("PRETTY_NAME", ""), source=plain(where), note=note)


def parse_os_release(text: str) -> dict[str, str]:
    """The assignments of an os-release file, unquoted as a shell would; the last one of a name wins."""
    fields = {}
    for line in text.split("\n"):
        name, equals, value = line.strip().partition("=")
        if equals and not name.startswith("#"):
            fields[name] = _unquote(value)
    return fields


def _unquote(value: str) -> str:
    value = value.strip()
    quote = value[:1]
    if quote == "'":
        return value[1:].partition("'")[0]
    if quote == '"':
        value = value[1:]
    result, letters = [], iter(value)
    for letter in letters:
        if letter == quote == '"':
            break
        result.append(next(letters, "") if letter == "\\" else letter)
    return "".join(result)


def _release_line(path: str, text: str) -> System | None:
    """`CentOS release 6.10 (Final)`, `Red Hat Enterprise Linux Server release 6.10 (Santiago)`, `Fedora release 20`."""
    line = text.strip().partition("\n")[0]
    name, release, rest = line.partition(" release ")
    if not release or not name:
        return None
    lower = name.strip().lower()
    ids = [id for start, id in _RELEASE_NAMES if lower.startswith(start)]
    id = ids[0] if ids else lower.split()[0]
    version = version_number(rest)
    if id == "centos":
        version = version.partition(".")[0]  # as its own os-release has it from 7 on
    return System(id, version, line, source=path) if safe_name(id) else None


def _suse(path: str, text: str) -> System | None:
    fields = {key.strip(): value.strip() for key, _, value in (line.partition("=") for line in text.split("\n"))}
    version, level = version_number(fields.get("VERSION", "")), version_number(fields.get("PATCHLEVEL", "0"))
    line = text.partition("\n")[0]
    enterprise = "enterprise" in line.lower()
    if enterprise and level not in ("", "0") and "." not in version:
        version = f"{version}.{level}"
    id = "opensuse" if not enterprise else "sled" if "desktop" in line.lower() else "sles"
    return System(id, version, line, source=path) if version else None


def _lsb(path: str, text: str) -> System | None:
    """Ubuntu's before os-release; its debian_version names the Debian that it was made from."""
    fields = parse_os_release(text)
    id, version = fields.get("DISTRIB_ID", "").lower(), fields.get("DISTRIB_RELEASE", "")
    version = "" if version == "rolling" else version
    return System(id, version, fields.get("DISTRIB_DESCRIPTION", ""), source=path) if safe_name(id) else None


def _debian(path: str, text: str) -> System:
    """`6.0.10`, or `bullseye/sid` while there is no number yet."""
    line = text.strip().partition("\n")[0]
    major = version_number(line).partition(".")[0]  # as its own os-release has it from 7 on
    return System("debian", major, f"Debian GNU/Linux {line}", source=path, note=f"says {plain(line, 64)}")


def _alpine(path: str, text: str) -> System:
    line = text.strip().partition("\n")[0]
    return System("alpine", version_number(line), f"Alpine Linux {line}", source=path)


def _slackware(path: str, text: str) -> System:
    line = text.strip().partition("\n")[0]
    return System("slackware", version_number(line.rpartition(" ")[2]), line, source=path)


def _gentoo(path: str, text: str) -> System:
    return System("gentoo", "", text.strip().partition("\n")[0], source=path)


def _arch(path: str, text: str) -> System:
    """An empty file: that it is there says all."""
    return System("arch", "", "Arch Linux", source=path)


def _android(path: str, text: str) -> System | None:
    version = parse_os_release(text).get("ro.build.version.release", "")
    return System("android", version, f"Android {version}", source=path) if version else None


def _freebsd(path: str, text: str) -> System | None:
    """A shell script with the line USERLAND_VERSION="14.1-RELEASE-p5"."""
    version = parse_os_release(text).get("USERLAND_VERSION", "")
    number = version_number(version)
    return System("freebsd", number, f"FreeBSD {version}", source=path) if number else None


_FALLBACKS = (  # the more special before what its relatives carry too
    ("/etc/oracle-release", _release_line),
    ("/etc/centos-release", _release_line),
    ("/etc/fedora-release", _release_line),
    ("/etc/redhat-release", _release_line),
    ("/etc/mageia-release", _release_line),
    ("/etc/system-release", _release_line),
    ("/etc/SuSE-release", _suse),
    ("/etc/slackware-version", _slackware),
    ("/etc/gentoo-release", _gentoo),
    ("/etc/alpine-release", _alpine),
    ("/etc/lsb-release", _lsb),
    ("/etc/arch-release", _arch),
    ("/etc/debian_version", _debian),
    ("/system/build.prop", _android),
    ("/bin/freebsd-version", _freebsd),
)

RELEASE_FILES = OS_RELEASE + tuple(path for path, _ in _FALLBACKS)
