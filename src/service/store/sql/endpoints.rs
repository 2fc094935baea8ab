//! Endpoints, their versions and routes, and the record of their changes.

use serde_json::{Value, json};
use sqlx::{AnyConnection, AssertSqlSafe};

use super::super::endpoint::{self, Written};
use super::super::{
    Artifact, Endpoint, EndpointChange, EndpointVersion, Error, Expect, Kind, Name, SettingsPatch, Timestamp,
};
use super::rows::Record;
use super::uploads::is_live;
use super::{Dialect, Fault, Work, to_json};

/// Begins every SELECT of endpoints: versions and routes come as JSON.
pub(super) fn select_endpoint(dialect: Dialect) -> String {
    let (array, object) = dialect.json();
    let precision = dialect.json_text("manifest", "precision");
    format!(
        "SELECT endpoints.*, (SELECT coalesce(CAST({array}({object}(
             'version', version, 'artifact', artifact,
             'artifact_precision', (SELECT {precision} FROM artifacts WHERE id = artifact),
             'model', {object}('name', model_name, 'version', model_version))) AS TEXT), '[]')
         FROM endpoint_versions WHERE endpoint = endpoints.name) AS versions,
         (SELECT coalesce(CAST({array}({object}('version', version, 'weight', weight)) AS TEXT), '[]')
         FROM endpoint_versions WHERE endpoint = endpoints.name AND weight > 0) AS routes
         FROM endpoints"
    )
}

pub(super) async fn find_endpoint(connection: &mut AnyConnection, name: &Name) -> Work<Option<Endpoint>> {
    let select = select_endpoint(Dialect::of(connection));
    let sql = format!("{select} WHERE name = $1 AND deleted_at IS NULL");
    let row = sqlx::query(AssertSqlSafe(sql)).bind(name.as_str()).fetch_optional(connection).await?;
    row.map(|row| Endpoint::read(&row)).transpose()
}

pub(super) async fn written_endpoint(connection: &mut AnyConnection, name: &Name) -> Work<Endpoint> {
    let found = find_endpoint(connection, name).await?;
    found.ok_or_else(|| Fault::Database("the endpoint just written is not there".into()))
}

pub(super) async fn expect_endpoint(
    connection: &mut AnyConnection,
    name: &Name,
    expect: Expect,
) -> Work<Option<Endpoint>> {
    let found = find_endpoint(connection, name).await?;
    let got = found.as_ref().map(|endpoint| endpoint.revision);
    let fits = match expect {
        Expect::Any => true,
        Expect::Absent => got.is_none(),
        Expect::Present => got.is_some(),
        Expect::Revision(revision) => got == Some(revision),
    };
    if !fits {
        return Err(Error::RevisionMismatch { name: name.clone(), expected: expect, got }.into());
    }
    Ok(found)
}

/// Makes or changes an endpoint. Gives what it is then.
pub(super) async fn change_endpoint(
    connection: &mut AnyConnection,
    name: &Name,
    change: &EndpointChange,
    now: Timestamp,
) -> Work<Endpoint> {
    let last: Option<i64> = sqlx::query_scalar("SELECT version_last FROM endpoints WHERE name = $1")
        .bind(name.as_str())
        .fetch_optional(&mut *connection)
        .await?;
    let last = last.and_then(|last| u32::try_from(last).ok()).unwrap_or(0);
    let before = find_endpoint(connection, name).await?;
    let written = endpoint::change(before.as_ref(), last, change)
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
pub(super) struct Told<'a> {
    pub(super) by: &'a str,
    pub(super) change: Value,
    pub(super) reason: Option<&'a str>,
}

pub(super) async fn write_record(
    connection: &mut AnyConnection,
    name: &Name,
    record: &Told<'_>,
    now: Timestamp,
) -> Work<()> {
    sqlx::query(
        "INSERT INTO endpoint_records (endpoint, revision, at, by, change, reason)
         SELECT name, revision, $2, $3, $4, $5 FROM endpoints WHERE name = $1",
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

pub(super) async fn write_endpoint(
    connection: &mut AnyConnection,
    name: &Name,
    written: &Written,
    now: Timestamp,
) -> Work<()> {
    let last = written.versions.iter().map(|served| served.version.0).max().unwrap_or(0);
    sqlx::query(
        "INSERT INTO endpoints (name, default_version, version_last, settings, revision, created_at, updated_at)
         VALUES ($1, $2, $3, $5, 1, $4, $4)
         ON CONFLICT (name) DO UPDATE SET
             default_version = $2, 
             version_last = CASE WHEN endpoints.version_last > $3 THEN endpoints.version_last ELSE $3 END, settings = $5, revision = endpoints.revision + 1,
             created_at = CASE WHEN endpoints.deleted_at IS NULL THEN endpoints.created_at ELSE $4 END,
             updated_at = $4, deleted_at = NULL",
    )
    .bind(name.as_str())
    .bind(i64::from(written.default_version.0))
    .bind(i64::from(last))
    .bind(now.0)
    .bind(to_json(&written.settings)?)
    .execute(&mut *connection)
    .await?;
    sqlx::query("DELETE FROM endpoint_versions WHERE endpoint = $1")
        .bind(name.as_str())
        .execute(&mut *connection)
        .await?;
    for served in &written.versions {
        let route = written.routes.iter().find(|route| route.version == served.version);
        sqlx::query(
            "INSERT INTO endpoint_versions (endpoint, version, artifact, model_name, model_version, weight)
             VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .bind(name.as_str())
        .bind(i64::from(served.version.0))
        .bind(served.artifact.map(|artifact| artifact.to_string()))
        .bind(served.model.name.as_str())
        .bind(i64::from(served.model.version.0))
        .bind(i64::from(route.map_or(0, |route| route.weight)))
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}

/// Whether model and artifact are there, belong together, and may be served.
pub(super) async fn check_served(
    connection: &mut AnyConnection,
    name: &Name,
    served: &EndpointVersion,
) -> Work<()> {
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
    let row = sqlx::query("SELECT * FROM artifacts WHERE id = $1 AND deleted_at IS NULL")
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
