"""The source packs that a daemon holds: one tar file each, its recipe beside it, every chunk in them to be found again.

    DIGEST.tar        the pack; its modification time says when it was used last
    DIGEST.recipe     its recipe, one zstd frame; it gets its name first, so that no tar file is ever without one
    .tmp-*            being written; the next start removes what a crash leaves

One process owns the directory. All methods block, and any thread may call any of them at any time.
"""

import hashlib
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from biruda.errors import EnvironmentFault, PeerError, UserError
from biruda.sourcepack import recipe as recipes
from biruda.sourcepack import wire
from biruda.sourcepack.assembly import Arriving, write_tar
from biruda.sourcepack.disk import TEMPORARY_PREFIX, Temporary, on_disk
from biruda.sourcepack.pack import scan
from biruda.sourcepack.recipe import Chunk, PackRecipe

_log = logging.getLogger(__name__)
_FILE_NAME = re.compile(r"([0-9a-f]{64})\.(?:tar|recipe)")
_OPEN_PACKS = 64  # how many an assembly keeps open at once


class _Place(NamedTuple):
    """Where a chunk lies."""

    digest: str
    length: int
    offset: int


@dataclass(slots=True)
class _Held:
    """One pack of the store."""

    bytes: int
    used_ns: int
    pins: int = 0


class PackStore:
    """Source packs in a directory. EnvironmentFault when the disk fails or is full; UserError for a pack not held."""

    def __init__(self, directory: Path, *, max_recipe_bytes: int = 64 << 20, max_pack_bytes: int = 32 << 30) -> None:
        self._directory = directory
        self._max_recipe_bytes = max_recipe_bytes
        self._max_pack_bytes = max_pack_bytes
        self._lock = threading.Lock()  # of the two tables, and of files getting and losing their names
        self._loading = threading.Lock()
        self._loaded = False
        self._places: dict[bytes, _Place] = {}  # by sha256
        with on_disk(directory):
            directory.mkdir(parents=True, exist_ok=True)
            self._packs = _tidy(directory)

    def has(self, digest: str) -> bool:
        """Whether the pack is here as a whole."""
        with self._lock:
            return digest in self._packs

    def path(self, digest: str) -> Path:
        """The tar file of a pack; it may be evicted unless it is pinned."""
        with self._lock:
            self._held(digest)
        return self._tar(digest)

    def open(self, digest: str) -> BinaryIO:
        """The tar file, open to be read, to its end even if the pack is evicted meanwhile. The caller closes it."""
        self.touch(digest)
        return self._open(digest, ".tar")

    def recipe(self, digest: str) -> bytes:
        """The recipe of a pack, not compressed."""
        with self._open(digest, ".recipe") as file, on_disk(self._tar(digest).with_suffix(".recipe")):
            data = file.read()
        try:
            recipe = wire.decompress_recipe(data, max_bytes=self._max_recipe_bytes)
        except PeerError as error:
            raise self._damaged(digest, str(error)) from error
        if recipes.digest_of(recipe) != digest:
            raise self._damaged(digest, "the recipe is another one")
        return recipe

    def chunks(self, digest: str, indexes: Iterable[int]) -> Iterator[bytes]:
        """These chunks of a pack, in this order, unchecked; the pack is in use until the iterator ends."""
        with self.pinned(digest), self.open(digest) as file:
            known = self._decode(self.recipe(digest)).chunks
            for index in indexes:
                if not 0 <= index < len(known):
                    raise PeerError(f"source pack {digest}: chunk {index} was asked for; it has {len(known)}")
                with on_disk(self._tar(digest)):
                    content = os.pread(file.fileno(), known[index].length, known[index].offset)
                yield content

    def missing(self, recipe: bytes) -> list[int]:
        """The indexes of the chunks that assemble() needs for this recipe, ascending, each content once.

        The packs that have the others count as used now, so that they are evicted last. PeerError when the recipe is
        not exactly as it must be.
        """
        decoded = self._decode(recipe)
        with suppress(UserError):  # not here, or evicted just now
            self.touch(decoded.digest)
            return []
        self._load()
        wanted: dict[bytes, int] = {}
        useful: set[str] = set()
        with self._lock:
            for index, chunk in enumerate(decoded.chunks):
                place = self._places.get(chunk.sha256)
                if place is not None and place.length == chunk.length:
                    useful.add(place.digest)
                else:
                    wanted.setdefault(chunk.sha256, index)
        for digest in useful:
            with suppress(UserError):  # evicted since: assemble() says what is missing then
                self.touch(digest)
        return list(wanted.values())

    def assemble(self, recipe: bytes, chunks: Iterable[bytes]) -> str:
        """Makes the pack of this recipe, unless it is here, and returns its digest.

        `chunks` is what missing() asked for, in that order, and is read to its end. Every chunk is checked, those of
        the store too. PeerError names the file whose chunk is wrong or missing, because it was never sent or because
        the pack that had it was evicted since: asking missing() again is the way on. Nothing is left behind then.
        """
        decoded = self._decode(recipe)
        arriving = Arriving(chunks, decoded)
        with suppress(UserError), self.pinned(decoded.digest):  # not here, or evicted just now: then it is made
            arriving.finish({chunk.sha256 for chunk in decoded.chunks})
            return decoded.digest
        self._load()
        with (
            self._found(decoded) as held,
            Temporary(self._directory) as tar,
            Temporary(self._directory) as sidecar,
        ):
            write_tar(decoded, arriving, held, tar)
            sidecar.write(wire.compress_recipe(recipe))
            tar.sync()
            sidecar.sync()
            self._publish(decoded, tar, sidecar)
        return decoded.digest

    def add_directory(self, directory: Path, *, cache: Path | None = None, whole: bool = False) -> str:
        """Packs a directory of this host and returns the digest; with a cache, only what changed is read.

        whole: nothing is left out by its ignore files.
        """
        plan = scan(directory, cache=cache, whole=whole)
        if plan.summary.bytes > self._max_pack_bytes or len(plan.recipe) > self._max_recipe_bytes:
            raise UserError(
                f"{directory}: too large to be packed: {plan.summary.bytes} bytes in {plan.summary.files} files",
                hint=f"at most {self._max_pack_bytes} bytes; leave out what no build needs with .birudaignore",
            )
        return self.assemble(plan.recipe, plan.chunks(self.missing(plan.recipe)))

    def touch(self, digest: str, *, at_ns: int | None = None) -> None:
        """The pack is used now, or was at `at_ns`."""
        used_ns = time.time_ns() if at_ns is None else at_ns
        with self._lock:
            self._held(digest).used_ns = used_ns
            with suppress(OSError):  # only the next start reads it
                os.utime(self._tar(digest), ns=(used_ns, used_ns))

    @contextmanager
    def pinned(self, digest: str) -> Iterator[Path]:
        """The tar file of a pack, which is not evicted within the block."""
        with self._lock:
            held = self._held(digest)
            held.pins += 1
        try:
            self.touch(digest)
            yield self._tar(digest)
        finally:
            with self._lock:
                held.pins -= 1

    def evict(self, limit_bytes: int) -> list[str]:
        """Removes packs until the rest takes at most `limit_bytes`: the least recently used first, none in use.

        Returns the digests of those removed. More than the limit stays when what is in use needs more.
        """
        removed: list[str] = []
        with self._lock:
            total = sum(held.bytes for held in self._packs.values())
            for digest, held in sorted(self._packs.items(), key=lambda item: (item[1].used_ns, item[0])):
                if total > limit_bytes and not held.pins:
                    total -= held.bytes
                    removed.append(digest)
            lost = self._remove(set(removed))
            rest = self._recent_first() if lost else []
        for digest in rest:
            self._learn(digest, lost)
        return removed

    def _tar(self, digest: str) -> Path:
        return self._directory / f"{digest}.tar"

    def _held(self, digest: str) -> _Held:
        held = self._packs.get(digest)
        if held is None:
            raise UserError(f"source pack {digest}: not held here", hint="submit the source again")
        return held

    def _recent_first(self) -> list[str]:
        return sorted(self._packs, key=lambda digest: -self._packs[digest].used_ns)

    def _decode(self, recipe: bytes) -> PackRecipe:
        if len(recipe) > self._max_recipe_bytes:
            raise PeerError(f"recipe of a source pack: larger than {self._max_recipe_bytes} bytes")
        return recipes.decode(recipe, max_tar_bytes=self._max_pack_bytes)

    def _load(self) -> None:
        """Learns what the packs have that were here at the start; whoever asks first does it, the others wait."""
        with self._loading:
            if not self._loaded:
                with self._lock:
                    digests = self._recent_first()
                for digest in digests:
                    self._learn(digest)
                self._loaded = True

    def _learn(self, digest: str, only: set[bytes] | None = None) -> None:
        """Adds the chunks of one pack, all or only these, that no pack is known to have."""
        try:
            known = self._decode(self.recipe(digest)).chunks
        except (EnvironmentFault, PeerError, UserError) as error:  # a pack less: its chunks are sent again
            _log.warning("a source pack cannot be used: %s", error)
            return
        with self._lock:
            if digest in self._packs:
                for sha256, length, offset in known:
                    if only is None or sha256 in only:
                        self._places.setdefault(sha256, _Place(digest, length, offset))

    @contextmanager
    def _found(self, decoded: PackRecipe) -> Iterator[Callable[[Chunk], bytes | None]]:
        """Reads chunks of the recipe from packs that have them; those packs are in use within the block."""
        with self._lock:
            places = {chunk.sha256: self._places.get(chunk.sha256) for chunk in decoded.chunks}
            pinned = [self._packs[digest] for digest in {place.digest for place in places.values() if place}]
            for held in pinned:
                held.pins += 1
        files: dict[str, BinaryIO] = {}

        def read(chunk: Chunk) -> bytes | None:
            place = places[chunk.sha256]
            if place is None or place.length != chunk.length:
                return None
            content = self._read(place, files)
            if hashlib.sha256(content).digest() != chunk.sha256:
                raise self._damaged(place.digest, f"not the content it was made of at offset {place.offset}")
            return content

        try:
            yield read
        finally:
            _close(files)
            with self._lock:
                for held in pinned:
                    held.pins -= 1

    def _read(self, place: _Place, files: dict[str, BinaryIO]) -> bytes:
        if place.digest not in files:
            if len(files) >= _OPEN_PACKS:
                _close(files)
            files[place.digest] = self._open(place.digest, ".tar")
        with on_disk(self._tar(place.digest)):
            return os.pread(files[place.digest].fileno(), place.length, place.offset)

    def _open(self, digest: str, suffix: str) -> BinaryIO:
        path = self._tar(digest).with_suffix(suffix)
        try:
            with on_disk(path), self._lock:  # within the lock nothing is evicted
                self._held(digest)
                return path.open("rb")
        except EnvironmentFault as error:
            if isinstance(error.__cause__, FileNotFoundError):  # any other trouble may pass, say too many open files
                raise self._damaged(digest, f"{path.name} is gone") from error
            raise

    def _publish(self, decoded: PackRecipe, tar: Temporary, sidecar: Temporary) -> None:
        path = self._tar(decoded.digest)
        with self._lock:
            if decoded.digest in self._packs:  # another thread was first
                return
            sidecar.become(path.with_suffix(".recipe"))
            tar.become(path)
            self._packs[decoded.digest] = _Held(decoded.tar_bytes, time.time_ns())
            for sha256, length, offset in decoded.chunks:
                self._places[sha256] = _Place(decoded.digest, length, offset)
        _sync_directory(self._directory)

    def _damaged(self, digest: str, why: str) -> EnvironmentFault:
        """Drops the pack, so that it is sent again, and says so."""
        with self._lock:
            self._remove({digest})
        return EnvironmentFault(
            f"{self._tar(digest)}: damaged: {why}; the pack was removed", hint="submit the source again; check the disk"
        )

    def _remove(self, digests: set[str]) -> set[bytes]:
        """Removes packs, the lock being held; returns the sha256 of chunks that no pack is known to have any more."""
        if not digests:
            return set()
        lost = {sha256 for sha256, place in self._places.items() if place.digest in digests}
        for sha256 in lost:
            del self._places[sha256]
        for digest in digests & self._packs.keys():
            del self._packs[digest]
            path = self._tar(digest)
            with on_disk(path):
                path.unlink(missing_ok=True)  # first: a recipe alone is removed by the next start
                path.with_suffix(".recipe").unlink(missing_ok=True)
        return lost


def _tidy(directory: Path) -> dict[str, _Held]:
    """The packs in the directory; what a crash left of others is removed."""
    packs: dict[str, _Held] = {}
    for path in directory.iterdir():
        match = _FILE_NAME.fullmatch(path.name)
        tar, sidecar = path.with_suffix(".tar"), path.with_suffix(".recipe")
        if path.name.startswith(TEMPORARY_PREFIX) or (match and not (tar.exists() and sidecar.exists())):
            path.unlink(missing_ok=True)
        elif match and path == tar:
            status = tar.stat()
            packs[match[1]] = _Held(status.st_size, status.st_mtime_ns)
    return packs


def _sync_directory(directory: Path) -> None:
    with on_disk(directory):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _close(files: dict[str, BinaryIO]) -> None:
    for file in files.values():
        file.close()
    files.clear()
