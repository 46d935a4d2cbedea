CREATE TABLE runs (                 -- a line for each attempt that ended: what statistics count
    id INTEGER PRIMARY KEY,
    job INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    name TEXT NOT NULL,
    worker TEXT NOT NULL,           -- of a start of a named worker, or ''
    host TEXT NOT NULL,
    environment TEXT NOT NULL,
    arch TEXT NOT NULL,
    platform TEXT NOT NULL,
    outcome TEXT NOT NULL,
    queued_s REAL NOT NULL,         -- since when it could have begun
    started_s REAL NOT NULL,
    finished_s REAL NOT NULL,
    recorded_s REAL NOT NULL        -- when the line was written: never less than in the line before
);
INSERT INTO runs
    (job, attempt, name, worker, host, environment, arch, platform, outcome, queued_s, started_s, finished_s,
    recorded_s)
SELECT job, attempt, record ->> 'name', coalesce(record ->> 'worker', ''), record ->> 'host', record ->> 'environment',
    record ->> 'arch', record ->> 'platform', record ->> 'outcome',
    min(queued_s, started_s), started_s, max(started_s, finished_s), max(started_s, finished_s)
FROM (
    SELECT job, attempt, record,
        (julianday(coalesce(record ->> '$.attempts[#-1].finished', record ->> 'submitted')) - 2440587.5) * 86400.0
            AS queued_s,
        (julianday(record ->> 'started') - 2440587.5) * 86400.0 AS started_s,
        (julianday(record ->> 'finished') - 2440587.5) * 86400.0 AS finished_s
    FROM (SELECT job, attempt, CAST(record AS TEXT) AS record FROM attempts)
)
WHERE queued_s IS NOT NULL AND started_s IS NOT NULL AND finished_s IS NOT NULL
ORDER BY max(started_s, finished_s);
