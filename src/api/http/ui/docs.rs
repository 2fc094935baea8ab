//! The page of the API: every operation of the OpenAPI document, by tag, with parameters, bodies, answers and a command.

use std::sync::OnceLock;

use axum::response::Response;
use serde_json::Value;

use crate::api::http::ui::{escape, frame, prose, put};

/// Schemas inside each other are shown so deep; further ones are named.
const DEPTH_MAX: usize = 3;

/// The methods of the document, in the order of the page.
const METHODS: [&str; 7] = ["get", "head", "options", "put", "post", "patch", "delete"];

/// The media type of a file.
const BYTES: &str = "application/octet-stream";
/// The media type of most bodies.
const JSON: &str = "application/json";
/// The media type of a form with a file.
const FORM: &str = "multipart/form-data";

/// The page, made once of the document.
pub(crate) fn page(document: fn() -> Value) -> Response {
    static PAGE: OnceLock<String> = OnceLock::new();
    frame::page("/docs", "API reference", PAGE.get_or_init(|| render(&document())))
}

fn render(document: &Value) -> String {
    let mut html = String::new();
    let about = prose(document["info"]["description"].as_str().unwrap_or_default());
    let download = "<a class=\"button\" href=\"/openapi.yaml\">openapi.yaml</a>";
    frame::head(&mut html, "API reference", "", download);
    put(
        &mut html,
        format_args!(
            "<div class=\"about\">{about}<p>Capitals in a command stand for names and files of yours. Where the server asks \
             for keys, add <code>-H &#39;Authorization: Bearer KEY&#39;</code>.</p></div><div class=\"docs\">"
        ),
    );
    html.push_str(
        "<nav class=\"toc\" aria-label=\"Operations\"><div class=\"find field\" hidden><label for=\"find\">Find an operation</label>\
         <input id=\"find\" type=\"search\" data-find autocomplete=\"off\" spellcheck=\"false\">\
         <span class=\"hint\" role=\"status\" data-found></span></div>",
    );
    let tags: Vec<(&str, &str)> = document["tags"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|tag| Some((tag["name"].as_str()?, tag["description"].as_str().unwrap_or_default())))
        .collect();
    for (tag, _) in &tags {
        put(&mut html, format_args!("<details open><summary>{}</summary><ul>", escape(tag)));
        for operation in operations(document, tag) {
            put(
                &mut html,
                format_args!(
                    "<li><a href=\"#{}\">{} <span>{}</span></a></li>",
                    operation.anchor(),
                    operation.chip(),
                    breakable(operation.path)
                ),
            );
        }
        html.push_str("</ul></details>");
    }
    html.push_str("</nav><div class=\"reference\">");
    for (tag, description) in &tags {
        put(
            &mut html,
            format_args!(
                "<section aria-labelledby=\"tag-{0}\"><h2 id=\"tag-{0}\">{0}</h2><p class=\"sub\">{1}</p>",
                escape(tag),
                escape(description)
            ),
        );
        for operation in operations(document, tag) {
            operation.show(&mut html, document);
        }
        html.push_str("</section>");
    }
    html.push_str("</div></div>");
    html
}

/// One method of one path.
struct Operation<'a> {
    method: &'a str,
    path: &'a str,
    told: &'a Value,
}

fn operations<'a>(document: &'a Value, tag: &str) -> Vec<Operation<'a>> {
    let mut found = Vec::new();
    for (path, methods) in document["paths"].as_object().into_iter().flatten() {
        for method in METHODS {
            let told = &methods[method];
            if told["tags"].as_array().is_some_and(|tags| tags.iter().any(|t| t == tag)) {
                found.push(Operation { method, path, told });
            }
        }
    }
    found
}

impl Operation<'_> {
    /// `get-v1-models-name`.
    fn anchor(&self) -> String {
        let words = self.path.split(|c: char| !c.is_ascii_alphanumeric()).filter(|w| !w.is_empty());
        std::iter::once(self.method).chain(words).collect::<Vec<_>>().join("-")
    }

    fn chip(&self) -> String {
        format!("<b class=\"verb {0}\">{1}</b>", self.method, self.method.to_ascii_uppercase())
    }

    fn show(&self, html: &mut String, document: &Value) {
        put(
            html,
            format_args!(
                "<article class=\"op\" id=\"{}\"><h3>{} <code>{}</code></h3>{}{}",
                self.anchor(),
                self.chip(),
                breakable(self.path),
                prose(self.told["summary"].as_str().unwrap_or_default()),
                prose(self.told["description"].as_str().unwrap_or_default())
            ),
        );
        self.parameters(html);
        self.body(html, document);
        self.answers(html, document);
        html.push_str("<h4>With curl</h4>");
        frame::curl(html, &self.command());
        html.push_str("</article>");
    }

    fn parameters(&self, html: &mut String) {
        let parameters = self.told["parameters"].as_array().map_or(&[][..], Vec::as_slice);
        if parameters.is_empty() {
            return;
        }
        html.push_str("<h4>Parameters</h4><dl class=\"props\">");
        for parameter in parameters {
            let needed =
                if parameter["required"] == true { " <span class=\"need\">needed</span>" } else { "" };
            put(
                html,
                format_args!(
                    "<div><dt><code>{}</code> <span class=\"dim\">{}, {}</span>{needed}</dt><dd>{}</dd></div>",
                    escape(parameter["name"].as_str().unwrap_or_default()),
                    escape(parameter["in"].as_str().unwrap_or_default()),
                    escape(&kind(&parameter["schema"])),
                    prose(parameter["description"].as_str().unwrap_or_default())
                ),
            );
        }
        html.push_str("</dl>");
    }

    fn body(&self, html: &mut String, document: &Value) {
        for (media, content) in self.told["requestBody"]["content"].as_object().into_iter().flatten() {
            put(html, format_args!("<h4>Body <code>{}</code></h4>", escape(media)));
            match media.as_str() {
                BYTES => html.push_str("<p class=\"dim\">The bytes as they are.</p>"),
                _ => schema(html, document, &content["schema"], 0),
            }
        }
    }

    fn answers(&self, html: &mut String, document: &Value) {
        html.push_str("<h4>Answers</h4><dl class=\"props\">");
        for (status, answer) in self.told["responses"].as_object().into_iter().flatten() {
            let class = if status.starts_with('2') {
                "good"
            } else if status.starts_with('3') {
                "wait"
            } else {
                "bad"
            };
            put(
                html,
                format_args!(
                    "<div><dt><span class=\"chip {class}\">{}</span></dt><dd>{}",
                    escape(status),
                    prose(answer["description"].as_str().unwrap_or_default())
                ),
            );
            for (media, content) in answer["content"].as_object().into_iter().flatten() {
                let refers = &content["schema"];
                if media == BYTES {
                    html.push_str("<p class=\"dim\">The bytes of the file.</p>");
                    continue;
                }
                let fields = fields_of(document, refers);
                match fields {
                    // What a refusal is made of stands at the top of the page.
                    Some(_) if status.starts_with('2') => {
                        put(
                            html,
                            format_args!(
                                "<details><summary><code>{}</code> {}</summary>",
                                escape(media),
                                escape(&kind(refers))
                            ),
                        );
                        schema(html, document, refers, 0);
                        html.push_str("</details>");
                    }
                    _ => put(
                        html,
                        format_args!(
                            "<p class=\"dim\"><code>{}</code> {}</p>",
                            escape(media),
                            escape(&kind(refers))
                        ),
                    ),
                }
            }
            html.push_str("</dd></div>");
        }
        html.push_str("</dl>");
    }

    /// A line to try it with. Names in braces become capitals, as everywhere in the documents.
    fn command(&self) -> String {
        let path: String = self
            .path
            .split('/')
            .map(|part| match part.strip_prefix('{').and_then(|p| p.strip_suffix('}')) {
                Some(name) => name.to_ascii_uppercase(),
                None => part.to_owned(),
            })
            .collect::<Vec<_>>()
            .join("/");
        let content = self.told["requestBody"]["content"].as_object();
        // JSON can be written into the line.
        let body = content.and_then(|c| c.get_key_value(JSON).or_else(|| c.iter().next()));
        let mut line = "curl".to_owned();
        // With `-T`, `-d` and `-F` curl chooses the method itself.
        match (self.method, body.map(|(media, _)| media.as_str())) {
            ("head", _) => line.push_str(" -I"),
            ("get", _) | ("put", Some(BYTES)) | ("post", Some(JSON | FORM)) => {}
            (method, _) => put(&mut line, format_args!(" -X {}", method.to_ascii_uppercase())),
        }
        for header in self.told["parameters"].as_array().into_iter().flatten() {
            if let (Some(name), "header", true) = (
                header["name"].as_str(),
                header["in"].as_str().unwrap_or_default(),
                header["required"] == true,
            ) {
                let value = &header["example"];
                let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                put(&mut line, format_args!(" -H '{name}: {value}'"));
            }
        }
        match self.answer_media() {
            Some(BYTES) => line.push_str(" -o FILE"),
            Some("text/event-stream") => line.push_str(" -N"),
            _ => {}
        }
        match body {
            Some((media, _)) if media == BYTES && self.method == "put" => line.push_str(" -T FILE"),
            Some((media, content)) if media == JSON => {
                put(&mut line, format_args!(" -H 'Content-Type: {JSON}' -d '{}'", content["example"]));
            }
            Some((media, _)) if media == FORM => line.push_str(" -F name=NAME -F file=@FILE"),
            Some((media, _)) => {
                put(&mut line, format_args!(" -H 'Content-Type: {media}' --data-binary @FILE"));
            }
            None => {}
        }
        put(&mut line, format_args!(" $OCTET{path}"));
        line
    }

    /// What an answer that is no refusal is.
    fn answer_media(&self) -> Option<&str> {
        let answers = self.told["responses"].as_object()?;
        let (_, answer) = answers.iter().find(|(status, _)| status.starts_with('2'))?;
        answer["content"].as_object()?.keys().next().map(String::as_str)
    }
}

/// Follows `$ref`.
fn resolve<'a>(document: &'a Value, schema: &'a Value) -> &'a Value {
    match schema["$ref"].as_str().and_then(|r| r.strip_prefix('#')) {
        Some(pointer) => document.pointer(pointer).unwrap_or(schema),
        None => schema,
    }
}

/// The fields of a schema, also where it is a list of such, or may be null.
fn fields_of<'a>(document: &'a Value, schema: &'a Value) -> Option<&'a Value> {
    let schema = resolve(document, schema);
    if schema["properties"].is_object() {
        return Some(schema);
    }
    if schema["items"].is_object() {
        return fields_of(document, &schema["items"]);
    }
    let choices = schema["oneOf"].as_array().or(schema["anyOf"].as_array()).or(schema["allOf"].as_array())?;
    choices.iter().find_map(|choice| fields_of(document, choice))
}

fn schema(html: &mut String, document: &Value, refers: &Value, depth: usize) {
    let Some(whole) = fields_of(document, refers) else {
        return put(html, format_args!("<p class=\"dim\">{}</p>", escape(&kind(refers))));
    };
    let needed: Vec<&str> =
        whole["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    html.push_str("<dl class=\"props\">");
    for (name, field) in whole["properties"].as_object().into_iter().flatten() {
        let need = if needed.contains(&name.as_str()) { " <span class=\"need\">always</span>" } else { "" };
        put(
            html,
            format_args!(
                "<div><dt><code>{}</code> <span class=\"dim\">{}</span>{need}</dt><dd>{}",
                escape(name),
                escape(&kind(field)),
                prose(field["description"].as_str().unwrap_or_default())
            ),
        );
        if depth + 1 < DEPTH_MAX && fields_of(document, field).is_some() {
            html.push_str("<details><summary>Fields</summary>");
            schema(html, document, field, depth + 1);
            html.push_str("</details>");
        }
        html.push_str("</dd></div>");
    }
    html.push_str("</dl>");
}

/// A schema in a word or two.
fn kind(schema: &Value) -> String {
    if let Some(name) = schema["$ref"].as_str().and_then(|r| r.rsplit('/').next()) {
        return name.to_owned();
    }
    if let Some(choices) =
        schema["oneOf"].as_array().or(schema["anyOf"].as_array()).or(schema["allOf"].as_array())
    {
        return choices.iter().map(kind).collect::<Vec<_>>().join(" or ");
    }
    let word = |value: &Value| match value.as_str() {
        Some("array") => match &schema["items"] {
            Value::Object(_) => format!("list of {}", kind(&schema["items"])),
            _ => "list".to_owned(),
        },
        Some(word) => word.to_owned(),
        None => "any".to_owned(),
    };
    match &schema["type"] {
        Value::Array(words) => words.iter().map(word).collect::<Vec<_>>().join(" or "),
        one => word(one),
    }
}

/// A path that may be broken behind its slashes.
fn breakable(path: &str) -> String {
    escape(path).replace('/', "/<wbr>")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_of_the_document_is_on_the_page() {
        let text = crate::api::http::OPENAPI;
        let html = render(&crate::api::http::router::as_json());
        let mut path = "";
        let mut found = 0;
        for line in text.lines().take_while(|line| *line != "components:") {
            if let Some(name) = line.strip_prefix("  /").and_then(|l| l.strip_suffix(':')) {
                path = name;
            }
            let method = line.strip_prefix("    ").and_then(|l| l.strip_suffix(':')).unwrap_or_default();
            if METHODS.contains(&method) && !path.is_empty() {
                let operation = Operation { method, path, told: &Value::Null };
                let anchor = format!("<article class=\"op\" id=\"{}\">", operation.anchor());
                assert!(html.contains(&anchor), "{method} /{path} is missing");
                found += 1;
            }
        }
        assert!(found > 40, "only {found} operations in openapi.yaml");
    }

    #[test]
    fn commands_are_whole() {
        let document = crate::api::http::router::as_json();
        let all: Vec<String> = document["tags"]
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|tag| operations(&document, tag["name"].as_str().unwrap()))
            .map(|operation| operation.command())
            .collect();
        for command in &all {
            assert!(!command.contains("null'") && !command.contains('…'), "{command}");
        }
        for want in [
            "curl -T FILE $OCTET/v1/models/NAME",
            "curl -o FILE $OCTET/v1/artifacts/ID/download",
            "curl -I $OCTET/v1/uploads/ID",
            "curl -N $OCTET/v1/jobs/ID/events",
            "curl -X PATCH -H 'Upload-Offset: 0' -H 'Content-Type: application/offset+octet-stream' --data-binary @FILE $OCTET/v1/uploads/ID",
            "curl -X PUT -H 'Content-Type: application/json' -d '{\"model\":\"resnet8\"}' $OCTET/v1/endpoints/NAME",
        ] {
            assert!(all.iter().any(|command| command == want), "no {want} in {all:#?}");
        }
    }

    #[test]
    fn what_a_schema_says_is_escaped_and_circles_end() {
        let document = serde_json::json!({
            "tags": [{"name": "a<b"}],
            "paths": {"/x/{id}": {"post": {"tags": ["a<b"], "summary": "<script>",
                "requestBody": {"content": {"application/json":
                    {"schema": {"$ref": "#/components/schemas/T"}, "example": {"t": null}}}},
                "responses": {"200": {"description": "fine"}}}}},
            "components": {"schemas": {"T": {"type": "object", "properties": {"t": {"$ref": "#/components/schemas/T"}}}}},
        });
        let html = render(&document);
        assert!(
            html.contains("&lt;script&gt;") && html.contains("a&lt;b") && !html.contains("<script"),
            "{html}"
        );
        let command =
            "curl -H &#39;Content-Type: application/json&#39; -d &#39;{&quot;t&quot;:null}&#39; $OCTET/x/ID";
        assert!(html.contains(command), "{html}");
    }
}
