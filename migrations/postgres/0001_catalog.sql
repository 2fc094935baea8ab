-- Models, datasets, jobs, artifacts, endpoints.

CREATE TABLE models (
    id         TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    name       TEXT COLLATE "C" NOT NULL,
    version    BIGINT NOT NULL,
    sha256     TEXT COLLATE "C" NOT NULL,
    bytes      BIGINT NOT NULL,
    info       TEXT COLLATE "C" NOT NULL,
    created_at BIGINT NOT NULL,
    deleted_at BIGINT,
    UNIQUE (name, version)
);
-- The same bytes again are the same version.
CREATE UNIQUE INDEX models_bytes ON models (name, sha256) WHERE deleted_at IS NULL;
CREATE INDEX models_page ON models (created_at, id) WHERE deleted_at IS NULL;
CREATE INDEX models_blob ON models (sha256) WHERE deleted_at IS NULL;

CREATE TABLE datasets (
    id         TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    name       TEXT COLLATE "C" NOT NULL,
    version    BIGINT NOT NULL,
    sha256     TEXT COLLATE "C" NOT NULL,
    bytes      BIGINT NOT NULL,
    samples    BIGINT NOT NULL,
    info       TEXT COLLATE "C" NOT NULL,
    created_at BIGINT NOT NULL,
    deleted_at BIGINT,
    UNIQUE (name, version)
);
CREATE UNIQUE INDEX datasets_bytes ON datasets (name, sha256) WHERE deleted_at IS NULL;
CREATE INDEX datasets_page ON datasets (created_at, id) WHERE deleted_at IS NULL;
CREATE INDEX datasets_blob ON datasets (sha256) WHERE deleted_at IS NULL;

CREATE TABLE jobs (
    id                  TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    kind                TEXT COLLATE "C" NOT NULL,
    state               TEXT COLLATE "C" NOT NULL,
    phase               TEXT COLLATE "C",
    done                BIGINT NOT NULL DEFAULT 0,
    total               BIGINT NOT NULL DEFAULT 0,
    attempt             BIGINT NOT NULL DEFAULT 0,
    attempts_max        BIGINT NOT NULL,
    handed_back         BIGINT NOT NULL DEFAULT 0,
    lease_owner         TEXT COLLATE "C",
    lease_until         BIGINT,
    cancel_requested    BIGINT NOT NULL DEFAULT 0,
    model_name          TEXT COLLATE "C" NOT NULL,
    model_version       BIGINT NOT NULL,
    calibration_name    TEXT COLLATE "C" NOT NULL,
    calibration_version BIGINT NOT NULL,
    evaluation_name     TEXT COLLATE "C",
    evaluation_version  BIGINT,
    recipe              TEXT COLLATE "C" NOT NULL,
    endpoint            TEXT COLLATE "C",
    result              TEXT COLLATE "C",
    error               TEXT COLLATE "C",
    seq                 BIGINT NOT NULL DEFAULT 1,
    -- Not to be leased before.
    run_at              BIGINT NOT NULL,
    created_at          BIGINT NOT NULL,
    started_at          BIGINT,
    finished_at         BIGINT,
    updated_at          BIGINT NOT NULL,
    deleted_at          BIGINT
);
CREATE INDEX jobs_page ON jobs (created_at, id) WHERE deleted_at IS NULL;
CREATE INDEX jobs_state ON jobs (state, created_at) WHERE deleted_at IS NULL;
-- The two questions that are asked all the time.
CREATE INDEX jobs_due ON jobs (run_at, id) WHERE state = 'queued';
CREATE INDEX jobs_lease ON jobs (lease_until) WHERE state = 'running';

CREATE TABLE idempotency_keys (
    key         TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    fingerprint TEXT COLLATE "C" NOT NULL,
    job         TEXT COLLATE "C" NOT NULL REFERENCES jobs (id),
    created_at  BIGINT NOT NULL
);
CREATE INDEX idempotency_keys_age ON idempotency_keys (created_at);

CREATE TABLE artifacts (
    id            TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    job           TEXT COLLATE "C" NOT NULL REFERENCES jobs (id),
    model_name    TEXT COLLATE "C" NOT NULL,
    model_version BIGINT NOT NULL,
    sha256        TEXT COLLATE "C" NOT NULL,
    bytes         BIGINT NOT NULL,
    size_ratio    DOUBLE PRECISION    NOT NULL,
    manifest      TEXT COLLATE "C" NOT NULL,
    accuracy      TEXT COLLATE "C" NOT NULL,
    latency       TEXT COLLATE "C" NOT NULL,
    gate_failure  TEXT COLLATE "C",
    report        TEXT COLLATE "C" NOT NULL,
    report_html   TEXT COLLATE "C" NOT NULL,
    created_at    BIGINT NOT NULL,
    deleted_at    BIGINT
);
CREATE INDEX artifacts_page ON artifacts (created_at, id) WHERE deleted_at IS NULL;
CREATE INDEX artifacts_job ON artifacts (job);
CREATE INDEX artifacts_blob ON artifacts (sha256) WHERE deleted_at IS NULL;
CREATE INDEX artifacts_report ON artifacts (report) WHERE deleted_at IS NULL;
CREATE INDEX artifacts_report_html ON artifacts (report_html) WHERE deleted_at IS NULL;

CREATE TABLE endpoints (
    name            TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    default_version BIGINT NOT NULL,
    -- The highest number ever given: kept when the endpoint is deleted, as is the revision.
    version_last    BIGINT NOT NULL,
    revision        BIGINT NOT NULL,
    created_at      BIGINT NOT NULL,
    updated_at      BIGINT NOT NULL,
    deleted_at      BIGINT
);

-- Only of endpoints that are not deleted.
CREATE TABLE endpoint_versions (
    endpoint      TEXT COLLATE "C" NOT NULL REFERENCES endpoints (name),
    version       BIGINT NOT NULL,
    artifact      TEXT COLLATE "C" REFERENCES artifacts (id),
    model_name    TEXT COLLATE "C" NOT NULL,
    model_version BIGINT NOT NULL,
    PRIMARY KEY (endpoint, version)
);
CREATE INDEX endpoint_versions_model ON endpoint_versions (model_name, model_version);
CREATE INDEX endpoint_versions_artifact ON endpoint_versions (artifact);
