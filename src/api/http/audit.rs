//! Who changed what: the record of requests that change something.

use axum::extract::State;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::api::error::Problem;
use crate::api::http::fields::Query;
use crate::api::http::{Listing, Shared, listing, page};
use crate::service::store::{AuditEntry, KeyId};

/// A request that changed something, or tried to. Bodies and secrets are never in it.
#[derive(Serialize, ToSchema)]
pub(crate) struct AuditView {
    /// `audit_…`.
    id: String,
    /// When it was answered, RFC 3339.
    at: String,
    /// The id of the key; `null` where nobody was asked for one.
    key: Option<String>,
    /// The name of the key.
    key_name: Option<String>,
    /// `PUT`; `gRPC` for a call.
    method: String,
    /// The template of the route.
    route: String,
    /// The path, without a query.
    path: String,
    /// What it made, where it made something: `/v1/models/NAME@1`; the endpoint that a call over gRPC has named.
    record: Option<String>,
    /// The status of the answer, or `cut off` where the client did not wait for one: then it may have been done.
    outcome: String,
    /// The log has it too.
    request_id: String,
}

impl From<AuditEntry> for AuditView {
    fn from(entry: AuditEntry) -> AuditView {
        let AuditEntry { id, at, what } = entry;
        let (key, key_name) = what.key.map(|(id, name)| (id.to_string(), name.to_string())).unzip();
        AuditView {
            id: id.to_string(),
            at: at.to_string(),
            key,
            key_name,
            method: what.method,
            route: what.route,
            path: what.path,
            record: what.record,
            outcome: what.outcome,
            request_id: what.request_id,
        }
    }
}

/// Which lines.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct AuditQuery {
    /// Of the key with this id only.
    key: Option<String>,
    /// At most so many, 1 to 200; without it 50.
    limit: Option<u32>,
    /// The `next_cursor` of the part before.
    cursor: Option<String>,
}

/// Lists requests that changed something, newest first. They are kept for `audit.keep_days`.
#[utoipa::path(get, path = "/v1/audit", operation_id = "list_audit", tag = "audit", params(AuditQuery),
    responses((status = 200, description = "A part of the list", body = Listing<AuditView>)))]
pub(crate) async fn list(
    State(shared): State<Shared>,
    Query(query): Query<AuditQuery>,
) -> Result<Response, Problem> {
    let page = page(query.limit, query.cursor.as_deref())?;
    let key: Option<KeyId> = query.key.as_deref().map(str::parse).transpose()?;
    let slice = shared.catalog.audit(key, &page).await?;
    let asked = [("key", query.key.as_deref())];
    Ok(listing(slice, "/v1/audit", &asked, page.limit, AuditView::from))
}
