"""`make bench`: latency, throughput and memory of a real farm, beside a peer and limits of the same machine and run.

Every figure is a median; what counts is the ratio to the limit or peer in the same run. Durability is on:
acknowledged is on disk. Prints a table, and JSON with --json.
"""

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.dockerd import docker_daemon, need_worker
from tests.machines import make_files
from tests.system.conftest import BUSYBOX, CONFIG, make_busybox_root
from tests.system.farm import RealFarm, Unix, farm, until

MIB = 1 << 20


def median_ms(times: list[float]) -> float:
    return round(statistics.median(times) * 1e3, 2)


def p95_ms(times: list[float]) -> float:
    return round(sorted(times)[int(len(times) * 0.95)] * 1e3, 2)


def fdatasync_ms(directory: Path) -> float:
    """The limit below every durable act."""
    times = []
    with (directory / "sync").open("wb") as file:
        for _ in range(100):
            file.write(b"x" * 4096)
            file.flush()
            began = time.perf_counter()
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - began)
    return median_ms(times)


def spawns_per_s(count: int = 1000) -> float:
    """posix_spawn and wait of /bin/true, two at a time."""
    began = time.perf_counter()
    running: list[int] = []
    for _ in range(count):
        if len(running) == 2:
            os.waitpid(running.pop(0), 0)
        running.append(os.posix_spawn("/bin/true", ["true"], {}))
    for pid in running:
        os.waitpid(pid, 0)
    return round(count / (time.perf_counter() - began))


def task_spooler_per_s(count: int) -> float | None:
    """No-op jobs through task-spooler with two slots, submitted one after the other as its users do."""
    tsp = shutil.which("tsp")
    if tsp is None:
        return None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        env = {"TS_SOCKET": f"{directory}/s", "TMPDIR": directory, "PATH": os.defpath, "TS_MAXFINISHED": "10"}
        subprocess.run([tsp, "-S", "2"], env=env, check=True, capture_output=True)
        began = time.perf_counter()
        for _ in range(count):
            subprocess.run([tsp, "true"], env=env, check=True, stdout=subprocess.DEVNULL)
        subprocess.run([tsp, "-w"], env=env, check=False, capture_output=True)
        rate = count / (time.perf_counter() - began)
        subprocess.run([tsp, "-K"], env=env, check=False, capture_output=True)
    return round(rate)


def first_byte(real: RealFarm, env: str, count: int, rest_s: float = 0.0) -> tuple[list[float], list[float]]:
    """Seconds from the submit to the first log byte, and to the recorded end, on an idle farm that rests between."""
    firsts, ends = [], []
    for _ in range(count):
        time.sleep(rest_s)
        began = time.perf_counter()
        number = real.submit("echo x", env=env)
        connection = Unix(real.home / "master.sock")
        connection.request("GET", f"/api/v1/jobs/{number}/log?follow=1")
        assert connection.getresponse().read(1) == b"x"
        firsts.append(time.perf_counter() - began)
        connection.close()
        real.finished(number)
        ends.append(time.perf_counter() - began)
    return firsts, ends


def first_bytes_elsewhere(scratch: Path, count: int) -> dict[str, Any]:
    """The same in containers and machines, where there are any: with a spare, without, and booted."""
    results: dict[str, Any] = {}
    root = scratch / "elsewhere"
    make_busybox_root(root)
    with suppress(pytest.skip.Exception), docker_daemon() as daemon:
        need_worker()
        daemon.import_tree(root, "biruda-bench/tiny")
        config = f'[coordinator]\ndocker_socket = "{daemon.socket}"\n'
        for name, spares in (("docker-spare", 1), ("docker-cold", 0)):
            config += (
                f'[[environment]]\nname = "{name}"\nkind = "docker"\nimage = "biruda-bench/tiny"\nspares = {spares}\n'
            )
        with farm(scratch / "d", config) as real:
            for name in ("docker-spare", "docker-cold"):
                firsts, _ = first_byte(real, name, count, rest_s=1)
                results[f"{name}: submit to first byte ms, p50 / p95"] = [median_ms(firsts), p95_ms(firsts)]
            results["docker: log of 200 MB"] = big_log(real, "docker-spare", 200)
    with suppress(pytest.skip.Exception):
        files = make_files(scratch / "machines", root, platform="busybox1.35")
        kinds: dict[str, dict[str, Any]] = {"qemu-spare": {"spares": 1}, "qemu-clone": {"spares": 0}}
        if os.path.exists("/dev/net/tun"):
            kinds["qemu-booted"] = {"spares": 0, "network": "bridge"}  # which knows no templates
        config = "".join(files.toml(name, **more) for name, more in kinds.items())
        with farm(scratch / "q", config) as real:
            for name in kinds:
                try:
                    until(f"{name} is ready", lambda name=name: _is_warm(real, name), 120)
                except AssertionError:
                    results[f"{name}: not measured"] = real.get(f"/api/v1/environments/{name}")["problem"]
                    continue
                firsts, _ = first_byte(real, name, count, rest_s=4)
                results[f"{name}: submit to first byte ms, p50 / p95"] = [median_ms(firsts), p95_ms(firsts)]
    return results


def _is_warm(real: RealFarm, env: str) -> bool:
    shown = real.get(f"/api/v1/environments/{env}")
    return bool(shown["usable"]) and any("machine " in sentence for sentence in shown["evidence"])


def jobs_per_s(real: RealFarm, env: str, count: int) -> float:
    """No-op jobs, submitted in one request, until the last is recorded."""
    job = {"recipe": {"steps": [{"name": "true", "argv": ["true"]}]}, "requirements": {"env": env}}
    began = time.perf_counter()
    numbers = real.post("/api/v1/jobs", {"jobs": [job] * count})["jobs"]
    for number in numbers[-4:]:
        real.finished(number)
    return round(count / (time.perf_counter() - began))


def no_ops(real: RealFarm, kinds: list[str], count: int) -> dict[str, Any]:
    """Medians of five rounds, in each of which a peer runs right before the `process` environment."""
    peers, rates, ratios, costs = [], [], [], []
    jobs_per_s(real, "host", count // 4)
    daemon = real.daemons["up"].process.pid
    for _ in range(5):
        peer = task_spooler_per_s(count // 2)
        before = all_cpu_s(family(daemon))
        rates.append(jobs_per_s(real, "host", count))
        costs.append((all_cpu_s(family(daemon)) - before) / count)
        if peer is not None:
            peers.append(peer)
            ratios.append(rates[-1] / peer)
    found: dict[str, Any] = {"host, 1/s": statistics.median(rates), "host, CPU ms a job": median_ms(costs)}
    if peers:
        found["task-spooler, 1/s"] = statistics.median(peers)
        found["ratio of the two in one round"] = round(statistics.median(ratios), 2)
    for env in kinds:
        if env != "host":
            jobs_per_s(real, env, count // 16)
            found[f"{env}, 1/s"] = jobs_per_s(real, env, count // 4)
    return found


def all_cpu_s(processes: list[psutil.Process]) -> float:
    """CPU time of processes and of all that they waited for."""
    return sum(sum(process.cpu_times()[:4]) for process in processes)


def deep_queue(directory: Path, count: int) -> dict[str, Any]:
    """So many jobs wait before a coordinator comes: how fast they are taken, what one costs, how fast they are run."""
    job = {"recipe": {"steps": [{"name": "true", "argv": ["true"]}]}, "requirements": {"env": "host"}, "queue": True}
    with farm(directory, '[[environment]]\nname = "host"\n\n[coordinator]\nslots = 2\n', "master") as real:
        master = psutil.Process(real.daemons["master"].process.pid)
        before, began = master.memory_full_info().pss, time.perf_counter()
        for start in range(0, count, 10_000):
            real.post("/api/v1/jobs", {"jobs": [job] * min(10_000, count - start)})
        took, grown = time.perf_counter() - began, master.memory_full_info().pss - before
        real.start("coordinator")
        real.finished(500)
        began = time.perf_counter()
        real.finished(2500)
        rate = 2000 / (time.perf_counter() - began)
        for start in range(1, count + 1, 10_000):
            real.post("/api/v1/jobs/cancel", {"jobs": list(range(start, min(start + 10_000, count + 1)))})
    return {
        "submitted a second": round(count / took),
        "bytes a job, master's PSS": round(grown / count),
        "run a second": round(rate),
    }


def family(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def pss_mib(processes: list[psutil.Process]) -> float:
    return round(sum(process.memory_full_info().pss for process in processes) / MIB, 1)


def cpu_s(processes: list[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def big_log(real: RealFarm, env: str, megabytes: int) -> dict[str, Any]:
    """A log of so many 10^6 bytes: rate, digest, and how much the daemons and the worker grew."""
    pids = [daemon.process.pid for daemon in real.daemons.values()]
    processes = {process.pid: process for pid in pids for process in family(pid)}
    before = {pid: process.memory_info().rss for pid, process in processes.items()}
    began = time.perf_counter()
    script = f"yes 0123456789abcdef0123456789abcdef0123456789abcde | head -c {megabytes * 1_000_000}"
    number = real.submit(script, env=env)
    peak = dict(before)
    while real.job(number)["state"] != "finished":
        for pid in pids:
            for process in family(pid):
                try:
                    peak[process.pid] = max(peak.get(process.pid, 0), process.memory_info().rss)
                    before.setdefault(process.pid, process.memory_info().rss)
                except psutil.NoSuchProcess:
                    continue
        time.sleep(0.02)
    took = time.perf_counter() - began
    job = real.finished(number)
    with (real.home / "spool" / f"{job['spool']}.log").open("rb") as file:
        stored = hashlib.file_digest(file, "sha256").hexdigest()
    line = b"0123456789abcdef0123456789abcdef0123456789abcde\n"
    expected = hashlib.sha256((line * (megabytes * 1_000_000 // len(line) + 1))[: megabytes * 1_000_000]).hexdigest()
    return {
        "MB/s": round(megabytes / took),
        "byte-exact": stored == expected == job["log"]["sha256"] and job["log"]["complete"],
        "growth MiB, most of one process": round(max(peak[pid] - before[pid] for pid in peak) / MIB, 1),
    }


def pipe_to_file_mb_s(directory: Path, megabytes: int) -> float:
    """The limit of a log: the same bytes through a pipe into a file."""
    began = time.perf_counter()
    script = f"yes 0123456789abcdef0123456789abcdef0123456789abcde | head -c {megabytes * 1_000_000} > {directory}/pipe"
    subprocess.run(["sh", "-c", script], check=True)
    return round(megabytes / (time.perf_counter() - began))


def idle(real: RealFarm, seconds: float) -> dict[str, Any]:
    processes = family(real.daemons["up"].process.pid)
    began = cpu_s(processes)
    time.sleep(seconds)
    used = cpu_s(processes) - began
    daemon = processes[0]
    return {
        "master + coordinator PSS MiB": pss_mib([daemon]),
        "zygote and spares PSS MiB": pss_mib(processes[1:]),
        "CPU % of one core, all": round(100 * used / seconds, 3),
    }


def measure(quick: bool) -> dict[str, Any]:
    count, jobs = (15, 400) if quick else (50, 2000)
    results: dict[str, Any] = {"load average at start": round(os.getloadavg()[0], 2)}
    with tempfile.TemporaryDirectory(prefix="biruda-bench-") as name:
        scratch = Path(name)
        kinds = ["host", "thread"]
        config = '[[environment]]\nname = "host"\n[[environment]]\nname = "thread"\nkind = "thread"\n'
        if os.getuid() == 0 and BUSYBOX.exists():
            make_busybox_root(scratch / "root")
            kinds.append("tiny")
            config = CONFIG.format(root=scratch / "root")
        results["limits"] = {
            "fdatasync ms": fdatasync_ms(scratch),
            "posix_spawn of true, two at once, 1/s": spawns_per_s(),
        }
        began = time.perf_counter()
        with farm(scratch / "h", config) as real:
            results["up to ready s"] = round(time.perf_counter() - began, 2)
            for env in kinds:
                first_byte(real, env, 5)
                firsts, ends = first_byte(real, env, count)
                results[f"{env}: submit to first byte ms, p50 / p95"] = [median_ms(firsts), p95_ms(firsts)]
                results[f"{env}: submit to recorded ms, p50"] = median_ms(ends)
            results["no-op jobs, two slots"] = no_ops(real, kinds, jobs)
            megabytes = 50 if quick else 200
            results["limits"]["pipe to file MB/s"] = pipe_to_file_mb_s(scratch, megabytes)
            results[f"log of {megabytes} MB"] = {env: big_log(real, env, megabytes) for env in kinds}
        with farm(
            scratch / "idle", config.replace("[[environment]]", "[coordinator]\nslots = 2\n\n[[environment]]", 1)
        ) as real:
            real.finished(real.submit("true", env="host"))
            time.sleep(1 if quick else 25)  # the self-tests of all kinds are over by then
            results["idle"] = idle(real, 5 if quick else 30)
        for deep in (10_000,) if quick else (10_000, 100_000):
            results[f"{deep} jobs waiting"] = deep_queue(scratch / f"deep{deep}", deep)
        if os.getuid() == 0 and BUSYBOX.exists():
            results |= first_bytes_elsewhere(scratch, 5 if quick else 15)
    return results


def show(results: dict[str, Any], write: Callable[[str], None], indent: str = "") -> None:
    for key, value in results.items():
        if isinstance(value, dict):
            write(f"{indent}{key}")
            show(value, write, indent + "    ")
        else:
            shown = " / ".join(map(str, value)) if isinstance(value, list) else value
            write(f"{indent}{key:<{52 - len(indent)}} {shown}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    options = parser.parse_args()
    results = measure(options.quick)
    show(results, lambda line: print(line, file=sys.stdout))
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
