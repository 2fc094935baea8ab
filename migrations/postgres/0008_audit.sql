-- Who changed what, and what came of it.
CREATE TABLE audit (
    id         TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    created_at BIGINT NOT NULL,
    -- NULL where nobody was asked for a key.
    key_id     TEXT COLLATE "C",
    key_name   TEXT,
    method     TEXT NOT NULL,
    -- The template of the route, and the path as it came.
    route      TEXT NOT NULL,
    path       TEXT NOT NULL,
    -- What was made, where something was.
    record     TEXT,
    outcome    TEXT NOT NULL,
    request_id TEXT NOT NULL
);
CREATE INDEX audit_page ON audit (created_at, id);
