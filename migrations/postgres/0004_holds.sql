-- Blobs in a store that several processes share: which are being written, and which are being removed.

-- Somebody is about to commit a row that refers to the blob: it is not removed before.
CREATE TABLE blob_holds (
    id     TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    digest TEXT COLLATE "C" NOT NULL,
    -- A process that died lets go then.
    until  BIGINT NOT NULL
);
CREATE INDEX blob_holds_digest ON blob_holds (digest);

-- Somebody removes the blob: it is not held before that is done.
CREATE TABLE blob_removals (
    digest TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    until  BIGINT NOT NULL
);
