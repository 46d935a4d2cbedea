"""What this host's workers occupy, written down before it is made, so that a later process finds all of it.

An append-only file of JSON lines. It need not be fsynced: what it names does not survive a power cut either.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from biruda.convert import decode
from biruda.coordinator.spawners.protocol import Place
from biruda.messages import AttemptEnded

COMPACT_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """The attempt that a worker has."""

    job: int
    attempt: int
    lease_s: float
    started_s: float
    source: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One worker that may exist."""

    place: Place
    given: tuple[Given, ...] = ()  # in the order in which it runs them


class Ledger:
    """The entries of one coordinator; every change is in the file before the act that it announces.

    What is planned is written at once; of what attempts do, all that came in one turn of the loop is written together,
    by flush(), before anything of it is told to anybody.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.entries: dict[str, Entry] = {}
        self.results: dict[tuple[int, int], AttemptEnded] = {}  # what the master has not recorded
        if path.exists():
            for line in path.read_bytes().splitlines():
                self._replay(line)
        self._fd = -1
        self._bytes = 0
        self._unwritten: list[bytes] = []
        self._open()

    def _replay(self, line: bytes) -> None:
        try:
            record = orjson.loads(line)
            if record["is"] == "ended":
                ended = decode(AttemptEnded, record["ended"])
                self.results[ended.job, ended.attempt] = ended
                return
            if record["is"] == "recorded":
                self.results.pop((record["job"], record["attempt"]), None)
                return
            worker = record["worker"]
            if record["is"] == "planned":
                self.entries[worker] = Entry(place=decode(Place, record["place"]))
            elif record["is"] == "spawned":
                place = replace(self.entries[worker].place, pid=record["pid"], start_ticks=record["start_ticks"])
                self.entries[worker] = replace(self.entries[worker], place=place)
            elif record["is"] == "given":
                entry = self.entries[worker]
                given = (*entry.given, decode(Given, record["given"])) if record["given"] is not None else ()
                self.entries[worker] = replace(entry, given=given)
            elif record["is"] == "taken":
                self.entries[worker] = _without(self.entries[worker], record["job"], record["attempt"])
            elif record["is"] == "gone":
                self.entries.pop(worker, None)
        except (ValueError, KeyError, TypeError):
            return  # the last line of a process that was killed may be cut

    def _open(self) -> None:
        """Begin with only what still counts; on a full disk go on behind all that is there."""
        try:
            self._compact()
        except OSError:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            self._bytes = os.fstat(self._fd).st_size
            if self._bytes and os.pread(self._fd, 1, self._bytes - 1) != b"\n":
                self._unwritten.append(b"\n")  # behind a line that was cut

    def _compact(self) -> None:
        """Write only what still counts. Raises OSError where there is no room; then all is as it was."""
        temporary = self._path.with_suffix(".new")
        lines = b"".join(self._lines())
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            view = memoryview(lines)
            while view:
                view = view[os.write(fd, view) :]
            os.replace(temporary, self._path)
        except OSError:
            os.close(fd)
            temporary.unlink(missing_ok=True)
            raise
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._bytes = fd, len(lines)
        self._unwritten.clear()

    def _lines(self) -> Iterator[bytes]:
        for worker, entry in self.entries.items():
            yield _line({"is": "planned", "worker": worker, "place": entry.place})
            for given in entry.given:
                yield _line({"is": "given", "worker": worker, "given": given})
        for ended in self.results.values():
            yield _line({"is": "ended", "ended": ended})

    def _append(self, record: Mapping[str, Any]) -> None:
        self._unwritten.append(_line(record))

    def flush(self) -> None:
        """All changes are in the file on return. Raises OSError where there is no room; then they are kept."""
        if not self._unwritten:
            return
        self._write()
        if self._bytes > COMPACT_BYTES:
            with contextlib.suppress(OSError):  # it is all there, and only longer than it need be
                self._compact()

    def _write(self) -> None:
        lines = memoryview(b"".join(self._unwritten))
        try:
            while lines:
                written = os.write(self._fd, lines)
                self._bytes += written
                lines = lines[written:]
        finally:
            self._unwritten = [bytes(lines)] if lines else []

    def planned(self, place: Place) -> None:
        """This will be made. Raises OSError where there is no room; then flush() is to be tried until there is."""
        self.entries[place.worker] = Entry(place=place)
        self._append({"is": "planned", "worker": place.worker, "place": place})
        self.flush()

    def spawned(self, place: Place) -> None:
        """It is there, as this process."""
        self.entries[place.worker] = replace(self.entries[place.worker], place=place)
        record = {"is": "spawned", "worker": place.worker, "pid": place.pid, "start_ticks": place.start_ticks}
        self._note(record)

    def _note(self, record: Mapping[str, Any]) -> None:
        """Something that has happened: in the file at once, or as soon as there is room."""
        self._append(record)
        with contextlib.suppress(OSError):
            self.flush()

    def given(self, worker: str, given: Given) -> None:
        """It has this attempt too."""
        entry = self.entries[worker]
        self.entries[worker] = replace(entry, given=(*entry.given, given))
        self._append({"is": "given", "worker": worker, "given": given})

    def taken(self, worker: str, job: int, attempt: int) -> None:
        """It has this attempt no more."""
        entry = self.entries[worker] = _without(self.entries[worker], job, attempt)
        if entry.given:
            self._append({"is": "taken", "worker": worker, "job": job, "attempt": attempt})
        else:
            self._append({"is": "given", "worker": worker, "given": None})

    def gone(self, worker: str) -> None:
        """Nothing of it is left."""
        if self.entries.pop(worker, None) is not None:
            self._note({"is": "gone", "worker": worker})

    def ended(self, ended: AttemptEnded) -> None:
        """An attempt has this result; it is the master's to record."""
        self.results[ended.job, ended.attempt] = ended
        self._append({"is": "ended", "ended": ended})

    def recorded(self, job: int, attempt: int) -> None:
        """The master has it, or wants to hear no more of it."""
        if self.results.pop((job, attempt), None) is not None:
            self._append({"is": "recorded", "job": job, "attempt": attempt})

    def close(self) -> None:
        with contextlib.suppress(OSError):  # of what has not been written nobody has been told
            self.flush()
        os.close(self._fd)


def _without(entry: Entry, job: int, attempt: int) -> Entry:
    return replace(entry, given=tuple(item for item in entry.given if (item.job, item.attempt) != (job, attempt)))


def _line(record: Mapping[str, Any]) -> bytes:
    return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)
