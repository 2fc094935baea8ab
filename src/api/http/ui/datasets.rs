//! The page of datasets: upload, list, delete.

use axum::extract::State;
use axum::response::Response;

use crate::api::error::Problem;
use crate::api::http::fields::Query;
use crate::api::http::ui::frame::{self, Act};
use crate::api::http::ui::models::{Upload, dim, upload_form};
use crate::api::http::ui::{ago, bytes, escape, put};
use crate::api::http::{PageQuery, Shared, page as page_of};
use crate::service::store::{Dataset, Slice, Timestamp};

/// The page.
pub(crate) async fn page(
    State(shared): State<Shared>,
    Query(query): Query<PageQuery>,
) -> Result<Response, Problem> {
    frame::shown("/datasets", list(&shared, &query).await)
}

async fn list(shared: &Shared, query: &PageQuery) -> Result<Response, Problem> {
    let page = page_of(query.limit, query.cursor.as_deref())?;
    let Slice { items: datasets, next } = shared.catalog.datasets(None, &page).await?;
    let mut html = String::new();
    let says = "Calibration and evaluation data. Calibration data are deleted when their job has ended, unless it keeps them.";
    frame::head(&mut html, "Datasets", says, "");
    upload_form(
        &mut html,
        &Upload {
            title: "Upload a dataset",
            to: "/v1/datasets/",
            accept: ".npz,.npy",
            hint: "An .npz file with an array for each input, samples along the first dimension; an array “labels” of integers where there are any. Or an .npy file for a model with one input.",
            limit_bytes: shared.limits.dataset_bytes,
        },
    );
    if datasets.is_empty() {
        let text = "No datasets yet. Choose a file above, or from a shell:";
        frame::empty(&mut html, text, "curl -T calib.npz $OCTET/v1/datasets/NAME");
    } else {
        table(&mut html, &datasets, (shared.clock)());
    }
    frame::older(&mut html, "/datasets", next.as_ref());
    Ok(frame::page("/datasets", "Datasets", &html))
}

fn table(html: &mut String, datasets: &[Dataset], now: Timestamp) {
    let row = |dataset: &Dataset| {
        let pinned = dataset.pinned().to_string();
        let mut arrays = String::new();
        for array in dataset.info["arrays"].as_array().into_iter().flatten() {
            let dims =
                array["shape"].as_array().into_iter().flatten().map(dim).collect::<Vec<_>>().join(" × ");
            put(
                &mut arrays,
                format_args!(
                    "<span class=\"port\"><code>{}</code> <span class=\"dim\">{} {}</span></span>",
                    escape(array["name"].as_str().unwrap_or_default()),
                    escape(array["dtype"].as_str().unwrap_or_default()),
                    escape(&dims)
                ),
            );
        }
        let delete = Act {
            label: "Delete",
            question: &format!("Delete the dataset {pinned}? Its samples are gone then."),
            method: "DELETE",
            path: &format!("/v1/datasets/{pinned}"),
            body: "",
            if_match: "",
            then: "/datasets",
            danger: true,
        };
        vec![
            format!("<b class=\"name\">{}</b>", escape(&pinned)),
            dataset.samples.to_string(),
            arrays,
            bytes(dataset.bytes),
            ago(dataset.created_at, now),
            format!(
                "<span class=\"acts\"><a class=\"button\" href=\"/jobs/new?calibration={0}\">Calibrate</a>\
                 <a class=\"button\" href=\"/v1/datasets/{0}/download\">Download</a>{1}</span>",
                escape(&pinned),
                delete.button()
            ),
        ]
    };
    let rows: Vec<_> = datasets.iter().map(row).collect();
    let columns = [
        ("Dataset", false),
        ("Samples", true),
        ("Arrays", false),
        ("Size", true),
        ("Uploaded", false),
        ("", false),
    ];
    frame::table(html, "Datasets", &columns, &rows);
}
