//! Completes the OpenAPI document with what holds for every operation: what ids and names look like, which bodies
//! refusals have, what a server may always answer.

use serde_json::{Map, Value, json};
use utoipa::openapi::OpenApi;

/// A name, perhaps with a version (`service::store::Wanted`).
const WANTED: &str = r"^[A-Za-z0-9][A-Za-z0-9._\-]{0,127}(@[1-9][0-9]{0,8})?$";
/// A name (`service::store::Name`).
const NAME: &str = r"^[A-Za-z0-9][A-Za-z0-9._\-]{0,127}$";
/// An id that this server has made.
const DIGITS: &str = "[0-9a-f]{32}$";

/// What a server may answer to anything, and does where nothing better is said.
const ALWAYS: [(&str, &str); 4] = [
    ("400", "A header, parameter, field or body is not what it must be"),
    ("500", "A fault of the server"),
    ("503", "Too many requests, or what the server keeps things in does not answer"),
    ("504", "It took too long"),
];
/// And where a body comes with the request.
const OF_BODIES: [(&str, &str); 3] = [
    ("413", "The body is too large"),
    ("415", "The body comes in a form that is not taken"),
    ("507", "The server has no room left"),
];

/// And of resumable uploads, whose methods may also come in a header.
const OF_PARTS: [(&str, &str); 7] = [
    ("404", "No such upload, or it has expired"),
    ("409", "The offset is not where the upload stands"),
    ("412", "A version of tus that is not spoken"),
    ("413", "Longer than the upload, or than allowed"),
    ("415", "Not `application/offset+octet-stream`"),
    ("422", "The file is not what it was said to be"),
    ("460", "The bytes are not what their checksum says"),
];

/// The document, completed.
///
/// # Panics
/// Never: the document is made of the code alone, and a test makes it.
pub(crate) fn completed(document: &OpenApi) -> Value {
    complete(serde_json::to_value(document).expect("the document has only strings, numbers and lists"))
}

fn complete(mut document: Value) -> Value {
    let Some(paths) = document.get_mut("paths").and_then(Value::as_object_mut) else { return document };
    for (path, item) in paths {
        for (method, operation) in item.as_object_mut().into_iter().flatten() {
            if let Some(operation) = operation.as_object_mut() {
                parameters(path, method, operation);
                responses(path, operation);
                raw(operation);
            }
        }
    }
    document
}

fn parameters(path: &str, method: &str, operation: &mut Map<String, Value>) {
    for parameter in operation.get_mut("parameters").and_then(Value::as_array_mut).into_iter().flatten() {
        let (name, place) = (text(parameter, "name"), text(parameter, "in"));
        let pattern = match (place.as_str(), name.as_str()) {
            ("path", "id" | "other") => match path.split('/').nth(2) {
                Some("artifacts") => format!("^art_{DIGITS}"),
                Some("jobs") => format!("^job_{DIGITS}"),
                _ => continue,
            },
            // What is read may be one version; what is uploaded is a name.
            ("path", "name") if path.starts_with("/v1/endpoints") || method == "put" => NAME.to_owned(),
            ("path", "name") if path.starts_with("/v1/") => WANTED.to_owned(),
            ("path", "version") => "^[1-9][0-9]{0,8}$".to_owned(),
            ("query", "cursor") => "^([0-9a-f]{2})+$".to_owned(),
            ("query", "name" | "model") => NAME.to_owned(),
            ("query", "job") => format!("^job_{DIGITS}"),
            ("query", "limit") => {
                parameter["schema"]["minimum"] = json!(1);
                parameter["schema"]["maximum"] = json!(200);
                continue;
            }
            _ => continue,
        };
        parameter["schema"]["pattern"] = json!(pattern);
    }
}

/// Bodies that are bytes: utoipa takes a `Vec<u8>` for a list of numbers.
fn raw(operation: &mut Map<String, Value>) {
    let mut bodies = Vec::new();
    for (field, value) in operation {
        match field.as_str() {
            "requestBody" => bodies.push(value),
            "responses" => bodies.extend(value.as_object_mut().into_iter().flat_map(Map::values_mut)),
            _ => {}
        }
    }
    for body in bodies {
        for (media, content) in body.get_mut("content").and_then(Value::as_object_mut).into_iter().flatten() {
            if media.ends_with("octet-stream") {
                content["schema"] = json!({ "type": "string", "format": "binary" });
            }
        }
    }
}

fn text(value: &Value, field: &str) -> String {
    value.get(field).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn responses(path: &str, operation: &mut Map<String, Value>) {
    let has_body = operation.contains_key("requestBody");
    let Some(responses) = operation.get_mut("responses").and_then(Value::as_object_mut) else { return };
    let further = if has_body { &OF_BODIES[..] } else { &[] };
    let of_parts = if path.starts_with("/v1/uploads") { &OF_PARTS[..] } else { &[] };
    for (status, text) in ALWAYS.iter().chain(further).chain(of_parts) {
        responses.entry((*status).to_owned()).or_insert_with(|| json!({ "description": text }));
    }
    let (media, schema) = if path.starts_with("/v2") {
        ("application/json", "#/components/schemas/ErrorBody")
    } else {
        ("application/problem+json", "#/components/schemas/ProblemBody")
    };
    for (status, response) in responses {
        // A refusal has one body, whatever the operation.
        if status.starts_with(['4', '5']) {
            response["content"] = json!({ media: { "schema": { "$ref": schema } } });
        }
    }
}
