"""A kernel for machines of kind qemu, taken out of a distribution's package: nothing is installed, nothing loaded."""

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from biruda.coordinator.envbuild import tree
from biruda.coordinator.envbuild.shelf import Shelf
from biruda.coordinator.envbuild.sources import Source
from biruda.coordinator.envbuild.suite import Progress, host_apt_options
from biruda.coordinator.envbuild.tools import Tools
from biruda.coordinator.spawners.qemu.modules import WANTED, Modules
from biruda.errors import UserError

PACKAGES: Final[Mapping[str, tuple[str, ...]]] = {
    "amd64": ("linux-image-cloud-amd64", "linux-image-virtual", "linux-image-amd64"),
    "i386": ("linux-image-686-pae", "linux-image-686"),
    "arm64": ("linux-image-cloud-arm64", "linux-image-virtual", "linux-image-arm64"),
}
"""The packages that have a kernel for a machine, the smallest first. They depend on the one that holds it."""

KERNEL: Final = "kernel"
MODULES: Final = "modules"

_PARTS: Final = re.compile(r"\s*Depends: (linux-(?:image|modules)-[0-9][\w.+-]*)")
_IMAGES: Final = ("vmlinuz-*", "vmlinux-*")


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelOrder:
    """Which kernel is wanted."""

    suite: str
    arch: str
    sources: tuple[Source, ...]
    digest: str  # of all that it is made from

    @property
    def key(self) -> str:
        """Its name in the cache."""
        return f"kernel-{self.suite}-{self.arch}-{self.digest}"


def fetch(order: KernelOrder, shelf: Shelf, work: Path, tools: Tools, progress: Progress, *, fresh: bool) -> Path:
    """A directory with `kernel` and, in load order, `modules`; from the cache, else from the suite's packages.

    Raises UserError with the last words of the tool, OSError.
    """
    made = work / "kernel"
    cached = shelf.cached(order.key)
    if cached.exists() and not fresh:
        try:
            tree.unpack(cached, made, cached.name)
        except tree.DamagedArchive:
            tree.remove(made)
        else:
            shelf.used(cached)
            progress(f"its kernel from cache: {_release(made)}")
            return made
    packages = _downloaded(order, work / "apt", tools, progress)
    unpacked = work / "kernel-packages"
    unpacked.mkdir()
    for package in packages:
        _run(tools, ["dpkg-deb", "-x", str(package), str(unpacked)], {}, f"{package.name} cannot be unpacked")
    made = take(unpacked, made)
    progress(f"its kernel: {_release(made)}")
    archive = work / "kernel.tar.zst"
    tree.pack(made, archive)
    shelf.keep(archive, order.key)
    return made


def given(path: Path, work: Path, progress: Progress) -> Path:
    """The same from a kernel of the user's choice: BOOT/vmlinuz-RELEASE, with modules in BOOT/../lib/modules/RELEASE.

    A kernel without such modules must have everything built in. Raises UserError, OSError.
    """
    if not path.is_file():
        raise UserError(f"{path}: there is no such kernel")
    made = work / "kernel"
    release = path.name.partition("-")[2]
    modules = path.resolve().parent.parent / "lib" / "modules" / release
    _keep(path, modules if release and modules.is_dir() else None, made)
    progress(f"its kernel: {path.name}, {len(os.listdir(made / MODULES))} modules")
    return made


def take(unpacked: Path, made: Path) -> Path:
    """The kernel of an unpacked package, and what it needs of its modules. Raises UserError, OSError."""
    images = [path for pattern in _IMAGES for path in sorted((unpacked / "boot").glob(pattern))]
    if not images:
        raise UserError("the package of the kernel holds no kernel in /boot")
    release = images[-1].name.partition("-")[2]
    modules = [unpacked / part / "modules" / release for part in ("usr/lib", "lib")]
    found = next((path for path in modules if path.is_dir()), None)
    if found is None:
        raise UserError(f"the package of the kernel {release} holds no modules")
    return _keep(images[-1], found, made)


def _keep(image: Path, modules: Path | None, made: Path) -> Path:
    made.mkdir()
    (made / MODULES).mkdir()
    shutil.copyfile(image, made / KERNEL)
    (made / "release").write_text(image.name.partition("-")[2])
    for number, module in enumerate(Modules(modules).in_load_order(WANTED) if modules is not None else ()):
        (made / MODULES / f"{number:02}-{module.name}.ko").write_bytes(module.data)
    return made


def _release(made: Path) -> str:
    return (made / "release").read_text()


def _downloaded(order: KernelOrder, apt: Path, tools: Tools, progress: Progress) -> list[Path]:
    """The packages that hold the kernel and its modules."""
    if not tools.find("apt-get") or not tools.find("dpkg-deb"):
        raise UserError(
            f"the kernel of {order.suite} is fetched by apt-get, which is not installed here",
            hint="give a kernel with --kernel FILE",
        )
    lines = [_line(source, order.suite) for source in order.sources]
    if not lines:
        raise UserError(
            f"no mirror is known from which the kernel of {order.suite} could come",
            hint="give one with --mirror URL, or a kernel with --kernel FILE",
        )
    progress(f"reading the lists of packages for the kernel of {order.suite}")
    env, problem = _listed(order, apt, lines, tools)
    names = _names(order, env, tools)
    if not names:  # one pocket that cannot be read does not matter, as long as another has it
        raise problem or UserError(
            f"{order.suite} has no kernel for machines of {order.arch}",
            hint="give one with --kernel FILE, or --mirror URL",
        )
    progress(f"fetching {' '.join(names)}")
    return _fetched(names, apt, env, tools)


def download(order: KernelOrder, names: Sequence[str], apt: Path, tools: Tools) -> list[Path]:
    """Other packages from where a kernel would come. Raises UserError."""
    lines = [_line(source, order.suite) for source in order.sources]
    env, _ = _listed(order, apt, lines, tools)
    return _fetched(names, apt, env, tools)


def _listed(
    order: KernelOrder, apt: Path, lines: Sequence[str], tools: Tools
) -> tuple[Mapping[str, str], UserError | None]:
    """The environment of an apt that knows the packages, and what was wrong with the lists of some of them."""
    env = {"APT_CONFIG": str(_configure(order, apt, lines, tools))}
    problem = f"the packages of {order.suite} cannot be listed"
    return env, _attempt(tools, ["apt-get", "-q", "update"], env, problem)


def _fetched(names: Sequence[str], apt: Path, env: Mapping[str, str], tools: Tools) -> list[Path]:
    script = 'cd "$0" && exec apt-get -q download "$@"'
    argv = ["sh", "-c", script, str(apt / "packages"), *names]
    _run(tools, argv, env, f"{' '.join(names)} cannot be fetched")
    return sorted((apt / "packages").glob("*.deb"))


def _line(source: Source, suite: str) -> str:
    return str(source) if source.suite else f"deb {source.uri} {suite} {' '.join(source.components)}"


def _configure(order: KernelOrder, apt: Path, lines: Sequence[str], tools: Tools) -> Path:
    """An apt of its own, which knows nothing of what is installed on this host."""
    for part in ("state/lists/partial", "cache/archives/partial", "packages", "sources.list.d", "preferences.d"):
        (apt / part).mkdir(parents=True)
    (apt / "status").touch()
    (apt / "sources.list").write_text("".join(f"{line}\n" for line in lines))
    options = [
        f'Dir::State "{apt}/state"',
        f'Dir::State::status "{apt}/status"',
        f'Dir::Cache "{apt}/cache"',
        f'Dir::Etc::sourcelist "{apt}/sources.list"',
        f'Dir::Etc::sourceparts "{apt}/sources.list.d"',
        f'Dir::Etc::preferencesparts "{apt}/preferences.d"',
        f'APT::Architecture "{order.arch}"',
        f'APT::Architectures "{order.arch}"',
        'APT::Sandbox::User "root"',
        'Acquire::Languages "none"',
        'Acquire::Retries "2"',
        'Acquire::http::Timeout "60"',
        *host_apt_options(tools),
    ]
    config = apt / "apt.conf"
    config.write_text("".join(f"{option};\n" for option in options))
    return config


def _names(order: KernelOrder, env: Mapping[str, str], tools: Tools) -> list[str]:
    """The packages with the files, of the first that the suite has; none when it has none."""
    for package in PACKAGES.get(order.arch, ()):
        said: list[str] = []
        if tools.run(["apt-cache", "depends", package], env, said.append) != 0:
            continue
        if names := [match[1] for match in map(_PARTS.match, said) if match]:
            for name in list(names):  # elsewhere the modules are in a package of their own
                more: list[str] = []
                tools.run(["apt-cache", "depends", name], env, more.append)
                names += [match[1] for match in map(_PARTS.match, more) if match and match[1] not in names]
            return names
    return []


def _run(tools: Tools, argv: Sequence[str], env: Mapping[str, str], problem: str) -> None:
    if failed := _attempt(tools, argv, env, problem):
        raise failed


def _attempt(tools: Tools, argv: Sequence[str], env: Mapping[str, str], problem: str) -> UserError | None:
    """Run a tool; what is to be raised when it failed, with its last words."""
    said: list[str] = []
    status = tools.run_apart(argv, {"DEBIAN_FRONTEND": "noninteractive", **env}, said.append)
    if status == 0:
        return None
    words = [line.strip() for line in said if re.match(r"\s*(E:|Err:|dpkg-deb: error)", line)] or said[-3:]
    last = "".join(f"\n  {line.strip()[:300]}" for line in words[-5:])
    return UserError(f"{problem} ({argv[0]}: exit status {status}):{last}")
