//! Models and datasets: what is uploaded under a name, and the data that go with the job that used them.

use sqlx::{AnyConnection, AnyPool, AssertSqlSafe};

use super::super::{
    Digest, Error, Job, JobState, Kind, Name, Page, Pinned, Slice, Timestamp, Version, Wanted,
};
use super::rows::{Record, bounds, slice};
use super::{Work, text};

pub(super) fn table(kind: Kind) -> &'static str {
    match kind {
        Kind::Model => "models",
        Kind::Dataset => "datasets",
        Kind::Job => "jobs",
        Kind::Artifact => "artifacts",
        Kind::Endpoint => "endpoints",
        Kind::Key => "api_keys",
    }
}

pub(super) async fn find_upload<T: Record>(readers: &AnyPool, kind: Kind, wanted: &Wanted) -> Work<T> {
    let sql = format!(
        "SELECT * FROM {} WHERE name = $1 AND ($2 IS NULL OR version = $2) AND deleted_at IS NULL
         ORDER BY version DESC LIMIT 1",
        table(kind)
    );
    let row = sqlx::query(AssertSqlSafe(sql))
        .bind(wanted.name.as_str())
        .bind(wanted.version.map(|version| i64::from(version.0)))
        .fetch_optional(readers)
        .await?
        .ok_or_else(|| Error::NotFound { kind, id: wanted.to_string() })?;
    T::read(&row)
}

/// The version that holds the same bytes under a name.
pub(super) async fn same_upload<T: Record>(
    connection: &mut AnyConnection,
    kind: Kind,
    name: &Name,
    sha256: Digest,
) -> Work<Option<T>> {
    let sql = format!("SELECT * FROM {} WHERE name = $1 AND sha256 = $2 AND deleted_at IS NULL", table(kind));
    let row = sqlx::query(AssertSqlSafe(sql))
        .bind(name.as_str())
        .bind(sha256.to_string())
        .fetch_optional(connection)
        .await?;
    row.map(|row| T::read(&row)).transpose()
}

pub(super) async fn list_uploads<T: Record>(
    readers: &AnyPool,
    kind: Kind,
    name: Option<&Name>,
    page: &Page,
) -> Work<Slice<T>> {
    let (created_at, id, limit) = bounds(page);
    let sql = format!(
        "SELECT * FROM {} WHERE deleted_at IS NULL AND ($1 IS NULL OR name = $1)
           AND (created_at, id) < ($2, $3)
         ORDER BY created_at DESC, id DESC LIMIT $4",
        table(kind)
    );
    let rows = sqlx::query(AssertSqlSafe(sql))
        .bind(name.map(Name::as_str))
        .bind(created_at)
        .bind(id)
        .bind(limit + 1)
        .fetch_all(readers)
        .await?;
    slice(&rows, limit)
}

pub(super) async fn delete_upload<T: Record>(
    connection: &mut AnyConnection,
    kind: Kind,
    name: &Name,
    version: Option<Version>,
    now: Timestamp,
) -> Work<Vec<T>> {
    let sql = format!(
        "UPDATE {} SET deleted_at = $3
         WHERE name = $1 AND ($2 IS NULL OR version = $2) AND deleted_at IS NULL RETURNING *",
        table(kind)
    );
    let rows = sqlx::query(AssertSqlSafe(sql))
        .bind(name.as_str())
        .bind(version.map(|version| i64::from(version.0)))
        .bind(now.0)
        .fetch_all(connection)
        .await?;
    if rows.is_empty() {
        let id = Wanted { name: name.clone(), version }.to_string();
        return Err(Error::NotFound { kind, id }.into());
    }
    rows.iter().map(T::read).collect()
}

/// Notes with the jobs that used a dataset that it is gone.
pub(super) async fn note_deletion(connection: &mut AnyConnection, data: &Pinned, now: Timestamp) -> Work<()> {
    for (used, unless) in [("calibration", "calibration_of IS NULL"), ("evaluation", "TRUE")] {
        let sql = format!(
            "UPDATE jobs SET {used}_deleted_at = $3, seq = seq + 1
             WHERE {used}_name = $1 AND {used}_version = $2 AND {used}_deleted_at IS NULL AND {unless}"
        );
        sqlx::query(AssertSqlSafe(sql))
            .bind(data.name.as_str())
            .bind(i64::from(data.version.0))
            .bind(now.0)
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}

/// Deletes the data of a job that has ended, where they were for calibration, no job asked to keep them, and none that
/// is not done needs them. Gives the blobs. Not where the request was at fault: nothing was made of the data then, and
/// who corrects a mistyped name wants to ask again.
pub(super) async fn let_go(connection: &mut AnyConnection, job: &Job, now: Timestamp) -> Work<Vec<Digest>> {
    if job.state == JobState::Failed && job.error.as_ref().is_some_and(|error| error.code.is_of_request()) {
        return Ok(Vec::new());
    }
    let calibration = Some(&job.calibration).filter(|_| job.calibration_of.is_none());
    let mut freed = Vec::new();
    for data in calibration.into_iter().chain(&job.evaluation) {
        let row = sqlx::query(
            "UPDATE datasets SET deleted_at = $3
             WHERE name = $1 AND version = $2 AND deleted_at IS NULL
               AND NOT EXISTS (SELECT 1 FROM jobs WHERE state IN ('queued', 'running')
                   AND calibration_name = $1 AND calibration_version = $2 AND calibration_of IS NULL)
               AND NOT EXISTS (SELECT 1 FROM jobs WHERE state IN ('queued', 'running')
                   AND evaluation_name = $1 AND evaluation_version = $2)
               AND (SELECT max(keep) FROM jobs WHERE calibration_name = $1 AND calibration_version = $2
                   AND calibration_of IS NULL) = 0
             RETURNING sha256",
        )
        .bind(data.name.as_str())
        .bind(i64::from(data.version.0))
        .bind(now.0)
        .fetch_optional(&mut *connection)
        .await?;
        if let Some(row) = row {
            freed.push(text(&row, "sha256")?);
            note_deletion(connection, data, now).await?;
        }
    }
    Ok(freed)
}

pub(super) async fn is_live(connection: &mut AnyConnection, kind: Kind, pinned: &Pinned) -> Work<bool> {
    let sql = format!(
        "SELECT count(*) FROM {} WHERE name = $1 AND version = $2 AND deleted_at IS NULL",
        table(kind)
    );
    let found: i64 = sqlx::query_scalar(AssertSqlSafe(sql))
        .bind(pinned.name.as_str())
        .bind(i64::from(pinned.version.0))
        .fetch_one(connection)
        .await?;
    Ok(found != 0)
}
