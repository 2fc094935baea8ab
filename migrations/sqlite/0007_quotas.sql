-- Bytes that a key may have stored.

-- NULL is no limit.
ALTER TABLE api_keys ADD COLUMN quota INTEGER;
-- The key that made the row; NULL where nobody was asked for one, and before there were quotas.
ALTER TABLE models ADD COLUMN uploaded_by TEXT;
ALTER TABLE datasets ADD COLUMN uploaded_by TEXT;
CREATE INDEX models_uploaded_by ON models (uploaded_by) WHERE uploaded_by IS NOT NULL AND deleted_at IS NULL;
CREATE INDEX datasets_uploaded_by ON datasets (uploaded_by) WHERE uploaded_by IS NOT NULL AND deleted_at IS NULL;
