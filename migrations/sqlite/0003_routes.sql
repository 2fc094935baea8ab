-- Routes and settings of endpoints, and a record of their changes.

-- Percent of the requests that name no version.
ALTER TABLE endpoint_versions ADD COLUMN weight INTEGER NOT NULL DEFAULT 0;
UPDATE endpoint_versions SET weight = 100
    WHERE version = (SELECT default_version FROM endpoints WHERE name = endpoint);
-- JSON; fields that are not there leave it to the settings of the server.
ALTER TABLE endpoints ADD COLUMN settings TEXT NOT NULL DEFAULT '{}';

-- What was changed, by whom and why. Stays when the endpoint is deleted.
CREATE TABLE endpoint_records (
    endpoint TEXT    NOT NULL REFERENCES endpoints (name),
    revision INTEGER NOT NULL,
    at       INTEGER NOT NULL,
    by       TEXT    NOT NULL,
    change   TEXT    NOT NULL,
    reason   TEXT,
    PRIMARY KEY (endpoint, revision)
) STRICT;
