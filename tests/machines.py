"""What tests of virtual machines need: a kernel from this host's own mirrors, an image of a small root, a worker."""

import json
import os
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from biruda import injection
from biruda.config import Environment
from biruda.coordinator.envbuild import kernel
from biruda.coordinator.envbuild.shelf import Shelf
from biruda.coordinator.envbuild.sources import host_sources
from biruda.coordinator.envbuild.tools import Tools
from biruda.coordinator.spawners.qemu.argv import SYSTEMS
from biruda.errors import BirudaError, EnvironmentFault
from biruda.model import Kind
from tests.coordinator.spawners.support import busybox_root


@dataclass(frozen=True)
class MachineFiles:
    """What an environment of kind qemu is made of."""

    root: Path
    kernel: Path
    modules: Path
    arch: str
    platform: str

    def environment(self, name: str = "vm", **more: object) -> Environment:
        """An environment of kind qemu."""
        keys = {key: str(value) for key, value in vars(self).items()}
        return Environment(name=name, kind=Kind.QEMU, **{"disk_bytes": 256 << 20, **keys, **more})  # type: ignore[arg-type]

    def toml(self, name: str = "vm", **more: object) -> str:
        """The same, as it is written in biruda.conf."""
        keys = {"kind": "qemu", **{key: str(value) for key, value in vars(self).items()}}
        values = {"disk_bytes": "256 MiB", **keys, **more}.items()
        lines = "".join(f"{key} = {value if isinstance(value, int) else json.dumps(value)}\n" for key, value in values)
        return f'[[environment]]\nname = "{name}"\n{lines}\n'


@pytest.fixture(scope="session")
def machine_files(tmp_path_factory: pytest.TempPathFactory) -> MachineFiles:
    """A small root and this host's kernel, for all tests of a session."""
    directory = tmp_path_factory.mktemp("machines")
    need_machines()
    return make_files(directory / "files", busybox_root(directory / "tree"))


@pytest.fixture(scope="session")
def machine_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the session's template and verdict are: made by the first test that needs them."""
    return tmp_path_factory.mktemp("machines-cache")


def need_machines(arch: str = "amd64") -> None:
    """Skips the test where no machine of an architecture can be made."""
    system = SYSTEMS[arch]
    tools = ((system.program, system.package), ("mksquashfs", "squashfs-tools"), ("mkfs.ext4", "e2fsprogs"))
    for program, package in tools:
        if shutil.which(program, path=f"{os.defpath}:/usr/sbin:/sbin") is None:
            pytest.skip(f"no {program}: apt-get install {package}")
    try:
        injection.find(arch, Path(os.devnull))
    except EnvironmentFault as fault:
        pytest.skip(f"{fault}; {fault.hint}")


def make_files(directory: Path, tree: Path, arch: str = "amd64", platform: str = "tiny1") -> MachineFiles:
    """An image of a tree, and the kernel of the suite that this host is; skips where it cannot be had."""
    need_machines(arch)
    made = fetch_kernel(directory, arch)
    kernel_files = MachineFiles(directory / "none", made / "kernel", made / "modules", arch, platform)
    return image_of(tree, directory, kernel_files, arch)


def image_of(tree: Path, directory: Path, files: MachineFiles, arch: str) -> MachineFiles:
    """An image of another tree, to go with a kernel that is there."""
    root = directory / "root.squashfs"
    subprocess.run(
        ["mksquashfs", tree, root, "-comp", "lz4", "-no-progress", "-quiet"], check=True, capture_output=True
    )
    return replace(files, root=root, arch=arch)


def fetch_kernel(directory: Path, arch: str) -> Path:
    """A directory with `kernel` and `modules` from the mirrors of this host; skips where they cannot be reached."""
    (directory / "shelf").mkdir(parents=True)
    suite = _own_suite()
    sources = host_sources(suite, arch, arch)
    order = kernel.KernelOrder(suite=suite, arch=arch, sources=sources, digest="test")
    try:
        return kernel.fetch(order, Shelf(directory / "shelf"), directory, Tools(), lambda _: None, fresh=False)
    except BirudaError as error:
        pytest.skip(f"no kernel for machines of {arch}: {error}")


def busybox_of(directory: Path, arch: str) -> Path:
    """A root tree of a static busybox for another architecture; skips where it cannot be fetched."""
    tools, suite = Tools(), _own_suite()
    order = kernel.KernelOrder(suite=suite, arch=arch, sources=host_sources(suite, arch, arch), digest="test")
    try:
        package = kernel.download(order, ["busybox-static"], directory / "apt", tools)[0]
    except BirudaError as error:
        pytest.skip(f"no busybox for {arch}: {error}")
    tree = directory / "tree"
    subprocess.run(["dpkg-deb", "-x", package, tree], check=True)
    (tree / "etc").mkdir(exist_ok=True)
    (tree / "etc/os-release").write_text("ID=tiny\nVERSION_ID=1\n")
    (tree / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\n")
    for name in ("sh", "echo", "uname", "cat", "sleep", "ls"):
        (tree / "bin" / name).symlink_to("busybox")
    return tree


def _own_suite() -> str:
    for line in Path("/etc/os-release").read_text().splitlines():
        if line.startswith("VERSION_CODENAME="):
            return line.partition("=")[2].strip('"')
    return "unknown"
