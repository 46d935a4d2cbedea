"""Source packs on this host: fetched from the master chunk by chunk where they are not here, kept for the next job."""

import asyncio
import itertools
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from biruda.errors import EnvironmentFault, PeerError
from biruda.frames import DataHeader
from biruda.link import Link
from biruda.messages import ChunksEnd, ChunksWanted, SourceOffered, SourceWanted, encode
from biruda.sourcepack import wire
from biruda.sourcepack.packstore import PackStore

READ_BYTES = 1 << 20
MAX_RECIPE_BYTES = 64 << 20
TRIES = 10


@dataclass(slots=True)
class Transfer:
    """Bytes that come in on one channel of job 0."""

    file: IO[bytes]
    offered: asyncio.Future[int]
    ended: asyncio.Future[int]
    received_bytes: int = 0
    grown: asyncio.Event = field(default_factory=asyncio.Event)


class Sources:
    """The packs of one coordinator."""

    def __init__(self, directory: Path, link: Link, limit_bytes: int) -> None:
        self.packs = PackStore(directory)
        self._link = link
        self._limit_bytes = limit_bytes
        self._transfers: dict[int, Transfer] = {}
        self._numbers = itertools.count(1)
        self._locks: dict[str, asyncio.Lock] = {}

    async def ensure(self, digest: str) -> None:
        """The pack is here on return. Raises EnvironmentFault when the master has it no more."""
        lock = self._locks.setdefault(digest, asyncio.Lock())
        async with lock:
            for _ in range(TRIES):
                if await asyncio.to_thread(self.packs.has, digest):
                    return
                try:
                    await self._fetch(digest)
                    await asyncio.to_thread(self.packs.evict, self._limit_bytes)
                except ConnectionError:
                    continue  # the session began anew; ask again
            raise EnvironmentFault(f"the source pack {digest} did not arrive in {TRIES} tries")

    async def add_directory(self, path: str) -> str:
        """Pack a directory of this host; its digest. Raises UserError for one that cannot be read."""
        return await asyncio.to_thread(self.packs.add_directory, Path(path))

    async def _fetch(self, digest: str) -> None:
        loop = asyncio.get_running_loop()
        number = next(self._numbers)
        with tempfile.TemporaryFile(prefix="biruda-") as file:
            transfer = Transfer(file, loop.create_future(), loop.create_future())
            self._transfers[number] = transfer
            try:
                self._link.post(encode(SourceWanted(digest=digest, transfer=number)))
                size = await transfer.offered
                if size == 0:
                    raise EnvironmentFault(f"the master does not hold the source pack {digest}", hint="run it again")
                await self._received(transfer, size)
                file.seek(0)
                packed = await asyncio.to_thread(file.read, size)
                recipe = await asyncio.to_thread(wire.decompress_recipe, packed, max_bytes=MAX_RECIPE_BYTES)
                missing = await asyncio.to_thread(self.packs.missing, recipe)
                file.seek(0)
                file.truncate()
                transfer.received_bytes = 0
                self._link.post(encode(ChunksWanted(digest=digest, transfer=number, chunks=tuple(missing))))
                await self._received(transfer, await transfer.ended)
                file.seek(0)
                await asyncio.to_thread(self.packs.assemble, recipe, wire.decode_chunks(_pieces(file)))
            except PeerError as error:
                raise EnvironmentFault(f"the source pack {digest} came damaged: {error}") from error
            finally:
                del self._transfers[number]

    async def _received(self, transfer: Transfer, size: int) -> None:
        while transfer.received_bytes < size:
            transfer.grown.clear()
            await transfer.grown.wait()
            if transfer.ended.done() and transfer.ended.exception() is not None:
                raise ConnectionError("the session ended")

    def offered(self, message: SourceOffered) -> None:
        transfer = self._transfers.get(message.transfer)
        if transfer is not None and not transfer.offered.done():
            transfer.offered.set_result(message.bytes)

    def ended(self, message: ChunksEnd) -> None:
        transfer = self._transfers.get(message.transfer)
        if transfer is not None and not transfer.ended.done():
            transfer.ended.set_result(message.bytes)

    def take(self, header: DataHeader, payload: memoryview) -> None:
        """A piece of a transfer; in order, as one session has no gaps."""
        transfer = self._transfers.get(header.channel)
        if transfer is not None and header.offset == transfer.received_bytes:
            transfer.file.write(payload)
            transfer.received_bytes += len(payload)
            transfer.grown.set()

    def interrupt(self) -> None:
        """The session is gone, and with it what was asked for."""
        for transfer in self._transfers.values():
            for future in (transfer.offered, transfer.ended):
                if not future.done():
                    future.set_exception(ConnectionError("the session ended"))
                    future.exception()
            transfer.grown.set()


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    while piece := file.read(READ_BYTES):
        yield piece


def tar_pieces(fd: int, size: int) -> Iterator[bytes]:
    """A pack's bytes for a worker."""
    offset = 0
    while offset < size:
        piece = os.pread(fd, 256 * 1024, offset)
        if not piece:
            return
        yield piece
        offset += len(piece)
