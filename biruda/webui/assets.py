"""What pages load: the files of static/, in memory, packed once, at addresses whose content never changes."""

import gzip
import hashlib
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from typing import Final

TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".json": "application/json",
}
"""What is served; anything else in the directory is not."""


@dataclass(frozen=True, slots=True)
class Asset:
    """One file. packed: the same by gzip."""

    content_type: str
    body: bytes
    packed: bytes
    etag: str


@dataclass(frozen=True, slots=True)
class Assets:
    """All files by name, and the digest of them together, which is part of their addresses."""

    files: dict[str, Asset]
    digest: str

    def url(self, name: str) -> str:
        """Where a page finds a file. Raises KeyError for one that is not there."""
        assert name in self.files, name
        return f"/static/{self.digest}/{name}"


def load(directory: Traversable) -> Assets:
    """Every file that may be served."""
    files: dict[str, Asset] = {}
    _add(files, directory, "")
    together = hashlib.sha256()
    for name, asset in sorted(files.items()):
        together.update(f"{name} {asset.etag}\n".encode())
    return Assets(files, together.hexdigest()[:16])


def _add(files: dict[str, Asset], directory: Traversable, prefix: str) -> None:
    for entry in directory.iterdir():
        name = prefix + entry.name
        if entry.is_dir():
            _add(files, entry, f"{name}/")
        elif (kind := TYPES.get("." + entry.name.rpartition(".")[2])) is not None:
            body = entry.read_bytes()
            digest = hashlib.sha256(body).hexdigest()
            files[name] = Asset(kind, body, gzip.compress(body, 9, mtime=0), f'"{digest[:32]}"')
