-- Whom to tell that a job has ended, and what came of it.
ALTER TABLE jobs ADD COLUMN webhook_url TEXT;
-- One row a job, written in the transaction in which it ends.
CREATE TABLE webhooks (
    job         TEXT NOT NULL PRIMARY KEY REFERENCES jobs (id),
    -- pending, delivered or given_up.
    state       TEXT NOT NULL,
    -- Goes up with each attempt and so fences writes of an earlier one.
    attempts    INTEGER NOT NULL,
    -- Of the last answer; NULL where there was none.
    last_status INTEGER,
    -- When the next attempt is due; while one runs, when it is taken for dead.
    due_at      INTEGER NOT NULL
) STRICT;
CREATE INDEX webhooks_due ON webhooks (due_at) WHERE state = 'pending';
