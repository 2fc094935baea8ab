//! The catalog on SQLite: one writer, several readers. The only file that knows SQL.

use std::future::Future;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous,
};
use sqlx::{AssertSqlSafe, Row, SqliteConnection, SqlitePool, Transaction};
use tokio::sync::watch;

use super::endpoint::{self, Written};
use super::{
    Answer, Artifact, ArtifactFilter, ArtifactId, Catalog, Census, Clock, Created, Cursor, Dataset,
    DatasetId, Digest, Endpoint, EndpointChange, EndpointRecord, EndpointVersion, Error, Expect, Finish, Job,
    JobError, JobErrorCode, JobFilter, JobId, JobKind, JobProgress, JobState, Key, KeyId, Kind, Lease, Model,
    ModelId, Name, NewArtifact, NewDataset, NewJob, NewKey, NewModel, Page, Pinned, Route, SettingsPatch,
    Slice, Timestamp, Version, Wanted, sqlite_keys,
};

/// Applied in order; never edited once released (`migrations/README.md`).
const MIGRATIONS: &[(i64, &str, &str)] = &[
    (1, "catalog", include_str!("../../../migrations/sqlite/0001_catalog.sql")),
    (2, "statistics", include_str!("../../../migrations/sqlite/0002_statistics.sql")),
    (3, "routes", include_str!("../../../migrations/sqlite/0003_routes.sql")),
    (4, "keys", include_str!("../../../migrations/sqlite/0004_keys.sql")),
];

/// Connections for reading.
const READERS: u32 = 4;
/// Wait for a lock that another process holds (a backup, a person with a shell).
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an idempotency key is remembered.
const KEY_LIFETIME_MS: i64 = 24 * 3_600_000;

/// A catalog in one SQLite file.
///
/// WAL, so that readers do not wait for the writer; `synchronous=FULL`, so that what was answered is on the
/// disk. All writes go through one connection: SQLite has one writer anyway, and waiting for our own queue
/// is fair where its lock is not.
pub struct Sqlite {
    writer: SqlitePool,
    readers: SqlitePool,
    clock: Clock,
    endpoint_changes: watch::Sender<u64>,
}

impl Sqlite {
    /// Opens or makes the file and applies the migrations that it lacks.
    ///
    /// # Errors
    /// [`Error::Database`], also where the file was written by a newer program.
    pub async fn open(path: &Path, clock: Clock) -> Result<Sqlite, Error> {
        let tried = format!("opening `{}`", path.display());
        answer(tried, async move {
            let options = SqliteConnectOptions::new()
                .filename(path)
                .create_if_missing(true)
                .journal_mode(SqliteJournalMode::Wal)
                .synchronous(SqliteSynchronous::Full)
                .busy_timeout(BUSY_TIMEOUT)
                .foreign_keys(true);
            let writer = SqlitePoolOptions::new()
                .max_connections(1)
                .min_connections(1)
                .idle_timeout(None)
                .max_lifetime(None)
                .connect_with(options.clone())
                .await?;
            migrate(&writer, clock()).await?;
            let readers = SqlitePoolOptions::new()
                .max_connections(READERS)
                .connect_with(options.pragma("query_only", "on"))
                .await?;
            Ok(Sqlite { writer, readers, clock, endpoint_changes: watch::Sender::new(0) })
        })
        .await
    }

    /// Closes the file; what was answered is kept whether this is called or not.
    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }

    fn now(&self) -> Timestamp {
        (self.clock)()
    }

    async fn begin(&self) -> Result<Transaction<'static, sqlx::Sqlite>, Fault> {
        // IMMEDIATE takes the lock at once: a transaction that reads first and then writes could otherwise
        // fail where another process has written in between.
        Ok(self.writer.begin_with("BEGIN IMMEDIATE").await?)
    }

    /// Commits a change of endpoints and tells it.
    async fn commit_endpoints(&self, transaction: Transaction<'static, sqlx::Sqlite>) -> Result<(), Fault> {
        // Told on drop: also when the caller goes away after the commit but before it is polled again.
        // Telling of a change that was not made is harmless.
        let _tell = Tell(&self.endpoint_changes);
        Ok(transaction.commit().await?)
    }
}

struct Tell<'a>(&'a watch::Sender<u64>);

impl Drop for Tell<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count += 1);
    }
}

/// What goes wrong in here: the database, or a refusal that is an answer.
enum Fault {
    Database(Box<dyn std::error::Error + Send + Sync>),
    Refused(Error),
}

impl From<sqlx::Error> for Fault {
    fn from(error: sqlx::Error) -> Fault {
        Fault::Database(Box::new(error))
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Fault {
        Fault::Refused(error)
    }
}

type Work<T> = Result<T, Fault>;

fn answer<'a, T>(tried: impl Into<String>, work: impl Future<Output = Work<T>> + Send + 'a) -> Answer<'a, T> {
    let tried = tried.into();
    Box::pin(async move {
        work.await.map_err(|fault| match fault {
            Fault::Refused(error) => error,
            Fault::Database(source) => Error::Database { tried, source },
        })
    })
}

async fn migrate(writer: &SqlitePool, now: Timestamp) -> Work<()> {
    sqlx::query(
        "CREATE TABLE IF NOT EXISTS schema_version
         (version INTEGER NOT NULL PRIMARY KEY, name TEXT NOT NULL, applied_at INTEGER NOT NULL) STRICT",
    )
    .execute(writer)
    .await?;
    let have: i64 =
        sqlx::query_scalar("SELECT coalesce(max(version), 0) FROM schema_version").fetch_one(writer).await?;
    let known = MIGRATIONS.last().map_or(0, |last| last.0);
    if have > known {
        let text = format!("the file has schema version {have}, this program knows up to {known}");
        return Err(Fault::Database(text.into()));
    }
    for &(version, name, sql) in MIGRATIONS.iter().filter(|migration| migration.0 > have) {
        let mut transaction = writer.begin_with("BEGIN IMMEDIATE").await?;
        sqlx::raw_sql(sql).execute(&mut *transaction).await?;
        sqlx::query("INSERT INTO schema_version (version, name, applied_at) VALUES (?1, ?2, ?3)")
            .bind(version)
            .bind(name)
            .bind(now.0)
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
    }
    Ok(())
}

impl Catalog for Sqlite {
    fn create_model(&self, new: NewModel) -> Answer<'_, Created<Model>> {
        let tried = format!("adding a version of model `{}`", new.name);
        answer(tried, async move {
            let mut transaction = self.begin().await?;
            if let Some(row) =
                sqlx::query("SELECT * FROM models WHERE name = ?1 AND sha256 = ?2 AND deleted_at IS NULL")
                    .bind(new.name.as_str())
                    .bind(new.sha256.to_string())
                    .fetch_optional(&mut *transaction)
                    .await?
            {
                return Ok(Created { record: Model::read(&row)?, new: false });
            }
            // Deleted rows count too: a number is never given twice.
            let row = sqlx::query(
                "INSERT INTO models (id, name, version, sha256, bytes, info, created_at)
                 VALUES (?1, ?2, (SELECT coalesce(max(version), 0) + 1 FROM models WHERE name = ?2),
                         ?3, ?4, ?5, ?6)
                 RETURNING *",
            )
            .bind(ModelId::new().to_string())
            .bind(new.name.as_str())
            .bind(new.sha256.to_string())
            .bind(signed(new.bytes))
            .bind(new.info.to_string())
            .bind(self.now().0)
            .fetch_one(&mut *transaction)
            .await?;
            let record = Model::read(&row)?;
            transaction.commit().await?;
            Ok(Created { record, new: true })
        })
    }

    fn model<'a>(&'a self, wanted: &'a Wanted) -> Answer<'a, Model> {
        answer(format!("finding model `{wanted}`"), find_upload(&self.readers, Kind::Model, wanted))
    }

    fn models<'a>(&'a self, name: Option<&'a Name>, page: &'a Page) -> Answer<'a, Slice<Model>> {
        answer("listing models", list_uploads(&self.readers, Kind::Model, name, page))
    }

    fn delete_model<'a>(&'a self, name: &'a Name, version: Option<Version>) -> Answer<'a, Vec<Digest>> {
        answer(format!("deleting model `{name}`"), async move {
            let mut transaction = self.begin().await?;
            let endpoint: Option<String> = sqlx::query_scalar(
                "SELECT endpoint FROM endpoint_versions
                 WHERE model_name = ?1 AND (?2 IS NULL OR model_version = ?2) LIMIT 1",
            )
            .bind(name.as_str())
            .bind(version.map(|version| version.0))
            .fetch_optional(&mut *transaction)
            .await?;
            if let Some(endpoint) = endpoint {
                let id = Wanted { name: name.clone(), version }.to_string();
                return Err(Error::InUse { kind: Kind::Model, id, endpoint: parsed(&endpoint)? }.into());
            }
            let deleted: Vec<Model> =
                delete_upload(&mut transaction, Kind::Model, name, version, self.now()).await?;
            transaction.commit().await?;
            Ok(deleted.into_iter().map(|model| model.sha256).collect())
        })
    }

    fn create_dataset(&self, new: NewDataset) -> Answer<'_, Created<Dataset>> {
        let tried = format!("adding a version of dataset `{}`", new.name);
        answer(tried, async move {
            let mut transaction = self.begin().await?;
            if let Some(row) =
                sqlx::query("SELECT * FROM datasets WHERE name = ?1 AND sha256 = ?2 AND deleted_at IS NULL")
                    .bind(new.name.as_str())
                    .bind(new.sha256.to_string())
                    .fetch_optional(&mut *transaction)
                    .await?
            {
                return Ok(Created { record: Dataset::read(&row)?, new: false });
            }
            let row = sqlx::query(
                "INSERT INTO datasets (id, name, version, sha256, bytes, samples, info, created_at)
                 VALUES (?1, ?2, (SELECT coalesce(max(version), 0) + 1 FROM datasets WHERE name = ?2),
                         ?3, ?4, ?5, ?6, ?7)
                 RETURNING *",
            )
            .bind(DatasetId::new().to_string())
            .bind(new.name.as_str())
            .bind(new.sha256.to_string())
            .bind(signed(new.bytes))
            .bind(signed(new.samples))
            .bind(new.info.to_string())
            .bind(self.now().0)
            .fetch_one(&mut *transaction)
            .await?;
            let record = Dataset::read(&row)?;
            transaction.commit().await?;
            Ok(Created { record, new: true })
        })
    }

    fn dataset<'a>(&'a self, wanted: &'a Wanted) -> Answer<'a, Dataset> {
        answer(format!("finding dataset `{wanted}`"), find_upload(&self.readers, Kind::Dataset, wanted))
    }

    fn datasets<'a>(&'a self, name: Option<&'a Name>, page: &'a Page) -> Answer<'a, Slice<Dataset>> {
        answer("listing datasets", list_uploads(&self.readers, Kind::Dataset, name, page))
    }

    fn delete_dataset<'a>(&'a self, name: &'a Name, version: Option<Version>) -> Answer<'a, Vec<Dataset>> {
        answer(format!("deleting dataset `{name}`"), async move {
            let now = self.now();
            let mut transaction = self.begin().await?;
            let deleted: Vec<Dataset> =
                delete_upload(&mut transaction, Kind::Dataset, name, version, now).await?;
            for dataset in &deleted {
                note_deletion(&mut transaction, &dataset.pinned(), now).await?;
            }
            transaction.commit().await?;
            Ok(deleted)
        })
    }

    fn artifact(&self, id: ArtifactId) -> Answer<'_, Artifact> {
        answer(format!("finding artifact `{id}`"), async move {
            let row = sqlx::query("SELECT * FROM artifacts WHERE id = ?1 AND deleted_at IS NULL")
                .bind(id.to_string())
                .fetch_optional(&self.readers)
                .await?
                .ok_or_else(|| Error::NotFound { kind: Kind::Artifact, id: id.to_string() })?;
            Artifact::read(&row)
        })
    }

    fn artifacts<'a>(&'a self, filter: &'a ArtifactFilter, page: &'a Page) -> Answer<'a, Slice<Artifact>> {
        answer("listing artifacts", async move {
            let (created_at, id, limit) = bounds(page);
            let rows = sqlx::query(
                "SELECT * FROM artifacts
                 WHERE deleted_at IS NULL AND (?1 IS NULL OR model_name = ?1) AND (?2 IS NULL OR job = ?2)
                   AND (created_at, id) < (?3, ?4)
                 ORDER BY created_at DESC, id DESC LIMIT ?5",
            )
            .bind(filter.model.as_ref().map(Name::as_str))
            .bind(filter.job.map(|job| job.to_string()))
            .bind(created_at)
            .bind(id)
            .bind(limit + 1)
            .fetch_all(&self.readers)
            .await?;
            slice(&rows, limit)
        })
    }

    fn delete_artifact(&self, id: ArtifactId) -> Answer<'_, Vec<Digest>> {
        answer(format!("deleting artifact `{id}`"), async move {
            let mut transaction = self.begin().await?;
            let endpoint: Option<String> =
                sqlx::query_scalar("SELECT endpoint FROM endpoint_versions WHERE artifact = ?1 LIMIT 1")
                    .bind(id.to_string())
                    .fetch_optional(&mut *transaction)
                    .await?;
            if let Some(endpoint) = endpoint {
                let endpoint = parsed(&endpoint)?;
                return Err(Error::InUse { kind: Kind::Artifact, id: id.to_string(), endpoint }.into());
            }
            let row = sqlx::query(
                "UPDATE artifacts SET deleted_at = ?2 WHERE id = ?1 AND deleted_at IS NULL RETURNING *",
            )
            .bind(id.to_string())
            .bind(self.now().0)
            .fetch_optional(&mut *transaction)
            .await?
            .ok_or_else(|| Error::NotFound { kind: Kind::Artifact, id: id.to_string() })?;
            let artifact = Artifact::read(&row)?;
            transaction.commit().await?;
            let held = [artifact.sha256, artifact.report, artifact.report_html];
            Ok(held.into_iter().chain(artifact.statistics).collect())
        })
    }

    fn endpoint<'a>(&'a self, name: &'a Name) -> Answer<'a, Endpoint> {
        answer(format!("finding endpoint `{name}`"), async move {
            let mut connection = self.readers.acquire().await?;
            let found = find_endpoint(&mut connection, name).await?;
            Ok(found.ok_or_else(|| Error::NotFound { kind: Kind::Endpoint, id: name.to_string() })?)
        })
    }

    fn endpoints<'a>(&'a self, page: &'a Page) -> Answer<'a, Slice<Endpoint>> {
        answer("listing endpoints", async move {
            let (created_at, name, limit) = bounds(page);
            let sql = format!(
                "{SELECT_ENDPOINT} WHERE deleted_at IS NULL AND (created_at, name) < (?1, ?2)
                 ORDER BY created_at DESC, name DESC LIMIT ?3"
            );
            let rows = sqlx::query(AssertSqlSafe(sql))
                .bind(created_at)
                .bind(name)
                .bind(limit + 1)
                .fetch_all(&self.readers)
                .await?;
            slice(&rows, limit)
        })
    }

    fn change_endpoint<'a>(
        &'a self,
        name: &'a Name,
        change: EndpointChange,
        expect: Expect,
    ) -> Answer<'a, Endpoint> {
        answer(format!("changing endpoint `{name}`"), async move {
            let mut transaction = self.begin().await?;
            expect_endpoint(&mut transaction, name, expect).await?;
            let endpoint = change_endpoint(&mut transaction, name, &change, self.now()).await?;
            self.commit_endpoints(transaction).await?;
            Ok(endpoint)
        })
    }

    fn endpoint_records<'a>(&'a self, name: &'a Name) -> Answer<'a, Vec<EndpointRecord>> {
        answer(format!("listing the changes of endpoint `{name}`"), async move {
            let rows = sqlx::query(
                "SELECT * FROM endpoint_records WHERE endpoint = ?1 ORDER BY revision DESC LIMIT 200",
            )
            .bind(name.as_str())
            .fetch_all(&self.readers)
            .await?;
            rows.iter().map(EndpointRecord::read).collect()
        })
    }

    fn delete_endpoint<'a>(&'a self, name: &'a Name, expect: Expect, by: &'a str) -> Answer<'a, ()> {
        answer(format!("deleting endpoint `{name}`"), async move {
            let mut transaction = self.begin().await?;
            let found = expect_endpoint(&mut transaction, name, expect).await?;
            if found.is_none() {
                return Err(Error::NotFound { kind: Kind::Endpoint, id: name.to_string() }.into());
            }
            sqlx::query("UPDATE endpoints SET deleted_at = ?2, revision = revision + 1 WHERE name = ?1")
                .bind(name.as_str())
                .bind(self.now().0)
                .execute(&mut *transaction)
                .await?;
            sqlx::query("DELETE FROM endpoint_versions WHERE endpoint = ?1")
                .bind(name.as_str())
                .execute(&mut *transaction)
                .await?;
            let record = Told { by, change: json!({ "deleted": true }), reason: None };
            write_record(&mut transaction, name, &record, self.now()).await?;
            self.commit_endpoints(transaction).await
        })
    }

    fn endpoint_changes(&self) -> watch::Receiver<u64> {
        self.endpoint_changes.subscribe()
    }

    fn create_job(&self, new: NewJob) -> Answer<'_, Created<Job>> {
        answer("adding a job", async move {
            let now = self.now();
            let mut transaction = self.begin().await?;
            if let Some(key) = &new.idempotency {
                sqlx::query("DELETE FROM idempotency_keys WHERE created_at < ?1")
                    .bind(now.0 - KEY_LIFETIME_MS)
                    .execute(&mut *transaction)
                    .await?;
                let row = sqlx::query(
                    "SELECT jobs.*, fingerprint FROM idempotency_keys JOIN jobs ON jobs.id = job
                     WHERE key = ?1",
                )
                .bind(&key.key)
                .fetch_optional(&mut *transaction)
                .await?;
                if let Some(row) = row {
                    if text::<Digest>(&row, "fingerprint")? != key.fingerprint {
                        return Err(Error::KeyReused { key: key.key.clone() }.into());
                    }
                    return Ok(Created { record: Job::read(&row)?, new: false });
                }
            }
            // The end of another job may have deleted them since they were looked up.
            let calibration = Some(&new.calibration).filter(|_| new.calibration_of.is_none());
            for data in calibration.into_iter().chain(&new.evaluation) {
                if !is_live(&mut transaction, Kind::Dataset, data).await? {
                    return Err(Error::NotFound { kind: Kind::Dataset, id: data.to_string() }.into());
                }
            }
            let queued: i64 = sqlx::query_scalar("SELECT count(*) FROM jobs WHERE state = 'queued'")
                .fetch_one(&mut *transaction)
                .await?;
            if unsigned(queued) >= new.queued_max {
                return Err(Error::QueueFull { limit: new.queued_max }.into());
            }
            let row = sqlx::query(
                "INSERT INTO jobs (id, kind, state, attempts_max, model_name, model_version,
                                   calibration_name, calibration_version, evaluation_name,
                                   evaluation_version, recipe, endpoint, run_at, created_at, updated_at,
                                   calibration_of, keep)
                 VALUES (?1, ?2, 'queued', ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?12, ?12, ?13, ?14)
                 RETURNING *",
            )
            .bind(JobId::new().to_string())
            .bind(new.kind.as_str())
            .bind(new.attempts_max)
            .bind(new.model.name.as_str())
            .bind(new.model.version.0)
            .bind(new.calibration.name.as_str())
            .bind(new.calibration.version.0)
            .bind(new.evaluation.as_ref().map(|data| data.name.as_str()))
            .bind(new.evaluation.as_ref().map(|data| data.version.0))
            .bind(new.recipe.to_string())
            .bind(new.endpoint.as_ref().map(Name::as_str))
            .bind(now.0)
            .bind(new.calibration_of.map(|job| job.to_string()))
            .bind(i64::from(new.keep))
            .fetch_one(&mut *transaction)
            .await?;
            let record = Job::read(&row)?;
            if let Some(key) = &new.idempotency {
                sqlx::query(
                    "INSERT INTO idempotency_keys (key, fingerprint, job, created_at)
                     VALUES (?1, ?2, ?3, ?4)",
                )
                .bind(&key.key)
                .bind(key.fingerprint.to_string())
                .bind(record.id.to_string())
                .bind(now.0)
                .execute(&mut *transaction)
                .await?;
            }
            transaction.commit().await?;
            Ok(Created { record, new: true })
        })
    }

    fn job(&self, id: JobId) -> Answer<'_, Job> {
        answer(format!("finding job `{id}`"), async move {
            let mut connection = self.readers.acquire().await?;
            find_job(&mut connection, id).await
        })
    }

    fn jobs<'a>(&'a self, filter: &'a JobFilter, page: &'a Page) -> Answer<'a, Slice<Job>> {
        answer("listing jobs", async move {
            let (created_at, id, limit) = bounds(page);
            let rows = sqlx::query(
                "SELECT * FROM jobs
                 WHERE deleted_at IS NULL AND (?1 IS NULL OR state = ?1) AND (?2 IS NULL OR model_name = ?2)
                   AND (created_at, id) < (?3, ?4)
                 ORDER BY created_at DESC, id DESC LIMIT ?5",
            )
            .bind(filter.state.map(JobState::as_str))
            .bind(filter.model.as_ref().map(Name::as_str))
            .bind(created_at)
            .bind(id)
            .bind(limit + 1)
            .fetch_all(&self.readers)
            .await?;
            slice(&rows, limit)
        })
    }

    fn lease_job<'a>(&'a self, owner: &'a str, lease: Duration) -> Answer<'a, Option<Job>> {
        answer("leasing a job", async move {
            let now = self.now();
            let row = sqlx::query(
                "UPDATE jobs
                 SET state = 'running', attempt = attempt + 1, lease_owner = ?1, lease_until = ?2,
                     phase = NULL, done = 0, total = 0, started_at = ?3, updated_at = ?3, seq = seq + 1
                 WHERE id = (SELECT id FROM jobs WHERE state = 'queued' AND run_at <= ?3
                             ORDER BY run_at, id LIMIT 1)
                 RETURNING *",
            )
            .bind(owner)
            .bind(now.plus(lease).0)
            .bind(now.0)
            .fetch_optional(&self.writer)
            .await?;
            row.map(|row| Job::read(&row)).transpose()
        })
    }

    fn heartbeat<'a>(
        &'a self,
        lease: &'a Lease,
        prolong: Duration,
        progress: Option<JobProgress>,
    ) -> Answer<'a, Job> {
        answer(format!("heartbeat of job `{}`", lease.job), async move {
            let now = self.now();
            let row = sqlx::query(
                "UPDATE jobs
                 SET lease_until = ?4,
                     phase = coalesce(?5, phase), done = coalesce(?6, done), total = coalesce(?7, total),
                     updated_at = CASE WHEN ?5 IS NULL THEN updated_at ELSE ?8 END,
                     seq = CASE WHEN ?5 IS NULL THEN seq ELSE seq + 1 END
                 WHERE id = ?1 AND attempt = ?2 AND lease_owner = ?3 AND state = 'running'
                 RETURNING *",
            )
            .bind(lease.job.to_string())
            .bind(lease.attempt)
            .bind(&lease.owner)
            .bind(now.plus(prolong).0)
            .bind(progress.as_ref().map(|progress| progress.phase.as_str()))
            .bind(progress.as_ref().map(|progress| signed(progress.done)))
            .bind(progress.as_ref().map(|progress| signed(progress.total)))
            .bind(now.0)
            .fetch_optional(&self.writer)
            .await?
            .ok_or_else(|| lost(lease))?;
            Job::read(&row)
        })
    }

    fn finish_job<'a>(&'a self, lease: &'a Lease, finish: Finish) -> Answer<'a, Job> {
        answer(format!("ending attempt {} of job `{}`", lease.attempt, lease.job), async move {
            let now = self.now();
            let mut transaction = self.begin().await?;
            let row = sqlx::query(
                "SELECT * FROM jobs WHERE id = ?1 AND attempt = ?2 AND lease_owner = ?3 AND state = 'running'",
            )
            .bind(lease.job.to_string())
            .bind(lease.attempt)
            .bind(&lease.owner)
            .fetch_optional(&mut *transaction)
            .await?
            .ok_or_else(|| lost(lease))?;
            let job = Job::read(&row)?;
            let mut serves = false;
            let next = match finish {
                Finish::Done(new) => {
                    let next = keep_artifact(&mut transaction, &job, *new, now).await?;
                    serves = next.state == JobState::Succeeded && job.endpoint.is_some();
                    next
                }
                Finish::Failed(error) => Next::ended(JobState::Failed, Some(error)),
                Finish::Retry(error, wait) => again(&job, error, now.plus(wait)),
                Finish::Cancelled => Next::ended(JobState::Cancelled, None),
                Finish::HandBack if job.cancel_requested => Next::ended(JobState::Cancelled, None),
                Finish::HandBack => Next { handed_back: true, ..Next::queued(job.error.clone(), now) },
            };
            let job = write_next(&mut transaction, job.id, next, now).await?;
            if serves {
                self.commit_endpoints(transaction).await?;
            } else {
                transaction.commit().await?;
            }
            Ok(job)
        })
    }

    fn cancel_job(&self, id: JobId) -> Answer<'_, (Job, bool)> {
        answer(format!("cancelling job `{id}`"), async move {
            let now = self.now();
            let mut transaction = self.begin().await?;
            let before = find_job(&mut transaction, id).await?;
            let seq = before.seq;
            let job = match before.state {
                JobState::Queued => {
                    write_next(&mut transaction, id, Next::ended(JobState::Cancelled, None), now).await?
                }
                JobState::Running if !before.cancel_requested => {
                    let row = sqlx::query(
                        "UPDATE jobs SET cancel_requested = 1, updated_at = ?2, seq = seq + 1
                         WHERE id = ?1 RETURNING *",
                    )
                    .bind(id.to_string())
                    .bind(now.0)
                    .fetch_one(&mut *transaction)
                    .await?;
                    Job::read(&row)?
                }
                JobState::Running | JobState::Cancelled => before,
                JobState::Succeeded | JobState::GateFailed | JobState::Failed => {
                    return Err(Error::AlreadyFinished { job: id, state: before.state }.into());
                }
            };
            transaction.commit().await?;
            let changed = job.seq != seq;
            Ok((job, changed))
        })
    }

    fn delete_job(&self, id: JobId) -> Answer<'_, ()> {
        answer(format!("deleting job `{id}`"), async move {
            let mut transaction = self.begin().await?;
            let job = find_job(&mut transaction, id).await?;
            if !job.state.is_final() {
                return Err(Error::NotFinished { job: id, state: job.state }.into());
            }
            sqlx::query("UPDATE jobs SET deleted_at = ?2 WHERE id = ?1")
                .bind(id.to_string())
                .bind(self.now().0)
                .execute(&mut *transaction)
                .await?;
            Ok(transaction.commit().await?)
        })
    }

    fn reap_jobs(&self, wait: Duration) -> Answer<'_, Vec<Job>> {
        answer("taking expired leases", async move {
            let now = self.now();
            let mut transaction = self.begin().await?;
            let rows = sqlx::query("SELECT * FROM jobs WHERE state = 'running' AND lease_until < ?1")
                .bind(now.0)
                .fetch_all(&mut *transaction)
                .await?;
            let jobs = expire(&mut transaction, &rows, now.plus(wait), now).await?;
            transaction.commit().await?;
            Ok(jobs)
        })
    }

    fn release_jobs<'a>(&'a self, host: &'a str, owner: &'a str) -> Answer<'a, Vec<Job>> {
        answer("taking the leases of an earlier process", async move {
            let now = self.now();
            let mut transaction = self.begin().await?;
            let rows = sqlx::query(
                "SELECT * FROM jobs
                 WHERE state = 'running' AND substr(lease_owner, 1, length(?1)) = ?1 AND lease_owner <> ?2",
            )
            .bind(format!("{host}/"))
            .bind(owner)
            .fetch_all(&mut *transaction)
            .await?;
            let jobs = expire(&mut transaction, &rows, now, now).await?;
            transaction.commit().await?;
            Ok(jobs)
        })
    }

    fn blob_referenced(&self, digest: Digest) -> Answer<'_, bool> {
        answer("looking for the rows of a blob", async move {
            // On the writer: a reader might look at the moment before the row of an upload.
            let found: i64 = sqlx::query_scalar(
                "SELECT EXISTS (SELECT 1 FROM models WHERE sha256 = ?1 AND deleted_at IS NULL)
                     OR EXISTS (SELECT 1 FROM datasets WHERE sha256 = ?1 AND deleted_at IS NULL)
                     OR EXISTS (SELECT 1 FROM artifacts WHERE sha256 = ?1 AND deleted_at IS NULL)
                     OR EXISTS (SELECT 1 FROM artifacts WHERE report = ?1 AND deleted_at IS NULL)
                     OR EXISTS (SELECT 1 FROM artifacts WHERE report_html = ?1 AND deleted_at IS NULL)
                     OR EXISTS (SELECT 1 FROM artifacts WHERE statistics = ?1 AND deleted_at IS NULL)",
            )
            .bind(digest.to_string())
            .fetch_one(&self.writer)
            .await?;
            Ok(found != 0)
        })
    }

    fn blob_holders(&self, digest: Digest, limit: u32) -> Answer<'_, Vec<String>> {
        answer("looking for the rows of a blob", async move {
            let holders = sqlx::query_scalar(
                "SELECT 'model ' || name || '@' || version FROM models WHERE sha256 = ?1 AND deleted_at IS NULL
                 UNION ALL
                 SELECT 'dataset ' || name || '@' || version FROM datasets
                 WHERE sha256 = ?1 AND deleted_at IS NULL
                 UNION ALL
                 SELECT 'artifact ' || id FROM artifacts
                 WHERE ?1 IN (sha256, report, report_html, statistics) AND deleted_at IS NULL
                 LIMIT ?2",
            )
            .bind(digest.to_string())
            .bind(limit)
            .fetch_all(&self.writer)
            .await?;
            Ok(holders)
        })
    }

    fn census(&self) -> Answer<'_, Census> {
        answer("counting", async move {
            let now = self.now();
            let mut census = Census::default();
            let rows = sqlx::query(
                "SELECT state, count(*) AS jobs, min(created_at) AS oldest FROM jobs
                 WHERE deleted_at IS NULL GROUP BY state",
            )
            .fetch_all(&self.readers)
            .await?;
            for row in rows {
                let state: JobState = text(&row, "state")?;
                let place = JobState::ALL.iter().position(|&other| other == state);
                census.jobs[place.expect("ALL has every state")] = whole(&row, "jobs")?;
                if state == JobState::Queued {
                    census.oldest_queued_s = now.seconds_since(Timestamp(row.try_get("oldest")?));
                }
            }
            let row = sqlx::query(
                "SELECT (SELECT coalesce(sum(bytes), 0) FROM models WHERE deleted_at IS NULL) AS float,
                        (SELECT coalesce(sum(bytes), 0) FROM artifacts WHERE deleted_at IS NULL) AS int8,
                        (SELECT coalesce(sum(bytes), 0) FROM datasets WHERE deleted_at IS NULL) AS dataset",
            )
            .fetch_one(&self.readers)
            .await?;
            census.float_bytes = whole(&row, "float")?;
            census.int8_bytes = whole(&row, "int8")?;
            census.dataset_bytes = whole(&row, "dataset")?;
            Ok(census)
        })
    }

    fn create_key(&self, new: NewKey) -> Answer<'_, Key> {
        answer(format!("adding key `{}`", new.name), async move {
            let mut transaction = self.begin().await?;
            let key = sqlite_keys::create(&mut transaction, &new, self.now()).await?;
            transaction.commit().await?;
            Ok(key)
        })
    }

    fn keys(&self) -> Answer<'_, Vec<Key>> {
        answer("listing keys", async move {
            let mut connection = self.readers.acquire().await?;
            Ok(sqlite_keys::all(&mut connection).await?)
        })
    }

    fn revoke_key(&self, id: KeyId) -> Answer<'_, Key> {
        answer(format!("revoking key `{id}`"), async move {
            let mut transaction = self.begin().await?;
            let key = sqlite_keys::revoke(&mut transaction, id, self.now()).await?;
            let key = key.ok_or_else(|| Error::NotFound { kind: Kind::Key, id: id.to_string() })?;
            transaction.commit().await?;
            Ok(key)
        })
    }
}

fn lost(lease: &Lease) -> Error {
    Error::LeaseLost { job: lease.job, attempt: lease.attempt }
}

// Models and datasets.

fn table(kind: Kind) -> &'static str {
    match kind {
        Kind::Model => "models",
        Kind::Dataset => "datasets",
        Kind::Job => "jobs",
        Kind::Artifact => "artifacts",
        Kind::Endpoint => "endpoints",
        Kind::Key => "api_keys",
    }
}

async fn find_upload<T: Record>(readers: &SqlitePool, kind: Kind, wanted: &Wanted) -> Work<T> {
    let sql = format!(
        "SELECT * FROM {} WHERE name = ?1 AND (?2 IS NULL OR version = ?2) AND deleted_at IS NULL
         ORDER BY version DESC LIMIT 1",
        table(kind)
    );
    let row = sqlx::query(AssertSqlSafe(sql))
        .bind(wanted.name.as_str())
        .bind(wanted.version.map(|version| version.0))
        .fetch_optional(readers)
        .await?
        .ok_or_else(|| Error::NotFound { kind, id: wanted.to_string() })?;
    T::read(&row)
}

async fn list_uploads<T: Record>(
    readers: &SqlitePool,
    kind: Kind,
    name: Option<&Name>,
    page: &Page,
) -> Work<Slice<T>> {
    let (created_at, id, limit) = bounds(page);
    let sql = format!(
        "SELECT * FROM {} WHERE deleted_at IS NULL AND (?1 IS NULL OR name = ?1)
           AND (created_at, id) < (?2, ?3)
         ORDER BY created_at DESC, id DESC LIMIT ?4",
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

async fn delete_upload<T: Record>(
    connection: &mut SqliteConnection,
    kind: Kind,
    name: &Name,
    version: Option<Version>,
    now: Timestamp,
) -> Work<Vec<T>> {
    let sql = format!(
        "UPDATE {} SET deleted_at = ?3
         WHERE name = ?1 AND (?2 IS NULL OR version = ?2) AND deleted_at IS NULL RETURNING *",
        table(kind)
    );
    let rows = sqlx::query(AssertSqlSafe(sql))
        .bind(name.as_str())
        .bind(version.map(|version| version.0))
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
async fn note_deletion(connection: &mut SqliteConnection, data: &Pinned, now: Timestamp) -> Work<()> {
    for (used, unless) in [("calibration", "calibration_of IS NULL"), ("evaluation", "TRUE")] {
        let sql = format!(
            "UPDATE jobs SET {used}_deleted_at = ?3, seq = seq + 1
             WHERE {used}_name = ?1 AND {used}_version = ?2 AND {used}_deleted_at IS NULL AND {unless}"
        );
        sqlx::query(AssertSqlSafe(sql))
            .bind(data.name.as_str())
            .bind(data.version.0)
            .bind(now.0)
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}

/// Deletes the data of a job that has ended, where they were for calibration, no job asked to keep them, and none that
/// is not done needs them. Gives the blobs.
async fn let_go(connection: &mut SqliteConnection, job: &Job, now: Timestamp) -> Work<Vec<Digest>> {
    let calibration = Some(&job.calibration).filter(|_| job.calibration_of.is_none());
    let mut freed = Vec::new();
    for data in calibration.into_iter().chain(&job.evaluation) {
        let row = sqlx::query(
            "UPDATE datasets SET deleted_at = ?3
             WHERE name = ?1 AND version = ?2 AND deleted_at IS NULL
               AND NOT EXISTS (SELECT 1 FROM jobs WHERE state IN ('queued', 'running')
                   AND calibration_name = ?1 AND calibration_version = ?2 AND calibration_of IS NULL)
               AND NOT EXISTS (SELECT 1 FROM jobs WHERE state IN ('queued', 'running')
                   AND evaluation_name = ?1 AND evaluation_version = ?2)
               AND (SELECT max(keep) FROM jobs WHERE calibration_name = ?1 AND calibration_version = ?2
                   AND calibration_of IS NULL) = 0
             RETURNING sha256",
        )
        .bind(data.name.as_str())
        .bind(data.version.0)
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

// Endpoints.

const SELECT_ENDPOINT: &str = "SELECT *, (SELECT json_group_array(json_object(
        'version', version, 'artifact', artifact,
        'model', json_object('name', model_name, 'version', model_version)))
    FROM endpoint_versions WHERE endpoint = endpoints.name) AS versions,
    (SELECT json_group_array(json_object('version', version, 'weight', weight))
    FROM endpoint_versions WHERE endpoint = endpoints.name AND weight > 0) AS routes
    FROM endpoints";

async fn find_endpoint(connection: &mut SqliteConnection, name: &Name) -> Work<Option<Endpoint>> {
    let sql = format!("{SELECT_ENDPOINT} WHERE name = ?1 AND deleted_at IS NULL");
    let row = sqlx::query(AssertSqlSafe(sql)).bind(name.as_str()).fetch_optional(connection).await?;
    row.map(|row| Endpoint::read(&row)).transpose()
}

async fn written_endpoint(connection: &mut SqliteConnection, name: &Name) -> Work<Endpoint> {
    let found = find_endpoint(connection, name).await?;
    found.ok_or_else(|| Fault::Database("the endpoint just written is not there".into()))
}

async fn expect_endpoint(
    connection: &mut SqliteConnection,
    name: &Name,
    expect: Expect,
) -> Work<Option<Endpoint>> {
    let found = find_endpoint(connection, name).await?;
    let got = found.as_ref().map(|endpoint| endpoint.revision);
    let fits = match expect {
        Expect::Any => true,
        Expect::Absent => got.is_none(),
        Expect::Revision(revision) => got == Some(revision),
    };
    if !fits {
        return Err(Error::RevisionMismatch { name: name.clone(), expected: expect, got }.into());
    }
    Ok(found)
}

/// Makes or changes an endpoint. Gives what it is then.
async fn change_endpoint(
    connection: &mut SqliteConnection,
    name: &Name,
    change: &EndpointChange,
    now: Timestamp,
) -> Work<Endpoint> {
    let last: Option<u32> = sqlx::query_scalar("SELECT version_last FROM endpoints WHERE name = ?1")
        .bind(name.as_str())
        .fetch_optional(&mut *connection)
        .await?;
    let before = find_endpoint(connection, name).await?;
    let written = endpoint::change(before.as_ref(), last.unwrap_or(0), change)
        .map_err(|reason| Error::BadEndpoint { name: name.clone(), reason })?;
    if change.add.is_some()
        && let Some(added) = written.versions.last()
    {
        check_served(connection, name, added).await?;
    }
    write_endpoint(connection, name, &written, now).await?;
    let mut told = serde_json::Map::new();
    if let (Some((artifact, model)), Some(added)) = (&change.add, written.versions.last()) {
        told.insert(
            "added".to_owned(),
            json!({ "version": added.version, "artifact": artifact, "model": model }),
        );
    }
    told.insert("routes".to_owned(), json!(written.routes));
    if change.settings != SettingsPatch::default() {
        told.insert("settings".to_owned(), json!(change.settings));
    }
    let record = Told { by: &change.by, change: Value::Object(told), reason: change.reason.as_deref() };
    write_record(connection, name, &record, now).await?;
    written_endpoint(connection, name).await
}

/// What is kept of a change.
struct Told<'a> {
    by: &'a str,
    change: Value,
    reason: Option<&'a str>,
}

async fn write_record(
    connection: &mut SqliteConnection,
    name: &Name,
    record: &Told<'_>,
    now: Timestamp,
) -> Work<()> {
    sqlx::query(
        "INSERT INTO endpoint_records (endpoint, revision, at, by, change, reason)
         SELECT name, revision, ?2, ?3, ?4, ?5 FROM endpoints WHERE name = ?1",
    )
    .bind(name.as_str())
    .bind(now.0)
    .bind(record.by)
    .bind(record.change.to_string())
    .bind(record.reason)
    .execute(connection)
    .await?;
    Ok(())
}

async fn write_endpoint(
    connection: &mut SqliteConnection,
    name: &Name,
    written: &Written,
    now: Timestamp,
) -> Work<()> {
    let last = written.versions.iter().map(|served| served.version.0).max().unwrap_or(0);
    sqlx::query(
        "INSERT INTO endpoints (name, default_version, version_last, settings, revision, created_at, updated_at)
         VALUES (?1, ?2, ?3, ?5, 1, ?4, ?4)
         ON CONFLICT (name) DO UPDATE SET
             default_version = ?2, version_last = max(version_last, ?3), settings = ?5, revision = revision + 1,
             created_at = CASE WHEN deleted_at IS NULL THEN created_at ELSE ?4 END,
             updated_at = ?4, deleted_at = NULL",
    )
    .bind(name.as_str())
    .bind(written.default_version.0)
    .bind(last)
    .bind(now.0)
    .bind(to_json(&written.settings)?)
    .execute(&mut *connection)
    .await?;
    sqlx::query("DELETE FROM endpoint_versions WHERE endpoint = ?1")
        .bind(name.as_str())
        .execute(&mut *connection)
        .await?;
    for served in &written.versions {
        let route = written.routes.iter().find(|route| route.version == served.version);
        sqlx::query(
            "INSERT INTO endpoint_versions (endpoint, version, artifact, model_name, model_version, weight)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )
        .bind(name.as_str())
        .bind(served.version.0)
        .bind(served.artifact.map(|artifact| artifact.to_string()))
        .bind(served.model.name.as_str())
        .bind(served.model.version.0)
        .bind(route.map_or(0, |route| route.weight))
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}

/// Whether model and artifact are there, belong together, and may be served.
async fn check_served(connection: &mut SqliteConnection, name: &Name, served: &EndpointVersion) -> Work<()> {
    let refuse = |reason: String| {
        Err(Error::BadEndpoint {
            name: name.clone(),
            reason: format!("version {}: {reason}", served.version),
        }
        .into())
    };
    let model = &served.model;
    if !is_live(connection, Kind::Model, model).await? {
        return refuse(format!("no model `{model}`"));
    }
    let Some(id) = served.artifact else { return Ok(()) };
    let row = sqlx::query("SELECT * FROM artifacts WHERE id = ?1 AND deleted_at IS NULL")
        .bind(id.to_string())
        .fetch_optional(&mut *connection)
        .await?;
    let Some(row) = row else { return refuse(format!("no artifact `{id}`")) };
    let artifact = Artifact::read(&row)?;
    if artifact.model != *model {
        return refuse(format!("artifact `{id}` was made from model `{}`, not `{model}`", artifact.model));
    }
    if let Some(reason) = artifact.gate_failure {
        return refuse(format!("artifact `{id}` does not keep its gate: {reason}"));
    }
    Ok(())
}

async fn is_live(connection: &mut SqliteConnection, kind: Kind, pinned: &Pinned) -> Work<bool> {
    let sql = format!(
        "SELECT EXISTS (SELECT 1 FROM {} WHERE name = ?1 AND version = ?2 AND deleted_at IS NULL)",
        table(kind)
    );
    let found: i64 = sqlx::query_scalar(AssertSqlSafe(sql))
        .bind(pinned.name.as_str())
        .bind(pinned.version.0)
        .fetch_one(connection)
        .await?;
    Ok(found != 0)
}

// Jobs. `service::jobs::after` has the table that these follow.

/// What becomes of a job that is not running any more.
struct Next {
    state: JobState,
    error: Option<JobError>,
    result: Option<Value>,
    /// For a queued one.
    run_at: Timestamp,
    handed_back: bool,
}

impl Next {
    fn ended(state: JobState, error: Option<JobError>) -> Next {
        Next { state, error, result: None, run_at: Timestamp(0), handed_back: false }
    }

    fn queued(error: Option<JobError>, run_at: Timestamp) -> Next {
        Next { run_at, ..Next::ended(JobState::Queued, error) }
    }
}

/// After an attempt that failed but may be repeated.
fn again(job: &Job, error: JobError, run_at: Timestamp) -> Next {
    if job.cancel_requested {
        Next::ended(JobState::Cancelled, None)
    } else if job.attempt - job.handed_back >= job.attempts_max {
        Next::ended(JobState::Failed, Some(error))
    } else {
        Next::queued(Some(error), run_at)
    }
}

async fn write_next(connection: &mut SqliteConnection, id: JobId, next: Next, now: Timestamp) -> Work<Job> {
    let row = sqlx::query(
        "UPDATE jobs
         SET state = ?2, error = ?3, result = ?4, run_at = CASE WHEN ?2 = 'queued' THEN ?5 ELSE run_at END,
             handed_back = handed_back + ?6, finished_at = CASE WHEN ?2 = 'queued' THEN NULL ELSE ?7 END,
             cancel_requested = cancel_requested OR ?2 = 'cancelled',
             lease_owner = NULL, lease_until = NULL, updated_at = ?7, seq = seq + 1
         WHERE id = ?1 RETURNING *",
    )
    .bind(id.to_string())
    .bind(next.state.as_str())
    .bind(next.error.as_ref().map(to_json).transpose()?)
    .bind(next.result.as_ref().map(Value::to_string))
    .bind(next.run_at.0)
    .bind(i64::from(next.handed_back))
    .bind(now.0)
    .fetch_one(&mut *connection)
    .await?;
    let job = Job::read(&row)?;
    if !job.state.is_final() {
        return Ok(job);
    }
    let freed = let_go(connection, &job, now).await?;
    // A job that is deleted already has a row all the same.
    let row =
        sqlx::query("SELECT * FROM jobs WHERE id = ?1").bind(id.to_string()).fetch_one(connection).await?;
    Ok(Job { freed, ..Job::read(&row)? })
}

async fn expire(
    connection: &mut SqliteConnection,
    rows: &[SqliteRow],
    run_at: Timestamp,
    now: Timestamp,
) -> Work<Vec<Job>> {
    let mut jobs = Vec::with_capacity(rows.len());
    for row in rows {
        let job = Job::read(row)?;
        let owner = job.lease_owner.as_deref().unwrap_or("nobody");
        let error = JobError {
            code: JobErrorCode::LeaseLost,
            message: format!("attempt {}: worker `{owner}` was heard of no more", job.attempt),
            retriable: true,
        };
        jobs.push(write_next(connection, job.id, again(&job, error, run_at), now).await?);
    }
    Ok(jobs)
}

/// Commits what a worker has made, unless it is not wanted any more.
async fn keep_artifact(
    connection: &mut SqliteConnection,
    job: &Job,
    new: NewArtifact,
    now: Timestamp,
) -> Work<Next> {
    if job.cancel_requested {
        return Ok(Next::ended(JobState::Cancelled, None));
    }
    if !is_live(connection, Kind::Model, &job.model).await? {
        let message = format!("model `{}` was deleted while the job ran", job.model);
        let error = JobError { code: JobErrorCode::ModelDeleted, message, retriable: false };
        return Ok(Next::ended(JobState::Failed, Some(error)));
    }
    sqlx::query(
        "INSERT INTO artifacts (id, job, model_name, model_version, sha256, bytes, size_ratio, manifest,
                                accuracy, latency, gate_failure, report, report_html, created_at,
                                statistics)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)",
    )
    .bind(new.id.to_string())
    .bind(job.id.to_string())
    .bind(job.model.name.as_str())
    .bind(job.model.version.0)
    .bind(new.sha256.to_string())
    .bind(signed(new.bytes))
    .bind(new.size_ratio)
    .bind(new.manifest.to_string())
    .bind(to_json(&new.accuracy)?)
    .bind(to_json(&new.latency)?)
    .bind(&new.gate_failure)
    .bind(new.report.to_string())
    .bind(new.report_html.to_string())
    .bind(now.0)
    .bind(new.statistics.to_string())
    .execute(&mut *connection)
    .await?;
    let mut result = json!({
        "artifact": { "id": new.id, "sha256": new.sha256, "bytes": new.bytes },
        "size_ratio": new.size_ratio,
        "accuracy": new.accuracy,
        "latency": new.latency,
        "endpoint": null,
    });
    if let Some(reason) = new.gate_failure {
        let error = JobError { code: JobErrorCode::GateFailed, message: reason, retriable: false };
        return Ok(Next { result: Some(result), ..Next::ended(JobState::GateFailed, Some(error)) });
    }
    if let Some(name) = &job.endpoint {
        let change = EndpointChange {
            add: Some((Some(new.id), job.model.clone())),
            by: "job".into(),
            reason: Some(format!("job {}", job.id)),
            ..EndpointChange::default()
        };
        let endpoint = change_endpoint(connection, name, &change, now).await?;
        result["endpoint"] = json!({ "name": name, "version": endpoint.default_version });
    }
    Ok(Next { result: Some(result), ..Next::ended(JobState::Succeeded, None) })
}

async fn find_job(connection: &mut SqliteConnection, id: JobId) -> Work<Job> {
    let row = sqlx::query("SELECT * FROM jobs WHERE id = ?1 AND deleted_at IS NULL")
        .bind(id.to_string())
        .fetch_optional(connection)
        .await?
        .ok_or_else(|| Error::NotFound { kind: Kind::Job, id: id.to_string() })?;
    Job::read(&row)
}

// Rows and records.

/// A record that is one row.
trait Record: Sized {
    fn read(row: &SqliteRow) -> Work<Self>;
    fn cursor(&self) -> Cursor;
}

impl Record for Model {
    fn read(row: &SqliteRow) -> Work<Model> {
        Ok(Model {
            id: text(row, "id")?,
            name: text(row, "name")?,
            version: Version(row.try_get("version")?),
            sha256: text(row, "sha256")?,
            bytes: whole(row, "bytes")?,
            info: json_of(row, "info")?,
            created_at: Timestamp(row.try_get("created_at")?),
        })
    }

    fn cursor(&self) -> Cursor {
        Cursor { created_at: self.created_at, id: self.id.to_string() }
    }
}

impl Record for Dataset {
    fn read(row: &SqliteRow) -> Work<Dataset> {
        Ok(Dataset {
            id: text(row, "id")?,
            name: text(row, "name")?,
            version: Version(row.try_get("version")?),
            sha256: text(row, "sha256")?,
            bytes: whole(row, "bytes")?,
            samples: whole(row, "samples")?,
            info: json_of(row, "info")?,
            created_at: Timestamp(row.try_get("created_at")?),
        })
    }

    fn cursor(&self) -> Cursor {
        Cursor { created_at: self.created_at, id: self.id.to_string() }
    }
}

impl Record for Job {
    fn read(row: &SqliteRow) -> Work<Job> {
        let kind: String = row.try_get("kind")?;
        let kind = JobKind::ALL
            .into_iter()
            .find(|known| known.as_str() == kind)
            .ok_or_else(|| Fault::Database(format!("unknown job kind `{kind}`").into()))?;
        let phase: Option<String> = row.try_get("phase")?;
        let progress = match phase {
            None => None,
            Some(phase) => {
                Some(JobProgress { phase, done: whole(row, "done")?, total: whole(row, "total")? })
            }
        };
        let evaluation = match text_or_null(row, "evaluation_name")? {
            None => None,
            Some(name) => Some(Pinned { name, version: Version(row.try_get("evaluation_version")?) }),
        };
        Ok(Job {
            id: text(row, "id")?,
            kind,
            state: text(row, "state")?,
            progress,
            attempt: row.try_get("attempt")?,
            attempts_max: row.try_get("attempts_max")?,
            handed_back: row.try_get("handed_back")?,
            lease_owner: row.try_get("lease_owner")?,
            lease_until: time_or_null(row, "lease_until")?,
            cancel_requested: row.try_get("cancel_requested")?,
            model: Pinned { name: text(row, "model_name")?, version: Version(row.try_get("model_version")?) },
            calibration: Pinned {
                name: text(row, "calibration_name")?,
                version: Version(row.try_get("calibration_version")?),
            },
            calibration_of: text_or_null(row, "calibration_of")?,
            evaluation,
            keep: row.try_get("keep")?,
            calibration_deleted_at: time_or_null(row, "calibration_deleted_at")?,
            evaluation_deleted_at: time_or_null(row, "evaluation_deleted_at")?,
            freed: Vec::new(),
            recipe: json_of(row, "recipe")?,
            endpoint: text_or_null(row, "endpoint")?,
            result: json_or_null(row, "result")?,
            error: json_or_null(row, "error")?,
            seq: whole(row, "seq")?,
            created_at: Timestamp(row.try_get("created_at")?),
            started_at: time_or_null(row, "started_at")?,
            finished_at: time_or_null(row, "finished_at")?,
            updated_at: Timestamp(row.try_get("updated_at")?),
        })
    }

    fn cursor(&self) -> Cursor {
        Cursor { created_at: self.created_at, id: self.id.to_string() }
    }
}

impl Record for Artifact {
    fn read(row: &SqliteRow) -> Work<Artifact> {
        Ok(Artifact {
            id: text(row, "id")?,
            job: text(row, "job")?,
            model: Pinned { name: text(row, "model_name")?, version: Version(row.try_get("model_version")?) },
            sha256: text(row, "sha256")?,
            bytes: whole(row, "bytes")?,
            size_ratio: row.try_get("size_ratio")?,
            manifest: json_of(row, "manifest")?,
            accuracy: json_of(row, "accuracy")?,
            latency: json_of(row, "latency")?,
            gate_failure: row.try_get("gate_failure")?,
            report: text(row, "report")?,
            report_html: text(row, "report_html")?,
            statistics: text_or_null(row, "statistics")?,
            created_at: Timestamp(row.try_get("created_at")?),
        })
    }

    fn cursor(&self) -> Cursor {
        Cursor { created_at: self.created_at, id: self.id.to_string() }
    }
}

impl Record for Endpoint {
    fn read(row: &SqliteRow) -> Work<Endpoint> {
        let mut versions: Vec<EndpointVersion> = json_of(row, "versions")?;
        versions.sort_by_key(|served| served.version);
        let mut routes: Vec<Route> = json_of(row, "routes")?;
        routes.sort_by_key(|route| route.version);
        Ok(Endpoint {
            name: text(row, "name")?,
            versions,
            default_version: Version(row.try_get("default_version")?),
            routes,
            settings: json_of(row, "settings")?,
            revision: whole(row, "revision")?,
            created_at: Timestamp(row.try_get("created_at")?),
            updated_at: Timestamp(row.try_get("updated_at")?),
        })
    }

    fn cursor(&self) -> Cursor {
        Cursor { created_at: self.created_at, id: self.name.to_string() }
    }
}

impl EndpointRecord {
    fn read(row: &SqliteRow) -> Work<EndpointRecord> {
        Ok(EndpointRecord {
            revision: whole(row, "revision")?,
            at: Timestamp(row.try_get("at")?),
            by: row.try_get("by")?,
            change: json_of(row, "change")?,
            reason: row.try_get("reason")?,
        })
    }
}

/// What comes before the first record of a page, and how many records it has.
fn bounds(page: &Page) -> (i64, String, i64) {
    let limit = page.limit.clamp(1, Page::LIMIT_MAX).into();
    match &page.after {
        None => (i64::MAX, String::new(), limit),
        Some(cursor) => (cursor.created_at.0, cursor.id.clone(), limit),
    }
}

/// One row more than `limit` was asked for, to know whether there is a next page.
fn slice<T: Record>(rows: &[SqliteRow], limit: i64) -> Work<Slice<T>> {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let items = rows.iter().take(limit).map(T::read).collect::<Work<Vec<T>>>()?;
    let next = if rows.len() > limit { items.last().map(T::cursor) } else { None };
    Ok(Slice { items, next })
}

fn parsed<T: FromStr>(value: &str) -> Work<T>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    value.parse().map_err(|error| Fault::Database(Box::new(error)))
}

fn text<T: FromStr>(row: &SqliteRow, column: &str) -> Work<T>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    parsed(row.try_get::<&str, _>(column)?)
}

fn text_or_null<T: FromStr>(row: &SqliteRow, column: &str) -> Work<Option<T>>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    row.try_get::<Option<&str>, _>(column)?.map(parsed).transpose()
}

fn json_of<T: DeserializeOwned>(row: &SqliteRow, column: &str) -> Work<T> {
    serde_json::from_str(row.try_get(column)?).map_err(|error| Fault::Database(Box::new(error)))
}

fn json_or_null<T: DeserializeOwned>(row: &SqliteRow, column: &str) -> Work<Option<T>> {
    let value: Option<&str> = row.try_get(column)?;
    value.map(serde_json::from_str).transpose().map_err(|error| Fault::Database(Box::new(error)))
}

fn to_json<T: Serialize>(value: &T) -> Work<String> {
    serde_json::to_string(value).map_err(|error| Fault::Database(Box::new(error)))
}

fn time_or_null(row: &SqliteRow, column: &str) -> Work<Option<Timestamp>> {
    Ok(row.try_get::<Option<i64>, _>(column)?.map(Timestamp))
}

fn whole(row: &SqliteRow, column: &str) -> Work<u64> {
    Ok(unsigned(row.try_get(column)?))
}

/// SQLite counts in i64; nothing here comes near its end.
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicI64, Ordering};

    use super::super::{AccuracySummary, IdempotencyKey, LatencySummary};
    use super::*;

    /// A catalog in a folder of its own, with a clock that stands still until it is moved.
    pub(crate) struct Scratch {
        pub(crate) folder: tempfile::TempDir,
        pub(crate) catalog: Arc<Sqlite>,
        pub(crate) now: Arc<AtomicI64>,
    }

    impl Scratch {
        pub(crate) async fn new() -> Scratch {
            let folder = tempfile::tempdir().unwrap();
            let now = Arc::new(AtomicI64::new(1_795_421_730_250));
            let catalog = Arc::new(open(folder.path(), &now).await);
            Scratch { folder, catalog, now }
        }

        pub(crate) fn pass(&self, milliseconds: i64) {
            self.now.fetch_add(milliseconds, Ordering::Relaxed);
        }

        /// As after a restart of the process.
        pub(crate) async fn reopen(&mut self) {
            self.catalog.close().await;
            self.catalog = Arc::new(open(self.folder.path(), &self.now).await);
        }
    }

    async fn open(folder: &Path, now: &Arc<AtomicI64>) -> Sqlite {
        let now = Arc::clone(now);
        let clock: Clock = Arc::new(move || Timestamp(now.load(Ordering::Relaxed)));
        Sqlite::open(&folder.join("octet.db"), clock).await.unwrap()
    }

    pub(crate) fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    pub(crate) fn new_model(called: &str, sha256: Digest) -> NewModel {
        NewModel { name: name(called), sha256, bytes: 1000, info: json!({ "inputs": [] }) }
    }

    pub(crate) fn new_dataset(called: &str, sha256: Digest) -> NewDataset {
        NewDataset { name: name(called), sha256, bytes: 500, samples: 8, info: json!({ "samples": 8 }) }
    }

    pub(crate) fn new_artifact(gate_failure: Option<&str>) -> NewArtifact {
        NewArtifact {
            id: ArtifactId::new(),
            sha256: Digest([7; 32]),
            bytes: 260,
            size_ratio: 0.26,
            manifest: json!({ "contract": 1 }),
            accuracy: AccuracySummary {
                metric: "top1".to_owned(),
                float: 0.75,
                int8: 0.74,
                delta: -0.01,
                agreement: 0.98,
                sqnr_db: 31.5,
                samples: 8,
            },
            latency: LatencySummary { float_ms: 2.0, int8_ms: 1.0 },
            gate_failure: gate_failure.map(str::to_owned),
            report: Digest([8; 32]),
            report_html: Digest([9; 32]),
            statistics: Digest([10; 32]),
        }
    }

    /// A job for model `m` with data `d`, which are made if they are not there.
    pub(crate) async fn new_job(catalog: &Sqlite) -> NewJob {
        let model = catalog.create_model(new_model("m", Digest([1; 32]))).await.unwrap().record;
        let data = catalog.create_dataset(new_dataset("d", Digest([2; 32]))).await.unwrap().record;
        NewJob {
            kind: JobKind::Quantize,
            model: model.pinned(),
            calibration: data.pinned(),
            calibration_of: None,
            evaluation: None,
            keep: false,
            recipe: json!({ "scheme": "static" }),
            endpoint: None,
            attempts_max: 3,
            idempotency: None,
            queued_max: 1000,
        }
    }

    const LEASE: Duration = Duration::from_secs(30);

    async fn queued(catalog: &Sqlite) -> Job {
        catalog.create_job(new_job(catalog).await).await.unwrap().record
    }

    async fn leased(catalog: &Sqlite, owner: &str) -> (Job, Lease) {
        let job = catalog.lease_job(owner, LEASE).await.unwrap().expect("a job is due");
        let lease = job.lease().unwrap();
        (job, lease)
    }

    fn is_lost<T>(answer: Result<T, Error>) -> bool {
        matches!(answer, Err(Error::LeaseLost { .. }))
    }

    #[tokio::test]
    async fn the_same_bytes_under_a_name_are_the_same_version() {
        let scratch = Scratch::new().await;
        let catalog = &scratch.catalog;
        let upload = |called, byte| catalog.create_model(new_model(called, Digest([byte; 32])));
        let first = upload("resnet", 1).await.unwrap();
        assert!(first.new);
        assert_eq!((first.record.version, first.record.bytes), (Version(1), 1000));
        assert_eq!(upload("resnet", 1).await.unwrap(), Created { record: first.record.clone(), new: false });
        assert_eq!(upload("resnet", 2).await.unwrap().record.version, Version(2));
        assert_eq!(upload("other", 1).await.unwrap().record.version, Version(1));
        let newest = catalog.model(&"resnet".parse().unwrap()).await.unwrap();
        assert_eq!(newest.version, Version(2));
        assert_eq!(catalog.model(&"resnet@1".parse().unwrap()).await.unwrap(), first.record);
    }

    #[tokio::test]
    async fn a_version_is_never_given_twice() {
        let scratch = Scratch::new().await;
        let catalog = &scratch.catalog;
        let upload = || catalog.create_dataset(new_dataset("d", Digest([1; 32])));
        upload().await.unwrap();
        let deleted = catalog.delete_dataset(&name("d"), None).await.unwrap();
        assert_eq!(deleted.iter().map(|dataset| dataset.sha256).collect::<Vec<_>>(), [Digest([1; 32])]);
        assert!(!catalog.blob_referenced(Digest([1; 32])).await.unwrap());
        let error = catalog.dataset(&"d".parse().unwrap()).await.unwrap_err();
        assert_eq!(error.to_string(), "no dataset `d`");
        let again = upload().await.unwrap();
        assert!(again.new);
        assert_eq!(again.record.version, Version(2));
        assert!(catalog.blob_referenced(Digest([1; 32])).await.unwrap());
    }

    #[tokio::test]
    async fn pages_give_every_record_once_newest_first() {
        let scratch = Scratch::new().await;
        for index in 0..7 {
            // Pairs share a moment: the id decides.
            scratch.pass(index % 2);
            scratch
                .catalog
                .create_model(new_model("m", Digest([u8::try_from(index).unwrap(); 32])))
                .await
                .unwrap();
        }
        for limit in [1, 2, 3, 7, 8] {
            let mut versions = Vec::new();
            let mut page = Page::first(limit);
            loop {
                let slice = scratch.catalog.models(Some(&name("m")), &page).await.unwrap();
                versions.extend(slice.items.iter().map(|model| model.version.0));
                assert!(slice.items.len() <= limit as usize);
                let Some(next) = slice.next else { break };
                // As through a client.
                page.after = Some(next.to_string().parse().unwrap());
            }
            assert_eq!(versions, [7, 6, 5, 4, 3, 2, 1], "limit {limit}");
        }
        assert!(scratch.catalog.models(Some(&name("n")), &Page::first(5)).await.unwrap().items.is_empty());
        assert_eq!(scratch.catalog.models(None, &Page::first(0)).await.unwrap().items.len(), 1);
        assert!("nonsense".parse::<Cursor>().is_err());
    }

    #[tokio::test]
    async fn jobs_are_leased_in_order_and_once() {
        let scratch = Scratch::new().await;
        let catalog = &scratch.catalog;
        let (first, second) = (queued(catalog).await, queued(catalog).await);
        let (job, _) = leased(catalog, "host/a").await;
        assert_eq!((job.id, job.attempt, job.state), (first.id, 1, JobState::Running));
        assert_eq!(leased(catalog, "host/b").await.0.id, second.id);
        assert!(catalog.lease_job("host/a", LEASE).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn progress_is_kept_and_counted() {
        let scratch = Scratch::new().await;
        queued(&scratch.catalog).await;
        let (job, lease) = leased(&scratch.catalog, "host/a").await;
        scratch.pass(10_000);
        let progress = JobProgress { phase: "calibrate".to_owned(), done: 3, total: 8 };
        let after = scratch.catalog.heartbeat(&lease, LEASE, Some(progress.clone())).await.unwrap();
        assert_eq!(after.progress, Some(progress.clone()));
        assert_eq!(after.seq, job.seq + 1);
        assert_eq!(after.lease_until, Some(after.updated_at.plus(LEASE)));
        scratch.pass(10_000);
        let silent = scratch.catalog.heartbeat(&lease, LEASE, None).await.unwrap();
        assert_eq!((silent.progress, silent.seq), (Some(progress), after.seq));
        assert!(silent.lease_until > after.lease_until);
    }

    #[tokio::test]
    async fn a_worker_that_lost_its_lease_can_write_nothing() {
        let scratch = Scratch::new().await;
        let catalog = &scratch.catalog;
        queued(catalog).await;
        let (_, old) = leased(catalog, "host/a").await;
        assert!(catalog.reap_jobs(Duration::ZERO).await.unwrap().is_empty(), "the lease still holds");
        scratch.pass(30_001);
        assert_eq!(catalog.reap_jobs(Duration::ZERO).await.unwrap()[0].state, JobState::Queued);
        // The same process, another attempt: only the number tells them apart.
        let (job, new) = leased(catalog, "host/a").await;
        assert_eq!(job.attempt, 2);
        assert!(is_lost(catalog.heartbeat(&old, LEASE, None).await));
        assert!(is_lost(catalog.finish_job(&old, Finish::Done(Box::new(new_artifact(None)))).await));
        assert!(is_lost(catalog.finish_job(&old, Finish::HandBack).await));
        assert!(
            catalog.artifacts(&ArtifactFilter::default(), &Page::first(9)).await.unwrap().items.is_empty()
        );
        catalog.finish_job(&new, Finish::Done(Box::new(new_artifact(None)))).await.unwrap();
        assert!(is_lost(catalog.finish_job(&new, Finish::Cancelled).await));
    }

    #[tokio::test]
    async fn a_job_whose_workers_die_fails_after_its_attempts() {
        let scratch = Scratch::new().await;
        let catalog = &scratch.catalog;
        let id = queued(catalog).await.id;
        for attempt in 1..=3 {
            assert_eq!(leased(catalog, "host/a").await.0.attempt, attempt);
            scratch.pass(30_001);
            let jobs = catalog.reap_jobs(Duration::from_secs(5)).await.unwrap();
            assert_eq!(jobs.len(), 1);
            assert!(
                catalog.lease_job("host/a", LEASE).await.unwrap().is_none(),
                "not before the wait is over"
            );
            scratch.pass(5_000);
        }
        let job = catalog.job(id).await.unwrap();
        assert_eq!(job.state, JobState::Failed);
        assert_eq!(job.error.unwrap().code, JobErrorCode::LeaseLost);
        assert!(job.finished_at.is_some() && job.lease_owner.is_none());
    }

    #[tokio::test]
    async fn a_job_survives_kill_and_restart() {
        let mut scratch = Scratch::new().await;
        let id = queued(&scratch.catalog).await.id;
        leased(&scratch.catalog, "host/first").await;
        let waiting = queued(&scratch.catalog).await.id;
        scratch.reopen().await;
        let catalog = &scratch.catalog;
        assert_eq!(catalog.job(waiting).await.unwrap().state, JobState::Queued);
        assert!(catalog.release_jobs("hos", "hos/second").await.unwrap().is_empty(), "another host");
        let released = catalog.release_jobs("host", "host/second").await.unwrap();
        assert_eq!(released.len(), 1);
        let (job, lease) = leased(catalog, "host/second").await;
        assert_eq!((job.id, job.attempt), (id, 2), "the older one first");
        assert!(catalog.release_jobs("host", "host/second").await.unwrap().is_empty(), "its own");
        let job = catalog.finish_job(&lease, Finish::Done(Box::new(new_artifact(None)))).await.unwrap();
        assert_eq!(job.state, JobState::Succeeded);
        assert_eq!(leased(catalog, "host/second").await.0.id, waiting);
    }

    #[tokio::test]
    async fn success_commits_artifact_endpoint_and_job_together() {
        let scratch = Scratch::new().await;
        let catalog = &scratch.catalog;
        let mut changes = catalog.endpoint_changes();
        for round in 1..=3u32 {
            let mut new = new_job(catalog).await;
            new.endpoint = Some(name("prod"));
            catalog.create_job(new).await.unwrap();
            let (_, lease) = leased(catalog, "host/a").await;
            let made = new_artifact(None);
            let id = made.id;
            let job = catalog.finish_job(&lease, Finish::Done(Box::new(made))).await.unwrap();
            assert_eq!(job.state, JobState::Succeeded);
            let result = job.result.unwrap();
            assert_eq!(result["artifact"]["id"], json!(id));
            assert_eq!(result["endpoint"], json!({ "name": "prod", "version": round }));
            let artifact = catalog.artifact(id).await.unwrap();
            assert_eq!((artifact.job, artifact.accuracy.sqnr_db), (job.id, 31.5));
            let endpoint = catalog.endpoint(&name("prod")).await.unwrap();
            assert_eq!((endpoint.revision, endpoint.default_version), (u64::from(round), Version(round)));
            assert_eq!(endpoint.versions.len(), 2.min(round as usize));
            let newest = endpoint.versions.last().unwrap();
            assert_eq!((newest.artifact, newest.precision()), (Some(id), super::super::Precision::Int8));
            assert!(changes.has_changed().unwrap());
            changes.borrow_and_update();
        }
        let filter = ArtifactFilter { model: Some(name("m")), job: None };
        assert_eq!(catalog.artifacts(&filter, &Page::first(9)).await.unwrap().items.len(), 3);
    }

    #[tokio::test]
    async fn what_misses_its_gate_is_kept_and_not_served() {
        let scratch = Scratch::new().await;
        let catalog = &scratch.catalog;
        let mut new = new_job(catalog).await;
        new.endpoint = Some(name("prod"));
        catalog.create_job(new).await.unwrap();
        let (_, lease) = leased(catalog, "host/a").await;
        let made = new_artifact(Some("top1 fell by 0.01, at most 0.005"));
        let id = made.id;
        let job = catalog.finish_job(&lease, Finish::Done(Box::new(made))).await.unwrap();
        assert_eq!(job.state, JobState::GateFailed);
        assert_eq!(job.error.unwrap().code, JobErrorCode::GateFailed);
        assert!(catalog.artifact(id).await.is_ok());
        assert!(catalog.endpoint(&name("prod")).await.is_err());
        let error = catalog
            .change_endpoint(&name("prod"), adding(Some(id), job.model), Expect::Any)
            .await
            .unwrap_err();
        assert!(error.to_string().contains("does not keep its gate"), "{error}");
    }

    #[tokio::test]
    async fn a_model_deleted_under_a_job_fails_it() {
        let scratch = Scratch::new().await;
        let catalog = &scratch.catalog;
        queued(catalog).await;
        let (_, lease) = leased(catalog, "host/a").await;
        catalog.delete_model(&name("m"), None).await.unwrap();
        let made = new_artifact(None);
        let id = made.id;
        let job = catalog.finish_job(&lease, Finish::Done(Box::new(made))).await.unwrap();
        assert_eq!(job.state, JobState::Failed);
        assert_eq!(job.error.unwrap().code, JobErrorCode::ModelDeleted);
        assert!(catalog.artifact(id).await.is_err());
    }

    fn adding(artifact: Option<ArtifactId>, model: Pinned) -> EndpointChange {
        EndpointChange { add: Some((artifact, model)), by: "api".into(), ..EndpointChange::default() }
    }

    #[tokio::test]
    async fn endpoints_change_only_as_expected() {
        let scratch = Scratch::new().await;
        let catalog = &scratch.catalog;
        let model = new_job(catalog).await.model;
        let prod = name("prod");
        let add = |expect| catalog.change_endpoint(&prod, adding(None, model.clone()), expect);
        let first = add(Expect::Absent).await.unwrap();
        assert_eq!((first.revision, first.versions.len()), (1, 1));
        let error = add(Expect::Absent).await.unwrap_err().to_string();
        assert_eq!(error, "endpoint `prod`: expected Absent, it has revision 1");
        assert!(add(Expect::Revision(2)).await.is_err());
        assert_eq!(add(Expect::Revision(1)).await.unwrap().revision, 2);
        let routes = Some(vec![Route { version: Version(2), weight: 99 }]);
        let wrong = EndpointChange { routes, ..EndpointChange::default() };
        let error = catalog.change_endpoint(&prod, wrong, Expect::Any).await.unwrap_err();
        assert!(matches!(error, Error::BadEndpoint { .. }), "{error}");
        assert_eq!(catalog.endpoint(&prod).await.unwrap().revision, 2, "what is refused changes nothing");
        let error = catalog.delete_model(&name("m"), Some(Version(1))).await.unwrap_err().to_string();
        assert_eq!(error, "model `m@1` is served by endpoint `prod`");
        catalog.delete_endpoint(&prod, Expect::Revision(2), "api").await.unwrap();
        assert!(catalog.endpoint(&prod).await.is_err());
        let again = add(Expect::Absent).await.unwrap();
        assert_eq!((again.revision, again.default_version), (4, Version(3)), "numbers go on");
        assert_eq!(catalog.endpoints(&Page::first(9)).await.unwrap().items, [again]);
        let records = catalog.endpoint_records(&prod).await.unwrap();
        let told: Vec<_> = records.iter().map(|r| (r.revision, r.by.as_str())).collect();
        assert_eq!(told, [(4, "api"), (3, "api"), (2, "api"), (1, "api")]);
    }

    #[tokio::test]
    async fn a_key_used_again_gives_the_job_of_then() {
        let scratch = Scratch::new().await;
        let catalog = &scratch.catalog;
        let keyed = |fingerprint| async move {
            let mut new = new_job(catalog).await;
            let fingerprint = Digest([fingerprint; 32]);
            new.idempotency = Some(IdempotencyKey { key: "k".to_owned(), fingerprint });
            catalog.create_job(new).await
        };
        let first = keyed(1).await.unwrap();
        assert!(first.new);
        assert_eq!(keyed(1).await.unwrap(), Created { record: first.record.clone(), new: false });
        assert!(matches!(keyed(2).await, Err(Error::KeyReused { .. })));
        scratch.pass(KEY_LIFETIME_MS + 1);
        assert_ne!(keyed(2).await.unwrap().record.id, first.record.id);
    }

    #[tokio::test]
    async fn the_queue_has_an_end() {
        let scratch = Scratch::new().await;
        let new = NewJob { queued_max: 1, ..new_job(&scratch.catalog).await };
        scratch.catalog.create_job(new.clone()).await.unwrap();
        let full = scratch.catalog.create_job(new).await;
        assert!(matches!(full, Err(Error::QueueFull { limit: 1 })));
    }

    #[tokio::test]
    async fn the_census_counts() {
        let scratch = Scratch::new().await;
        assert_eq!(scratch.catalog.census().await.unwrap(), Census::default());
        queued(&scratch.catalog).await;
        scratch.pass(1_500);
        let census = scratch.catalog.census().await.unwrap();
        let expected = Census {
            jobs: [1, 0, 0, 0, 0, 0],
            oldest_queued_s: 1.5,
            float_bytes: 1000,
            int8_bytes: 0,
            dataset_bytes: 500,
        };
        assert_eq!(census, expected);
    }

    #[tokio::test]
    async fn a_file_of_a_newer_program_is_refused() {
        let scratch = Scratch::new().await;
        sqlx::query("INSERT INTO schema_version VALUES (999, 'later', 0)")
            .execute(&scratch.catalog.writer)
            .await
            .unwrap();
        scratch.catalog.close().await;
        let error = Sqlite::open(&scratch.folder.path().join("octet.db"), Arc::new(|| Timestamp(0))).await;
        let Err(Error::Database { source, .. }) = error else { panic!("it was opened") };
        assert!(source.to_string().contains("999"), "{source}");
    }

    #[test]
    fn migrations_are_numbered_without_gaps() {
        for (index, migration) in MIGRATIONS.iter().enumerate() {
            assert_eq!(usize::try_from(migration.0).unwrap(), index + 1);
        }
    }
}
