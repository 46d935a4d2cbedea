-- One row for all that one commit emitted, and one for all small logs whose spool files it wrote.
CREATE TABLE event_batches (
    last_id INTEGER PRIMARY KEY,
    first_id INTEGER NOT NULL,
    events BLOB NOT NULL            -- JSON list of [at_s, kind, job, body], numbered from first_id
);
INSERT INTO event_batches (last_id, first_id, events)
    SELECT id, id, json_array(json_array(at_s, kind, job, json(CAST(body AS TEXT)))) FROM events;
DROP TABLE events;
CREATE TABLE unsynced_batches (
    batch INTEGER PRIMARY KEY,
    attempts BLOB NOT NULL,         -- JSON list of [job, attempt, bytes of its log]
    logs BLOB NOT NULL              -- one after the other, until the spool files are known to be on disk
);
INSERT INTO unsynced_batches (attempts, logs)
    SELECT json_array(json_array(job, attempt, length(log))), log FROM unsynced;
DROP TABLE unsynced;
