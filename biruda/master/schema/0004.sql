CREATE TABLE access_tokens (
    hash BLOB PRIMARY KEY,          -- SHA-256 of the token, which is kept nowhere
    name TEXT NOT NULL UNIQUE,      -- of who shows it
    role TEXT NOT NULL,             -- viewer, user, admin
    made_by TEXT NOT NULL,
    made_s REAL NOT NULL,
    expires_s REAL                  -- NULL: it does not
) WITHOUT ROWID;
CREATE TABLE sessions (
    hash BLOB PRIMARY KEY,          -- SHA-256 of the cookie
    token BLOB NOT NULL,            -- hash of the token that was shown: the session ends with it
    made_s REAL NOT NULL,
    expires_s REAL NOT NULL
) WITHOUT ROWID;
