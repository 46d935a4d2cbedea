"""Source packs at the master: taken from the command line, handed to coordinators, chunk by chunk."""

import asyncio
import struct
import tempfile
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from biruda.errors import PeerError
from biruda.sourcepack import wire
from biruda.sourcepack.packstore import PackStore
from biruda.sourcepack.recipe import digest_of

MAX_RECIPE_BYTES = 64 << 20
READ_BYTES = 1 << 20
_LENGTH = struct.Struct(">I")


class Sources:
    """The master's packs. What blocks runs in threads."""

    def __init__(self, directory: Path, limit_bytes: int) -> None:
        self.packs = PackStore(directory, max_recipe_bytes=MAX_RECIPE_BYTES)
        self._limit_bytes = limit_bytes

    def has(self, digest: str) -> bool:
        return self.packs.has(digest)

    async def missing(self, body: bytes) -> dict[str, Any]:
        """Answer to a compressed recipe: which of its chunks have to be sent. PeerError when it is none."""
        return await asyncio.to_thread(self._missing, body)

    def _missing(self, body: bytes) -> dict[str, Any]:
        recipe = wire.decompress_recipe(body, max_bytes=MAX_RECIPE_BYTES)
        missing = self.packs.missing(recipe)
        digest = digest_of(recipe)
        return {"digest": digest, "held": self.packs.has(digest), "missing": missing}

    async def receive(self, digest: str, body: AsyncIterator[bytes]) -> None:
        """Take `u32 length | compressed recipe | chunk stream`; the pack is here on return, else PeerError."""
        with tempfile.TemporaryFile(prefix="biruda-") as file:
            async for piece in body:
                await asyncio.to_thread(file.write, piece)
            await asyncio.to_thread(self._assemble, digest, file)

    def _assemble(self, digest: str, file: IO[bytes]) -> None:
        file.seek(0)
        head = file.read(_LENGTH.size)
        length = _LENGTH.unpack(head)[0] if len(head) == _LENGTH.size else -1
        packed = file.read(max(0, min(length, MAX_RECIPE_BYTES)))
        if len(packed) != length:
            raise PeerError("the body of a source pack ends within its recipe")
        recipe = wire.decompress_recipe(packed, max_bytes=MAX_RECIPE_BYTES)
        if digest_of(recipe) != digest:
            raise PeerError(f"the recipe is of the source pack {digest_of(recipe)}, not of {digest[:80]}")
        self.packs.assemble(recipe, wire.decode_chunks(_pieces(file)))
        self.packs.evict(self._limit_bytes)

    def add_directory(self, directory: Path, *, whole: bool = False) -> str:
        """The digest of the pack of a directory on this host, see sourcepack. It blocks. Raises UserError."""
        digest = self.packs.add_directory(directory, whole=whole)
        self.packs.evict(self._limit_bytes)
        return digest

    async def recipe(self, digest: str) -> bytes:
        """The compressed recipe of a pack; b"" for one that is not here."""
        if not self.packs.has(digest):
            return b""
        return wire.compress_recipe(await asyncio.to_thread(self.packs.recipe, digest))

    async def chunk_stream(self, digest: str, chunks: Iterable[int]) -> AsyncIterator[bytes]:
        """These chunks as one stream, in pieces."""
        pieces = wire.encode_chunks(self.packs.chunks(digest, chunks))
        while piece := await asyncio.to_thread(_next, pieces):
            yield piece


def _next(pieces: Iterator[bytes]) -> bytes:
    """The next piece that is not empty; b"" at the end."""
    return next((piece for piece in pieces if piece), b"")


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    while piece := file.read(READ_BYTES):
        yield piece
