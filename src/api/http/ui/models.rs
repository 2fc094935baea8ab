//! The page of models: upload, list, delete.

use axum::extract::State;
use axum::response::Response;
use serde_json::Value;

use crate::api::error::Problem;
use crate::api::http::fields::Query;
use crate::api::http::ui::frame::{self, Act};
use crate::api::http::ui::{ago, bytes, escape, large, put};
use crate::api::http::{PageQuery, Shared, page as page_of};
use crate::service::store::{Model, Slice, Timestamp};

/// The page.
pub(crate) async fn page(
    State(shared): State<Shared>,
    Query(query): Query<PageQuery>,
) -> Result<Response, Problem> {
    frame::shown("/models", list(&shared, &query).await)
}

async fn list(shared: &Shared, query: &PageQuery) -> Result<Response, Problem> {
    let page = page_of(query.limit, query.cursor.as_deref())?;
    let Slice { items: models, next } = shared.catalog.models(None, &page).await?;
    let mut html = String::new();
    frame::head(&mut html, "Models", "Float ONNX models as uploaded. A version never changes.", "");
    upload_form(
        &mut html,
        &Upload {
            title: "Upload a model",
            to: "/v1/models/",
            accept: ".onnx,.zip,.tar",
            hint: "An .onnx file, or a .zip or .tar with one and the files of its weights.",
            limit_bytes: shared.limits.model_bytes,
        },
    );
    if models.is_empty() {
        let text = "No models yet. Choose a file above, or from a shell:";
        frame::empty(&mut html, text, "curl -T model.onnx $OCTET/v1/models/NAME");
    } else {
        table(&mut html, &models, (shared.clock)());
    }
    frame::older(&mut html, "/models", next.as_ref());
    Ok(frame::page("/models", "Models", &html))
}

fn table(html: &mut String, models: &[Model], now: Timestamp) {
    let row = |model: &Model| {
        let pinned = model.pinned().to_string();
        let pinned = escape(&pinned);
        let delete = Act {
            label: "Delete",
            question: &format!(
                "Delete the model {}? Jobs and artifacts keep what they made of it.",
                model.pinned()
            ),
            method: "DELETE",
            path: &format!("/v1/models/{}", model.pinned()),
            body: "",
            if_match: "",
            then: "/models",
            danger: true,
        };
        vec![
            format!("<b class=\"name\">{pinned}</b>"),
            ports("in", &model.info["inputs"]) + &ports("out", &model.info["outputs"]),
            model.info["parameters"].as_u64().map_or_else(|| "–".to_owned(), large),
            model.info["macs"].as_u64().map_or_else(|| "–".to_owned(), large),
            bytes(model.bytes),
            ago(model.created_at, now),
            format!(
                "<span class=\"acts\"><a class=\"button\" href=\"/jobs/new?model={pinned}\">Quantize</a>\
                 <a class=\"button\" href=\"/v1/models/{pinned}/download\">Download</a>{}</span>",
                delete.button()
            ),
        ]
    };
    let rows: Vec<_> = models.iter().map(row).collect();
    let columns = [
        ("Model", false),
        ("Inputs and outputs", false),
        ("Weights", true),
        ("MACs", true),
        ("Size", true),
        ("Uploaded", false),
        ("", false),
    ];
    frame::table(html, "Models", &columns, &rows);
}

/// Inputs or outputs as `inspect` found them: name, type, shape.
fn ports(which: &str, list: &Value) -> String {
    let mut html = String::new();
    for port in list.as_array().into_iter().flatten() {
        let dims = port["shape"].as_array().into_iter().flatten().map(dim).collect::<Vec<_>>().join(" × ");
        put(
            &mut html,
            format_args!(
                "<span class=\"port\"><span class=\"dim\">{which}</span> <code>{}</code> <span class=\"dim\">{} {}</span></span>",
                escape(port["name"].as_str().unwrap_or_default()),
                escape(port["dtype"].as_str().unwrap_or_default()),
                escape(&dims)
            ),
        );
    }
    html
}

/// A dimension: a number, a name, or free.
pub(crate) fn dim(dim: &Value) -> String {
    match dim {
        Value::Number(n) => n.to_string(),
        Value::String(name) => name.clone(),
        _ => "?".to_owned(),
    }
}

/// What an upload form says.
pub(crate) struct Upload {
    /// Its heading.
    pub(crate) title: &'static str,
    /// The route, up to the name.
    pub(crate) to: &'static str,
    /// Endings of files.
    pub(crate) accept: &'static str,
    /// What the file must be.
    pub(crate) hint: &'static str,
    /// The longest file.
    pub(crate) limit_bytes: u64,
}

/// The form of an upload: the script streams the file, because a form of a browser could not name the path.
pub(crate) fn upload_form(html: &mut String, upload: &Upload) {
    let Upload { title, to, accept, hint, limit_bytes } = upload;
    put(
        html,
        format_args!(
            "<form class=\"panel\" data-upload=\"{to}\" data-limit=\"{limit_bytes}\" aria-labelledby=\"upload-title\" novalidate>\
             <h2 id=\"upload-title\">{title}</h2>\
             <div class=\"fields upload\"><div class=\"field\"><label for=\"file\">File</label>\
             <div class=\"drop\"><input id=\"file\" name=\"file\" type=\"file\" accept=\"{accept}\" required aria-describedby=\"file-hint\">\
             <span class=\"hint\" id=\"file-hint\">{hint} Up to {}. You can drop it here.</span></div></div>\
             <div class=\"field\"><label for=\"name\">Name</label>\
             <input id=\"name\" name=\"name\" required maxlength=\"128\" pattern=\"[A-Za-z0-9][A-Za-z0-9._\\-]*\" \
             autocomplete=\"off\" autocapitalize=\"off\" spellcheck=\"false\" aria-describedby=\"name-hint\">\
             <span class=\"hint\" id=\"name-hint\">Letters, digits, dot, dash, underscore. The same name again makes the next version.</span></div></div>\
             <p class=\"problem\" role=\"alert\" hidden></p>\
             <div class=\"row\"><button class=\"button primary\" type=\"submit\">Upload</button>\
             <progress aria-label=\"Upload\" max=\"100\" value=\"0\" hidden></progress><span class=\"dim\" data-said></span></div>\
             <noscript><p class=\"hint\">Uploading from this page needs scripts; curl does not.</p></noscript></form>",
            bytes(*limit_bytes)
        ),
    );
}
