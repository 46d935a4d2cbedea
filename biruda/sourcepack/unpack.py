"""From the tar bytes of a source pack to files, as they arrive. Standard library only: the worker imports this.

The bytes may come from anybody. What packs are made of is accepted and nothing else: entries in the order of their
paths, each in a directory that came before it. So nothing comes twice and nothing is written through a symlink.
"""

import os
from pathlib import Path
from types import TracebackType
from typing import Self

from biruda.errors import EnvironmentFault, PeerError
from biruda.sourcepack.entry import MTIME_LIMIT, EntryKind
from biruda.sourcepack.names import MAX_PATH_BYTES, fault_in_path, fault_in_target, shown
from biruda.sourcepack.places import Place, place_for
from biruda.sourcepack.tarreader import Header, TarReader

_KINDS = {int(kind): kind for kind in EntryKind}
_REFUSED_KINDS = {ord("1"): "a hard link", ord("3"): "a device", ord("4"): "a device", ord("6"): "a fifo"}


class Unpacker:
    """Unpacks one pack into a directory, which exists and should be empty.

    feed() takes the tar bytes in pieces of any size and close() ends it; as a context manager it closes itself.
    PeerError names the entry that no pack may have, EnvironmentFault the one that this system refuses to make. What was
    made until then stays; feed() must not be called again.
    """

    def __init__(
        self, directory: Path, *, max_entries: int = 5_000_000, max_bytes: int = 1 << 40, place: Place | None = None
    ) -> None:
        try:
            making = _Making(place or place_for(directory), max_entries, max_bytes)
        except OSError as error:
            raise EnvironmentFault(f"{directory}: cannot unpack here: {error.strerror}") from error
        self._making = making
        self._reader = TarReader(making)
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is None:
            self.close()
        else:
            self._release()

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Makes what these bytes describe; they are not kept."""
        if self._closed:
            raise ValueError("fed after its end")
        try:
            self._reader.feed(data)
        except BaseException:
            self._release()
            raise

    def close(self) -> None:
        """Gives directories their modes and times. PeerError when the pack has not arrived as a whole.

        After an error, and when it is called again, it does nothing.
        """
        if self._closed:
            return
        try:
            if not self._reader.is_whole:
                raise PeerError(f"source pack: it ends too early, after {shown(self._making.last) or 'nothing'}")
            self._making.finish_directories()
        finally:
            self._release()

    def _release(self) -> None:
        if not self._closed:
            self._closed = True
            self._making.release()


class _Making:
    """Judges each entry of the stream and makes it."""

    def __init__(self, place: Place, max_entries: int, max_bytes: int) -> None:
        self.last = b""
        self._place = place
        self._entries_left = self._max_entries = max_entries
        self._bytes_left = self._max_bytes = max_bytes
        self._directories: dict[bytes, tuple[int, int]] = {}  # mode and mtime, which they get at the end
        self._descriptor = -1  # of the file whose content arrives
        self._mode_and_mtime = 0, 0

    def begin(self, header: Header) -> None:
        """Makes the entry, or opens the file that it is."""
        kind = self._judge(header)
        path = header.path.removesuffix(b"/") if kind is EntryKind.DIRECTORY else header.path
        self.last = path
        try:
            if kind is EntryKind.FILE:
                self._descriptor = self._place.create_file(path)
                self._mode_and_mtime = header.mode, header.mtime
            elif kind is EntryKind.DIRECTORY:
                self._place.make_directory(path)
                self._directories[path] = header.mode, header.mtime
            else:
                self._place.make_link(path, header.target, header.mtime)
        except (OSError, OverflowError) as error:
            raise _cannot(path, error) from error

    def content(self, data: memoryview) -> None:
        """Writes the content on."""
        try:
            written = os.write(self._descriptor, data)
            while written < len(data):
                written += os.write(self._descriptor, data[written:])
        except OSError as error:
            raise _cannot(self.last, error) from error

    def end(self) -> None:
        """Finishes a file."""
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            try:
                self._place.finish_file(descriptor, self.last, *self._mode_and_mtime)
            except (OSError, OverflowError) as error:
                raise _cannot(self.last, error) from error

    def finish_directories(self) -> None:
        """Those inside first: after this nobody may be able to enter the ones around them."""
        for path, (mode, mtime) in sorted(self._directories.items(), reverse=True):
            try:
                self._place.finish_directory(path, mode, mtime)
            except (OSError, OverflowError) as error:
                raise _cannot(path, error) from error

    def release(self) -> None:
        """Closes what is open."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._place.close()

    def _judge(self, header: Header) -> EntryKind:
        """The entry's kind; PeerError when no pack may have this entry, or not here."""
        kind = _KINDS.get(header.typeflag)
        path = header.path.removesuffix(b"/") if kind is EntryKind.DIRECTORY else header.path
        fault = fault_in_path(path) or self._fault(header, kind, path)
        if fault or kind is None:
            raise PeerError(f"{shown(header.path[:MAX_PATH_BYTES])}: refused in a source pack: {fault}")
        self._entries_left -= 1
        self._bytes_left -= header.size
        return kind

    def _fault(self, header: Header, kind: EntryKind | None, path: bytes) -> str:
        fault = ""
        if kind is None:
            fault = _REFUSED_KINDS.get(header.typeflag, f"a kind of entry that it cannot have: {header.typeflag:#04x}")
        elif path <= self.last:
            fault = "it comes twice, or not in the order of paths"
        elif (parent := path.rpartition(b"/")[0]) and parent not in self._directories:
            fault = f"{shown(parent)} is no directory of the pack"
        elif header.mode & ~0o777:
            fault = f"set-user-ID, set-group-ID or sticky bit in its mode {header.mode:o}"
        elif not -MTIME_LIMIT < header.mtime < MTIME_LIMIT:
            fault = f"an impossible modification time: {header.mtime}"
        elif not 0 <= header.size <= (self._bytes_left if kind is EntryKind.FILE else 0):
            fault = (
                f"a size of {header.size} bytes; the whole pack may have {self._max_bytes}, and files alone have any"
            )
        elif kind is EntryKind.LINK:
            fault = fault_in_target(header.target)
        elif header.target:
            fault = "a link target, though it is no link"
        if not fault and self._entries_left < 1:
            fault = f"more than {self._max_entries} entries"
        return fault


def _cannot(path: bytes, error: OSError | OverflowError) -> EnvironmentFault:
    reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
    return EnvironmentFault(f"{shown(path)}: cannot be unpacked: {reason}")
