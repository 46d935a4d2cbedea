"""Searches through a whole log, in a process of their own: a pattern that never ends holds up nobody and is killed."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import biruda
from biruda import process
from biruda.master.joblog.searching import Query, compiled

LIMIT_S = 60


async def search(
    fd: int, size_bytes: int, lines: int, query: Query, index: Path
) -> AsyncGenerator[dict[str, Any], None]:
    """What a child finds in the first size_bytes of a log with so many lines; cancelled, it is killed.

    index: where the log's index is kept, if it is.

    The last object is {"found", "map", "complete"}; complete is false, with a reason, when time or memory were over.
    """
    compiled(query)
    asked = {"text": query.text, "regex": query.regex, "bytes": size_bytes, "lines": lines, "index": os.fspath(index)}
    wanted = json.dumps(asked)
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    try:
        child = process.start(_argv(wanted), env=_environment(), cwd="/", stdin=fd, stdout=write_fd, stderr=write_fd)
    except OSError:
        os.close(read_fd)
        raise
    finally:
        os.close(write_fd)
    last: dict[str, Any] = {"found": None, "map": [], "complete": False}
    try:
        async with _reading(read_fd) as next_line:
            while line := await next_line():
                said = _said(line)
                if "found" in said:
                    last = {**said, "complete": True}
                elif said:
                    yield said
    except TimeoutError:
        last["reason"] = f"stopped after {LIMIT_S} s"
    finally:
        await _end(child)
    if not last["complete"]:
        last.setdefault("reason", "it needed more than a search may use")
    yield last


@asynccontextmanager
async def _reading(fd: int) -> AsyncGenerator[Callable[[], Awaitable[bytes]], None]:
    """Lines of a pipe, b"" at its end; TimeoutError when LIMIT_S are over."""
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + LIMIT_S
    reader = asyncio.StreamReader(limit=1 << 20)
    file = os.fdopen(fd, "rb", 0)
    try:
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), file)
    except BaseException:
        file.close()
        raise

    async def next_line() -> bytes:
        async with asyncio.timeout_at(deadline_s):
            return await reader.readline()

    try:
        yield next_line
    finally:
        transport.close()


def _said(line: bytes) -> dict[str, Any]:
    try:
        said = json.loads(line)
    except ValueError:  # what the interpreter says when its memory is over
        return {}
    return said if isinstance(said, dict) else {}


async def _end(child: process.Child) -> None:
    """It is gone on return."""
    child.signal_group(signal.SIGKILL)
    while child.poll() is None:
        await _readable(child.pidfd)


async def _readable(fd: int) -> None:
    if fd < 0:  # a kernel that has no such thing
        await asyncio.sleep(0.01)
        return
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(fd, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(fd)


def _argv(wanted: str) -> list[str]:
    if getattr(sys, "frozen", False):
        return [sys.executable, "--search-log", wanted]
    return [sys.executable, "-m", "biruda", "--search-log", wanted]


def _environment() -> dict[str, str]:
    source = os.path.dirname(os.path.dirname(os.path.abspath(biruda.__file__)))
    return {"PATH": os.defpath, "LANG": "C.UTF-8", "PYTHONPATH": source}
