-- Who changed what, and what came of it.
CREATE TABLE audit (
    id         TEXT NOT NULL PRIMARY KEY,
    created_at INTEGER NOT NULL,
    -- NULL where nobody was asked for a key.
    key_id     TEXT,
    key_name   TEXT,
    method     TEXT NOT NULL,
    -- The template of the route, and the path as it came.
    route      TEXT NOT NULL,
    path       TEXT NOT NULL,
    -- What was made, where something was.
    record     TEXT,
    outcome    TEXT NOT NULL,
    request_id TEXT NOT NULL
) STRICT;
CREATE INDEX audit_page ON audit (created_at, id);
