//! What becomes of jobs. `service::jobs::after` has the table that these follow.

use serde_json::{Value, json};
use sqlx::any::AnyRow;
use sqlx::{AnyConnection, AssertSqlSafe};

use super::super::{
    Digest, EndpointChange, Error, IdempotencyKey, Job, JobError, JobErrorCode, JobId, JobState, Kind, Lease,
    NewArtifact, Timestamp,
};
use super::endpoints::change_endpoint;
use super::rows::Record;
use super::uploads::{is_live, let_go};
use super::{Dialect, Work, signed, text, to_json, webhooks};

pub(super) fn lost(lease: &Lease) -> Error {
    Error::LeaseLost { job: lease.job, attempt: lease.attempt }
}

/// What becomes of a job that is not running any more.
pub(super) struct Next {
    pub(super) state: JobState,
    pub(super) error: Option<JobError>,
    pub(super) result: Option<Value>,
    /// For a queued one.
    pub(super) run_at: Timestamp,
    pub(super) handed_back: bool,
}

impl Next {
    pub(super) fn ended(state: JobState, error: Option<JobError>) -> Next {
        Next { state, error, result: None, run_at: Timestamp(0), handed_back: false }
    }

    pub(super) fn queued(error: Option<JobError>, run_at: Timestamp) -> Next {
        Next { run_at, ..Next::ended(JobState::Queued, error) }
    }
}

/// After an attempt that failed but may be repeated.
pub(super) fn again(job: &Job, error: JobError, run_at: Timestamp) -> Next {
    if job.cancel_requested {
        Next::ended(JobState::Cancelled, None)
    } else if job.attempt - job.handed_back >= job.attempts_max {
        Next::ended(JobState::Failed, Some(error))
    } else {
        Next::queued(Some(error), run_at)
    }
}

pub(super) async fn write_next(
    connection: &mut AnyConnection,
    id: JobId,
    next: Next,
    now: Timestamp,
) -> Work<Job> {
    let row = sqlx::query(
        "UPDATE jobs
         SET state = $2, error = $3, result = $4, run_at = CASE WHEN $2 = 'queued' THEN $5 ELSE run_at END,
             handed_back = handed_back + $6, finished_at = CASE WHEN $2 = 'queued' THEN NULL ELSE $7 END,
             cancel_requested = CASE WHEN $2 = 'cancelled' THEN 1 ELSE cancel_requested END,
             lease_owner = NULL, lease_until = NULL, updated_at = $7, seq = seq + 1
         WHERE id = $1 RETURNING *",
    )
    .bind(id.to_string())
    .bind(next.state.as_str())
    .bind(next.error.as_ref().map(to_json).transpose()?)
    .bind(next.result.as_ref().map(Value::to_string))
    .bind(next.run_at.0)
    .bind(i64::from(next.handed_back))
    .bind(now.0)
    .fetch_one(&mut *connection)
    .await?;
    let job = Job::read(&row)?;
    if !job.state.is_final() {
        return Ok(job);
    }
    webhooks::add(connection, &job, now).await?;
    let mut freed = let_go(connection, &job, now).await?;
    if let Some(checkpoint) = job.checkpoint {
        sqlx::query("UPDATE jobs SET checkpoint = NULL WHERE id = $1")
            .bind(id.to_string())
            .execute(&mut *connection)
            .await?;
        freed.push(checkpoint);
    }
    // A job that is deleted already has a row all the same.
    let row =
        sqlx::query("SELECT * FROM jobs WHERE id = $1").bind(id.to_string()).fetch_one(connection).await?;
    Ok(Job { freed, ..Job::read(&row)? })
}

pub(super) async fn expire(
    connection: &mut AnyConnection,
    rows: &[AnyRow],
    run_at: Timestamp,
    now: Timestamp,
) -> Work<Vec<Job>> {
    let mut jobs = Vec::with_capacity(rows.len());
    for row in rows {
        let job = Job::read(row)?;
        let owner = job.lease_owner.as_deref().unwrap_or("nobody");
        let error = JobError {
            code: JobErrorCode::LeaseLost,
            message: format!("attempt {}: worker `{owner}` was heard of no more", job.attempt),
            retriable: true,
        };
        jobs.push(write_next(connection, job.id, again(&job, error, run_at), now).await?);
    }
    Ok(jobs)
}

/// Commits what a worker has made, unless it is not wanted any more.
pub(super) async fn keep_artifact(
    connection: &mut AnyConnection,
    job: &Job,
    new: NewArtifact,
    now: Timestamp,
) -> Work<Next> {
    if job.cancel_requested {
        return Ok(Next::ended(JobState::Cancelled, None));
    }
    if !is_live(connection, Kind::Model, &job.model).await? {
        let message = format!("model `{}` was deleted while the job ran", job.model);
        let error = JobError { code: JobErrorCode::ModelDeleted, message, retriable: false };
        return Ok(Next::ended(JobState::Failed, Some(error)));
    }
    sqlx::query(
        "INSERT INTO artifacts (id, job, model_name, model_version, sha256, bytes, size_ratio, manifest,
                                accuracy, latency, gate_failure, report, report_html, created_at,
                                statistics)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)",
    )
    .bind(new.id.to_string())
    .bind(job.id.to_string())
    .bind(job.model.name.as_str())
    .bind(i64::from(job.model.version.0))
    .bind(new.sha256.to_string())
    .bind(signed(new.bytes))
    .bind(new.size_ratio)
    .bind(new.manifest.to_string())
    .bind(to_json(&new.accuracy)?)
    .bind(to_json(&new.latency)?)
    .bind(new.gate_failure.as_deref())
    .bind(new.report.to_string())
    .bind(new.report_html.to_string())
    .bind(now.0)
    .bind(new.statistics.to_string())
    .execute(&mut *connection)
    .await?;
    let mut result = json!({
        "artifact": { "id": new.id, "sha256": new.sha256, "bytes": new.bytes },
        "size_ratio": new.size_ratio,
        "accuracy": new.accuracy,
        "latency": new.latency,
        "endpoint": null,
    });
    if let Some(reason) = new.gate_failure {
        let error = JobError { code: JobErrorCode::GateFailed, message: reason, retriable: false };
        return Ok(Next { result: Some(result), ..Next::ended(JobState::GateFailed, Some(error)) });
    }
    if let Some(name) = &job.endpoint {
        let change = EndpointChange {
            add: Some((Some(new.id), job.model.clone())),
            by: "job".into(),
            reason: Some(format!("job {}", job.id)),
            ..EndpointChange::default()
        };
        let endpoint = change_endpoint(connection, name, &change, now).await?;
        result["endpoint"] = json!({ "name": name, "version": endpoint.default_version });
    }
    Ok(Next { result: Some(result), ..Next::ended(JobState::Succeeded, None) })
}

/// How long an idempotency key is remembered.
pub(super) const KEY_LIFETIME_MS: i64 = 24 * 3_600_000;

/// The job that a key has made, also one that is deleted.
pub(super) async fn job_of_key(
    connection: &mut AnyConnection,
    key: &IdempotencyKey,
    now: Timestamp,
) -> Work<Option<Job>> {
    let row = sqlx::query(
        "SELECT jobs.*, fingerprint FROM idempotency_keys JOIN jobs ON jobs.id = job
         WHERE key = $1 AND idempotency_keys.created_at >= $2",
    )
    .bind(key.key.as_str())
    .bind(now.0 - KEY_LIFETIME_MS)
    .fetch_optional(connection)
    .await?;
    let Some(row) = row else { return Ok(None) };
    if text::<Digest>(&row, "fingerprint")? != key.fingerprint {
        return Err(Error::KeyReused { key: key.key.clone() }.into());
    }
    Ok(Some(Job::read(&row)?))
}

pub(super) async fn find_job(connection: &mut AnyConnection, id: JobId) -> Work<Job> {
    let row = sqlx::query("SELECT * FROM jobs WHERE id = $1 AND deleted_at IS NULL")
        .bind(id.to_string())
        .fetch_optional(connection)
        .await?
        .ok_or_else(|| Error::NotFound { kind: Kind::Job, id: id.to_string() })?;
    Job::read(&row)
}

/// The job, to be written: nobody else writes it before the transaction ends.
pub(super) async fn lock_job(connection: &mut AnyConnection, id: JobId) -> Work<Job> {
    let lock = Dialect::of(connection).for_update();
    sqlx::query(AssertSqlSafe(format!("SELECT id FROM jobs WHERE id = $1 {lock}")))
        .bind(id.to_string())
        .fetch_optional(&mut *connection)
        .await?;
    find_job(connection, id).await
}

/// The job whose attempt somebody holds, to be written.
pub(super) async fn held_job(connection: &mut AnyConnection, lease: &Lease) -> Work<Job> {
    let sql = format!(
        "SELECT * FROM jobs WHERE id = $1 AND attempt = $2 AND lease_owner = $3 AND state = 'running' {}",
        Dialect::of(connection).for_update()
    );
    let row = sqlx::query(AssertSqlSafe(sql))
        .bind(lease.job.to_string())
        .bind(i64::from(lease.attempt))
        .bind(lease.owner.as_str())
        .fetch_optional(connection)
        .await?
        .ok_or_else(|| lost(lease))?;
    Job::read(&row)
}
