"""From a recipe and chunks to tar bytes; no chunk gets in whose sha256 is not the one in the recipe."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Set
from typing import Protocol

from biruda.errors import PeerError
from biruda.sourcepack.entry import Entry, chunk_count
from biruda.sourcepack.names import shown
from biruda.sourcepack.recipe import Chunk, PackRecipe
from biruda.sourcepack.tarformat import END, header, padding


class Output(Protocol):
    """Where the tar bytes go."""

    def write(self, data: bytes) -> None: ...
    def read_back(self, length: int, offset: int) -> bytes: ...


class Arriving:
    """Chunks as a peer sends them: in the order of the recipe, those it was asked for and maybe more of the recipe."""

    def __init__(self, chunks: Iterable[bytes], recipe: PackRecipe) -> None:
        self._chunks = iter(chunks)
        self._left = len(recipe.chunks)

    def take(self, sha256: bytes, passed: Set[bytes]) -> bytes | None:
        """The next chunk that was not passed before, b"" when it is not the wanted one, None when there is none."""
        for chunk in self._chunks:
            self._left -= 1
            if self._left < 0:
                break
            arrived = hashlib.sha256(chunk).digest()
            if arrived == sha256:
                return chunk
            if arrived not in passed:
                return b""
        return None

    def finish(self, passed: Set[bytes]) -> None:
        """Reads to the end; PeerError when a chunk comes that is not of the recipe."""
        if self.take(b"", passed) is not None or self._left < 0:
            raise PeerError("chunk stream: a chunk that the recipe does not have at this place")


def write_tar(recipe: PackRecipe, arriving: Arriving, held: Callable[[Chunk], bytes | None], output: Output) -> None:
    """Writes the pack. `held` gives a chunk that is here already, checked, or None."""
    counts = Counter(chunk.sha256 for chunk in recipe.chunks)
    again: dict[bytes, int] = {}  # where content stands that the recipe has more than once
    passed: set[bytes] = set()
    index = 0
    for entry in recipe.entries:
        output.write(header(entry))
        for _ in range(chunk_count(entry.size)):
            chunk = recipe.chunks[index]
            if chunk.sha256 in again:
                content = output.read_back(chunk.length, again[chunk.sha256])
            else:
                content = held(chunk) or _arrived(arriving.take(chunk.sha256, passed), index, chunk, entry)
            if len(content) != chunk.length:
                raise _wrong(index, chunk, entry, f"it has {len(content)} bytes")
            if counts[chunk.sha256] > 1:
                again.setdefault(chunk.sha256, chunk.offset)
            passed.add(chunk.sha256)
            output.write(content)
            index += 1
        if entry.size:
            output.write(padding(entry.size))
    arriving.finish(passed)
    output.write(END)


def _arrived(content: bytes | None, index: int, chunk: Chunk, entry: Entry) -> bytes:
    if content is None:
        raise _wrong(index, chunk, entry, "it has not arrived, and no pack here has it")
    if not content:
        raise _wrong(index, chunk, entry, "what arrived has another sha256")
    return content


def _wrong(index: int, chunk: Chunk, entry: Entry, why: str) -> PeerError:
    where = f"chunk {index} ({shown(entry.path)}, {chunk.length} bytes)"
    return PeerError(f"source pack: {where}: {why}", hint="ask for the missing chunks again")
