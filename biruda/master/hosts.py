"""The master's links to its coordinators: who is connected, what they say, what they are told."""

import asyncio
import itertools
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, assert_never

from biruda.errors import BirudaError, PeerError, UserError
from biruda.frames import DATA_BYTES, DataFrame, DataHeader, MessageFrame
from biruda.link import Link, Transport, hear, refuse, welcome
from biruda.master import events as ev
from biruda.master.intake import is_bare
from biruda.master.sources import Sources
from biruda.messages import (
    AttemptEnded,
    AttemptRecorded,
    AttemptStarted,
    ChunksEnd,
    ChunksWanted,
    CommandDone,
    EnvironmentCommand,
    HostReport,
    Notice,
    Samples,
    SamplesWanted,
    SourceOffered,
    SourceWanted,
    StepEnded,
    StepStarted,
    StreamsWanted,
    ToCoordinator,
    decode_to_master,
    encode,
)
from biruda.model import AttemptResult, EnvironmentReport, Sample

if TYPE_CHECKING:
    from biruda.master.service import Master

log = logging.getLogger("biruda.master")

SAMPLES_KEPT = 120
SAMPLES_LINGER_S = 30.0
COMMAND_S = 120.0
MAX_NAME = 64
"""Characters in the name of a host, an arch or a platform: three of them and two numbers are a file's name."""


@dataclass(slots=True)
class HostLink:
    """The session with one coordinator, over all its connections."""

    link: Link
    instance: str
    samples: deque[Sample] = field(default_factory=lambda: deque(maxlen=SAMPLES_KEPT))
    samples_until_s: float = 0.0
    sampled: asyncio.Event = field(default_factory=asyncio.Event)
    reported: bool = False  # the farm was told its first report
    resumed: bool = False  # and the logs of that report's attempts were asked for
    work: set["asyncio.Task[None]"] = field(default_factory=set)  # transfers to it


class Hosts:
    """Every coordinator's link; translates what they say into events of the farm."""

    def __init__(self, master: "Master", sources: Sources) -> None:
        self._master = master
        self._sources = sources
        self._links: dict[str, HostLink] = {}
        self._requests = itertools.count(1)
        self._commands: dict[int, asyncio.Future[str]] = {}
        self._tasks: asyncio.TaskGroup | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Links may be served; on exit they are closed."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            try:
                yield
            finally:
                self._tasks = None
                for state in list(self._links.values()):
                    await _end(state)

    # Connections.

    async def serve(self, transport: Transport, *, certified: str = "") -> None:
        """One connection of a coordinator, until it ends. PeerError when it is refused or breaks the protocol.

        certified: the host that its certificate names, "" where it needs none.
        """
        hello = await hear(transport)
        host, instance = hello.get("host"), hello.get("instance")
        if (
            type(host) is not str
            or type(instance) is not str
            or not host.isprintable()
            or not 0 < len(host) <= MAX_NAME
        ):
            await refuse(transport, "it did not say its host and instance", "[coordinator] host names it")
            raise PeerError(f"{transport.peer} did not say its host and instance")
        if certified not in ("", host):
            reason = f"it says that it is {host}, and its certificate is for {certified}"
            await refuse(transport, reason, f"[coordinator] host = {certified!r}, or join it as {host}")
            raise PeerError(f"{transport.peer}: {reason}")
        state = self._links.get(host)
        if state is not None and state.link.connected and state.instance != instance:
            reason = f"another coordinator that is called {host} is connected"
            await refuse(transport, reason, "give each its own name with [coordinator] host")
            raise PeerError(f"{transport.peer}: {reason}")
        # A session of which nothing was handled may not have reached the other side: it is begun anew.
        fresh = state is None or state.link.session_id != hello["session"] or state.link.session.received == 0
        if state is not None:
            await (_end(state) if fresh else state.link.end())
        if state is None or fresh:
            if state is not None:
                self._master.post(ev.HostLost(host=host, at=now()))
            state = self._links[host] = HostLink(Link(hello["session"], f"link to {host}"), instance)
        try:
            await welcome(transport, state.link, fresh=fresh)
            await self._run(host, state, transport, 0 if fresh else hello["received"], fresh=fresh)
        finally:
            if self._links.get(host) is state and not state.link.connected:
                log.info("host=%s lost", host)
                self._master.post(ev.HostLost(host=host, at=now()))

    async def _run(self, host: str, state: HostLink, transport: Transport, received: int, *, fresh: bool) -> None:
        def opened() -> None:
            log.info("host=%s connected from %s%s", host, transport.peer, "" if fresh else ", its session goes on")
            if not fresh:
                self._master.post(ev.HostResumed(host=host, at=now()))

        async def handle(item: MessageFrame | DataFrame) -> None:
            if self._links.get(host) is not state:
                raise ConnectionResetError(f"{host} has begun another session")
            if isinstance(item, DataFrame):
                await self._take_data(host, state, item)
            else:
                await self._take_message(host, state, item)

        try:
            await state.link.run(transport, received, handle, opened=opened)
        except* ConnectionError:
            pass
        except* (
            OSError
        ) as group:  # of the disk: nothing is lost, what was not taken comes again with the next connection
            for error in group.exceptions:
                log.error("host=%s: its connection is closed: %s", host, error)

    def send(self, host: str, message: ToCoordinator) -> None:
        """Send, or keep for the session's next connection; without a session the host's next report makes it good."""
        state = self._links.get(host)
        if state is not None:
            state.link.post(encode(message))

    # What coordinators say.

    async def _take_data(self, host: str, state: HostLink, item: DataFrame) -> None:
        header = item.header
        if not self._master.farm.is_current(host, header.job, header.attempt):
            return
        intake = self._master.intake(header.job, header.attempt)
        asked = await intake.take(header, item.payload)
        if asked is not None:
            self.send(host, StreamsWanted(job=header.job, attempt=header.attempt, streams=(asked,)))
        if intake.result is not None:
            self._look_whether_whole(host, header.job, header.attempt)

    async def _take_message(self, host: str, state: HostLink, item: MessageFrame) -> None:
        message = decode_to_master(item.payload)
        match message:
            case HostReport():
                await self._take_report(host, state, message)
            case AttemptStarted():
                self._master.post(
                    ev.AttemptBegan(
                        host=host,
                        job=message.job,
                        attempt=message.attempt,
                        source=message.source,
                        started_s=message.at_s,
                        at=now(),
                    )
                )
            case StepStarted():
                pass
            case StepEnded():
                self._master.post(
                    ev.StepFinished(
                        host=host,
                        job=message.job,
                        attempt=message.attempt,
                        index=message.index,
                        result=message.result,
                        at=now(),
                    )
                )
            case AttemptEnded():
                self._take_end(host, message)
            case SourceWanted():
                self._background(state, self._send_recipe(state, message), f"recipe for {host}")
            case ChunksWanted():
                self._background(state, self._send_chunks(state, message), f"chunks for {host}")
            case Samples():
                state.samples.extend(message.samples)
                state.sampled.set()
                if state.samples_until_s < time.monotonic():
                    self.send(host, SamplesWanted(wanted=False))
            case CommandDone():
                future = self._commands.get(message.request)
                if future is not None and not future.done():
                    future.set_result(message.problem)
            case Notice():
                self._master.notice(f"{host}: {message.text[:500]}", message.job)
            case _:
                assert_never(message)

    async def _take_report(self, host: str, state: HostLink, report: HostReport) -> None:
        if report.host != host:
            raise PeerError(f"{host} reports as {report.host}")
        for name in (report.arch, report.platform, *(text for item in report.environments for text in _names(item))):
            if len(name) > MAX_NAME:
                raise PeerError(f"{host} reports a name of {len(name)} characters: {name[:40]}...")
        fresh, state.reported = not state.reported, True
        await self._master.tell(ev.HostReported(report=report, fresh=fresh, at=now()))
        if state.resumed:
            return
        state.resumed = True
        for item in report.attempts:
            if self._master.farm.is_current(host, item.job, item.attempt):
                offset = self._master.intake(item.job, item.attempt).log.size
                wanted = StreamsWanted(job=item.job, attempt=item.attempt, streams=((0, offset),))
                self.send(host, wanted)

    def _take_end(self, host: str, message: AttemptEnded) -> None:
        job, attempt = message.job, message.attempt
        if not self._master.farm.is_current(host, job, attempt):
            self.send(host, AttemptRecorded(job=job, attempt=attempt))
            return
        if (job, attempt) not in self._master.intakes and is_bare(message.result):
            self._finish(host, job, attempt, message.result)
            return
        intake = self._master.intake(job, attempt)
        if intake.closed:
            return  # it is being recorded
        intake.expect(message.result)
        missing = intake.missing()
        if missing:
            self.send(host, StreamsWanted(job=job, attempt=attempt, streams=tuple(missing)))
        self._look_whether_whole(host, job, attempt)

    def _look_whether_whole(self, host: str, job: int, attempt: int) -> None:
        intake = self._master.intake(job, attempt)
        if intake.closed or not intake.log_is_here:
            return
        if intake.log_differs():
            self.send(host, StreamsWanted(job=job, attempt=attempt, streams=((0, 0),)))
            return
        if intake.missing():
            return
        result = intake.close()
        assert result is not None
        self._finish(host, job, attempt, result)

    def _finish(self, host: str, job: int, attempt: int, result: AttemptResult) -> None:
        self._master.post(ev.AttemptFinished(host=host, job=job, attempt=attempt, result=result, at=now()))

    # Source packs.

    def _background(self, state: HostLink, work: Coroutine[Any, Any, None], name: str) -> None:
        if self._tasks is None:
            work.close()
            return
        task = self._tasks.create_task(_logged(work, name), name=name)
        state.work.add(task)
        task.add_done_callback(state.work.discard)

    async def _send_recipe(self, state: HostLink, wanted: SourceWanted) -> None:
        recipe = await self._sources.recipe(wanted.digest)
        offer = SourceOffered(digest=wanted.digest, transfer=wanted.transfer, bytes=len(recipe))
        state.link.post(encode(offer))
        await _send_bytes(state.link, wanted.transfer, 0, recipe)

    async def _send_chunks(self, state: HostLink, wanted: ChunksWanted) -> None:
        offset = 0
        async for piece in self._sources.chunk_stream(wanted.digest, wanted.chunks):
            offset = await _send_bytes(state.link, wanted.transfer, offset, piece)
        state.link.post(encode(ChunksEnd(transfer=wanted.transfer, bytes=offset)))

    # What the API asks coordinators for.

    async def command(self, host: str, action: str, environment: str = "") -> None:
        """Let a coordinator do something. Raises UserError when it cannot or does not answer."""
        state = self._links.get(host)
        if state is None or not state.link.connected:
            raise UserError(f"{host} has no contact with the master", hint="biruda farm shows who has")
        request = next(self._requests)
        future = self._commands[request] = asyncio.get_running_loop().create_future()
        try:
            self.send(host, EnvironmentCommand(request=request, action=action, environment=environment))
            async with asyncio.timeout(COMMAND_S):
                problem = await future
        except TimeoutError:
            raise UserError(f"{host} did not answer within {COMMAND_S:g} s") from None
        finally:
            del self._commands[request]
        if problem:
            raise UserError(problem)

    def watch_samples(self, host: str) -> list[Sample]:
        """The last samples of a host, which goes on sending them for a while; none of one without contact."""
        state = self._links.get(host)
        if state is None or not state.link.connected:
            return []
        self._want_samples(host, state)
        return list(state.samples)

    def _want_samples(self, host: str, state: HostLink) -> None:
        fresh = state.samples_until_s < time.monotonic()
        state.samples_until_s = time.monotonic() + SAMPLES_LINGER_S
        if fresh:
            state.samples.clear()
            state.sampled.clear()
            self.send(host, SamplesWanted(wanted=True))

    async def samples(self, host: str) -> list[Sample]:
        """The last samples of a host. Raises UserError when it has no contact."""
        state = self._links.get(host)
        if state is None or not state.link.connected:
            raise UserError(f"{host} has no contact with the master", hint="biruda farm shows who has")
        fresh = state.samples_until_s < time.monotonic()
        self._want_samples(host, state)
        if fresh:
            try:
                async with asyncio.timeout(2):
                    await state.sampled.wait()
            except TimeoutError:
                pass
        return list(state.samples)


async def _send_bytes(link: Link, transfer: int, offset: int, data: bytes) -> int:
    """Send all of data on a transfer's channel; the offset after it."""
    view = memoryview(data)
    for start in range(0, len(view), DATA_BYTES):
        piece = view[start : start + DATA_BYTES]
        await link.send_data(DataHeader(0, 0, transfer, offset), piece)
        offset += len(piece)
    return offset


async def _end(state: HostLink) -> None:
    """End a session for good, and what is still being sent in it."""
    for task in state.work:
        task.cancel()
    await state.link.end()


def _names(environment: EnvironmentReport) -> tuple[str, str, str]:
    """What may become part of a file's name or of a path."""
    return environment.name, environment.arch, environment.platform


async def _logged(work: Coroutine[Any, Any, None], name: str) -> None:
    try:
        await work
    except BirudaError as error:
        log.warning("%s: %s", name, error)
    except Exception:  # the border of a peer's wish: what it asks for may be anything
        log.exception("%s", name)


def now() -> ev.Instant:
    """This moment on both clocks."""
    return ev.Instant(time.time(), time.monotonic())
