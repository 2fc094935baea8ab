//! Who writes and who removes a blob that several processes share.

use std::time::Duration;

use sqlx::AnyConnection;

use super::super::{Digest, HoldId, Timestamp};
use super::Work;

/// Holds a blob, unless it is being removed.
pub(super) async fn hold(
    connection: &mut AnyConnection,
    digest: Digest,
    lifetime: Duration,
    now: Timestamp,
) -> Work<Option<HoldId>> {
    sqlx::query("DELETE FROM blob_removals WHERE until < $1").bind(now.0).execute(&mut *connection).await?;
    let removed: i64 = sqlx::query_scalar("SELECT count(*) FROM blob_removals WHERE digest = $1")
        .bind(digest.to_string())
        .fetch_one(&mut *connection)
        .await?;
    if removed > 0 {
        return Ok(None);
    }
    let id = HoldId::new();
    sqlx::query("INSERT INTO blob_holds (id, digest, until) VALUES ($1, $2, $3)")
        .bind(id.to_string())
        .bind(digest.to_string())
        .bind(now.plus(lifetime).0)
        .execute(connection)
        .await?;
    Ok(Some(id))
}

/// Says that a blob which no row refers to is being removed, unless somebody holds it.
pub(super) async fn remove(
    connection: &mut AnyConnection,
    digest: Digest,
    lifetime: Duration,
    now: Timestamp,
) -> Work<bool> {
    sqlx::query("DELETE FROM blob_holds WHERE until < $1").bind(now.0).execute(&mut *connection).await?;
    let held: i64 = sqlx::query_scalar("SELECT count(*) FROM blob_holds WHERE digest = $1")
        .bind(digest.to_string())
        .fetch_one(&mut *connection)
        .await?;
    if held > 0 || referenced(connection, digest).await? {
        return Ok(false);
    }
    sqlx::query(
        "INSERT INTO blob_removals (digest, until) VALUES ($1, $2)
         ON CONFLICT (digest) DO UPDATE SET until = $2",
    )
    .bind(digest.to_string())
    .bind(now.plus(lifetime).0)
    .execute(connection)
    .await?;
    Ok(true)
}

/// Whether a row that is not deleted refers to the blob.
pub(super) async fn referenced(connection: &mut AnyConnection, digest: Digest) -> Work<bool> {
    let found: i64 = sqlx::query_scalar(
        "SELECT CASE WHEN EXISTS (SELECT 1 FROM models WHERE sha256 = $1 AND deleted_at IS NULL)
             OR EXISTS (SELECT 1 FROM datasets WHERE sha256 = $1 AND deleted_at IS NULL)
             OR EXISTS (SELECT 1 FROM artifacts WHERE sha256 = $1 AND deleted_at IS NULL)
             OR EXISTS (SELECT 1 FROM artifacts WHERE report = $1 AND deleted_at IS NULL)
             OR EXISTS (SELECT 1 FROM artifacts WHERE report_html = $1 AND deleted_at IS NULL)
             OR EXISTS (SELECT 1 FROM artifacts WHERE statistics = $1 AND deleted_at IS NULL)
             OR EXISTS (SELECT 1 FROM jobs WHERE checkpoint = $1)
             THEN 1 ELSE 0 END",
    )
    .bind(digest.to_string())
    .fetch_one(connection)
    .await?;
    Ok(found != 0)
}
