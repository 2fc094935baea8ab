-- Models, datasets, jobs, artifacts, endpoints.

CREATE TABLE models (
    id         TEXT    NOT NULL PRIMARY KEY,
    name       TEXT    NOT NULL,
    version    INTEGER NOT NULL,
    sha256     TEXT    NOT NULL,
    bytes      INTEGER NOT NULL,
    info       TEXT    NOT NULL,
    created_at INTEGER NOT NULL,
    deleted_at INTEGER,
    UNIQUE (name, version)
) STRICT;
-- The same bytes again are the same version.
CREATE UNIQUE INDEX models_bytes ON models (name, sha256) WHERE deleted_at IS NULL;
CREATE INDEX models_page ON models (created_at, id) WHERE deleted_at IS NULL;
CREATE INDEX models_blob ON models (sha256) WHERE deleted_at IS NULL;

CREATE TABLE datasets (
    id         TEXT    NOT NULL PRIMARY KEY,
    name       TEXT    NOT NULL,
    version    INTEGER NOT NULL,
    sha256     TEXT    NOT NULL,
    bytes      INTEGER NOT NULL,
    samples    INTEGER NOT NULL,
    info       TEXT    NOT NULL,
    created_at INTEGER NOT NULL,
    deleted_at INTEGER,
    UNIQUE (name, version)
) STRICT;
CREATE UNIQUE INDEX datasets_bytes ON datasets (name, sha256) WHERE deleted_at IS NULL;
CREATE INDEX datasets_page ON datasets (created_at, id) WHERE deleted_at IS NULL;
CREATE INDEX datasets_blob ON datasets (sha256) WHERE deleted_at IS NULL;

CREATE TABLE jobs (
    id                  TEXT    NOT NULL PRIMARY KEY,
    kind                TEXT    NOT NULL,
    state               TEXT    NOT NULL,
    phase               TEXT,
    done                INTEGER NOT NULL DEFAULT 0,
    total               INTEGER NOT NULL DEFAULT 0,
    attempt             INTEGER NOT NULL DEFAULT 0,
    attempts_max        INTEGER NOT NULL,
    handed_back         INTEGER NOT NULL DEFAULT 0,
    lease_owner         TEXT,
    lease_until         INTEGER,
    cancel_requested    INTEGER NOT NULL DEFAULT 0,
    model_name          TEXT    NOT NULL,
    model_version       INTEGER NOT NULL,
    calibration_name    TEXT    NOT NULL,
    calibration_version INTEGER NOT NULL,
    evaluation_name     TEXT,
    evaluation_version  INTEGER,
    recipe              TEXT    NOT NULL,
    endpoint            TEXT,
    result              TEXT,
    error               TEXT,
    seq                 INTEGER NOT NULL DEFAULT 1,
    -- Not to be leased before.
    run_at              INTEGER NOT NULL,
    created_at          INTEGER NOT NULL,
    started_at          INTEGER,
    finished_at         INTEGER,
    updated_at          INTEGER NOT NULL,
    deleted_at          INTEGER
) STRICT;
CREATE INDEX jobs_page ON jobs (created_at, id) WHERE deleted_at IS NULL;
CREATE INDEX jobs_state ON jobs (state, created_at) WHERE deleted_at IS NULL;
-- The two questions that are asked all the time.
CREATE INDEX jobs_due ON jobs (run_at, id) WHERE state = 'queued';
CREATE INDEX jobs_lease ON jobs (lease_until) WHERE state = 'running';

CREATE TABLE idempotency_keys (
    key         TEXT    NOT NULL PRIMARY KEY,
    fingerprint TEXT    NOT NULL,
    job         TEXT    NOT NULL REFERENCES jobs (id),
    created_at  INTEGER NOT NULL
) STRICT;
CREATE INDEX idempotency_keys_age ON idempotency_keys (created_at);

CREATE TABLE artifacts (
    id            TEXT    NOT NULL PRIMARY KEY,
    job           TEXT    NOT NULL REFERENCES jobs (id),
    model_name    TEXT    NOT NULL,
    model_version INTEGER NOT NULL,
    sha256        TEXT    NOT NULL,
    bytes         INTEGER NOT NULL,
    size_ratio    REAL    NOT NULL,
    manifest      TEXT    NOT NULL,
    accuracy      TEXT    NOT NULL,
    latency       TEXT    NOT NULL,
    gate_failure  TEXT,
    report        TEXT    NOT NULL,
    report_html   TEXT    NOT NULL,
    created_at    INTEGER NOT NULL,
    deleted_at    INTEGER
) STRICT;
CREATE INDEX artifacts_page ON artifacts (created_at, id) WHERE deleted_at IS NULL;
CREATE INDEX artifacts_job ON artifacts (job);
CREATE INDEX artifacts_blob ON artifacts (sha256) WHERE deleted_at IS NULL;
CREATE INDEX artifacts_report ON artifacts (report) WHERE deleted_at IS NULL;
CREATE INDEX artifacts_report_html ON artifacts (report_html) WHERE deleted_at IS NULL;

CREATE TABLE endpoints (
    name            TEXT    NOT NULL PRIMARY KEY,
    default_version INTEGER NOT NULL,
    -- The highest number ever given: kept when the endpoint is deleted, as is the revision.
    version_last    INTEGER NOT NULL,
    revision        INTEGER NOT NULL,
    created_at      INTEGER NOT NULL,
    updated_at      INTEGER NOT NULL,
    deleted_at      INTEGER
) STRICT;

-- Only of endpoints that are not deleted.
CREATE TABLE endpoint_versions (
    endpoint      TEXT    NOT NULL REFERENCES endpoints (name),
    version       INTEGER NOT NULL,
    artifact      TEXT REFERENCES artifacts (id),
    model_name    TEXT    NOT NULL,
    model_version INTEGER NOT NULL,
    PRIMARY KEY (endpoint, version)
) STRICT;
CREATE INDEX endpoint_versions_model ON endpoint_versions (model_name, model_version);
CREATE INDEX endpoint_versions_artifact ON endpoint_versions (artifact);
