CREATE TABLE jobs (
    job INTEGER PRIMARY KEY,
    state TEXT NOT NULL,            -- waiting, placed, running, finished
    name TEXT NOT NULL,
    worker TEXT NOT NULL,
    outcome TEXT NOT NULL,          -- '' until it has finished
    exit_status INTEGER,
    reason TEXT NOT NULL,
    submitted_s REAL NOT NULL,
    finished_s REAL,
    last_attempt INTEGER NOT NULL,
    infra_failures INTEGER NOT NULL,
    cancelling TEXT NOT NULL,       -- the outcome that a cancel asked for, or ''
    spec BLOB NOT NULL,             -- JSON of JobSpec
    placement BLOB                  -- JSON of Placement while an attempt is out
);
CREATE INDEX jobs_unfinished ON jobs (job) WHERE state <> 'finished';
CREATE INDEX jobs_by_outcome ON jobs (outcome, job);
CREATE INDEX jobs_by_worker ON jobs (worker, job) WHERE worker <> '';
CREATE TABLE attempts (
    job INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    record BLOB NOT NULL,           -- the JSON that stands in the spool
    PRIMARY KEY (job, attempt)
) WITHOUT ROWID;
CREATE TABLE hosts (
    host TEXT PRIMARY KEY,
    report BLOB NOT NULL            -- JSON of HostReport
) WITHOUT ROWID;
CREATE TABLE events (
    id INTEGER PRIMARY KEY,
    at_s REAL NOT NULL,
    kind TEXT NOT NULL,
    job INTEGER NOT NULL,
    body BLOB NOT NULL
);
CREATE TABLE unsynced (
    job INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    log BLOB NOT NULL,              -- the whole of a small log, until its spool files are known to be on disk
    PRIMARY KEY (job, attempt)
) WITHOUT ROWID;
