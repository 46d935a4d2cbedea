"""Makes of a root tree what a machine of kind qemu starts from: an image of it that nobody writes to, and a kernel."""

import os
from collections.abc import Mapping
from pathlib import Path

from biruda.coordinator.envbuild import kernel, tree
from biruda.coordinator.envbuild.suite import Progress
from biruda.coordinator.envbuild.tools import Tools
from biruda.errors import UserError
from biruda.guessenv import Guess

IMAGE = "root.squashfs"

CODENAMES: Mapping[str, str] = {
    "debian10": "buster",
    "debian11": "bullseye",
    "debian12": "bookworm",
    "debian13": "trixie",
}
"""Suites by platform: a tree that says nothing of its suite still says this."""


def check_tools(tools: Tools) -> None:
    """UserError where what makes images is not installed: before anything long is begun."""
    if not tools.find("mksquashfs"):
        raise UserError(
            "mksquashfs is not installed, which makes the image of the root", hint="apt-get install squashfs-tools"
        )


def furnish(made: Path, taken: Path, facts: Guess, tools: Tools, progress: Progress) -> dict[str, str]:
    """Turn `root` in a directory into an image and put the kernel beside it; the keys of its environment.toml.

    taken: a directory with `kernel` and `modules`. Raises UserError, OSError.
    """
    progress("making the image of the root")
    said: list[str] = []
    # lz4: it is read by an emulated processor, maybe, and that is what takes time
    argv = ["mksquashfs", str(made / "root"), str(made / IMAGE), "-comp", "lz4", "-no-progress", "-quiet"]
    argv += ["-all-root"] if os.geteuid() != 0 else []
    if tools.run_apart(argv, {}, said.append) != 0:
        raise UserError(f"mksquashfs cannot make the image of the root: {' '.join(said[-3:])[:300]}")
    tree.remove(made / "root")
    for name in (kernel.KERNEL, kernel.MODULES):
        (taken / name).rename(made / name)
    settings = {"kind": "qemu", "root": IMAGE, "kernel": kernel.KERNEL, "modules": kernel.MODULES}
    settings |= {"arch": facts.arch} if facts.arch != "unknown" else {}
    return settings | ({"platform": facts.platform} if facts.platform != "unknown" else {})


def suite_of(root: Path, facts: Guess) -> str:
    """The suite whose kernel suits a tree: its own, where it says so. Raises UserError."""
    for path in ("etc/os-release", "usr/lib/os-release"):
        file = root / path
        if not file.is_symlink() and file.is_file():
            for line in file.read_text(errors="replace").splitlines():
                name, _, value = line.partition("=")
                if name == "VERSION_CODENAME" and value.strip("\"'").isalnum():
                    return value.strip("\"'")
    if facts.platform in CODENAMES:
        return CODENAMES[facts.platform]
    raise UserError(
        f"a tree of {facts.platform} does not say whose kernel it takes", hint="give a kernel with --kernel FILE"
    )
