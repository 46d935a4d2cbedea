"""Rounds: a load and a schedule of faults drawn from a seed, then peace, then the checker."""

import asyncio
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from tests.soak.faults import WEIGHTS, Harm, carry_out, schedule
from tests.soak.field import HOSTS, Field
from tests.soak.load import Job, Watcher, ask_for_all, plan
from tests.soak.places import HERE, Places

ROUNDS_OF_A_FARM = 12
SPAN_S = 4.0
RATE = 4.0
PEACE_S = 90.0
HARMS_ENVIRONMENTS = ("fill coordinator's disk", "kill dockerd")
NAMED_BEFORE = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines() if " nsfs " in line]
"""Network namespaces that somebody else on this machine has named."""

WITNESSED = ("process", "thread", "chroot", "docker")


@dataclass
class Wish:
    """What was asked for on the command line."""

    seed: int
    rounds: int | None = None
    seconds: float = 600.0
    plant: str = ""
    all_kinds: bool = True
    goes_on: bool = False  # after a finding, with the next farm
    only: tuple[str, ...] = ()  # these faults; empty: all
    most_faults: int = 4
    keep: Path | None = None  # where goes what is left of a farm with findings
    keep_all: bool = False
    settle_s: float = 20.0  # how long what an attempt leaves may take to go


@dataclass
class Tally:
    """What happened in all rounds."""

    rounds: int = 0
    farms: int = 0
    jobs: int = 0
    attempts: int = 0
    log_bytes: int = 0
    artifact_bytes: int = 0
    events: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)  # attempts that were run again, by kind and reason
    faults: Counter[str] = field(default_factory=Counter)
    in_vain: Counter[str] = field(default_factory=Counter)
    findings: list[dict[str, str]] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    seconds: float = 0.0

    def shown(self) -> str:
        """All of it as JSON."""
        return json.dumps(vars(self), indent=1)


async def soak(places: Places, wish: Wish, tally: Tally) -> None:
    """Farm after farm until the rounds or the time are over, or something is wrong."""
    begin_s = time.monotonic()
    number = 0
    while not _is_over(wish, tally, begin_s):
        seed = wish.seed + number
        number += 1
        tally.farms += 1
        tally.seeds.append(seed)
        before = len(tally.findings)
        await _one_farm(places, wish, tally, seed, begin_s)
        tally.seconds = round(time.monotonic() - begin_s, 1)
        if len(tally.findings) > before and not wish.goes_on:
            return


def _is_over(wish: Wish, tally: Tally, begin_s: float) -> bool:
    if wish.rounds is not None:
        return tally.rounds >= wish.rounds
    return time.monotonic() - begin_s > wish.seconds


async def _one_farm(places: Places, wish: Wish, tally: Tally, seed: int, begin_s: float) -> None:
    chance = random.Random(f"farm {seed}")
    farm = Farm(
        wish,
        tally,
        seed,
        Field(
            places,
            places.directory / f"farm-{seed}",
            lease_s=chance.choice((3600.0, 3600.0, 15.0)),
            faked_clock=chance.random() < 0.5,
            plant=wish.plant,
        ),
    )
    async with farm.field.running(str(seed)):
        try:
            async with asyncio.TaskGroup() as tasks:
                watching = tasks.create_task(farm.watcher.run(), name="watcher")
                try:
                    while farm.rounds < ROUNDS_OF_A_FARM and not farm.findings and not _is_over(wish, tally, begin_s):
                        await farm.round()
                finally:
                    watching.cancel()
            await farm.stop_and_check()
        finally:
            farm.keep()
            farm.end_strays()
    shutil.rmtree(farm.field.directory, ignore_errors=True)


class Farm:
    """One farm and what was asked of it so far."""

    def __init__(self, wish: Wish, tally: Tally, seed: int, field_: Field) -> None:
        self.wish = wish
        self.tally = tally
        self.seed = seed
        self.field = field_
        self.watcher = Watcher(field_, field_.directory / "events")
        self.jobs: list[Job] = []
        self.harm = Harm()
        self.events_counted = 0
        self.due_event = 0  # the watcher has to have seen it
        self.rounds = 0
        self.findings: list[dict[str, str]] = []
        self.logs = {name: field_.directory / f"log-{name}" for name in ("m", *HOSTS)}
        self.instances: dict[str, str] = {}

    def offers(self) -> list[dict[str, str]]:
        """What a job may ask for."""
        places = self.field.places
        envs = [f"{kind}-{host}" for kind in ("host", "thread", "tiny", "tiny") for host in HOSTS] + ["net-b"]
        envs += ["box-a", "box-a"] if places.dockerd is not None else []
        envs += ["vm-b", "vm-b"] if places.machine is not None else []
        return [*({"env": env} for env in envs), {"kind": "chroot"}, {"host": "a", "kind": "process"}, {}, {}]

    async def round(self) -> None:
        """Load and faults, peace, check."""
        name = f"{self.seed}/{self.rounds}"
        self.rounds += 1
        chance = random.Random(name)
        jobs = plan(chance, name, SPAN_S, RATE, self.offers())
        kinds = self.wish.only or [kind for kind in WEIGHTS if self._can_be(kind)]
        faults = schedule(chance, SPAN_S, most=self.wish.most_faults, kinds=kinds)
        self.jobs += jobs
        loop = asyncio.get_running_loop()
        begin_s = loop.time()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(ask_for_all(self.field, jobs, begin_s), name="load")
            tasks.create_task(carry_out(self.field, faults, begin_s, self.harm), name="faults")
        await self._peace()
        self._note_ends(faults)
        rested_s = loop.time() - begin_s
        await self._check(stopped=False)
        self._count(jobs)
        shown = ", ".join(f"{fault.kind} {fault.target}" for fault in faults)
        state = "ok" if not self.findings else f"{len(self.findings)} FINDINGS"
        print(
            f"round {self.tally.rounds} (SEED={self.seed} round {self.rounds}): {state}, {len(jobs)} jobs, "
            f"at rest after {rested_s:.1f} s, checked after {loop.time() - begin_s:.1f} s; {shown}",
            flush=True,
        )

    def _can_be(self, fault: str) -> bool:
        """Whether there is anything of the kind in this farm."""
        places = self.field.places
        if "clock" in fault:
            return self.field.faked_clock
        if "container" in fault or "dockerd" in fault:
            return places.dockerd is not None
        return "machine" not in fault or places.machine is not None

    async def _peace(self) -> None:
        """Wait until every daemon is back and no job is left to do; what does not come is for the checker to find."""
        try:
            async with asyncio.timeout(PEACE_S):
                for name in ("m", *HOSTS):
                    await self.field.roles[name].ready.wait()
                while not await self._is_quiet():
                    await asyncio.sleep(0.1)
        except TimeoutError:
            self._find("rest", f"not at rest within {PEACE_S:g} s: {await self._restless()}")
            for role in self.field.roles.values():
                role.signal(signal.SIGUSR1)  # where its tasks wait, for its log

    async def _is_quiet(self) -> bool:
        with suppress(OSError, aiohttp.ClientError, TimeoutError):
            if (await self.field.get("/api/v1/jobs?state=unfinished&limit=1"))["jobs"]:
                return False
            self.due_event = self._last_event()
            return self.watcher.last >= self.due_event
        return False

    async def _restless(self) -> str:
        said = [f"{role.name} is not ready" for role in self.field.roles.values() if not role.ready.is_set()]
        with suppress(OSError, aiohttp.ClientError, TimeoutError):
            said += await self.field.trouble()
            for job in (await self.field.get("/api/v1/jobs?state=unfinished&limit=5"))["jobs"]:
                why = await self.field.get(f"/api/v1/jobs/{job['job']}/why")
                said.append(f"job {job['job']} {job['state']} since {job['started']} {why['sentence']}")
        return "; ".join(said)

    def _last_event(self) -> int:
        base = sqlite3.connect(f"file:{self.field.homes['m']}/master.db?mode=ro", uri=True)
        try:
            return int(base.execute("SELECT coalesce(max(last_id), 0) FROM event_batches").fetchone()[0])
        finally:
            base.close()

    def _note_ends(self, faults: Any) -> None:
        full = {fault.target for fault in faults if fault.kind.startswith("fill")}
        for role in self.field.roles.values():
            for text in role.ends:
                if role.name not in full:
                    self._find("fault", text)
            role.ends.clear()

    def _find(self, what: str, text: str) -> None:
        finding = {"what": what, "text": text, "seed": str(self.seed), "round": str(self.rounds)}
        self.findings.append(finding)
        self.tally.findings.append(finding)
        print(f"  {what}: {text}", flush=True)

    async def _check(self, *, stopped: bool) -> None:
        facts = self.field.directory / "facts.json"
        facts.write_text(json.dumps(self._facts(stopped=stopped)))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", str(HERE / "checker.py"), str(facts)),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        for line in out.splitlines():
            finding = json.loads(line)
            self._find(finding["what"], finding["text"])
        if process.returncode not in (0, 1) or err:
            self._find("checker", err.decode(errors="replace"))
        if self.findings:
            print(f"  replay: SEED={self.seed} ROUNDS={self.rounds} make soak", flush=True)

    def _facts(self, *, stopped: bool) -> dict[str, Any]:
        field_ = self.field
        for name in HOSTS:
            self.instances[name] = (field_.homes[name] / "instance").read_text().strip()
        dockerd = field_.places.dockerd
        return {
            "directory": str(field_.directory),
            "db": str(field_.homes["m"] / "master.db"),
            "spool": str(field_.homes["m"] / "spool"),
            "events": str(self.watcher.path),
            "gaps": self.watcher.gaps,
            "last_event": self.due_event,
            "witness": str(field_.witness),
            "witnessed": WITNESSED,
            "retries": 30,
            "harm": dict(self.harm.done + self.harm.earlier),
            "harms_environments": HARMS_ENVIRONMENTS,
            "jobs": [{**asdict(job), "asked_to_cancel": job.cancel_after_s is not None} for job in self.jobs],
            "hosts": {
                name: {
                    "home": str(field_.homes[name]),
                    "instance": self.instances[name],
                    "netns": f"/proc/{field_.namespaces[name]}/ns/net",
                }
                for name in HOSTS
            },
            "homes": [str(home) for home in field_.homes.values()],
            "namespaces": NAMED_BEFORE,
            "mounts": [str(home) for home in field_.homes.values()],
            "temporary": [str(field_.directory / f"tmp-{name}") for name in field_.homes],
            "docker": dockerd.socket if dockerd is not None else "",
            "logs": {str(path): 0 for path in self.logs.values()}
            | {str(field_.homes[name] / "log" / "workers.log"): 0 for name in HOSTS},
            "settle_s": self.wish.settle_s,
            "stopped": stopped,
            "machine_is_ours": True,  # no process but those of the soak and its farm can be seen
            "processes": self._own_processes(),
        }

    def _own_processes(self) -> list[int]:
        """Those of the soak itself: everybody but the daemons, and this process's children."""
        dockerd = self.field.places.dockerd
        own = [1, os.getpid(), *self.field.namespaces.values()]
        own += self.field.helpers()
        if dockerd is not None and dockerd.process is not None:
            own.append(dockerd.process.pid)
        return own

    async def stop_and_check(self) -> None:
        """End all three; nothing of the farm is left."""
        await self.field.stop()
        for role in self.field.roles.values():
            for text in role.ends:
                self._find("fault", text)
        if not self.findings:
            await self._check(stopped=True)

    def end_strays(self) -> None:
        """What a farm with findings has left running does not disturb the next one: all that can be seen is ours."""
        own = {*self._own_processes(), os.getpid()}
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError, ValueError):
                parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
                is_of_docker = (
                    b"docker" in (path / "cmdline").read_bytes() or b"contain" in (path / "comm").read_bytes()
                )
                if self.findings and int(path.name) not in own and parent in (1, os.getpid()) and not is_of_docker:
                    os.kill(int(path.name), signal.SIGKILL)

    def keep(self) -> None:
        """The daemons' logs, the master's files and what the checker was told, of a farm with findings."""
        if self.wish.keep is None or not (self.findings or self.wish.keep_all):
            return
        kept, directory = self.wish.keep / f"{self.seed}", self.field.directory
        shutil.rmtree(kept, ignore_errors=True)
        (kept / "m").mkdir(parents=True)
        for path in (*self.logs.values(), self.watcher.path, self.field.witness, directory / "facts.json"):
            with suppress(OSError):
                shutil.copy(path, kept)
        for name in HOSTS:
            with suppress(OSError):
                shutil.copy(self.field.homes[name] / "coordinator" / "ledger", kept / f"ledger-{name}")
                shutil.copy(self.field.homes[name] / "log" / "workers.log", kept / f"workers-{name}.log")
        shutil.copytree(self.field.homes["m"] / "spool", kept / "m" / "spool")
        for path in self.field.homes["m"].glob("master.db*"):
            shutil.copy(path, kept / "m")
        (kept / "findings").write_text("\n".join(f"{item['what']}: {item['text']}" for item in self.findings))

    def _count(self, jobs: list[Job]) -> None:
        tally = self.tally
        tally.rounds += 1
        tally.faults.update(self.harm.done)
        tally.in_vain.update(self.harm.in_vain)
        self.harm.done, self.harm.earlier = Counter(), self.harm.earlier + self.harm.done
        self.harm.in_vain = Counter()
        keys = {job.key for job in jobs}
        base = sqlite3.connect(f"file:{self.field.homes['m']}/master.db?mode=ro", uri=True)
        for number, name, outcome in base.execute("SELECT job, name, outcome FROM jobs"):
            if name not in keys:
                continue
            tally.jobs += 1
            tally.outcomes[outcome] += 1
            for (record,) in base.execute("SELECT record FROM attempts WHERE job = ?", (number,)):
                attempt = json.loads(record)
                tally.attempts += 1
                tally.kinds[attempt["kind"]] += 1
                if attempt["outcome"] == "infra":
                    tally.lost[f"{attempt['kind']}: {attempt['reason'][:100]}"] += 1
                tally.log_bytes += attempt["log"]["bytes"]
                tally.artifact_bytes += sum(item["bytes"] for item in attempt["artifacts"])
        tally.events += self.watcher.last - self.events_counted
        self.events_counted = self.watcher.last
        base.close()


def inside_own_namespaces(argv: list[str]) -> int:
    """Run this again where all that it starts ends with it: as a child of process 1 of a new PID namespace."""
    env = {**os.environ, "BIRUDA_SOAK_INSIDE": "1"}
    unshare = ["unshare", "--fork", "--pid", "--mount", "--propagation", "private", "--mount-proc", "--kill-child"]
    command = [*unshare, sys.executable, "-m", "tests.soak.init", sys.executable, "-m", "tests.soak", *argv]
    return subprocess.run(command, env=env, check=False).returncode
