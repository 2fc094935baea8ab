//! Transactions that read before they write.

use sqlx::{Any, AnyPool, Transaction};

use super::{Dialect, Work};

/// Names the lock that writing transactions of all processes take in Postgres: the letters "octet".
const WRITER_LOCK: i64 = 0x6f_63_74_65_74;

/// Begins a transaction that reads and then writes: no other such one runs meanwhile, in any process.
pub(super) async fn begin(writer: &AnyPool, dialect: Dialect) -> Work<Transaction<'static, Any>> {
    match dialect {
        // IMMEDIATE takes the lock at once: a transaction that reads first and then writes could otherwise fail where
        // another process has written in between.
        Dialect::Sqlite => Ok(writer.begin_with("BEGIN IMMEDIATE").await?),
        Dialect::Postgres => {
            let mut transaction = writer.begin().await?;
            sqlx::query("SELECT CAST(pg_advisory_xact_lock($1) AS TEXT)")
                .bind(WRITER_LOCK)
                .execute(&mut *transaction)
                .await?;
            Ok(transaction)
        }
    }
}
