"""Slow stages, kept outside the tree under a key made of all that goes into them."""

import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from problem import BuildProblem

_UNUSED_S = 30 * 24 * 3600.0
_KEY_DIGITS = 16


def cache_root() -> Path:
    """$BIRUDA_BUILD_CACHE, else biruda-build in the user's cache directory; it is there on return."""
    named = os.environ.get("BIRUDA_BUILD_CACHE")
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    root = Path(named) if named else user / "biruda-build"
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BuildProblem(
            f"{root}: the build's cache cannot be made: {error.strerror}", hint="name another with BIRUDA_BUILD_CACHE"
        ) from None
    return root.resolve()


def key_of(*parts: str | bytes | Path) -> str:
    """One key of texts and of files' contents. Where the files lie does not count."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.read_bytes() if isinstance(part, Path) else part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.hexdigest()[:_KEY_DIGITS]


def stage(name: str, key: str, make: Callable[[Path], object], *, in_place: bool = False) -> Path:
    """The directory that make() filled under this key, now or earlier. A failed one leaves its files for a look.

    in_place: what is made knows its own path, so it cannot be renamed when it is whole.
    """
    root = cache_root()
    place = root / f"{name}-{key}"
    whole = place / ".whole"
    with _lock(root / f"{name}-{key}.lock"):
        if not whole.is_file():
            print(f"   {name}: building", flush=True)
            began = time.monotonic()
            shutil.rmtree(place, ignore_errors=True)
            work = place if in_place else Path(tempfile.mkdtemp(prefix=f"{name}-making-", dir=root))
            work.mkdir(exist_ok=True)
            make(work)
            (work / ".whole").touch()
            if work != place:
                work.rename(place)
            _forget_unused(root, name)
            print(f"   {name}: built in {time.monotonic() - began:.0f} s", flush=True)
        os.utime(whole)
    return place


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _forget_unused(root: Path, name: str) -> None:
    for place in root.glob(f"{name}-*"):
        whole = place / ".whole"
        used = whole if whole.is_file() else place
        if time.time() - used.stat().st_mtime < _UNUSED_S:
            continue
        if place.is_dir():
            shutil.rmtree(place, ignore_errors=True)
        else:
            place.unlink(missing_ok=True)
