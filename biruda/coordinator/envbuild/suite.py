"""Root trees of Debian and Ubuntu suites: which tool makes them, how it is called and what it says meanwhile."""

import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from biruda.coordinator.envbuild import tree
from biruda.coordinator.envbuild.sources import Source
from biruda.coordinator.envbuild.tools import Tools
from biruda.coordinator.spawners import emulation
from biruda.errors import EnvironmentFault, UserError

Progress = Callable[[str], None]

VARIANTS: Final = ("buildd", "minbase")
_NATIVE: Final = {"amd64": ("i386",), "arm64": ("armhf", "armel")}
_APT_OPTION: Final = re.compile(
    r'^(Acquire::(?:Check-Valid-Until|Check-Date|Max-FutureTime|ForceIPv[46]|https?::[A-Za-z0-9:.-]+)) "(.+)";$'
)
_OWN_APT_OPTIONS: Final = (
    'Acquire::Retries "2"',
    'Acquire::http::Timeout "60"',
    'Acquire::https::Timeout "60"',
    'APT::Sandbox::User "root"',
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """What is to be built."""

    name: str
    arch: str
    include: tuple[str, ...] = ()
    variant: str = "buildd"
    keyring: str = ""  # a file with the keys of who signs the packages; "" for those that the host trusts

    def __str__(self) -> str:
        return f"{self.name} {self.arch}"


class Unreadable(Exception):
    """A package index could not be fetched; what is left is worth a second try without it."""

    def __init__(self, reason: str, sources: tuple[Source, ...], without: tuple[str, ...]) -> None:
        super().__init__(reason)
        self.sources = sources
        self.without = without


def check_arch(
    arch: str, host_arch: str, progress: Progress, *, emulate: bool = False, directory: str = emulation.BINFMT
) -> None:
    """UserError where this host cannot run the programs of an architecture, natively or by a handler of the kernel.

    emulate: register such a handler, where one is installed.
    """
    if arch == host_arch or arch in _NATIVE.get(host_arch, ()):
        return
    if emulate:
        try:
            done = emulation.register(arch, directory)
        except EnvironmentFault as fault:
            raise UserError(str(fault), hint=fault.hint) from None
        if done:
            progress(done)
        return
    problem = emulation.missing(arch, directory)
    if problem:
        raise UserError(
            f"this {host_arch} host cannot run programs for {arch}: {problem}",
            hint="apt-get install qemu-user-static binfmt-support; or give --emulate, as root, to have it registered",
        )


def fetch(
    suite: Suite, sources: tuple[Source, ...], archive: Path, work: Path, tools: Tools, progress: Progress
) -> None:
    """Write the suite's root tree to an archive. Raises Unreadable, or UserError with the last words of the tool."""
    if tools.find("mmdebstrap"):
        _mmdebstrap(suite, sources, archive, work, tools, progress)
    elif tools.find("debootstrap"):
        _debootstrap(suite, sources, archive, work, tools, progress)
    else:
        raise UserError(
            f"building {suite} takes mmdebstrap or debootstrap, and neither is installed",
            hint="apt-get install mmdebstrap",
        )


def _mmdebstrap(
    suite: Suite, sources: tuple[Source, ...], archive: Path, work: Path, tools: Tools, progress: Progress
) -> None:
    as_root = os.geteuid() == 0
    if not as_root:
        tools.check_unshare_mode()
    plain = work / "tree.tar"
    argv = [
        "mmdebstrap",
        "--verbose",
        "--format=tar",
        f"--mode={'root' if as_root else 'unshare'}",
        f"--variant={suite.variant}",
        f"--architectures={suite.arch}",
        "--skip=check/qemu,output/dev",  # looked at by check_arch, without the arch-test package; /dev is a spawner's
        *(f"--aptopt={option}" for option in (*_OWN_APT_OPTIONS, *host_apt_options(tools))),
        # options of this host, proxies with their passwords among them, are not for jobs to read
        '--customize-hook=rm -f "$1"/etc/apt/apt.conf.d/99mmdebstrap',
        *([f"--include={','.join(suite.include)}"] if suite.include else []),
        *([f"--keyring={suite.keyring}"] if suite.keyring else []),
        suite.name,
        str(plain),
        *map(str, sources),
    ]
    # as others the tool's own root cannot pass through a home directory that is closed to it
    told = _run(suite, argv, {"TMPDIR": str(work)} if as_root else {}, sources, tools, progress)
    if told:
        raise told
    progress("keeping the tree for the next time")
    tree.recompress(plain, archive)
    plain.unlink()


def _debootstrap(
    suite: Suite, sources: tuple[Source, ...], archive: Path, work: Path, tools: Tools, progress: Progress
) -> None:
    if os.geteuid() != 0:
        raise UserError(f"building {suite} by debootstrap takes root", hint="apt-get install mmdebstrap, or be root")
    base = next((source for source in sources if source.suite in ("", suite.name)), None)
    directory = work / "debootstrap"
    argv = ["debootstrap", f"--variant={suite.variant}", f"--arch={suite.arch}"]
    argv += [f"--include={','.join(suite.include)}"] if suite.include else []
    argv += [f"--keyring={suite.keyring}"] if suite.keyring else []
    argv += [suite.name, str(directory), *([base.uri] if base else [])]
    told = _run(suite, argv, {}, (), tools, progress)
    if told:
        raise told
    progress("keeping the tree for the next time")
    tree.pack(directory, archive)
    tree.remove(directory)


def host_apt_options(tools: Tools) -> tuple[str, ...]:
    """How this host's apt reaches its mirrors: proxies, certificates and what it forgives, as options of apt."""
    lines: list[str] = []
    if tools.find("apt-config"):
        tools.run(["apt-config", "dump"], {}, lines.append)
    options = [f'{match[1]} "{match[2]}"' for match in map(_APT_OPTION.match, lines) if match]
    return tuple(option for option in options if not option.startswith("Acquire::http::Timeout"))


def _run(
    suite: Suite,
    argv: Sequence[str],
    env: Mapping[str, str],
    sources: tuple[Source, ...],
    tools: Tools,
    progress: Progress,
) -> Exception | None:
    """Run a tool; what is to be raised when it failed."""
    narrator = _Narrator(progress)
    status = tools.run_apart(argv, {"DEBIAN_FRONTEND": "noninteractive", **env}, narrator.hear)
    if status == 0:
        return None
    without = narrator.unreadable - {suite.name}
    if without and suite.name not in narrator.unreadable:
        left = tuple(source for source in sources if source.suite and source.suite not in without)
        left = left or tuple(Source(uri=uri) for uri, name in narrator.readable if name == suite.name)[:1]
        if left and left != sources:
            return Unreadable(narrator.reason or "no reason given", left, tuple(sorted(without)))
    said = "".join(f"\n  {line}" for line in narrator.last_words())
    return UserError(f"{argv[0]} cannot build {suite} (exit status {status}):{said}", hint=narrator.hint(suite))


class _Narrator:
    """Hears what a tool prints and says it in short sentences; remembers what matters when it fails."""

    _SENTENCES: Final = (
        (r"I: running apt-get update|I: Retrieving InRelease", "reading the lists of packages"),
        (r"\d+ upgraded, (\d+) newly installed", r"fetching \1 packages"),
        (r"I: Retrieving (?!InRelease|Packages)", "fetching packages"),
        (r"I: extracting archives|I: Extracting", "extracting packages"),
        (r"I: installing essential packages|I: Installing core packages", "installing the essential packages"),
        (r"I: installing remaining packages|I: Installing base system|I: Unpacking the base", "installing the others"),
        (r"I: creating tarball", "packing the tree"),
        (r"W: (.*)", r"warning: \1"),
    )

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._said = ""
        self._lines: deque[str] = deque(maxlen=200)
        self._failing = False
        self.unreadable: set[str] = set()  # suites whose indexes cannot be fetched
        self.readable: list[tuple[str, str]] = []  # mirror and suite
        self.reason = ""

    def hear(self, line: str) -> None:
        """Take one line of output."""
        line = line.rstrip()
        self._lines.append(line)
        for pattern, sentence in self._SENTENCES:
            if match := re.match(pattern, line):
                self._say(match.expand(sentence)[:200])
                break
        if self._failing and line.startswith("  ") and not self.reason:
            self.reason = line.strip().partition(" [IP")[0]
        self._failing = line.startswith("Err:")
        if match := re.match(r"Err:\d+ \S+ ([^\s/]+)", line) or re.match(
            r"E: The repository '\S+ (\S+) Release'", line
        ):
            self.unreadable.add(match[1])
        elif match := re.match(r"(?:Get|Hit):\d+ (\S+) (\S+) InRelease", line):
            self.readable.append((match[1], match[2]))

    def _say(self, sentence: str) -> None:
        if sentence != self._said:
            self._said = sentence
            self._progress(sentence)

    def last_words(self) -> Iterable[str]:
        """The lines that most likely say why it failed."""
        errors = [line for line in self._lines if re.match(r"E: |dpkg: error|.*: error", line)]
        telling = [line for line in errors if not re.search(r"mmdebstrap failed|apt-get .* failed$", line)]
        return [line[:300] for line in (telling or errors or [line for line in self._lines if line])[-8:]]

    def hint(self, suite: Suite) -> str:
        """What to do about the failures that are known."""
        text = "\n".join(self._lines)
        if re.search(r"NO_PUBKEY|not signed|keyring", text):
            return "install debian-archive-keyring or ubuntu-keyring, or give the file with the keys by --keyring"
        if match := re.search(r"(?:Unable to locate package|Couldn't find these debs:) (\S+)", text):
            return f"{suite.name} has no package {match[1]}: look at --include"
        if re.search(r"No space left", text):
            return "make room on the disk of the home directory"
        if re.search(r"does not have a Release file|404|Could not (?:resolve|connect)|Failed getting release", text):
            return f"give a mirror that has {suite.name} with --mirror URL"
        return ""
