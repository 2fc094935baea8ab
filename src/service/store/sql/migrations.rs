//! Brings the tables to what this program knows (`migrations/README.md`).

use sqlx::{AnyPool, AssertSqlSafe};

use super::super::Timestamp;
use super::transaction::begin;
use super::{Dialect, Fault, Work};

/// A number, a name, and the SQL of each dialect.
struct Migration {
    version: i64,
    name: &'static str,
    sqlite: &'static str,
    postgres: &'static str,
}

macro_rules! migration {
    ($version:literal, $name:literal, $file:literal) => {
        Migration {
            version: $version,
            name: $name,
            sqlite: include_str!(concat!("../../../../migrations/sqlite/", $file)),
            postgres: include_str!(concat!("../../../../migrations/postgres/", $file)),
        }
    };
}

/// Applied in order; never edited once released.
const MIGRATIONS: &[Migration] = &[
    migration!(1, "catalog", "0001_catalog.sql"),
    migration!(2, "statistics", "0002_statistics.sql"),
    migration!(3, "routes", "0003_routes.sql"),
    migration!(4, "holds", "0004_holds.sql"),
    migration!(5, "keys", "0005_keys.sql"),
    migration!(6, "checkpoints", "0006_checkpoints.sql"),
    migration!(7, "quotas", "0007_quotas.sql"),
    migration!(8, "audit", "0008_audit.sql"),
    migration!(9, "webhooks", "0009_webhooks.sql"),
];

/// The newest that this program knows.
pub(super) fn known() -> i64 {
    MIGRATIONS.last().map_or(0, |last| last.version)
}

/// Applies what is missing. Gives the names of what was applied.
pub(super) async fn migrate(writer: &AnyPool, dialect: Dialect, now: Timestamp) -> Work<Vec<&'static str>> {
    let mut applied = Vec::new();
    // Replicas that start together take turns.
    let mut transaction = begin(writer, dialect).await?;
    let whole = dialect.whole();
    sqlx::query(AssertSqlSafe(format!(
        "CREATE TABLE IF NOT EXISTS schema_version
         (version {whole} NOT NULL PRIMARY KEY, name TEXT NOT NULL, applied_at {whole} NOT NULL)"
    )))
    .execute(&mut *transaction)
    .await?;
    let have: i64 =
        sqlx::query_scalar("SELECT CAST(coalesce(max(version), 0) AS BIGINT) FROM schema_version")
            .fetch_one(&mut *transaction)
            .await?;
    if have > known() {
        let text = format!(
            "the database has schema version {have}, this program knows up to {}: install a newer one",
            known()
        );
        return Err(Fault::Database(text.into()));
    }
    for migration in MIGRATIONS.iter().filter(|migration| migration.version > have) {
        let sql = match dialect {
            Dialect::Sqlite => migration.sqlite,
            Dialect::Postgres => migration.postgres,
        };
        sqlx::raw_sql(sql).execute(&mut *transaction).await?;
        sqlx::query("INSERT INTO schema_version (version, name, applied_at) VALUES ($1, $2, $3)")
            .bind(migration.version)
            .bind(migration.name)
            .bind(now.0)
            .execute(&mut *transaction)
            .await?;
        applied.push(migration.name);
    }
    transaction.commit().await?;
    Ok(applied)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn migrations_are_numbered_without_gaps() {
        for (index, migration) in MIGRATIONS.iter().enumerate() {
            assert_eq!(usize::try_from(migration.version).unwrap(), index + 1);
        }
    }
}
