"""Programs of a foreign architecture: whether the kernel hands them to an emulator, inside a root that has none."""

import os
from typing import Final

from biruda.errors import EnvironmentFault

_DIRECTORY: Final = "/proc/sys/fs/binfmt_misc"
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


def require(where: str, arch: str, host_arch: str, directory: str = _DIRECTORY) -> None:
    """Raises EnvironmentFault, which says what is missing, unless an emulator of arch works inside of any root."""
    cpu = _CPUS.get(arch, arch)
    problem = _problem(f"qemu-{cpu}", directory)
    if problem:
        raise EnvironmentFault(
            f"{where}: its programs are for {arch} and this host is {host_arch}: {problem}",
            hint=f"apt-get install qemu-user-static binfmt-support, so that qemu-{cpu} is registered with flag F",
        )


def _problem(emulator: str, directory: str) -> str:
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


def _interpreter(text: str) -> tuple[str, ...]:
    """The names that an entry's interpreter counts as."""
    name = os.path.basename(_field(text, "interpreter"))
    return name, name.removesuffix("-static"), name.removesuffix("-binfmt-P")


def _field(text: str, key: str) -> str:
    return next((line[len(key) :].strip() for line in text.splitlines() if line.startswith(key)), "")


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
