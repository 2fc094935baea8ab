-- Statistics of calibration, jobs that reuse them, and data that go with the job that used them.

-- Blob of the statistics; NULL where the job was done before they were kept.
ALTER TABLE artifacts ADD COLUMN statistics TEXT COLLATE "C";
CREATE INDEX artifacts_statistics ON artifacts (statistics) WHERE deleted_at IS NULL;

-- The job whose statistics are used. Then calibration_name and calibration_version say where those came from, and the
-- data are not needed.
ALTER TABLE jobs ADD COLUMN calibration_of TEXT COLLATE "C";
-- Whether the calibration data stay when the job has ended.
ALTER TABLE jobs ADD COLUMN keep BIGINT NOT NULL DEFAULT 0;
-- When the data were deleted.
ALTER TABLE jobs ADD COLUMN calibration_deleted_at BIGINT;
ALTER TABLE jobs ADD COLUMN evaluation_deleted_at BIGINT;
-- Who asked for a job before did not know that its data would go.
UPDATE jobs SET keep = 1 WHERE state IN ('queued', 'running');
CREATE INDEX jobs_calibration ON jobs (calibration_name, calibration_version);
CREATE INDEX jobs_evaluation ON jobs (evaluation_name, evaluation_version);
