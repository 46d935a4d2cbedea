"""Who an injected worker is: told at each hello, so that the wrong one cannot pass for the right one."""

import os
import sys
from typing import NamedTuple

from biruda.guessenv import canonical_arch
from biruda.worker.kernel import built_for


class Identity(NamedTuple):
    """What this program was built for, and the boot of the kernel that it runs on; "" for what cannot be told."""

    arch: str = ""
    boot_id: str = ""


def identity() -> Identity:
    """This process's."""
    arch = built_for() or canonical_arch(str(getattr(sys.implementation, "_multiarch", ""))) or ""
    return Identity(arch, _boot_id())


def _boot_id() -> str:
    try:
        fd = os.open("/proc/sys/kernel/random/boot_id", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return os.read(fd, 64).decode("ascii", "replace").strip()
    except OSError:
        return ""
    finally:
        os.close(fd)
