CREATE TABLE join_tokens (
    hash BLOB PRIMARY KEY,          -- SHA-256 of the secret, which is kept nowhere
    host TEXT NOT NULL,             -- the only host that it lets in; '' for any
    made_by TEXT NOT NULL,
    made_s REAL NOT NULL,
    expires_s REAL NOT NULL,
    used_s REAL,
    used_by TEXT NOT NULL           -- the host that joined with it
) WITHOUT ROWID;
CREATE TABLE certificates (
    serial TEXT PRIMARY KEY,        -- hexadecimal
    host TEXT NOT NULL,
    instance TEXT NOT NULL,         -- of the coordinator's home: two hosts may claim one name
    address TEXT NOT NULL,          -- where it was asked from
    issued_s REAL NOT NULL,
    expires_s REAL NOT NULL,
    revoked_s REAL,
    reason TEXT NOT NULL            -- why it was revoked
) WITHOUT ROWID;
CREATE INDEX certificates_by_host ON certificates (host);
