"""Those who watch the whole farm: what changed is found out once and put into bytes once, however many watch."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from biruda.master import views
from biruda.master.history import History
from biruda.master.overview import Overview
from biruda.master.sampled import MOST_SAMPLED, Row, Sampled
from biruda.master.service import Master

PACE_S: Final = 0.5
"""Changes are told so often at most."""

SHARE: Final = 20
"""And after what took t seconds to find out, not sooner than SHARE times t later."""

TIMELINE_S: Final = 2.0
STILL_S: Final = 10.0
"""Looked at so often although nothing was recorded."""

UNSEEN_S: Final = 120.0
"""After so long without anybody who looks, the past is counted anew."""

SAMPLES_S: Final = 1.0
WATCHER_MESSAGES: Final = 32
"""Who is further behind is cut off, and gets all of it anew when he comes back."""


@dataclass(eq=False, slots=True)
class Watcher:
    """One connection. only: the sections that it wants; None: all, and samples."""

    only: frozenset[str] | None
    messages: asyncio.Queue[bytes] = field(default_factory=lambda: asyncio.Queue(maxsize=WATCHER_MESSAGES))
    is_behind: bool = False


class Feed:
    """The farm's sections as they are now, and who is told of changes."""

    def __init__(self, master: Master) -> None:
        self._master = master
        self._history = History(master.store)
        self._overview = Overview(master.farm, self._history)
        self._loading = asyncio.Lock()
        self._sections: dict[str, bytes] = {}
        self._made_s = 0.0  # when, on the loop's clock
        self._timeline_s = 0.0
        self._is_late = False  # the timeline is older than the rest
        self._watchers: set[Watcher] = set()
        self._watched = asyncio.Event()
        self._sampled: dict[str, Sampled] = {}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Watchers are told of changes within it."""
        async with asyncio.TaskGroup() as tasks:
            tellers = [
                tasks.create_task(self._tell_changes(), name="farm feed"),
                tasks.create_task(self._tell_samples(), name="samples feed"),
            ]
            try:
                yield
            finally:
                for teller in tellers:
                    teller.cancel()

    async def snapshot(self) -> dict[str, Any]:
        """All sections, at most PACE_S old, as values."""
        await self._freshen()
        return {name: orjson.loads(text) for name, text in self._sections.items()} | {"id": self._last_event}

    @property
    def _last_event(self) -> int:
        return self._master.next_event - 1

    async def _freshen(self) -> None:
        loop = asyncio.get_running_loop()
        async with self._loading:
            if not self._history.is_loaded or loop.time() - self._made_s > UNSEEN_S:
                waiting = [since for since in map(_waits_since, self._master.farm.jobs.values()) if since is not None]
                await asyncio.to_thread(self._history.load, waiting)
            elif self._history.day_is_old:
                await asyncio.to_thread(self._history.count_day)
            if loop.time() - self._made_s < PACE_S:
                return
            self._make(loop.time())

    def _make(self, now_s: float) -> set[str]:
        """Make all sections anew; the names of those that are different."""
        made = self._overview.sections(self._master.problem, time.time())
        changed = set()
        if now_s - self._timeline_s < TIMELINE_S and "timeline" in self._sections:
            del made["timeline"]
            self._is_late = True
        else:
            self._timeline_s = now_s
            self._is_late = False
        for name, value in made.items():
            text = orjson.dumps(value)
            if self._sections.get(name) != text:
                self._sections[name] = text
                changed.add(name)
        self._made_s = now_s
        return changed

    # Watching.

    @asynccontextmanager
    async def watching(self, only: frozenset[str] | None) -> AsyncIterator[Watcher]:
        """All of it first, then what changes. only: names of sections."""
        await self._freshen()
        watcher = Watcher(only)
        watcher.messages.put_nowait(self._message(set(self._sections), watcher.only))
        if only is None and self._sampled:
            watcher.messages.put_nowait(_samples_message({name: kept.rows for name, kept in self._sampled.items()}))
        self._watchers.add(watcher)
        self._watched.set()
        try:
            yield watcher
        finally:
            self._watchers.discard(watcher)
            if not self._watchers:
                self._watched.clear()

    def _message(self, names: set[str], only: frozenset[str] | None) -> bytes:
        wanted = sorted(name for name in names if only is None or name in only)
        body = b",".join(b'"%b":%b' % (name.encode(), self._sections[name]) for name in wanted)
        head = b'{"id":%d,"at":"%b","kind":"farm"' % (self._last_event, (views.instant(time.time()) or "").encode())
        return head + b',"sections":{' + body + b"}}"

    def _tell(self, only: frozenset[str] | None, message: bytes) -> None:
        for watcher in list(self._watchers):
            if watcher.only != only:
                continue
            try:
                watcher.messages.put_nowait(message)
            except asyncio.QueueFull:
                watcher.is_behind = True
                self._watchers.discard(watcher)

    async def _tell_changes(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._watched.wait()
            async with self._loading:
                if self._history.day_is_old:
                    await asyncio.to_thread(self._history.count_day)
                began_s, made_at = loop.time(), self._last_event
                changed = self._make(began_s)
            for only in {watcher.only for watcher in self._watchers}:
                if changed if only is None else changed & only:
                    self._tell(only, self._message(changed, only))
            await asyncio.sleep(max(PACE_S, SHARE * (loop.time() - began_s)))
            if self._last_event == made_at:  # else something happened meanwhile
                try:
                    async with asyncio.timeout(TIMELINE_S if self._is_late else STILL_S):
                        await self._master.changed()
                except TimeoutError:
                    pass

    async def _tell_samples(self) -> None:
        """Once a second what the hosts did that are shown, the first MOST_SAMPLED of them."""
        while True:
            await self._watched.wait()
            if any(watcher.only is None for watcher in self._watchers):
                news = self._news()
                if news:
                    self._tell(None, _samples_message(news))
            await asyncio.sleep(SAMPLES_S)

    def _news(self) -> dict[str, list[Row]]:
        """The new samples of each host, which are kept too."""
        shown = [host["host"] for host in orjson.loads(self._sections.get("hosts", b"[]")) if host["connected"]]
        news = {}
        for name in shown[:MOST_SAMPLED]:
            kept = self._sampled.setdefault(name, Sampled())
            if new := kept.add(self._master.hosts.watch_samples(name)):
                news[name] = new
        for gone in set(self._sampled) - set(shown[:MOST_SAMPLED]):
            del self._sampled[gone]
        return news


def _samples_message(rows: Mapping[str, Iterable[Row]]) -> bytes:
    return orjson.dumps({"id": None, "kind": "samples", "hosts": {name: list(of) for name, of in rows.items()}})


def _waits_since(job: Any) -> float | None:
    return getattr(job.state, "since_s", None)
