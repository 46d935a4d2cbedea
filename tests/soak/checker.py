"""Whether a farm kept its word. Run as a program of its own; it imports nothing of the product, nor of the harness.

    python -I checker.py FACTS.json

FACTS says which jobs were asked for and what they print, where the farm's files are, and what was done to it. All that
is wrong is printed as JSON lines {"what": KIND, "text": SENTENCE}; the exit status is 1 if there is any.

What must hold: each acknowledged job has ended, once, with an outcome that its history explains; each log and
artifact is what was printed, byte for byte; spool names parse, and every file belongs to a recorded attempt; the store
passes its own check; the event stream has no gap and tells each job's life in order; nothing of any attempt is left.
"""

import hashlib
import http.client
import json
import os
import re
import socket
import sqlite3
import subprocess
import sys
import time

INDEX_NAME = re.compile(r"(?P<job>\d+)\.(?P<attempt>\d+)\.(lines|times)")
SPOOL_NAME = re.compile(
    r"(?P<arch>[A-Za-z0-9._]+)-(?P<platform>[A-Za-z0-9._]+)-(?P<host>[A-Za-z0-9._-]+)"
    r"-(?P<job>[1-9][0-9]*)(\.(?P<attempt>[1-9][0-9]*))?(?P<suffix>\.(log|json|d))"
)
MASK = 2**64 - 1
SIGNS = ("Traceback (most recent call last)", "a fault of biruda", "was never retrieved", "SystemError")

findings = []
_noises = {}


def wrong(what, text):
    """Note one thing that is wrong."""
    findings.append({"what": what, "text": text})


def noise(seed, size):
    """The bytes that `noise` makes of a seed."""
    if (seed, size) not in _noises:
        state, words = seed, bytearray()
        while len(words) < size:
            state ^= state >> 12
            state ^= (state << 25) & MASK
            state ^= state >> 27
            words += ((state * 2685821657736338717) & MASK).to_bytes(8, "little")
        _noises[seed, size] = bytes(words[:size])
    return _noises[seed, size]


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def read(path):
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return None


# What the master remembers.


class Store:
    """All rows of the master's database."""

    def __init__(self, path):
        base = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        base.row_factory = sqlite3.Row
        for (line,) in base.execute("PRAGMA integrity_check"):
            if line != "ok":
                wrong("store", f"integrity_check: {line}")
        self.jobs = {row["job"]: dict(row) for row in base.execute("SELECT * FROM jobs")}
        self.attempts = {}
        for row in base.execute("SELECT job, attempt, record FROM attempts ORDER BY job, attempt"):
            self.attempts[row["job"], row["attempt"]] = json.loads(row["record"])
        self.events = []
        for row in base.execute("SELECT last_id, first_id, events FROM event_batches ORDER BY last_id"):
            batch = json.loads(row["events"])
            if row["last_id"] - row["first_id"] + 1 != len(batch):
                wrong("store", f"the events {row['first_id']} to {row['last_id']} are {len(batch)}")
            for number, (_, kind, job, body) in enumerate(batch, start=row["first_id"]):
                self.events.append({"id": number, "kind": kind, "job": job or None, **body})
        self.unsynced = {}
        for row in base.execute("SELECT attempts, logs FROM unsynced_batches"):
            start = 0
            for job, attempt, size in json.loads(row["attempts"]):
                self.unsynced[job, attempt] = row["logs"][start : start + size]
                start += size
            if start != len(row["logs"]):
                wrong("store", f"{len(row['logs'])} bytes of logs wait to be synced, and {start} are counted")
        base.close()

    def check(self):
        """What must be true of the rows among themselves."""
        for (job, attempt), record in self.attempts.items():
            row = self.jobs.get(job)
            if row is None or attempt > row["last_attempt"]:
                wrong("store", f"job {job} has a record of attempt {attempt}, which it never had")
            if (record["job"], record["attempt"]) != (job, attempt):
                wrong("store", f"the record of {job}.{attempt} speaks of {record['job']}.{record['attempt']}")
        for key, log in self.unsynced.items():
            if key not in self.attempts:
                wrong("store", f"the log of {key} waits to be synced, and there is no such attempt")
            elif self.attempts[key]["log"]["sha256"] != sha256(log):
                wrong("store", f"the log of {key} that waits to be synced is not what its record says")
        for job, row in self.jobs.items():
            if row["state"] == "finished" and (not row["outcome"] or row["placement"] is not None):
                wrong("store", f"job {job} has ended, with outcome {row['outcome']!r} and placement {row['placement']}")


# Jobs.


def check_jobs(store, facts):
    """Each job that was acknowledged, and those of which nobody heard that they were."""
    by_key = {}
    for number, row in store.jobs.items():
        by_key.setdefault(row["name"], []).append(number)
    asked = {job["key"]: job for job in facts["jobs"]}
    for key, numbers in by_key.items():
        if key not in asked:
            wrong("job", f"job {numbers} is called {key}, which nobody asked for")
        elif len(numbers) > 1:
            wrong("doubled", f"{key} was asked for once, and is the jobs {numbers}")
    witnesses = read_witness(facts)
    for job in facts["jobs"]:
        number = job["number"]
        if number is not None and number not in store.jobs:
            wrong("lost", f"job {number} ({job['key']}) was acknowledged, and the master does not know it")
            continue
        for each in [number] if number is not None else by_key.get(job["key"], []):
            if store.jobs[each]["name"] != job["key"]:
                wrong("lost", f"job {each} was acknowledged for {job['key']}, and is {store.jobs[each]['name']}")
            else:
                check_job(store, facts, job, each, witnesses)


def check_job(store, facts, job, number, witnesses):
    row = store.jobs[number]
    if row["state"] != "finished":
        wrong("lost", f"job {number} has not ended: it is {row['state']}")
        return
    records = {attempt: record for (owner, attempt), record in store.attempts.items() if owner == number}
    outcome = row["outcome"]
    expected = "passed" if job["status"] == 0 else "failed"
    last = records.get(row["last_attempt"])
    infra = sum(1 for record in records.values() if record["outcome"] == "infra")
    told = f"job {number} ({job['key']}): outcome {outcome}, attempts {[r['outcome'] for r in records.values()]}"
    if outcome == expected:
        if row["exit_status"] != job["status"] or last is None or last["outcome"] != outcome:
            wrong("outcome", f"{told}; exit status {row['exit_status']}, it is {job['status']}")
    elif outcome == "cancelled":
        if not job["asked_to_cancel"]:
            wrong("outcome", f"{told}; nobody cancelled it")
    elif outcome == "infra":
        retries = facts["retries"] if job["retries"] is None else job["retries"]
        if infra != retries + 1 or not row["reason"] or not facts["harm"]:
            wrong("outcome", f"{told}; {retries} retries, reason {row['reason']!r}")
    elif outcome == "environment":
        if not row["reason"] or not any(each in facts["harm"] for each in facts["harms_environments"]):
            wrong("outcome", f"{told}; reason {row['reason']!r}")
    else:
        wrong("outcome", f"{told}; it ends with {job['status']}, reason {row['reason']!r}")
    for attempt, record in records.items():
        if attempt < row["last_attempt"] and record["outcome"] not in ("infra", "preempted"):
            wrong("doubled", f"{told}; attempt {attempt} ended with {record['outcome']}, and it was run again")
        if record["outcome"] == "infra" and not facts["harm"]:
            wrong("outcome", f"{told}; attempt {attempt}: nothing was done to it: {record['reason']}")
        check_files(facts, job, number, attempt, record)
        seen = witnesses.get((number, attempt), [])
        if seen.count("begin") > 1:
            wrong("doubled", f"attempt {number}.{attempt} ran {seen.count('begin')} times")
        if (
            record["outcome"] in ("passed", "failed")
            and record["kind"] in facts["witnessed"]
            and seen != ["begin", "end"]
        ):
            wrong("outcome", f"attempt {number}.{attempt} is {record['outcome']}, and what was seen of it is {seen}")


def read_witness(facts):
    """(job, attempt) -> what its program wrote down."""
    seen = {}
    for line in (read(facts["witness"]) or b"").decode().splitlines():
        what, job, attempt = line.split()
        seen.setdefault((int(job), int(attempt)), []).append(what)
    return seen


def check_files(facts, job, number, attempt, record):
    """The log and the artifacts of one attempt."""
    name = f"{number}.{attempt} ({record['outcome']})"
    base = os.path.join(facts["spool"], record["spool"])
    log, whole = read(base + ".log"), noise(job["seed"], job["size"])
    if log is None:
        wrong("log", f"{name}: there is no {record['spool']}.log")
        return
    if (record["log"]["bytes"], record["log"]["sha256"]) != (len(log), sha256(log)):
        wrong("log", f"{name}: the file has {len(log)} bytes, its record says {record['log']}")
    ran = record["outcome"] in ("passed", "failed")
    if not whole.startswith(log):
        same = alike(log, whole)
        wrong("log", f"{name}: {len(log)} of {len(whole)} bytes, and from byte {same} on they are others")
    elif ran and (len(log) != len(whole) or not record["log"]["complete"]):
        wrong("log", f"{name}: {len(log)} of {len(whole)} bytes, complete: {record['log']['complete']}")
    if json.loads(read(base + ".json") or b"null") != record:
        wrong("spool", f"{name}: {record['spool']}.json is not what the store has")
    check_artifacts(name, base + ".d", job, record, ran)


def alike(one, two):
    """How long the common beginning is."""
    return next((at for at, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))


def check_artifacts(name, directory, job, record, ran):
    wanted = {path: noise(seed, size) for path, seed, size in job["artifacts"]}
    there = {}
    for top, _, files in os.walk(directory):
        for file in files:
            path = os.path.join(top, file)
            there[os.path.relpath(path, directory)] = read(path)
    said = {item["path"]: (item["bytes"], item["sha256"]) for item in record["artifacts"]}
    if {path: (len(data), sha256(data)) for path, data in there.items()} != said:
        wrong("artifact", f"{name}: the files are {sorted(there)}, its record has {sorted(said)}, or they differ")
    if ran and there.keys() != wanted.keys():
        wrong("artifact", f"{name}: it wrote {sorted(wanted)}, and {sorted(there)} came out")
    for path in there.keys() & wanted.keys():
        if there[path] != wanted[path] and (ran or not wanted[path].startswith(there[path])):
            wrong("artifact", f"{name}: {path} has {len(there[path])} bytes and is not what was written")


# The spool and the events.


def check_spool(store, facts):
    """Every name parses, and nothing is there that no attempt explains."""
    known = {record["spool"]: key for key, record in store.attempts.items()}
    for name in sorted(os.listdir(facts["spool"])):
        match = SPOOL_NAME.fullmatch(name)
        if name in (".partial", ".index"):
            continue
        if match is None:
            wrong("spool", f"{name}: no name of the spool")
            continue
        key = (int(match["job"]), int(match["attempt"] or 1))
        if known.get(name[: -len(match["suffix"])]) != key:
            wrong("spool", f"{name}: there is no such attempt")
    for name in os.listdir(os.path.join(facts["spool"], ".partial")):
        wrong("left", f"spool/.partial/{name}")
    attempts = set(known.values())
    index = os.path.join(facts["spool"], ".index")
    for name in os.listdir(index) if os.path.isdir(index) else ():
        match = INDEX_NAME.fullmatch(name)
        if match is None or (int(match["job"]), int(match["attempt"])) not in attempts:
            wrong("left", f"spool/.index/{name}")


ORDER = {
    None: {"job.queued": "waiting"},
    "waiting": {"job.assigned": "placed", "job.finished": "finished"},
    "placed": {
        "job.started": "running",
        "job.queued": "waiting",
        "job.finished": "finished",
        "job.step": "placed",
        "job.cancelling": "placed",
    },
    "running": {
        "job.step": "running",
        "job.queued": "waiting",
        "job.finished": "finished",
        "job.cancelling": "running",
    },
    "finished": {},
}


def read_events(facts):
    """What the watcher has seen."""
    seen = [json.loads(line) for line in (read(facts["events"]) or b"").splitlines()]
    for event in seen:
        event.pop("at")
    return seen


def check_events(store, facts, seen):
    """Numbered without a gap, seen by who watched as they are remembered, and each job's life in order."""
    for gap in facts["gaps"]:
        wrong("events", f"the watcher's stream has a gap: {gap}")
    for one, two in zip(store.events, store.events[1:], strict=False):
        if two["id"] != one["id"] + 1:
            wrong("events", f"after event {one['id']} the store has {two['id']}")
    told = store.events[: len(seen)]  # others may have come since
    if seen != told or len(seen) < facts["last_event"]:
        many = f"{len(seen)} events were seen, {len(store.events)} are remembered, {facts['last_event']} are due"
        wrong("events", f"{many}; alike are {alike(seen, told)}")
    states, ends = {}, {}
    for event in store.events:
        if event["kind"].startswith("job."):
            job, state = event["job"], states.get(event["job"])
            if event["kind"] not in ORDER[state]:
                wrong("events", f"event {event['id']}: {event['kind']} of job {job}, which is {state}")
            states[job] = ORDER[state].get(event["kind"], state)
            if event["kind"] == "job.finished":
                ends.setdefault(job, []).append(event["outcome"])
    for job, row in store.jobs.items():
        if row["state"] == "finished" and ends.get(job) != [row["outcome"]]:
            wrong("events", f"job {job} ended with {row['outcome']}, the events say {ends.get(job)}")


# What is left on the machine.


def leftovers(facts):
    """Sentences about what should be gone."""
    if not facts["machine_is_ours"]:
        return []
    left = []
    kept, listed, pids = set(), set(), set()
    for name, host in facts["hosts"].items():
        idle, problems = read_ledger(host)
        left += left_files(name, host, idle)
        listed |= idle.keys()  # what a stopped coordinator's spares leave on disk, its next start removes
        idle = {} if facts["stopped"] else idle
        kept |= idle.keys()
        pids |= set(idle.values())
        left += [f"{name}: {problem}" for problem in problems]
        left += left_interfaces(name, host, idle)
    left += left_cgroups(facts, kept, listed)
    left += left_processes(facts, pids)
    left += left_containers(facts, kept)
    for line in (read("/proc/self/mountinfo") or b"").decode().splitlines():
        point = line.split()[4]
        if point.startswith(facts["directory"] + "/") and point not in facts["mounts"]:
            left.append(f"mount {point}")
        if " nsfs " in line and point not in facts["namespaces"]:
            left.append(f"namespace {point}")
    for directory in facts["temporary"]:
        left += [f"temporary {directory}/{name}" for name in os.listdir(directory)]
    for home in facts["homes"]:
        left += [f"{home}/{name}" for name in os.listdir(home) if name.endswith((".new", ".old", ".tmp"))]
    return left


def read_ledger(host):
    """The workers that wait for an attempt with their pids, and what a ledger should not have any more."""
    idle, pids, results, problems = {}, {}, set(), []
    lines = (read(os.path.join(host["home"], "coordinator", "ledger")) or b"").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError:
            problems.append(f"line {number} of the ledger is none: {line[:80]!r}")
            continue
        if record["is"] == "planned":
            idle[record["worker"]] = True
            pids[record["worker"]] = record["place"].get("pid", 0)
        elif record["is"] == "spawned":
            pids[record["worker"]] = record["pid"]
        elif record["is"] == "given":
            idle[record["worker"]] = record["given"] is None
        elif record["is"] == "gone":
            idle.pop(record["worker"], None)
        elif record["is"] == "ended":
            results.add((record["ended"]["job"], record["ended"]["attempt"]))
        elif record["is"] == "recorded":
            results.discard((record["job"], record["attempt"]))
    problems += [f"worker {worker} still has an attempt" for worker, is_idle in idle.items() if not is_idle]
    problems += [f"the result of {job}.{attempt} is still owed" for job, attempt in results]
    return {worker: pids[worker] for worker, is_idle in idle.items() if is_idle}, problems


def left_files(name, host, idle):
    coordinator = os.path.join(host["home"], "coordinator")
    left = [f"{name}: outbox {item}" for item in os.listdir(os.path.join(coordinator, "outbox"))]
    workers = os.listdir(os.path.join(coordinator, "workers"))
    return left + [f"{name}: directory of worker {item}" for item in workers if item not in idle]


def left_interfaces(name, host, idle):
    mark = hashlib.blake2s(host["instance"].encode(), digest_size=2).hexdigest()
    kept = {f"br{mark}{hashlib.blake2s(worker.encode(), digest_size=4).hexdigest()}" for worker in idle}
    shown = subprocess.run(
        ["nsenter", f"--net={host['netns']}", "ip", "-o", "link"], capture_output=True, text=True, check=True
    ).stdout
    names = {line.split()[1].rstrip(":").partition("@")[0] for line in shown.splitlines()}
    return [f"{name}: interface {each}" for each in names if each.startswith(f"br{mark}") and each not in kept]


def left_cgroups(facts, kept, listed):
    """Those of no worker that waits; empty ones may be of spares that outlived their zygote and their coordinator."""
    instances = {host["instance"] for host in facts["hosts"].values()}
    left = []
    for top, names, _ in os.walk("/sys/fs/cgroup"):
        if os.path.basename(os.path.dirname(top)) == "biruda" and os.path.basename(top) in instances:
            for name in names:
                is_empty = not read(f"{top}/{name}/cgroup.procs")
                if not any(worker in name for worker in (listed if is_empty else kept)):
                    left.append(f"cgroup {top}/{name}")
            names.clear()
    return left


def left_processes(facts, pids):
    """Those of attempts by their environment; machines by their arguments; and at the end everybody."""
    left = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        environment, arguments = read(f"/proc/{pid}/environ"), read(f"/proc/{pid}/cmdline")
        if not arguments or int(pid) == os.getpid():
            continue  # it is dying, or the kernel's, or this one
        shown = arguments.replace(b"\0", b" ")[:200].decode(errors="replace")
        if b"BIRUDA_JOB=" in (environment or b""):
            left.append(f"process {pid} of an attempt: {shown}")
        elif b"qemu-system" in arguments and int(pid) not in pids:
            left.append(f"machine {pid}: {shown}")
        elif facts["stopped"] and int(pid) not in facts["processes"] and not of_docker(pid):
            left.append(f"process {pid}: {shown}")
    return left


def of_docker(pid):
    return b"docker" in (read(f"/proc/{pid}/comm") or b"") or b"containerd" in (read(f"/proc/{pid}/comm") or b"")


class Unix(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("docker", timeout=20)
        self._path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(20)
        self.sock.connect(self._path)


def left_containers(facts, kept):
    if not facts["docker"]:
        return []
    connection = Unix(facts["docker"])
    try:
        connection.request("GET", "/containers/json?all=1")
        containers = json.loads(connection.getresponse().read())
    except OSError as error:
        return [f"containers: {error}"]
    finally:
        connection.close()
    return [
        f"container {each['Names']} {each['Status']}"
        for each in containers
        if each["Labels"].get("biruda.worker") not in kept
    ]


def check_logs(facts):
    """What a daemon says when it meets a fault of its own."""
    for path, begin in facts["logs"].items():
        text = (read(path) or b"")[begin:].decode(errors="replace")
        for sign in SIGNS:
            if sign in text:
                at = text.index(sign)
                wrong("fault", f"{path}: {text[max(0, at - 200) : at + 1500]}")


def main(path):
    facts = json.loads(read(path))
    seen = read_events(facts)  # before the store: nothing may be seen that is not there
    store = Store(facts["db"])
    store.check()
    check_jobs(store, facts)
    check_spool(store, facts)
    check_events(store, facts, seen)
    check_logs(facts)
    deadline = time.monotonic() + facts["settle_s"]
    while (left := leftovers(facts)) and time.monotonic() < deadline:
        time.sleep(0.1)
    for sentence in left:
        wrong("left", sentence)
    for finding in findings:
        print(json.dumps(finding))
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
