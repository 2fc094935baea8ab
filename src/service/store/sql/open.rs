//! Opens the database, begins transactions, and hears of what other processes change.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use sqlx::any::{AnyConnectOptions, AnyPoolOptions};
use sqlx::postgres::PgListener;
use sqlx::{Any, AnyConnection, AnyPool, ConnectOptions as _, Connection as _, Transaction};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::warn;
use url::Url;

use super::super::{Clock, Digest, Error, Timestamp};
use super::migrations::{known, migrate};
use super::transaction::begin;
use super::{Dialect, Fault, Work, answer, parsed};

/// Connections for reading SQLite.
const READERS: u32 = 4;
/// Connections to Postgres, of one process.
const CONNECTIONS: u32 = 8;
/// Wait for a lock that another process holds (a backup, a person with a shell).
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// Wait for a connection: a database that is gone is told of, not waited for.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// One statement of ours never takes so long; one that does waits for something that is broken.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(30);
/// What other processes change is looked for so often, where no notification tells of it.
const LOOK_AGAIN: Duration = Duration::from_secs(3);
/// The clock of the database is looked at so often, in rounds of [`LOOK_AGAIN`].
const ROUNDS_OF_THE_CLOCK: u32 = 20;

/// The channels that processes notify each other over.
const ENDPOINTS_CHANNEL: &str = "octet_endpoints";
const JOBS_CHANNEL: &str = "octet_jobs";

/// A catalog in one SQLite file, or in a Postgres database that several processes share.
///
/// SQLite: WAL, so that readers do not wait for the writer; `synchronous=FULL`, so that what was answered is on the
/// disk. All writes go through one connection: SQLite has one writer anyway, and waiting for our own queue is fair where
/// its lock is not.
///
/// Postgres: a transaction that reads before it writes takes one lock first, so that it sees what it would see in
/// SQLite. What is asked all the time (a lease, a heartbeat) is one statement and goes without.
pub struct Sql {
    pub(super) dialect: Dialect,
    pub(super) writer: AnyPool,
    pub(super) readers: AnyPool,
    pub(super) endpoint_changes: watch::Sender<u64>,
    pub(super) job_changes: watch::Sender<u64>,
    url: String,
    clock: Clock,
    applied: Vec<&'static str>,
    /// Milliseconds that the clock of the database is ahead of ours.
    ahead: AtomicI64,
}

impl Sql {
    /// Opens or makes a SQLite file and applies the migrations that it lacks.
    ///
    /// # Errors
    /// [`Error::Database`], also where the file was written by a newer program.
    pub async fn sqlite(path: &Path, clock: Clock) -> Result<Sql, Error> {
        let tried = format!("opening `{}`", path.display());
        answer(tried, async move {
            let url = sqlite_url(path, "rwc")?;
            let writer = sqlite_pool(&url, 1, "").await?;
            let applied = migrate(&writer, Dialect::Sqlite, clock()).await?;
            let readers = sqlite_pool(&url, READERS, "PRAGMA query_only = on;").await?;
            Ok(Sql::new(Dialect::Sqlite, writer, readers, url, clock, applied))
        })
        .await
    }

    /// Connects to a Postgres database (`postgres://user:password@host/database`) and applies the migrations that it
    /// lacks.
    ///
    /// # Errors
    /// [`Error::Database`]. The text of it does not hold the URL, which has a password.
    pub async fn postgres(url: &str, clock: Clock) -> Result<Sql, Error> {
        answer("connecting to Postgres", async move {
            sqlx::any::install_default_drivers();
            let options = AnyPoolOptions::new()
                .max_connections(CONNECTIONS)
                .acquire_timeout(CONNECT_TIMEOUT)
                .after_connect(|connection, _| {
                    Box::pin(async move {
                        let set = format!(
                            "SET statement_timeout = {0}; SET idle_in_transaction_session_timeout = {0}; \
                             SET default_transaction_isolation = 'read committed'",
                            STATEMENT_TIMEOUT.as_millis()
                        );
                        sqlx::raw_sql(sqlx::AssertSqlSafe(set)).execute(connection).await?;
                        Ok(())
                    })
                });
            let pool = options.connect_with(quiet(url)?).await?;
            let applied = migrate(&pool, Dialect::Postgres, clock()).await?;
            Ok(Sql::new(Dialect::Postgres, pool.clone(), pool, url.to_owned(), clock, applied))
        })
        .await
    }

    fn new(
        dialect: Dialect,
        writer: AnyPool,
        readers: AnyPool,
        url: String,
        clock: Clock,
        applied: Vec<&'static str>,
    ) -> Sql {
        Sql {
            dialect,
            writer,
            readers,
            endpoint_changes: watch::Sender::new(0),
            job_changes: watch::Sender::new(0),
            url,
            clock,
            applied,
            ahead: AtomicI64::new(0),
        }
    }

    /// What the tables are like.
    #[must_use]
    pub fn schema_version(&self) -> i64 {
        known()
    }

    /// What was brought to them when they were opened.
    #[must_use]
    pub fn applied(&self) -> &[&'static str] {
        &self.applied
    }

    /// Copies a SQLite file as it is at one moment, while it may be written.
    ///
    /// # Errors
    /// [`Error::Database`] or [`Error::Full`].
    pub async fn copy_to(&self, path: &Path) -> Result<(), Error> {
        answer(format!("copying the database to `{}`", path.display()), async move {
            let text = path.to_str().ok_or_else(|| Fault::Database("the path is not UTF-8".into()))?;
            sqlx::query("VACUUM INTO $1").bind(text).execute(&self.writer).await?;
            Ok(())
        })
        .await
    }

    /// The blobs that rows refer to.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn blobs(&self) -> Result<Vec<Digest>, Error> {
        answer("listing the blobs of all rows", async move {
            let texts: Vec<String> = sqlx::query_scalar(
                "SELECT sha256 FROM models WHERE deleted_at IS NULL
                 UNION SELECT sha256 FROM datasets WHERE deleted_at IS NULL
                 UNION SELECT sha256 FROM artifacts WHERE deleted_at IS NULL
                 UNION SELECT report FROM artifacts WHERE deleted_at IS NULL
                 UNION SELECT report_html FROM artifacts WHERE deleted_at IS NULL
                 UNION SELECT statistics FROM artifacts WHERE deleted_at IS NULL AND statistics IS NOT NULL",
            )
            .fetch_all(&self.readers)
            .await?;
            texts.iter().map(|text| parsed(text)).collect()
        })
        .await
    }

    /// Closes the database; what was answered is kept whether this is called or not.
    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }

    /// Hears of what other processes change, and takes over the clock of the database, until the task is aborted. Does
    /// nothing over SQLite, whose only process this is.
    pub fn listen(self: &Arc<Sql>) -> JoinHandle<()> {
        let sql = Arc::clone(self);
        tokio::spawn(async move {
            if sql.dialect == Dialect::Sqlite {
                return;
            }
            loop {
                if let Err(error) = sql.listen_once().await {
                    warn!(%error, "Changes of other processes are not heard of for now: {error}");
                }
                sql.tell_all();
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        })
    }

    async fn listen_once(&self) -> Result<(), sqlx::Error> {
        self.take_clock().await?;
        let mut listener = PgListener::connect(&self.url).await?;
        listener.listen_all([ENDPOINTS_CHANNEL, JOBS_CHANNEL]).await?;
        // What was told before we listened.
        self.tell_all();
        let mut rounds = 0;
        loop {
            match tokio::time::timeout(LOOK_AGAIN, listener.try_recv()).await {
                Ok(Ok(Some(told))) if told.channel() == JOBS_CHANNEL => tell(&self.job_changes),
                Ok(Ok(Some(_))) => tell(&self.endpoint_changes),
                // The connection was lost; the listener has made a new one, but what was told meanwhile is lost.
                Ok(Ok(None)) => self.tell_all(),
                Ok(Err(error)) => return Err(error),
                Err(_) => {
                    self.tell_all();
                    rounds += 1;
                    if rounds % ROUNDS_OF_THE_CLOCK == 0 {
                        self.take_clock().await?;
                    }
                }
            }
        }
    }

    /// Leases of all processes are told in the time of the database: their own clocks may differ.
    async fn take_clock(&self) -> Result<(), sqlx::Error> {
        let theirs = database_time(&self.readers).await?;
        self.ahead.store(theirs - (self.clock)().0, Ordering::Relaxed);
        Ok(())
    }

    fn tell_all(&self) {
        tell(&self.job_changes);
        tell(&self.endpoint_changes);
    }

    pub(super) fn now(&self) -> Timestamp {
        Timestamp((self.clock)().0 + self.ahead.load(Ordering::Relaxed))
    }

    pub(super) async fn begin(&self) -> Work<Transaction<'static, Any>> {
        begin(&self.writer, self.dialect).await
    }

    /// Commits a change of endpoints and tells it.
    pub(super) async fn commit_endpoints(&self, mut transaction: Transaction<'static, Any>) -> Work<()> {
        self.notify(&mut transaction, ENDPOINTS_CHANNEL).await?;
        // Told on drop: also when the caller goes away after the commit but before it is polled again.
        // Telling of a change that was not made is harmless.
        let _tell = Tell(&self.endpoint_changes);
        Ok(transaction.commit().await?)
    }

    /// Commits jobs that wait for a worker or have ended, and tells it.
    pub(super) async fn commit_jobs(&self, mut transaction: Transaction<'static, Any>) -> Work<()> {
        self.notify(&mut transaction, JOBS_CHANNEL).await?;
        let _tell = Tell(&self.job_changes);
        Ok(transaction.commit().await?)
    }

    /// The same where the end of a job has changed an endpoint.
    pub(super) async fn commit_jobs_and_endpoints(
        &self,
        mut transaction: Transaction<'static, Any>,
    ) -> Work<()> {
        self.notify(&mut transaction, JOBS_CHANNEL).await?;
        let _tell = Tell(&self.job_changes);
        self.commit_endpoints(transaction).await
    }

    /// Other processes hear of it when the transaction is committed.
    async fn notify(&self, transaction: &mut Transaction<'static, Any>, channel: &'static str) -> Work<()> {
        if self.dialect == Dialect::Postgres {
            sqlx::query("SELECT CAST(pg_notify($1, '') AS TEXT)")
                .bind(channel)
                .execute(&mut **transaction)
                .await?;
        }
        Ok(())
    }
}

/// What a database is like, found without changing it.
#[derive(Debug)]
pub struct Schema {
    /// Its version; 0 where there are no tables yet.
    pub have: i64,
    /// The version that this program knows.
    pub known: i64,
    /// What it says about itself.
    pub healthy: Result<(), String>,
    /// Milliseconds that its clock is ahead.
    pub ahead_ms: i64,
}

/// What a SQLite file is like.
///
/// # Errors
/// [`Error::Database`].
pub async fn schema_of_sqlite(path: &Path) -> Result<Schema, Error> {
    answer(format!("opening `{}`", path.display()), async move {
        let pool = sqlite_pool(&sqlite_url(path, "rw")?, 1, "PRAGMA query_only = on;").await?;
        let said: String = sqlx::query_scalar("PRAGMA quick_check(1)").fetch_one(&pool).await?;
        let healthy = if said == "ok" { Ok(()) } else { Err(said) };
        let schema = Schema { have: have(&pool).await?, known: known(), healthy, ahead_ms: 0 };
        pool.close().await;
        Ok(schema)
    })
    .await
}

/// What a Postgres database is like.
///
/// # Errors
/// [`Error::Unavailable`] or [`Error::Database`].
pub async fn schema_of_postgres(url: &str, clock: Clock) -> Result<Schema, Error> {
    answer("connecting to Postgres", async move {
        sqlx::any::install_default_drivers();
        let options = AnyPoolOptions::new().max_connections(1).acquire_timeout(CONNECT_TIMEOUT);
        let pool = options.connect_with(quiet(url)?).await?;
        let ahead_ms = database_time(&pool).await? - clock().0;
        let schema =
            Schema { have: have(&pool).await.unwrap_or(0), known: known(), healthy: Ok(()), ahead_ms };
        pool.close().await;
        Ok(schema)
    })
    .await
}

async fn have(pool: &AnyPool) -> Result<i64, sqlx::Error> {
    let sql = "SELECT CAST(coalesce(max(version), 0) AS BIGINT) FROM schema_version";
    sqlx::query_scalar(sql).fetch_one(pool).await
}

/// Milliseconds since 1970, by Postgres.
async fn database_time(pool: &AnyPool) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar("SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT)")
        .fetch_one(pool)
        .await
}

/// A path as a URL: what means something in one is escaped.
fn sqlite_url(path: &Path, mode: &str) -> Work<String> {
    let absolute = std::path::absolute(path).map_err(|error| Fault::Database(Box::new(error)))?;
    let mut url = Url::from_file_path(&absolute)
        .map_err(|()| Fault::Database(format!("`{}` is no path of a file", absolute.display()).into()))?;
    url.set_query(Some(&format!("mode={mode}")));
    Ok(url.as_str().replacen("file://", "sqlite://", 1))
}

async fn sqlite_pool(url: &str, connections: u32, further: &'static str) -> Work<AnyPool> {
    sqlx::any::install_default_drivers();
    // A pool tries what fails in `after_connect` again and again, for half a minute, and then says only that it has waited:
    // what is wrong with the file is found on a connection of its own.
    let mut first = AnyConnection::connect_with(&quiet(url)?).await?;
    prepare(&mut first, further).await.map_err(said_of_file)?;
    first.close().await?;
    let options = AnyPoolOptions::new()
        .max_connections(connections)
        .min_connections(1)
        .idle_timeout(None)
        .max_lifetime(None)
        // SQLite itself ends a transaction where the disk is full. The rollback that follows is refused then, and the
        // connection would count as in a transaction for good.
        .before_acquire(|connection, _| Box::pin(async move { Ok(!connection.is_in_transaction()) }))
        .after_connect(move |connection, _| Box::pin(prepare(connection, further)));
    Ok(options.connect_with(quiet(url)?).await?)
}

/// What every connection to a SQLite file begins with; the first of them reads the file.
async fn prepare(connection: &mut AnyConnection, further: &'static str) -> Result<(), sqlx::Error> {
    let pragmas = format!(
        "PRAGMA busy_timeout = {}; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; \
         PRAGMA foreign_keys = on; {further}",
        BUSY_TIMEOUT.as_millis()
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(pragmas)).execute(connection).await?;
    Ok(())
}

/// Says what to do about a file that is no database any more.
fn said_of_file(error: sqlx::Error) -> Fault {
    let code = error.as_database_error().and_then(|error| error.code());
    // https://sqlite.org/rescode.html: SQLITE_CORRUPT and SQLITE_NOTADB, with whatever else the higher bytes tell.
    let primary = code.and_then(|code| code.parse::<u32>().ok()).map(|code| code & 0xff);
    if !matches!(primary, Some(11 | 26)) {
        return error.into();
    }
    let cure =
        "put the last backup back with `octet restore BACKUP --data-dir NEW_FOLDER`, or name another folder";
    Fault::Database(format!("{error}: {cure}").into())
}

/// Options that do not log every statement.
fn quiet(url: &str) -> Work<AnyConnectOptions> {
    let options: AnyConnectOptions = url.parse()?;
    Ok(options.disable_statement_logging())
}

fn tell(changes: &watch::Sender<u64>) {
    changes.send_modify(|count| *count += 1);
}

struct Tell<'a>(&'a watch::Sender<u64>);

impl Drop for Tell<'_> {
    fn drop(&mut self) {
        tell(self.0);
    }
}
