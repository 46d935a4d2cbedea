"""Who an injected worker is: told at each hello, so that the wrong one cannot pass for the right one."""

import os
import sys
from typing import NamedTuple

from biruda.worker.kernel import built_for


class Identity(NamedTuple):
    """What this program was built for, and the boot of the kernel that it runs on; "" for what cannot be told."""

    arch: str = ""
    boot_id: str = ""


def identity() -> Identity:
    """This process's."""
    return Identity(built_for() or _arch_of_python(), _boot_id())


def _arch_of_python() -> str:
    from biruda.guessenv import canonical_arch  # here: an executable that knows what it was built for needs it not

    return canonical_arch(str(getattr(sys.implementation, "_multiarch", ""))) or ""


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
