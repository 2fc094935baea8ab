//! The outbox: which ends of jobs have to be told, and what came of it.

use std::time::Duration;

use sqlx::{AnyConnection, AnyPool, AssertSqlSafe, Row};

use super::super::{Job, JobId, Timestamp, Webhook, WebhookClaim, WebhookOutcome, WebhookState};
use super::rows::Record;
use super::{Dialect, Work, number, parsed, text, unsigned};

/// Notes that the end of a job has to be told, where somebody wants to know. Once, however often it ends.
pub(super) async fn add(connection: &mut AnyConnection, job: &Job, now: Timestamp) -> Work<()> {
    if job.webhook_url.is_none() {
        return Ok(());
    }
    sqlx::query(
        "INSERT INTO webhooks (job, state, attempts, due_at) VALUES ($1, 'pending', 0, $2)
         ON CONFLICT (job) DO NOTHING",
    )
    .bind(job.id.to_string())
    .bind(now.0)
    .execute(connection)
    .await?;
    Ok(())
}

/// Gives the attempt that is due longest to the caller, until the lease runs out; none whose address begins with one
/// of `busy`.
pub(super) async fn claim(
    writer: &AnyPool,
    dialect: Dialect,
    now: Timestamp,
    lease: Duration,
    busy: &[String],
) -> Work<Option<WebhookClaim>> {
    let free: String = (3..3 + busy.len())
        .map(|n| {
            format!(
                "AND NOT EXISTS (SELECT 1 FROM jobs WHERE id = webhooks.job
                                 AND substr(webhook_url, 1, length(${n})) = ${n}) "
            )
        })
        .collect();
    let sql = format!(
        "UPDATE webhooks SET attempts = attempts + 1, due_at = $2
         WHERE job = (SELECT job FROM webhooks WHERE state = 'pending' AND due_at <= $1 {free}
                      ORDER BY due_at, job LIMIT 1 {})
         RETURNING job, attempts",
        dialect.skip_locked()
    );
    let query = sqlx::query(AssertSqlSafe(sql)).bind(now.0).bind(now.plus(lease).0);
    let row = busy.iter().fold(query, |query, busy| query.bind(busy)).fetch_optional(writer).await?;
    let Some(row) = row else { return Ok(None) };
    let id: JobId = text(&row, "job")?;
    // A job that is deleted by now has a row all the same, and its end is told.
    let job = sqlx::query("SELECT * FROM jobs WHERE id = $1").bind(id.to_string()).fetch_one(writer).await?;
    Ok(Some(WebhookClaim { job: Job::read(&job)?, attempt: number(&row, "attempts")? }))
}

/// Notes what came of an attempt; `false` where its lease has run out and another one has begun.
pub(super) async fn settle(
    connection: &mut AnyConnection,
    claim: &WebhookClaim,
    outcome: WebhookOutcome,
    status: Option<u16>,
    now: Timestamp,
) -> Work<bool> {
    let (state, wait) = match outcome {
        WebhookOutcome::Delivered => (WebhookState::Delivered, Duration::ZERO),
        WebhookOutcome::Retry(wait) => (WebhookState::Pending, wait),
        WebhookOutcome::GivenUp => (WebhookState::GivenUp, Duration::ZERO),
    };
    let done = sqlx::query(
        "UPDATE webhooks SET state = $3, last_status = $4, due_at = $5
         WHERE job = $1 AND attempts = $2 AND state = 'pending'",
    )
    .bind(claim.job.id.to_string())
    .bind(i64::from(claim.attempt))
    .bind(state.as_str())
    .bind(status.map(i64::from))
    .bind(now.plus(wait).0)
    .execute(connection)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// How far the message about a job is; `None` where it has not ended or nobody wants to know.
pub(super) async fn of(readers: &AnyPool, job: JobId) -> Work<Option<Webhook>> {
    let row = sqlx::query("SELECT state, attempts, last_status FROM webhooks WHERE job = $1")
        .bind(job.to_string())
        .fetch_optional(readers)
        .await?;
    let Some(row) = row else { return Ok(None) };
    let status: Option<i64> = row.try_get("last_status")?;
    Ok(Some(Webhook {
        state: parsed(row.try_get("state")?)?,
        attempts: number(&row, "attempts")?,
        last_status: status.and_then(|status| u16::try_from(unsigned(status)).ok()),
    }))
}
