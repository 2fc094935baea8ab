-- Blobs in a store that several processes share: which are being written, and which are being removed.

-- Somebody is about to commit a row that refers to the blob: it is not removed before.
CREATE TABLE blob_holds (
    id     TEXT    NOT NULL PRIMARY KEY,
    digest TEXT    NOT NULL,
    -- A process that died lets go then.
    until  INTEGER NOT NULL
) STRICT;
CREATE INDEX blob_holds_digest ON blob_holds (digest);

-- Somebody removes the blob: it is not held before that is done.
CREATE TABLE blob_removals (
    digest TEXT    NOT NULL PRIMARY KEY,
    until  INTEGER NOT NULL
) STRICT;
