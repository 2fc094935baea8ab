//! The record of who changed what.

use sqlx::any::AnyRow;
use sqlx::{AnyConnection, AnyPool, Row};

use super::super::{AuditEntry, AuditId, Cursor, KeyId, NewAudit, Page, Slice, Timestamp};
use super::rows::{Record, bounds, slice};
use super::{Work, text, text_or_null, time};

/// Adds a line.
pub(super) async fn add(connection: &mut AnyConnection, new: &NewAudit, now: Timestamp) -> Work<()> {
    sqlx::query(
        "INSERT INTO audit (id, created_at, key_id, key_name, method, route, path, record, outcome, request_id)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
    )
    .bind(AuditId::new().to_string())
    .bind(now.0)
    .bind(new.key.as_ref().map(|(id, _)| id.to_string()))
    .bind(new.key.as_ref().map(|(_, name)| name.as_str()))
    .bind(new.method.as_str())
    .bind(new.route.as_str())
    .bind(new.path.as_str())
    .bind(new.record.as_deref())
    .bind(new.outcome.as_str())
    .bind(new.request_id.as_str())
    .execute(connection)
    .await?;
    Ok(())
}

/// Lines, newest first; those of one key where given.
pub(super) async fn list(readers: &AnyPool, key: Option<KeyId>, page: &Page) -> Work<Slice<AuditEntry>> {
    let (created_at, id, limit) = bounds(page);
    let rows = sqlx::query(
        "SELECT * FROM audit WHERE ($1 IS NULL OR key_id = $1) AND (created_at, id) < ($2, $3)
         ORDER BY created_at DESC, id DESC LIMIT $4",
    )
    .bind(key.map(|key| key.to_string()))
    .bind(created_at)
    .bind(id)
    .bind(limit + 1)
    .fetch_all(readers)
    .await?;
    slice(&rows, limit)
}

/// Removes what is older; gives how many lines.
pub(super) async fn prune(connection: &mut AnyConnection, before: Timestamp) -> Work<u64> {
    let done =
        sqlx::query("DELETE FROM audit WHERE created_at < $1").bind(before.0).execute(connection).await?;
    Ok(done.rows_affected())
}

impl Record for AuditEntry {
    fn read(row: &AnyRow) -> Work<AuditEntry> {
        let key = match text_or_null(row, "key_id")? {
            None => None,
            Some(id) => Some((id, text(row, "key_name")?)),
        };
        Ok(AuditEntry {
            id: text(row, "id")?,
            at: time(row, "created_at")?,
            what: NewAudit {
                key,
                method: row.try_get("method")?,
                route: row.try_get("route")?,
                path: row.try_get("path")?,
                record: row.try_get("record")?,
                outcome: row.try_get("outcome")?,
                request_id: row.try_get("request_id")?,
            },
        })
    }

    fn cursor(&self) -> Cursor {
        Cursor { created_at: self.at, id: self.id.to_string() }
    }
}
