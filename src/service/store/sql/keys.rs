//! API keys.

use sqlx::any::AnyRow;
use sqlx::{AnyConnection, Row};

use super::super::{Error, Key, KeyId, Kind, NewKey, Owner, Timestamp};
use super::{Work, signed, text, time, time_or_null, unsigned};

/// Adds a key.
pub(super) async fn create(connection: &mut AnyConnection, new: &NewKey, now: Timestamp) -> Work<Key> {
    let key = Key {
        id: new.id,
        name: new.name.clone(),
        sha256: new.sha256,
        scopes: new.scopes.clone(),
        rate: new.rate,
        quota: new.quota,
        created_at: now,
        expires_at: new.lifetime.map(|lifetime| now.plus(lifetime)),
        revoked_at: None,
    };
    sqlx::query(
        "INSERT INTO api_keys (id, name, sha256, scopes, rate, created_at, expires_at, quota)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
    )
    .bind(key.id.to_string())
    .bind(key.name.as_str())
    .bind(key.sha256.to_string())
    .bind(key.scopes.to_string())
    .bind(key.rate.map(i64::from))
    .bind(key.created_at.0)
    .bind(key.expires_at.map(|at| at.0))
    .bind(key.quota.map(signed))
    .execute(connection)
    .await?;
    Ok(key)
}

/// All keys, oldest first.
pub(super) async fn all(connection: &mut AnyConnection) -> Work<Vec<Key>> {
    let rows = sqlx::query("SELECT * FROM api_keys ORDER BY created_at, id").fetch_all(connection).await?;
    rows.iter().map(read).collect()
}

/// Revokes a key, once.
pub(super) async fn revoke(connection: &mut AnyConnection, id: KeyId, now: Timestamp) -> Work<Key> {
    sqlx::query("UPDATE api_keys SET revoked_at = $2 WHERE id = $1 AND revoked_at IS NULL")
        .bind(id.to_string())
        .bind(now.0)
        .execute(&mut *connection)
        .await?;
    let row = sqlx::query("SELECT * FROM api_keys WHERE id = $1")
        .bind(id.to_string())
        .fetch_optional(connection)
        .await?;
    read(&row.ok_or_else(|| Error::NotFound { kind: Kind::Key, id: id.to_string() })?)
}

/// Bytes of the models and datasets that were uploaded with a key and are not deleted.
pub(super) async fn stored_bytes(connection: &mut AnyConnection, key: KeyId) -> Work<u64> {
    let bytes: i64 = sqlx::query_scalar(
        "SELECT CAST(coalesce(sum(bytes), 0) AS BIGINT) FROM (
             SELECT bytes FROM models WHERE uploaded_by = $1 AND deleted_at IS NULL
             UNION ALL
             SELECT bytes FROM datasets WHERE uploaded_by = $1 AND deleted_at IS NULL) AS stored",
    )
    .bind(key.to_string())
    .fetch_one(connection)
    .await?;
    Ok(unsigned(bytes))
}

/// Refuses what a key has no room for.
pub(super) async fn check_quota(
    connection: &mut AnyConnection,
    owner: Option<Owner>,
    asked: u64,
) -> Work<()> {
    let Some(Owner { key, quota: Some(quota) }) = owner else { return Ok(()) };
    let used = stored_bytes(connection, key).await?;
    if used.saturating_add(asked) > quota {
        return Err(Error::QuotaExceeded { key, quota, used, asked }.into());
    }
    Ok(())
}

fn read(row: &AnyRow) -> Work<Key> {
    let rate: Option<i64> = row.try_get("rate")?;
    let quota: Option<i64> = row.try_get("quota")?;
    Ok(Key {
        id: text(row, "id")?,
        name: text(row, "name")?,
        sha256: text(row, "sha256")?,
        scopes: text(row, "scopes")?,
        rate: rate.map(|rate| u32::try_from(rate).unwrap_or(u32::MAX)),
        quota: quota.map(unsigned),
        created_at: time(row, "created_at")?,
        expires_at: time_or_null(row, "expires_at")?,
        revoked_at: time_or_null(row, "revoked_at")?,
    })
}
