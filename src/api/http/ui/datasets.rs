//! The page of datasets: upload, list, delete.

use axum::extract::State;
use axum::response::Response;

use crate::api::error::Problem;
use crate::api::http::Shared;
use crate::api::http::ui::frame::{self, Act};
use crate::api::http::ui::models::{Upload, dim, upload_form};
use crate::api::http::ui::{LISTED, ago, bytes, escape, put};
use crate::service::store::{Dataset, Page, Timestamp};

/// The page.
pub(crate) async fn page(State(shared): State<Shared>) -> Result<Response, Problem> {
    let datasets = shared.catalog.datasets(None, &Page::first(LISTED)).await?.items;
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
