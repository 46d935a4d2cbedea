"""The architectures that static workers are made for."""

import os
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Target:
    """An architecture, by the names that the tools have for it."""

    arch: str  # canonical
    zig: str  # zig's target triple
    gnu: str  # for configure
    multiarch: str  # what the worker's interpreter says that it was built for
    qemu: str  # its user-mode emulator


TARGETS = {
    target.arch: target
    for target in (
        Target("amd64", "x86_64-linux-musl", "x86_64-pc-linux-musl", "x86_64-linux-musl", "qemu-x86_64-static"),
        Target("i386", "x86-linux-musl", "i686-pc-linux-musl", "i386-linux-musl", "qemu-i386-static"),
        Target(
            "arm64", "aarch64-linux-musl", "aarch64-unknown-linux-musl", "aarch64-linux-musl", "qemu-aarch64-static"
        ),
        Target(
            "armhf", "arm-linux-musleabihf", "arm-unknown-linux-musleabihf", "arm-linux-musleabihf", "qemu-arm-static"
        ),
        Target(
            "riscv64", "riscv64-linux-musl", "riscv64-unknown-linux-musl", "riscv64-linux-musl", "qemu-riscv64-static"
        ),
        Target(
            "ppc64el",
            "powerpc64le-linux-musl",
            "powerpc64le-unknown-linux-musl",
            "powerpc64le-linux-musl",
            "qemu-ppc64le-static",
        ),
    )
}

_ARCH_BY_MACHINE = {
    "x86_64": "amd64",
    "i686": "i386",
    "aarch64": "arm64",
    "armv7l": "armhf",
    "riscv64": "riscv64",
    "ppc64le": "ppc64el",
}


def own_arch() -> str:
    """Of the machine that builds; "" where no worker is made for it."""
    return _ARCH_BY_MACHINE.get(os.uname().machine, "")
