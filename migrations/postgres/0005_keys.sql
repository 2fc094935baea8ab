-- API keys. The secret itself is kept nowhere.
CREATE TABLE api_keys (
    id         TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    name       TEXT   NOT NULL,
    -- Of the secret.
    sha256     TEXT   NOT NULL,
    -- Names with commas between them.
    scopes     TEXT   NOT NULL,
    -- Requests a second; NULL is no limit.
    rate       BIGINT,
    created_at BIGINT NOT NULL,
    expires_at BIGINT,
    revoked_at BIGINT
);
