//! API keys in SQL that SQLite and Postgres share. Knows rows of keys, and nothing of transactions.

use std::str::FromStr;

use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};

use super::{Key, KeyId, NewKey, Timestamp};

/// Adds a key.
pub(super) async fn create(
    connection: &mut SqliteConnection,
    new: &NewKey,
    now: Timestamp,
) -> Result<Key, sqlx::Error> {
    let key = Key {
        id: new.id,
        name: new.name.clone(),
        sha256: new.sha256,
        scopes: new.scopes.clone(),
        rate: new.rate,
        created_at: now,
        expires_at: new.lifetime.map(|lifetime| now.plus(lifetime)),
        revoked_at: None,
    };
    sqlx::query(
        "INSERT INTO api_keys (id, name, sha256, scopes, rate, created_at, expires_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(key.id.to_string())
    .bind(key.name.as_str())
    .bind(key.sha256.to_string())
    .bind(key.scopes.to_string())
    .bind(key.rate.map(i64::from))
    .bind(key.created_at.0)
    .bind(key.expires_at.map(|at| at.0))
    .execute(connection)
    .await?;
    Ok(key)
}

/// All keys, oldest first.
pub(super) async fn all(connection: &mut SqliteConnection) -> Result<Vec<Key>, sqlx::Error> {
    let rows = sqlx::query("SELECT * FROM api_keys ORDER BY created_at, id").fetch_all(connection).await?;
    rows.iter().map(read).collect()
}

/// Revokes a key, once. `None` where there is no such key.
pub(super) async fn revoke(
    connection: &mut SqliteConnection,
    id: KeyId,
    now: Timestamp,
) -> Result<Option<Key>, sqlx::Error> {
    sqlx::query("UPDATE api_keys SET revoked_at = $2 WHERE id = $1 AND revoked_at IS NULL")
        .bind(id.to_string())
        .bind(now.0)
        .execute(&mut *connection)
        .await?;
    let row = sqlx::query("SELECT * FROM api_keys WHERE id = $1")
        .bind(id.to_string())
        .fetch_optional(connection)
        .await?;
    row.as_ref().map(read).transpose()
}

fn read(row: &SqliteRow) -> Result<Key, sqlx::Error> {
    let rate: Option<i64> = row.try_get("rate")?;
    let time = |column: &str| Ok::<_, sqlx::Error>(row.try_get::<Option<i64>, _>(column)?.map(Timestamp));
    Ok(Key {
        id: text(row, "id")?,
        name: text(row, "name")?,
        sha256: text(row, "sha256")?,
        scopes: text(row, "scopes")?,
        rate: rate.map(|rate| u32::try_from(rate).unwrap_or(u32::MAX)),
        created_at: Timestamp(row.try_get("created_at")?),
        expires_at: time("expires_at")?,
        revoked_at: time("revoked_at")?,
    })
}

fn text<T: FromStr>(row: &SqliteRow, column: &str) -> Result<T, sqlx::Error>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    row.try_get::<&str, _>(column)?.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::service::store::sqlite::tests::{Scratch, name};
    use crate::service::store::{Catalog as _, Digest, Error, KeyId, NewKey};

    fn new_key(id: u8, lifetime: Option<Duration>) -> NewKey {
        NewKey {
            id: KeyId([id; 8]),
            name: name("ci"),
            sha256: Digest([id; 32]),
            scopes: "read,infer".parse().unwrap(),
            rate: Some(50),
            lifetime,
        }
    }

    #[tokio::test]
    async fn keys_come_back_as_they_were_made() {
        let mut scratch = Scratch::new().await;
        let first = scratch.catalog.create_key(new_key(2, None)).await.unwrap();
        scratch.pass(1_000);
        let day = Duration::from_secs(86_400);
        let second = scratch.catalog.create_key(new_key(1, Some(day))).await.unwrap();
        assert_eq!(second.expires_at, Some(second.created_at.plus(day)));
        scratch.reopen().await;
        assert_eq!(scratch.catalog.keys().await.unwrap(), [first, second]);
        // An id is given once.
        assert!(scratch.catalog.create_key(new_key(1, None)).await.is_err());
    }

    #[tokio::test]
    async fn a_key_is_revoked_once() {
        let scratch = Scratch::new().await;
        let key = scratch.catalog.create_key(new_key(1, None)).await.unwrap();
        scratch.pass(1_000);
        let revoked = scratch.catalog.revoke_key(key.id).await.unwrap();
        assert_eq!(revoked.revoked_at, Some(key.created_at.plus(Duration::from_secs(1))));
        scratch.pass(1_000);
        assert_eq!(scratch.catalog.revoke_key(key.id).await.unwrap(), revoked);
        let unknown = scratch.catalog.revoke_key(KeyId([9; 8])).await;
        assert!(matches!(unknown, Err(Error::NotFound { .. })), "{unknown:?}");
    }
}
