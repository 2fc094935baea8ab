-- What an attempt has found out, for the next one if it dies.

-- Blob of the statistics of the calibration; NULL before there are any, and when the job has ended.
ALTER TABLE jobs ADD COLUMN checkpoint TEXT COLLATE "C";
CREATE INDEX jobs_checkpoint ON jobs (checkpoint) WHERE checkpoint IS NOT NULL;
