"""The worker executables that are injected into environments: a file for each architecture, which needs nothing there.

They are looked for in `$BIRUDA_WORKERS/<arch>`, in `workers/` of a frozen program's files (there maybe compressed), and
in `dist/workers/` of a source checkout. docs/injection.md says what is done with them.
"""

import hashlib
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from biruda.errors import EnvironmentFault

_CHECKOUT: Final = Path(__file__).resolve().parents[1]
_PACKED: Final = ".zst"


_known: dict[tuple[str, int, int], "Executable"] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Executable:
    """A worker executable, ready to be brought somewhere."""

    path: Path
    arch: str
    sha256: str


def find(arch: str, cache: Path, environ: Mapping[str, str] | None = None) -> Executable:
    """The worker of an architecture. A compressed one is unpacked into the cache, as SHA256-ARCH. Blocking.

    Raises EnvironmentFault: there is none, or it cannot be read or unpacked.
    """
    for path in _places(arch, os.environ if environ is None else environ):
        try:
            about = path.stat()
        except OSError:
            continue
        key = (str(path), about.st_mtime_ns, about.st_size)
        known = _known.get(key)
        if known is None or not known.path.exists():
            _known[key] = known = _take(path, arch, cache)
        return known
    raise EnvironmentFault(
        f"there is no worker executable for {arch} on this host",
        hint=f"make dist/workers/{arch} with ./build-static.sh, or name the directory that has it in BIRUDA_WORKERS",
    )


def _places(arch: str, environ: Mapping[str, str]) -> Iterator[Path]:
    if named := environ.get("BIRUDA_WORKERS", ""):
        yield Path(named, arch)
    frozen = getattr(sys, "_MEIPASS", "")
    if frozen:
        yield Path(frozen, "workers", arch)
        yield Path(frozen, "workers", arch + _PACKED)
    yield _CHECKOUT / "dist" / "workers" / arch


def _take(path: Path, arch: str, cache: Path) -> Executable:
    try:
        content = path.read_bytes()
        if path.suffix == _PACKED:
            content = _unpacked(content, path)
        digest = hashlib.sha256(content).hexdigest()
        if path.suffix == _PACKED:
            path = _kept(content, cache / f"{digest}-{arch}", digest)
        elif not os.access(path, os.X_OK):
            raise EnvironmentFault(f"{path}: the worker executable may not be executed", hint=f"chmod 755 {path}")
    except OSError as error:
        where = error.filename or path
        raise EnvironmentFault(f"{where}: the worker of {arch}: {os.strerror(error.errno or 0).lower()}") from None
    return Executable(path=path, arch=arch, sha256=digest)


def _unpacked(packed: bytes, path: Path) -> bytes:
    from backports import zstd

    try:
        return zstd.decompress(packed, options={zstd.DecompressionParameter.window_log_max: 27})
    except zstd.ZstdError as error:
        raise EnvironmentFault(f"{path}: the worker executable is damaged: {error}") from None


def _kept(content: bytes, path: Path, digest: str) -> Path:
    """A file with this content, whole and read-only."""
    if path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == digest:
        return path
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    fd, name = tempfile.mkstemp(prefix=".new-", dir=path.parent)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(fd, 0o555)
        os.replace(name, path)
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise
    return path
