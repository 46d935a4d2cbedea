"""A working tree on its way to the master: packed, and only what the master does not have is sent."""

import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path

from biruda.cli.client import Client, Refused
from biruda.cli.screen import Screen, err
from biruda.cli.text import count, escape, size
from biruda.errors import UsageError, UserError
from biruda.sourcepack.pack import Plan, scan
from biruda.sourcepack.wire import compress_recipe, encode_chunks

_SHOW_AFTER_S = 0.3
_SHOW_EVERY_S = 0.1
_TRIES = 3
_LENGTH = struct.Struct(">I")
_NAMED_SKIPPED = 5


def upload(client: Client, directory: Path) -> str:
    """The digest of the directory's source pack, which the master has on return. Says on stderr what it did."""
    progress = _Progress(err())
    plan = scan(directory, cache=_cache_file(directory), progress=progress.packing)
    recipe = compress_recipe(plan.recipe)
    sent = _Sent(progress)
    for attempt in range(1, _TRIES + 1):
        answer = client.post_bytes("sources/missing", recipe)
        if answer.truth("held"):
            break
        missing = answer.numbers("missing")
        try:
            client.put(f"sources/{plan.digest}", _body(plan, recipe, missing, sent))
            break
        except Refused:
            if attempt == _TRIES:
                raise  # else what the master had may have been evicted in between: ask again
    progress.done(_summary(plan, progress.packed_bytes, sent))
    return plan.digest


def default_directory() -> Path:
    """The current directory. UsageError where that is surely no source tree."""
    try:
        here = Path.cwd()
    except OSError as error:
        raise UserError(f"the current directory cannot be packed: {error.strerror}", hint="use --source DIR") from None
    if here in (Path("/"), Path(os.environ.get("HOME") or "/")):
        raise UsageError(
            f"run packs the current directory, and {here} is no source tree",
            hint="go to one, name one with --source DIR, or send nothing with --no-source",
        )
    return here


def _body(plan: Plan, recipe: bytes, missing: list[int], sent: "_Sent") -> Iterator[bytes]:
    yield _LENGTH.pack(len(recipe)) + recipe
    sent.begin(len(missing))
    for piece in encode_chunks(sent.counting(plan.chunks(missing))):
        sent.piece(len(piece))
        yield piece


def _summary(plan: Plan, packed_bytes: int, sent: "_Sent") -> list[str]:
    summary = plan.summary
    what = f"sent {size(sent.bytes)}" if sent.chunks else "the master has all of it"
    lines = [f"biruda: packed {count(summary.files, 'file')}, {size(packed_bytes)}; {what}"]
    lines += [f"biruda: left out {reason}" for reason in summary.skipped[:_NAMED_SKIPPED]]
    more = len(summary.skipped) - _NAMED_SKIPPED
    return [*lines, *([f"biruda: left out {more} more like these"] if more > 0 else [])]


def _cache_file(directory: Path) -> Path | None:
    """Where the digests of this tree are remembered; None where nothing can be kept."""
    import hashlib

    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):
        home = os.environ.get("HOME", "")
        if not os.path.isabs(home):
            return None
        base = os.path.join(home, ".cache")
    caches = Path(base, "biruda")
    try:
        caches.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return None
    if not os.access(caches, os.W_OK):
        return None
    return caches / (hashlib.sha256(os.fsencode(os.path.realpath(directory))).hexdigest()[:32] + ".stat")


class _Sent:
    """What went out."""

    def __init__(self, progress: "_Progress") -> None:
        self.bytes = 0
        self.chunks = 0
        self._all = 0
        self._progress = progress

    def begin(self, chunks: int) -> None:
        """So many chunks are to be sent."""
        self.bytes, self.chunks, self._all = 0, 0, chunks

    def counting(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """The chunks, counted as they are taken."""
        for chunk in chunks:
            self.chunks += 1
            yield chunk

    def piece(self, length: int) -> None:
        """So many compressed bytes more."""
        self.bytes += length
        self._progress.show(f"sending {self.chunks} of {count(self._all, 'piece')}, {size(self.bytes)}")


class _Progress:
    """One line on a terminal that is written over; nothing where things are quick, or where there is no terminal."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._next_s = time.monotonic() + _SHOW_AFTER_S
        self._shown = False
        self.packed_bytes = 0

    def packing(self, done_bytes: int, all_bytes: int) -> None:
        """Called by the packer."""
        self.packed_bytes = done_bytes
        self.show(f"packing {size(done_bytes)} of {size(all_bytes)}")

    def show(self, text: str) -> None:
        """Write over the line, at most ten times a second."""
        now_s = time.monotonic()
        if not self._screen.tty or now_s < self._next_s:
            return
        self._next_s, self._shown = now_s + _SHOW_EVERY_S, True
        self._screen.stream.write(f"\r{text[: max(20, self._screen.columns - 1)]}\x1b[K")
        self._screen.stream.flush()

    def done(self, lines: list[str]) -> None:
        """The line goes, the summary stays."""
        if self._shown:
            self._screen.stream.write("\r\x1b[K")
        for line in lines:
            self._screen.line(escape(line))
