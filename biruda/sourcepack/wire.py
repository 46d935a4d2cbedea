"""Recipes and chunks as byte streams, compressed; what comes in may come from anybody."""

import struct
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from biruda.errors import PeerError
from biruda.sourcepack.entry import CHUNK_BYTES

if TYPE_CHECKING:
    from backports.zstd import ZstdDecompressor

_LEVEL = 3
_WINDOW_LOG = 23  # what a sender may make a receiver allocate: 8 MiB; level 3 uses 2 MiB
_PIECE_BYTES = 256 * 1024
_LENGTH = struct.Struct(">I")


def compress_recipe(recipe: bytes) -> bytes:
    """The recipe as it is sent: one zstd frame."""
    from backports import zstd  # loaded by those who transfer packs only

    return zstd.compress(recipe, _LEVEL)


def decompress_recipe(data: bytes, *, max_bytes: int) -> bytes:
    """The recipe, of at most `max_bytes`; PeerError when it is larger or `data` is not one whole zstd frame."""
    from backports import zstd

    try:
        stream = _decompressor()
        recipe = stream.decompress(data, max_bytes + 1)
    except zstd.ZstdError as error:
        raise PeerError(f"recipe of a source pack: {error}") from error
    if len(recipe) > max_bytes:
        raise PeerError(f"recipe of a source pack: larger than {max_bytes} bytes")
    if not stream.eof or stream.unused_data:
        raise PeerError("recipe of a source pack: not one whole zstd frame")
    return recipe


def encode_chunks(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The chunks as one zstd stream of records `u32 length | bytes`, in pieces of any size, as they are made."""
    from backports import zstd

    compressor = zstd.ZstdCompressor(_LEVEL)
    for chunk in chunks:
        data = compressor.compress(_LENGTH.pack(len(chunk))) + compressor.compress(chunk)
        if data:
            yield data
    yield compressor.flush()


def decode_chunks(stream: Iterable[bytes]) -> Iterator[bytes]:
    """The chunks of such a stream; about a chunk is held at a time. PeerError when it is damaged, cut or goes on."""
    pending = bytearray()
    for data in _decompressed(stream):
        pending += data
        at = 0
        while len(pending) - at >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(pending, at)
            if not 0 < length <= CHUNK_BYTES:
                raise PeerError(f"chunk stream: a chunk of {length} bytes; 1 to {CHUNK_BYTES} are possible")
            end = at + _LENGTH.size + length
            if end > len(pending):
                break
            yield bytes(memoryview(pending)[at + _LENGTH.size : end])
            at = end
        del pending[:at]
    if pending:
        raise PeerError("chunk stream: it ends within a chunk")


def _decompressed(stream: Iterable[bytes]) -> Iterator[bytes]:
    from backports import zstd

    decompressor = _decompressor()
    try:
        for data in filter(None, stream):
            if decompressor.eof:
                raise PeerError("chunk stream: more bytes after its end")
            yield decompressor.decompress(data, _PIECE_BYTES)
            while not decompressor.eof and not decompressor.needs_input:
                yield decompressor.decompress(b"", _PIECE_BYTES)
            if decompressor.unused_data:
                raise PeerError("chunk stream: more bytes after its end")
    except zstd.ZstdError as error:
        raise PeerError(f"chunk stream: {error}") from error
    if not decompressor.eof:
        raise PeerError("chunk stream: it ends before it is whole")


def _decompressor() -> "ZstdDecompressor":
    from backports import zstd

    return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _WINDOW_LOG})
