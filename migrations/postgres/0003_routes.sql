-- Routes and settings of endpoints, and a record of their changes.

-- Percent of the requests that name no version.
ALTER TABLE endpoint_versions ADD COLUMN weight BIGINT NOT NULL DEFAULT 0;
UPDATE endpoint_versions SET weight = 100
    WHERE version = (SELECT default_version FROM endpoints WHERE name = endpoint);
-- JSON; fields that are not there leave it to the settings of the server.
ALTER TABLE endpoints ADD COLUMN settings TEXT COLLATE "C" NOT NULL DEFAULT '{}';

-- What was changed, by whom and why. Stays when the endpoint is deleted.
CREATE TABLE endpoint_records (
    endpoint TEXT COLLATE "C" NOT NULL REFERENCES endpoints (name),
    revision BIGINT NOT NULL,
    at       BIGINT NOT NULL,
    by       TEXT COLLATE "C" NOT NULL,
    change   TEXT COLLATE "C" NOT NULL,
    reason   TEXT COLLATE "C",
    PRIMARY KEY (endpoint, revision)
);
