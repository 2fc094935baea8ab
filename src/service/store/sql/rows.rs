//! Rows as records, and pages of them.

use sqlx::Row;
use sqlx::any::AnyRow;

use super::super::{
    Artifact, Cursor, Dataset, Endpoint, EndpointRecord, EndpointVersion, Job, JobKind, JobProgress, Model,
    Page, Pinned, Route, Slice,
};
use super::{
    Fault, Work, flag, json_of, json_or_null, number, text, text_or_null, time, time_or_null, version, whole,
};

/// A record that is one row.
pub(super) trait Record: Sized {
    fn read(row: &AnyRow) -> Work<Self>;
    fn cursor(&self) -> Cursor;
}

impl Record for Model {
    fn read(row: &AnyRow) -> Work<Model> {
        Ok(Model {
            id: text(row, "id")?,
            name: text(row, "name")?,
            version: version(row, "version")?,
            sha256: text(row, "sha256")?,
            bytes: whole(row, "bytes")?,
            info: json_of(row, "info")?,
            created_at: time(row, "created_at")?,
        })
    }

    fn cursor(&self) -> Cursor {
        Cursor { created_at: self.created_at, id: self.id.to_string() }
    }
}

impl Record for Dataset {
    fn read(row: &AnyRow) -> Work<Dataset> {
        Ok(Dataset {
            id: text(row, "id")?,
            name: text(row, "name")?,
            version: version(row, "version")?,
            sha256: text(row, "sha256")?,
            bytes: whole(row, "bytes")?,
            samples: whole(row, "samples")?,
            info: json_of(row, "info")?,
            created_at: time(row, "created_at")?,
        })
    }

    fn cursor(&self) -> Cursor {
        Cursor { created_at: self.created_at, id: self.id.to_string() }
    }
}

impl Record for Job {
    fn read(row: &AnyRow) -> Work<Job> {
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
            Some(name) => Some(Pinned { name, version: version(row, "evaluation_version")? }),
        };
        Ok(Job {
            id: text(row, "id")?,
            kind,
            state: text(row, "state")?,
            progress,
            attempt: number(row, "attempt")?,
            attempts_max: number(row, "attempts_max")?,
            handed_back: number(row, "handed_back")?,
            lease_owner: row.try_get("lease_owner")?,
            lease_until: time_or_null(row, "lease_until")?,
            cancel_requested: flag(row, "cancel_requested")?,
            model: Pinned { name: text(row, "model_name")?, version: version(row, "model_version")? },
            calibration: Pinned {
                name: text(row, "calibration_name")?,
                version: version(row, "calibration_version")?,
            },
            calibration_of: text_or_null(row, "calibration_of")?,
            evaluation,
            keep: flag(row, "keep")?,
            calibration_deleted_at: time_or_null(row, "calibration_deleted_at")?,
            evaluation_deleted_at: time_or_null(row, "evaluation_deleted_at")?,
            freed: Vec::new(),
            checkpoint: text_or_null(row, "checkpoint")?,
            recipe: json_of(row, "recipe")?,
            endpoint: text_or_null(row, "endpoint")?,
            webhook_url: row.try_get("webhook_url")?,
            result: json_or_null(row, "result")?,
            error: json_or_null(row, "error")?,
            seq: whole(row, "seq")?,
            created_at: time(row, "created_at")?,
            started_at: time_or_null(row, "started_at")?,
            finished_at: time_or_null(row, "finished_at")?,
            updated_at: time(row, "updated_at")?,
        })
    }

    fn cursor(&self) -> Cursor {
        Cursor { created_at: self.created_at, id: self.id.to_string() }
    }
}

impl Record for Artifact {
    fn read(row: &AnyRow) -> Work<Artifact> {
        Ok(Artifact {
            id: text(row, "id")?,
            job: text(row, "job")?,
            model: Pinned { name: text(row, "model_name")?, version: version(row, "model_version")? },
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
            created_at: time(row, "created_at")?,
        })
    }

    fn cursor(&self) -> Cursor {
        Cursor { created_at: self.created_at, id: self.id.to_string() }
    }
}

impl Record for Endpoint {
    fn read(row: &AnyRow) -> Work<Endpoint> {
        let mut versions: Vec<EndpointVersion> = json_of(row, "versions")?;
        versions.sort_by_key(|served| served.version);
        let mut routes: Vec<Route> = json_of(row, "routes")?;
        routes.sort_by_key(|route| route.version);
        Ok(Endpoint {
            name: text(row, "name")?,
            versions,
            default_version: version(row, "default_version")?,
            routes,
            settings: json_of(row, "settings")?,
            revision: whole(row, "revision")?,
            created_at: time(row, "created_at")?,
            updated_at: time(row, "updated_at")?,
        })
    }

    fn cursor(&self) -> Cursor {
        Cursor { created_at: self.created_at, id: self.name.to_string() }
    }
}

impl EndpointRecord {
    pub(super) fn read(row: &AnyRow) -> Work<EndpointRecord> {
        Ok(EndpointRecord {
            revision: whole(row, "revision")?,
            at: time(row, "at")?,
            by: row.try_get("by")?,
            change: json_of(row, "change")?,
            reason: row.try_get("reason")?,
        })
    }
}

/// What comes before the first record of a page, and how many records it has.
pub(super) fn bounds(page: &Page) -> (i64, String, i64) {
    let limit = page.limit.clamp(1, Page::LIMIT_MAX).into();
    match &page.after {
        None => (i64::MAX, String::new(), limit),
        Some(cursor) => (cursor.created_at.0, cursor.id.clone(), limit),
    }
}

/// One row more than `limit` was asked for, to know whether there is a next page.
pub(super) fn slice<T: Record>(rows: &[AnyRow], limit: i64) -> Work<Slice<T>> {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let items = rows.iter().take(limit).map(T::read).collect::<Work<Vec<T>>>()?;
    let next = if rows.len() > limit { items.last().map(T::cursor) } else { None };
    Ok(Slice { items, next })
}
