"""What a host is that ssh reaches: asked of its own shell, decided here by the rules for any root tree."""

import os
import tempfile
from pathlib import Path
from typing import Final

from biruda.coordinator.spawners.ssh_client import Said
from biruda.guessenv import canonical_arch, guess
from biruda.model import Facts

SYSTEM_SCRIPT: Final = r"""
hex() { od -An -v -tx1 | while read -r line; do printf '%s ' "$line"; done; echo; }
say system "$(uname -s)"
say machine "$(uname -m)"
for file in /bin/sh /bin/busybox /usr/bin/env /bin/ls; do
    [ -r "$file" ] || continue
    say program "$(dd if="$file" bs=1024 count=4 2>/dev/null | hex)"
    break
done
for file in /etc/os-release /usr/lib/os-release /etc/alpine-release /etc/debian_version /etc/redhat-release; do
    [ -r "$file" ] && say "file:$file" "$(dd if="$file" bs=1024 count=16 2>/dev/null | hex)"
done
"""
"""Says what facts_of() reads. A host without od is known by the name that its kernel gives the machine."""

_READ: Final = (
    "/etc/os-release",
    "/usr/lib/os-release",
    "/etc/alpine-release",
    "/etc/debian_version",
    "/etc/redhat-release",
)


def facts_of(said: Said) -> Facts:
    """What a host is, by what its programs and its release files say. Blocking."""
    with tempfile.TemporaryDirectory(prefix="biruda-look-") as directory:
        root = Path(directory)
        _put(root, "/bin/sh", said.text("program"))
        for path in _READ:
            _put(root, path, said.text(f"file:{path}"))
        seen = guess(os.fspath(root))
    machine = said.text("machine")[:64]
    kernel = canonical_arch(machine) or "unknown"
    known = seen.arch != "unknown"
    arch = seen.arch if known else kernel
    evidence = () if known else (f"uname -m: {machine} -> {kernel}",)
    return Facts(
        arch=arch,
        platform=seen.platform,
        libc=seen.libc,
        bits=seen.bits or 64,
        evidence=(*evidence, *seen.evidence),
    )


def kernel_arch(said: Said) -> str:
    """The architecture of a host's kernel, which may run programs of a narrower one."""
    return canonical_arch(said.text("machine")[:64]) or ""


def _put(root: Path, path: str, text: str) -> None:
    try:
        content = bytes.fromhex(text)
    except ValueError:
        return
    if content:
        target = root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
