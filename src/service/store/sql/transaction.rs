//! Transactions that read before they write.

use sqlx::{Any, AnyPool, Transaction};

use super::{Dialect, Fault, Work};

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

/// Rolls back, and then refuses. A transaction that is only dropped is rolled back some time after the answer, and has its
/// locks until then: a worker would pass over a job whose deletion was refused.
pub(super) async fn refuse<T>(
    transaction: Transaction<'static, Any>,
    fault: impl Into<Fault> + Send,
) -> Work<T> {
    let fault = fault.into();
    // Fails where the connection is lost or SQLite has rolled back by itself: then there is nothing left to undo.
    let _ = transaction.rollback().await;
    Err(fault)
}

/// Goes on with what was found out, or [refuses](refuse).
pub(super) async fn unless_refused<T>(
    transaction: Transaction<'static, Any>,
    found: Work<T>,
) -> Work<(Transaction<'static, Any>, T)> {
    match found {
        Ok(found) => Ok((transaction, found)),
        Err(fault) => refuse(transaction, fault).await,
    }
}
