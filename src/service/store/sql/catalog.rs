//! Every question and every change, as the trait asks for them.

use std::time::Duration;

use serde_json::json;
use sqlx::AssertSqlSafe;
use tokio::sync::watch;

use super::super::{
    Answer, Artifact, ArtifactFilter, ArtifactId, AuditEntry, Catalog, Census, Created, Dataset, DatasetId,
    Digest, Endpoint, EndpointChange, EndpointRecord, Error, Expect, Finish, HoldId, IdempotencyKey, Job,
    JobFilter, JobId, JobProgress, JobState, Key, KeyId, Kind, Lease, Model, ModelId, Name, NewAudit,
    NewDataset, NewJob, NewKey, NewModel, Page, Slice, Timestamp, Version, Wanted, Webhook, WebhookClaim,
    WebhookOutcome,
};
use super::endpoints::{
    Told, change_endpoint, expect_endpoint, find_endpoint, select_endpoint, write_record,
};
use super::jobs::{
    KEY_LIFETIME_MS, Next, again, expire, find_job, held_job, job_of_key, keep_artifact, lock_job, lost,
    write_next,
};
use super::open::Sql;
use super::rows::{Record, bounds, slice};
use super::transaction::{refuse, unless_refused};
use super::uploads::{delete_upload, find_upload, is_live, list_uploads, note_deletion, same_upload};
use super::{answer, audit, holds, keys, parsed, signed, text, time, unsigned, webhooks, whole};

impl Catalog for Sql {
    fn create_model(&self, new: NewModel) -> Answer<'_, Created<Model>> {
        let tried = format!("adding a version of model `{}`", new.name);
        answer(tried, async move {
            let mut transaction = self.begin().await?;
            if let Some(record) = same_upload(&mut transaction, Kind::Model, &new.name, new.sha256).await? {
                transaction.commit().await?;
                return Ok(Created { record, new: false });
            }
            let room = keys::check_quota(&mut transaction, new.owner, new.bytes).await;
            let (mut transaction, ()) = unless_refused(transaction, room).await?;
            // Deleted rows count too: a number is never given twice.
            let row = sqlx::query(
                "INSERT INTO models (id, name, version, sha256, bytes, info, created_at, uploaded_by)
                 VALUES ($1, $2, (SELECT coalesce(max(version), 0) + 1 FROM models WHERE name = $2),
                         $3, $4, $5, $6, $7)
                 RETURNING *",
            )
            .bind(ModelId::new().to_string())
            .bind(new.name.as_str())
            .bind(new.sha256.to_string())
            .bind(signed(new.bytes))
            .bind(new.info.to_string())
            .bind(self.now().0)
            .bind(new.owner.map(|owner| owner.key.to_string()))
            .fetch_one(&mut *transaction)
            .await?;
            let record = Model::read(&row)?;
            transaction.commit().await?;
            Ok(Created { record, new: true })
        })
    }

    fn model<'a>(&'a self, wanted: &'a Wanted) -> Answer<'a, Model> {
        answer(format!("finding model `{wanted}`"), find_upload(&self.readers, Kind::Model, wanted))
    }

    fn models<'a>(&'a self, name: Option<&'a Name>, page: &'a Page) -> Answer<'a, Slice<Model>> {
        answer("listing models", list_uploads(&self.readers, Kind::Model, name, page))
    }

    fn delete_model<'a>(&'a self, name: &'a Name, version: Option<Version>) -> Answer<'a, Vec<Digest>> {
        answer(format!("deleting model `{name}`"), async move {
            let mut transaction = self.begin().await?;
            let endpoint: Option<String> = sqlx::query_scalar(
                "SELECT endpoint FROM endpoint_versions
                 WHERE model_name = $1 AND ($2 IS NULL OR model_version = $2) LIMIT 1",
            )
            .bind(name.as_str())
            .bind(version.map(|version| i64::from(version.0)))
            .fetch_optional(&mut *transaction)
            .await?;
            if let Some(endpoint) = endpoint {
                let id = Wanted { name: name.clone(), version }.to_string();
                let in_use = Error::InUse { kind: Kind::Model, id, endpoint: parsed(&endpoint)? };
                return refuse(transaction, in_use).await;
            }
            let deleted = delete_upload(&mut transaction, Kind::Model, name, version, self.now()).await;
            let (transaction, deleted): (_, Vec<Model>) = unless_refused(transaction, deleted).await?;
            transaction.commit().await?;
            Ok(deleted.into_iter().map(|model| model.sha256).collect())
        })
    }

    fn create_dataset(&self, new: NewDataset) -> Answer<'_, Created<Dataset>> {
        let tried = format!("adding a version of dataset `{}`", new.name);
        answer(tried, async move {
            let mut transaction = self.begin().await?;
            if let Some(record) = same_upload(&mut transaction, Kind::Dataset, &new.name, new.sha256).await? {
                transaction.commit().await?;
                return Ok(Created { record, new: false });
            }
            let room = keys::check_quota(&mut transaction, new.owner, new.bytes).await;
            let (mut transaction, ()) = unless_refused(transaction, room).await?;
            let row = sqlx::query(
                "INSERT INTO datasets (id, name, version, sha256, bytes, samples, info, created_at, uploaded_by)
                 VALUES ($1, $2, (SELECT coalesce(max(version), 0) + 1 FROM datasets WHERE name = $2),
                         $3, $4, $5, $6, $7, $8)
                 RETURNING *",
            )
            .bind(DatasetId::new().to_string())
            .bind(new.name.as_str())
            .bind(new.sha256.to_string())
            .bind(signed(new.bytes))
            .bind(signed(new.samples))
            .bind(new.info.to_string())
            .bind(self.now().0)
            .bind(new.owner.map(|owner| owner.key.to_string()))
            .fetch_one(&mut *transaction)
            .await?;
            let record = Dataset::read(&row)?;
            transaction.commit().await?;
            Ok(Created { record, new: true })
        })
    }

    fn dataset<'a>(&'a self, wanted: &'a Wanted) -> Answer<'a, Dataset> {
        answer(format!("finding dataset `{wanted}`"), find_upload(&self.readers, Kind::Dataset, wanted))
    }

    fn datasets<'a>(&'a self, name: Option<&'a Name>, page: &'a Page) -> Answer<'a, Slice<Dataset>> {
        answer("listing datasets", list_uploads(&self.readers, Kind::Dataset, name, page))
    }

    fn delete_dataset<'a>(&'a self, name: &'a Name, version: Option<Version>) -> Answer<'a, Vec<Dataset>> {
        answer(format!("deleting dataset `{name}`"), async move {
            let now = self.now();
            let mut transaction = self.begin().await?;
            let deleted = delete_upload(&mut transaction, Kind::Dataset, name, version, now).await;
            let (mut transaction, deleted): (_, Vec<Dataset>) = unless_refused(transaction, deleted).await?;
            for dataset in &deleted {
                note_deletion(&mut transaction, &dataset.pinned(), now).await?;
            }
            transaction.commit().await?;
            Ok(deleted)
        })
    }

    fn artifact(&self, id: ArtifactId) -> Answer<'_, Artifact> {
        answer(format!("finding artifact `{id}`"), async move {
            let row = sqlx::query("SELECT * FROM artifacts WHERE id = $1 AND deleted_at IS NULL")
                .bind(id.to_string())
                .fetch_optional(&self.readers)
                .await?
                .ok_or_else(|| Error::NotFound { kind: Kind::Artifact, id: id.to_string() })?;
            Artifact::read(&row)
        })
    }

    fn artifacts<'a>(&'a self, filter: &'a ArtifactFilter, page: &'a Page) -> Answer<'a, Slice<Artifact>> {
        answer("listing artifacts", async move {
            let (created_at, id, limit) = bounds(page);
            let rows = sqlx::query(
                "SELECT * FROM artifacts
                 WHERE deleted_at IS NULL AND ($1 IS NULL OR model_name = $1) AND ($2 IS NULL OR job = $2)
                   AND (created_at, id) < ($3, $4)
                 ORDER BY created_at DESC, id DESC LIMIT $5",
            )
            .bind(filter.model.as_ref().map(Name::as_str))
            .bind(filter.job.map(|job| job.to_string()))
            .bind(created_at)
            .bind(id)
            .bind(limit + 1)
            .fetch_all(&self.readers)
            .await?;
            slice(&rows, limit)
        })
    }

    fn delete_artifact(&self, id: ArtifactId) -> Answer<'_, Vec<Digest>> {
        answer(format!("deleting artifact `{id}`"), async move {
            let mut transaction = self.begin().await?;
            let endpoint: Option<String> =
                sqlx::query_scalar("SELECT endpoint FROM endpoint_versions WHERE artifact = $1 LIMIT 1")
                    .bind(id.to_string())
                    .fetch_optional(&mut *transaction)
                    .await?;
            if let Some(endpoint) = endpoint {
                let endpoint = parsed(&endpoint)?;
                let in_use = Error::InUse { kind: Kind::Artifact, id: id.to_string(), endpoint };
                return refuse(transaction, in_use).await;
            }
            let row = sqlx::query(
                "UPDATE artifacts SET deleted_at = $2 WHERE id = $1 AND deleted_at IS NULL RETURNING *",
            )
            .bind(id.to_string())
            .bind(self.now().0)
            .fetch_optional(&mut *transaction)
            .await?;
            let Some(row) = row else {
                let missing = Error::NotFound { kind: Kind::Artifact, id: id.to_string() };
                return refuse(transaction, missing).await;
            };
            let artifact = Artifact::read(&row)?;
            transaction.commit().await?;
            let held = [artifact.sha256, artifact.report, artifact.report_html];
            Ok(held.into_iter().chain(artifact.statistics).collect())
        })
    }

    fn endpoint<'a>(&'a self, name: &'a Name) -> Answer<'a, Endpoint> {
        answer(format!("finding endpoint `{name}`"), async move {
            let mut connection = self.readers.acquire().await?;
            let found = find_endpoint(&mut connection, name).await?;
            Ok(found.ok_or_else(|| Error::NotFound { kind: Kind::Endpoint, id: name.to_string() })?)
        })
    }

    fn endpoints<'a>(&'a self, page: &'a Page) -> Answer<'a, Slice<Endpoint>> {
        answer("listing endpoints", async move {
            let (created_at, name, limit) = bounds(page);
            let select = select_endpoint(self.dialect);
            let sql = format!(
                "{select} WHERE deleted_at IS NULL AND (created_at, name) < ($1, $2)
                 ORDER BY created_at DESC, name DESC LIMIT $3"
            );
            let rows = sqlx::query(AssertSqlSafe(sql))
                .bind(created_at)
                .bind(name)
                .bind(limit + 1)
                .fetch_all(&self.readers)
                .await?;
            slice(&rows, limit)
        })
    }

    fn change_endpoint<'a>(
        &'a self,
        name: &'a Name,
        change: EndpointChange,
        expect: Expect,
    ) -> Answer<'a, Endpoint> {
        answer(format!("changing endpoint `{name}`"), async move {
            let mut transaction = self.begin().await?;
            let expected = expect_endpoint(&mut transaction, name, expect).await;
            let (mut transaction, _) = unless_refused(transaction, expected).await?;
            let changed = change_endpoint(&mut transaction, name, &change, self.now()).await;
            let (transaction, endpoint) = unless_refused(transaction, changed).await?;
            self.commit_endpoints(transaction).await?;
            Ok(endpoint)
        })
    }

    fn endpoint_records<'a>(&'a self, name: &'a Name) -> Answer<'a, Vec<EndpointRecord>> {
        answer(format!("listing the changes of endpoint `{name}`"), async move {
            let rows = sqlx::query(
                "SELECT * FROM endpoint_records WHERE endpoint = $1 ORDER BY revision DESC LIMIT 200",
            )
            .bind(name.as_str())
            .fetch_all(&self.readers)
            .await?;
            rows.iter().map(EndpointRecord::read).collect()
        })
    }

    fn delete_endpoint<'a>(&'a self, name: &'a Name, expect: Expect, by: &'a str) -> Answer<'a, ()> {
        answer(format!("deleting endpoint `{name}`"), async move {
            let mut transaction = self.begin().await?;
            let found = expect_endpoint(&mut transaction, name, expect).await;
            let (mut transaction, found) = unless_refused(transaction, found).await?;
            if found.is_none() {
                let missing = Error::NotFound { kind: Kind::Endpoint, id: name.to_string() };
                return refuse(transaction, missing).await;
            }
            sqlx::query("UPDATE endpoints SET deleted_at = $2, revision = revision + 1 WHERE name = $1")
                .bind(name.as_str())
                .bind(self.now().0)
                .execute(&mut *transaction)
                .await?;
            sqlx::query("DELETE FROM endpoint_versions WHERE endpoint = $1")
                .bind(name.as_str())
                .execute(&mut *transaction)
                .await?;
            let record = Told { by, change: json!({ "deleted": true }), reason: None };
            write_record(&mut transaction, name, &record, self.now()).await?;
            self.commit_endpoints(transaction).await
        })
    }

    fn endpoint_changes(&self) -> watch::Receiver<u64> {
        self.endpoint_changes.subscribe()
    }

    fn job_changes(&self) -> watch::Receiver<u64> {
        self.job_changes.subscribe()
    }

    fn create_job(&self, new: NewJob) -> Answer<'_, Created<Job>> {
        answer("adding a job", async move {
            let now = self.now();
            let mut transaction = self.begin().await?;
            if let Some(key) = &new.idempotency {
                sqlx::query("DELETE FROM idempotency_keys WHERE created_at < $1")
                    .bind(now.0 - KEY_LIFETIME_MS)
                    .execute(&mut *transaction)
                    .await?;
                let found = job_of_key(&mut transaction, key, now).await;
                let then;
                (transaction, then) = unless_refused(transaction, found).await?;
                if let Some(record) = then {
                    transaction.commit().await?;
                    return Ok(Created { record, new: false });
                }
            }
            // The end of another job may have deleted them since they were looked up.
            let calibration = Some(&new.calibration).filter(|_| new.calibration_of.is_none());
            for data in calibration.into_iter().chain(&new.evaluation) {
                if !is_live(&mut transaction, Kind::Dataset, data).await? {
                    let missing = Error::NotFound { kind: Kind::Dataset, id: data.to_string() };
                    return refuse(transaction, missing).await;
                }
            }
            let queued: i64 = sqlx::query_scalar("SELECT count(*) FROM jobs WHERE state = 'queued'")
                .fetch_one(&mut *transaction)
                .await?;
            if unsigned(queued) >= new.queued_max {
                return refuse(transaction, Error::QueueFull { limit: new.queued_max }).await;
            }
            let row = sqlx::query(
                "INSERT INTO jobs (id, kind, state, attempts_max, model_name, model_version,
                                   calibration_name, calibration_version, evaluation_name,
                                   evaluation_version, recipe, endpoint, run_at, created_at, updated_at,
                                   calibration_of, keep, webhook_url)
                 VALUES ($1, $2, 'queued', $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $12, $12, $13, $14, $15)
                 RETURNING *",
            )
            .bind(JobId::new().to_string())
            .bind(new.kind.as_str())
            .bind(i64::from(new.attempts_max))
            .bind(new.model.name.as_str())
            .bind(i64::from(new.model.version.0))
            .bind(new.calibration.name.as_str())
            .bind(i64::from(new.calibration.version.0))
            .bind(new.evaluation.as_ref().map(|data| data.name.as_str()))
            .bind(new.evaluation.as_ref().map(|data| i64::from(data.version.0)))
            .bind(new.recipe.to_string())
            .bind(new.endpoint.as_ref().map(Name::as_str))
            .bind(now.0)
            .bind(new.calibration_of.map(|job| job.to_string()))
            .bind(i64::from(new.keep))
            .bind(new.webhook_url.as_deref())
            .fetch_one(&mut *transaction)
            .await?;
            let record = Job::read(&row)?;
            if let Some(key) = &new.idempotency {
                sqlx::query(
                    "INSERT INTO idempotency_keys (key, fingerprint, job, created_at)
                     VALUES ($1, $2, $3, $4)",
                )
                .bind(key.key.as_str())
                .bind(key.fingerprint.to_string())
                .bind(record.id.to_string())
                .bind(now.0)
                .execute(&mut *transaction)
                .await?;
            }
            self.commit_jobs(transaction).await?;
            Ok(Created { record, new: true })
        })
    }

    fn job_of_key<'a>(&'a self, key: &'a IdempotencyKey) -> Answer<'a, Option<Job>> {
        answer(format!("finding the job of the idempotency key `{}`", key.key), async move {
            let mut connection = self.readers.acquire().await?;
            job_of_key(&mut connection, key, self.now()).await
        })
    }

    fn job(&self, id: JobId) -> Answer<'_, Job> {
        answer(format!("finding job `{id}`"), async move {
            let mut connection = self.readers.acquire().await?;
            find_job(&mut connection, id).await
        })
    }

    fn jobs<'a>(&'a self, filter: &'a JobFilter, page: &'a Page) -> Answer<'a, Slice<Job>> {
        answer("listing jobs", async move {
            let (created_at, id, limit) = bounds(page);
            let rows = sqlx::query(
                "SELECT * FROM jobs
                 WHERE deleted_at IS NULL AND ($1 IS NULL OR state = $1) AND ($2 IS NULL OR model_name = $2)
                   AND (created_at, id) < ($3, $4)
                 ORDER BY created_at DESC, id DESC LIMIT $5",
            )
            .bind(filter.state.map(JobState::as_str))
            .bind(filter.model.as_ref().map(Name::as_str))
            .bind(created_at)
            .bind(id)
            .bind(limit + 1)
            .fetch_all(&self.readers)
            .await?;
            slice(&rows, limit)
        })
    }

    fn lease_job<'a>(&'a self, owner: &'a str, lease: Duration) -> Answer<'a, Option<Job>> {
        answer("leasing a job", async move {
            let now = self.now();
            let sql = format!(
                "UPDATE jobs
                 SET state = 'running', attempt = attempt + 1, lease_owner = $1, lease_until = $2,
                     phase = NULL, done = 0, total = 0, started_at = $3, updated_at = $3, seq = seq + 1
                 WHERE id = (SELECT id FROM jobs WHERE state = 'queued' AND run_at <= $3
                             ORDER BY run_at, id LIMIT 1 {})
                 RETURNING *",
                self.dialect.skip_locked()
            );
            let row = sqlx::query(AssertSqlSafe(sql))
                .bind(owner)
                .bind(now.plus(lease).0)
                .bind(now.0)
                .fetch_optional(&self.writer)
                .await?;
            row.map(|row| Job::read(&row)).transpose()
        })
    }

    fn heartbeat<'a>(
        &'a self,
        lease: &'a Lease,
        prolong: Duration,
        progress: Option<JobProgress>,
    ) -> Answer<'a, Job> {
        answer(format!("heartbeat of job `{}`", lease.job), async move {
            let now = self.now();
            let row = sqlx::query(
                "UPDATE jobs
                 SET lease_until = $4,
                     phase = coalesce($5, phase), done = coalesce($6, done), total = coalesce($7, total),
                     updated_at = CASE WHEN $5 IS NULL THEN updated_at ELSE $8 END,
                     seq = CASE WHEN $5 IS NULL THEN seq ELSE seq + 1 END
                 WHERE id = $1 AND attempt = $2 AND lease_owner = $3 AND state = 'running'
                 RETURNING *",
            )
            .bind(lease.job.to_string())
            .bind(i64::from(lease.attempt))
            .bind(lease.owner.as_str())
            .bind(now.plus(prolong).0)
            .bind(progress.as_ref().map(|progress| progress.phase.as_str()))
            .bind(progress.as_ref().map(|progress| signed(progress.done)))
            .bind(progress.as_ref().map(|progress| signed(progress.total)))
            .bind(now.0)
            .fetch_optional(&self.writer)
            .await?
            .ok_or_else(|| lost(lease))?;
            Job::read(&row)
        })
    }

    fn keep_checkpoint<'a>(&'a self, lease: &'a Lease, statistics: Digest) -> Answer<'a, Option<Digest>> {
        answer(format!("keeping a checkpoint of job `{}`", lease.job), async move {
            let mut transaction = self.begin().await?;
            let held = held_job(&mut transaction, lease).await;
            let (mut transaction, job) = unless_refused(transaction, held).await?;
            sqlx::query("UPDATE jobs SET checkpoint = $2 WHERE id = $1")
                .bind(lease.job.to_string())
                .bind(statistics.to_string())
                .execute(&mut *transaction)
                .await?;
            transaction.commit().await?;
            Ok(job.checkpoint.filter(|before| *before != statistics))
        })
    }

    fn finish_job<'a>(&'a self, lease: &'a Lease, finish: Finish) -> Answer<'a, Job> {
        answer(format!("ending attempt {} of job `{}`", lease.attempt, lease.job), async move {
            let now = self.now();
            let mut transaction = self.begin().await?;
            let held = held_job(&mut transaction, lease).await;
            let (mut transaction, job) = unless_refused(transaction, held).await?;
            let mut serves = false;
            let next = match finish {
                Finish::Done(new) => {
                    let kept = keep_artifact(&mut transaction, &job, *new, now).await;
                    let next;
                    (transaction, next) = unless_refused(transaction, kept).await?;
                    serves = next.state == JobState::Succeeded && job.endpoint.is_some();
                    next
                }
                Finish::Failed(error) => Next::ended(JobState::Failed, Some(error)),
                Finish::Retry(error, wait) => again(&job, error, now.plus(wait)),
                Finish::Cancelled => Next::ended(JobState::Cancelled, None),
                Finish::HandBack if job.cancel_requested => Next::ended(JobState::Cancelled, None),
                Finish::HandBack => Next { handed_back: true, ..Next::queued(job.error.clone(), now) },
            };
            let job = write_next(&mut transaction, job.id, next, now).await?;
            // It may wait for a worker again, or a webhook for its end.
            if serves {
                self.commit_jobs_and_endpoints(transaction).await?;
            } else {
                self.commit_jobs(transaction).await?;
            }
            Ok(job)
        })
    }

    fn cancel_job(&self, id: JobId) -> Answer<'_, (Job, bool)> {
        answer(format!("cancelling job `{id}`"), async move {
            let now = self.now();
            let mut transaction = self.begin().await?;
            let locked = lock_job(&mut transaction, id).await;
            let (mut transaction, before) = unless_refused(transaction, locked).await?;
            let seq = before.seq;
            let job = match before.state {
                JobState::Queued => {
                    write_next(&mut transaction, id, Next::ended(JobState::Cancelled, None), now).await?
                }
                JobState::Running if !before.cancel_requested => {
                    let row = sqlx::query(
                        "UPDATE jobs SET cancel_requested = 1, updated_at = $2, seq = seq + 1
                         WHERE id = $1 RETURNING *",
                    )
                    .bind(id.to_string())
                    .bind(now.0)
                    .fetch_one(&mut *transaction)
                    .await?;
                    Job::read(&row)?
                }
                JobState::Running | JobState::Cancelled => before,
                JobState::Succeeded | JobState::GateFailed | JobState::Failed => {
                    let finished = Error::AlreadyFinished { job: id, state: before.state };
                    return refuse(transaction, finished).await;
                }
            };
            transaction.commit().await?;
            let changed = job.seq != seq;
            Ok((job, changed))
        })
    }

    fn delete_job(&self, id: JobId) -> Answer<'_, ()> {
        answer(format!("deleting job `{id}`"), async move {
            let mut transaction = self.begin().await?;
            // Not locked, since workers pass over what is: a job that has ended does not change any more.
            let found = find_job(&mut transaction, id).await;
            let (mut transaction, job) = unless_refused(transaction, found).await?;
            if !job.state.is_final() {
                return refuse(transaction, Error::NotFinished { job: id, state: job.state }).await;
            }
            sqlx::query("UPDATE jobs SET deleted_at = $2 WHERE id = $1")
                .bind(id.to_string())
                .bind(self.now().0)
                .execute(&mut *transaction)
                .await?;
            // Else a repeated request would be answered with a job that nobody finds any more.
            sqlx::query("DELETE FROM idempotency_keys WHERE job = $1")
                .bind(id.to_string())
                .execute(&mut *transaction)
                .await?;
            Ok(transaction.commit().await?)
        })
    }

    fn reap_jobs(&self, wait: Duration) -> Answer<'_, Vec<Job>> {
        answer("taking expired leases", async move {
            let now = self.now();
            let mut transaction = self.begin().await?;
            let lock = self.dialect.for_update();
            let sql = format!("SELECT * FROM jobs WHERE state = 'running' AND lease_until < $1 {lock}");
            let rows = sqlx::query(AssertSqlSafe(sql)).bind(now.0).fetch_all(&mut *transaction).await?;
            let jobs = expire(&mut transaction, &rows, now.plus(wait), now).await?;
            transaction.commit().await?;
            Ok(jobs)
        })
    }

    fn release_jobs<'a>(&'a self, host: &'a str, owner: &'a str) -> Answer<'a, Vec<Job>> {
        answer("taking the leases of an earlier process", async move {
            let now = self.now();
            let mut transaction = self.begin().await?;
            let sql = format!(
                "SELECT * FROM jobs
                 WHERE state = 'running' AND substr(lease_owner, 1, length($1)) = $1 AND lease_owner <> $2 {}",
                self.dialect.for_update()
            );
            let rows = sqlx::query(AssertSqlSafe(sql))
                .bind(format!("{host}/"))
                .bind(owner)
                .fetch_all(&mut *transaction)
                .await?;
            let jobs = expire(&mut transaction, &rows, now, now).await?;
            transaction.commit().await?;
            Ok(jobs)
        })
    }

    fn blob_referenced(&self, digest: Digest) -> Answer<'_, bool> {
        answer("looking for the rows of a blob", async move {
            // On the writer: a reader might look at the moment before the row of an upload.
            let mut connection = self.writer.acquire().await?;
            holds::referenced(&mut connection, digest).await
        })
    }

    fn hold_blob(&self, digest: Digest, lifetime: Duration) -> Answer<'_, Option<HoldId>> {
        answer("holding a blob", async move {
            let mut transaction = self.begin().await?;
            let held = holds::hold(&mut transaction, digest, lifetime, self.now()).await?;
            transaction.commit().await?;
            Ok(held)
        })
    }

    fn release_blob(&self, hold: HoldId) -> Answer<'_, ()> {
        answer("letting go of a blob", async move {
            sqlx::query("DELETE FROM blob_holds WHERE id = $1")
                .bind(hold.to_string())
                .execute(&self.writer)
                .await?;
            Ok(())
        })
    }

    fn begin_removal(&self, digest: Digest, lifetime: Duration) -> Answer<'_, bool> {
        answer("removing a blob", async move {
            let mut transaction = self.begin().await?;
            let begun = holds::remove(&mut transaction, digest, lifetime, self.now()).await?;
            transaction.commit().await?;
            Ok(begun)
        })
    }

    fn end_removal(&self, digest: Digest) -> Answer<'_, ()> {
        answer("removing a blob", async move {
            sqlx::query("DELETE FROM blob_removals WHERE digest = $1")
                .bind(digest.to_string())
                .execute(&self.writer)
                .await?;
            Ok(())
        })
    }

    fn blob_holders(&self, digest: Digest, limit: u32) -> Answer<'_, Vec<String>> {
        answer("looking for the rows of a blob", async move {
            let holders = sqlx::query_scalar(
                "SELECT 'model ' || name || '@' || version FROM models WHERE sha256 = $1 AND deleted_at IS NULL
                 UNION ALL
                 SELECT 'dataset ' || name || '@' || version FROM datasets
                 WHERE sha256 = $1 AND deleted_at IS NULL
                 UNION ALL
                 SELECT 'artifact ' || id FROM artifacts
                 WHERE $1 IN (sha256, report, report_html, statistics) AND deleted_at IS NULL
                 LIMIT $2",
            )
            .bind(digest.to_string())
            .bind(i64::from(limit))
            .fetch_all(&self.writer)
            .await?;
            Ok(holders)
        })
    }

    fn add_audit(&self, new: NewAudit) -> Answer<'_, ()> {
        answer("putting a request on record", async move {
            let mut connection = self.writer.acquire().await?;
            audit::add(&mut connection, &new, self.now()).await
        })
    }

    fn audit<'a>(&'a self, key: Option<KeyId>, page: &'a Page) -> Answer<'a, Slice<AuditEntry>> {
        answer("listing requests on record", audit::list(&self.readers, key, page))
    }

    fn prune_audit(&self, keep: Duration) -> Answer<'_, u64> {
        answer("removing old requests from the record", async move {
            let keep = i64::try_from(keep.as_millis()).unwrap_or(i64::MAX);
            let before = Timestamp(self.now().0.saturating_sub(keep));
            let mut connection = self.writer.acquire().await?;
            audit::prune(&mut connection, before).await
        })
    }

    fn webhook(&self, job: JobId) -> Answer<'_, Option<Webhook>> {
        answer(format!("finding the webhook of job `{job}`"), webhooks::of(&self.readers, job))
    }

    fn claim_webhook<'a>(&'a self, lease: Duration, busy: &'a [String]) -> Answer<'a, Option<WebhookClaim>> {
        answer("claiming a webhook", webhooks::claim(&self.writer, self.dialect, self.now(), lease, busy))
    }

    fn settle_webhook<'a>(
        &'a self,
        claim: &'a WebhookClaim,
        outcome: WebhookOutcome,
        status: Option<u16>,
    ) -> Answer<'a, bool> {
        answer(format!("settling the webhook of job `{}`", claim.job.id), async move {
            let mut connection = self.writer.acquire().await?;
            webhooks::settle(&mut connection, claim, outcome, status, self.now()).await
        })
    }

    fn create_key(&self, new: NewKey) -> Answer<'_, Key> {
        answer(format!("adding key `{}`", new.name), async move {
            let mut transaction = self.begin().await?;
            let key = keys::create(&mut transaction, &new, self.now()).await?;
            transaction.commit().await?;
            Ok(key)
        })
    }

    fn keys(&self) -> Answer<'_, Vec<Key>> {
        answer("listing keys", async move {
            let mut connection = self.readers.acquire().await?;
            keys::all(&mut connection).await
        })
    }

    fn revoke_key(&self, id: KeyId) -> Answer<'_, Key> {
        answer(format!("revoking key `{id}`"), async move {
            let mut transaction = self.begin().await?;
            let revoked = keys::revoke(&mut transaction, id, self.now()).await;
            let (transaction, key) = unless_refused(transaction, revoked).await?;
            transaction.commit().await?;
            Ok(key)
        })
    }

    fn stored_bytes(&self, key: KeyId) -> Answer<'_, u64> {
        answer(format!("adding up what key `{key}` has stored"), async move {
            let mut connection = self.readers.acquire().await?;
            keys::stored_bytes(&mut connection, key).await
        })
    }

    fn census(&self) -> Answer<'_, Census> {
        answer("counting", async move {
            let now = self.now();
            let mut census = Census::default();
            let rows = sqlx::query(
                "SELECT state, count(*) AS jobs, min(created_at) AS oldest FROM jobs
                 WHERE deleted_at IS NULL GROUP BY state",
            )
            .fetch_all(&self.readers)
            .await?;
            for row in rows {
                let state: JobState = text(&row, "state")?;
                let place = JobState::ALL.iter().position(|&other| other == state);
                census.jobs[place.expect("ALL has every state")] = whole(&row, "jobs")?;
                if state == JobState::Queued {
                    census.oldest_queued_s = now.seconds_since(time(&row, "oldest")?);
                }
            }
            let row = sqlx::query(
                "SELECT (SELECT CAST(coalesce(sum(bytes), 0) AS BIGINT) FROM models WHERE deleted_at IS NULL) AS float,
                        (SELECT CAST(coalesce(sum(bytes), 0) AS BIGINT) FROM artifacts WHERE deleted_at IS NULL) AS int8,
                        (SELECT CAST(coalesce(sum(bytes), 0) AS BIGINT) FROM datasets WHERE deleted_at IS NULL) AS dataset",
            )
            .fetch_one(&self.readers)
            .await?;
            census.float_bytes = whole(&row, "float")?;
            census.int8_bytes = whole(&row, "int8")?;
            census.dataset_bytes = whole(&row, "dataset")?;
            Ok(census)
        })
    }
}
