"""What the home page and many dashboards cost: `python -m tests.web.bench`.

A process of its own serves a master with 20 hosts of 50 slots, 1,000 named workers and 10,000 jobs that wait; ten jobs
a second end and others begin. A page is loaded in a browser that has seen nothing; then 200 dashboards watch, and the
process's CPU time is compared with that of the same time before they came.
"""

import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from playwright.async_api import async_playwright

from biruda.master import api
from biruda.master.access import Role
from biruda.messages import AttemptStarted, Samples, SamplesWanted, ToCoordinator
from biruda.model import JobSpec, Outcome, Sample
from biruda.webui import routes as webui
from tests.fakes import FakeCoordinator, environment, recipe, running_master, worker
from tests.web.site import chromium_flags

HOSTS, SLOTS, WAITING = 20, 50, 10_000
DASHBOARDS = 200
SPAN_S = 20.0
PLATFORMS = ("debian11", "debian12", "debian13", "fedora41")
OUTCOMES = (Outcome.PASSED,) * 8 + (Outcome.FAILED, Outcome.INFRA)
TICKS = os.sysconf("SC_CLK_TCK")


class Busy(FakeCoordinator):
    """A host whose attempts begin at once and end when it is told to, and which takes samples."""

    wanted = False

    def obey(self, message: ToCoordinator) -> None:
        super().obey(message)
        self.heard.clear()
        if isinstance(message, SamplesWanted):
            self.wanted = message.wanted
        for (job, attempt), held in list(self.attempts.items()):
            if not held.started:
                held.started = True
                self.tell(AttemptStarted(job=job, attempt=attempt, at_s=time.time()))

    def end_one(self, outcome: Outcome) -> None:
        """The oldest of its attempts."""
        running = [key for key, held in self.attempts.items() if held.result is None]
        if running:
            job, attempt = running[0]
            now_s = time.time()
            self.end(job, outcome, attempt, exit_status=0, started_s=now_s - 60, finished_s=now_s)

    def sample(self) -> None:
        """One second's."""
        if self.wanted:
            now_s = time.time()
            part = (hash((self.host, int(now_s))) % 1000) / 1000
            counter = int(now_s * 1e5)
            sample = Sample(
                at_s=now_s,
                cpu=part,
                memory_bytes=int(part * 2**34),
                memory_total_bytes=2**34,
                load1=part * 50,
                disk_read_bytes=counter,
                disk_written_bytes=counter,
                net_received_bytes=counter,
                net_sent_bytes=counter,
                running=len(self.attempts),
            )
            self.tell(Samples(samples=(sample,)))


async def serve(home: Path) -> None:
    """The farm, until the process is ended. Prints its address."""
    async with AsyncExitStack() as stack:
        master = await stack.enter_async_context(running_master(home))
        about = api.About(home=home, host="m", started_s=time.time(), pids={"master": os.getpid()})
        app = api.application(master, about, "token", Role.VIEWER)
        webui.mount(app)
        port = await stack.enter_async_context(api.serving(app, home / "master.sock", ("127.0.0.1", 0)))
        busy = [_host(index) for index in range(HOSTS)]
        for host in busy:
            await stack.enter_async_context(host.connected(master))
        specs = [
            JobSpec(recipe=recipe(), name=f"job{index % 50}", requirements={"platform": PLATFORMS[index % 4]})
            for index in range(WAITING + HOSTS * SLOTS)
        ]
        await master.submit(tuple(specs))
        print(f"http://127.0.0.1:{port}", flush=True)
        turn = 0
        while True:
            await asyncio.sleep(0.1)
            turn += 1
            busy[turn % HOSTS].end_one(OUTCOMES[turn % len(OUTCOMES)])
            if turn % 10 == 0:
                for host in busy:
                    host.sample()


def _host(index: int) -> Busy:
    offers = tuple(
        environment(f"{platform}", arch="amd64" if index % 4 else "arm64", platform=platform) for platform in PLATFORMS
    )
    workers = tuple(worker(f"w{index}-{number}", PLATFORMS[number % 4]) for number in range(SLOTS))
    return Busy(f"host{index:02}", SLOTS, environments=offers, workers=workers)


@asynccontextmanager
async def served() -> AsyncIterator[tuple[str, int]]:
    """(address, pid) of a process with the farm."""
    with tempfile.TemporaryDirectory() as scratch:
        argv = (sys.executable, "-m", "tests.web.bench", "serve", scratch)
        process = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE)
        try:
            assert process.stdout is not None
            async with asyncio.timeout(120):
                line = await process.stdout.readline()
            yield line.decode().strip(), process.pid
        finally:
            process.terminate()
            await process.wait()


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


async def load_pages(url: str) -> None:
    """First paint and bytes of the home page, each time in a browser that has seen nothing."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path="/usr/bin/chromium", args=chromium_flags())
        paints, sizes, answers = [], [], []
        for _ in range(7):
            context = await browser.new_context(viewport={"width": 1280, "height": 800})
            page = await context.new_page()
            await page.goto(url + "/", wait_until="load")
            await page.wait_for_function("performance.getEntriesByName('first-contentful-paint').length")
            seen: dict[str, Any] = await page.evaluate(
                """() => ({
                  paint: performance.getEntriesByName("first-contentful-paint")[0].startTime,
                  answer: performance.getEntriesByType("navigation")[0].responseEnd,
                  size: [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")]
                    .reduce((sum, entry) => sum + entry.transferSize, 0),
                })"""
            )
            paints.append(seen["paint"])
            answers.append(seen["answer"])
            sizes.append(seen["size"])
            await context.close()
        await browser.close()
    print(f"home, first of all: paint {paints[0]:.0f} ms, whole answer {answers[0]:.0f} ms")
    print(
        f"home, median of {len(paints) - 1} more: paint {statistics.median(paints[1:]):.0f} ms, "
        f"whole answer {statistics.median(answers[1:]):.0f} ms, {max(sizes) / 1024:.0f} KiB transferred"
    )


async def ask(url: str, pid: int) -> None:
    """What a page costs the master, without the browser's part."""
    async with aiohttp.ClientSession() as session:
        before, walls = cpu_s(pid), []
        for _ in range(30):
            began_s = time.perf_counter()
            async with session.get(url + "/", headers={"Accept-Encoding": "gzip"}) as answer:
                await answer.read()
            walls.append(time.perf_counter() - began_s)
            await asyncio.sleep(0.6)  # else it is the same look
        idle = cpu_s(pid)
        await asyncio.sleep(30 * 0.6)
        idle = cpu_s(pid) - idle
    cost = (cpu_s(pid) - idle - before - idle) / 30
    wall_s = statistics.median(walls)
    print(f"home, asked for alone: {wall_s * 1000:.0f} ms, of them {cost * 1000:.0f} ms CPU of the master")


async def watch(url: str, pid: int) -> None:
    """CPU time of the master while 200 dashboards watch, against that while one does not."""
    await asyncio.sleep(3)
    before = cpu_s(pid)
    await asyncio.sleep(SPAN_S)
    alone = cpu_s(pid) - before
    counts = {"messages": 0, "bytes": 0}

    async def dashboard(session: aiohttp.ClientSession) -> None:
        async with session.ws_connect(url + "/api/v1/events?watch=farm", max_msg_size=0) as websocket:
            async for message in websocket:
                counts["messages"] += 1
                counts["bytes"] += len(message.data)

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session, asyncio.TaskGroup() as tasks:
        watching = [tasks.create_task(dashboard(session)) for _ in range(DASHBOARDS)]
        await asyncio.sleep(8)
        counts.update(messages=0, bytes=0)
        before = cpu_s(pid)
        await asyncio.sleep(SPAN_S)
        used = cpu_s(pid) - before
        for task in watching:
            task.cancel()
    part = (used - alone) / SPAN_S
    print(
        f"{DASHBOARDS} dashboards: {part:.1%} of a core (with {used / SPAN_S:.1%}, without {alone / SPAN_S:.1%}); "
        f"{counts['messages'] / DASHBOARDS / SPAN_S:.1f} messages and "
        f"{counts['bytes'] / DASHBOARDS / SPAN_S / 1024:.1f} KiB a second to each"
    )


async def main(only: str) -> None:
    async with served() as (url, pid):
        await load_pages(url)
        if only != "pages":
            await ask(url, pid)
            await watch(url, pid)


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[2])) if sys.argv[1:2] == ["serve"] else main("".join(sys.argv[1:])))
