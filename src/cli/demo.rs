//! `octet demo`: the whole path over HTTP on bundled data, told while it happens. A client like any other: it
//! starts the server in this process and then knows only its address.

use std::fmt::Write as _;
use std::io::{self, Cursor, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use reqwest::blocking::{Body, Client, Response};
use serde_json::{Value, json};

/// The bundled files, in the program itself: the demo works wherever the program was copied to, the container image
/// included, and not only beside its sources. It costs 5 MB of the file and no memory until they are read.
const FILES: [(&str, &[u8]); 4] = [
    ("model.onnx", include_bytes!("../../examples/demo/model.onnx")),
    ("calib.npz", include_bytes!("../../examples/demo/calib.npz")),
    ("eval.npz", include_bytes!("../../examples/demo/eval.npz")),
    ("request.json", include_bytes!("../../examples/demo/request.json")),
];

/// What the outputs of the network stand for.
const CLASSES: [&str; 10] =
    ["T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"];

/// Pixels of the picture in `request.json` are `(u8 / 255 - MEAN) / STD`.
const MEAN: f64 = 0.286;
const STD: f64 = 0.353;

/// Why the demo stopped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A file could not be written.
    #[error("writing `{path}`: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The server could not be reached.
    #[error("{tried}: {source}")]
    Http {
        /// What was asked.
        tried: String,
        /// Why.
        source: reqwest::Error,
    },
    /// The server answered something else than it should.
    #[error("{tried}: {answer}")]
    Answer {
        /// What was asked.
        tried: String,
        /// Status and text, or what is missing in it.
        answer: String,
    },
}

/// Shows the whole path on the server at `url`. `folder` takes the bundled files, so that the printed curl lines work.
///
/// # Errors
/// [`Error`] with the request that went wrong.
pub(crate) fn show(url: &str, folder: &Path) -> Result<(), Error> {
    for (name, bytes) in FILES {
        let path = folder.join(name);
        std::fs::write(&path, bytes).map_err(|source| Error::Write { path, source })?;
    }
    let demo = Demo {
        url: url.to_owned(),
        folder: folder.to_owned(),
        // No time limit on a whole request: a slow machine may take long to answer, and Ctrl-C works.
        client: Client::builder().timeout(None).build().expect("no TLS and no proxy to set up"),
        live: io::stderr().is_terminal(),
    };
    demo.wait_until_ready("/v2/health/ready")?;
    println!("Octet runs at {url}\n\n1. Upload a float model and its data");
    demo.upload("/v1/models/resnet8", "model.onnx")?;
    demo.upload("/v1/datasets/calib", "calib.npz")?;
    demo.upload("/v1/datasets/eval", "eval.npz")?;

    println!("\n2. Quantize it to INT8 and compare both on 10,000 pictures");
    let spec = json!({
        "kind": "quantize", "model": "resnet8", "calibration": "calib", "evaluation": "eval", "endpoint": "resnet8"
    });
    println!("   curl {url}/v1/jobs -H 'Content-Type: application/json' \\\n     -d '{spec}'");
    let job = demo.send("POST /v1/jobs", demo.client.post(format!("{url}/v1/jobs")).json(&spec))?;
    let job = format!("/v1/jobs/{}", text(&job, "/id")?);
    println!("   curl {url}{job}");
    let job = demo.watch(&job)?;
    println!("   seconds: {}\n\n{}", demo.phases()?, table(&job)?);
    // The job has ended when the artifact is kept; its endpoint is loaded right after.
    demo.wait_until_ready("/v2/models/resnet8/ready")?;

    println!("3. Ask the INT8 model, and its float twin, what this is");
    let request: Value = serde_json::from_slice(FILES[3].1).expect("the bundled request is JSON");
    println!("{}", picture(&request));
    let at = demo.folder.join("request.json");
    println!("   curl {url}/v2/models/resnet8/infer -d @{}", at.display());
    println!(
        "   sed '1s/{{/{{\"parameters\": {{\"precision\": \"fp32\"}}, /' {} | \\\n     curl {url}/v2/models/resnet8/infer -d @-\n",
        at.display()
    );
    for (name, precision) in [("float", "fp32"), ("INT8", "int8")] {
        let mut request = request.clone();
        request["parameters"] = json!({ "precision": precision });
        let ask = demo.client.post(format!("{url}/v2/models/resnet8/infer")).json(&request);
        let answer = demo.send("POST /v2/models/resnet8/infer", ask)?;
        let (class, share) = best(&answer)?;
        println!("   {name:<5}  {class} ({:.1} %)", share * 100.0);
    }

    let artifact = text(&job, "/result/artifact/id")?;
    println!("\n4. Look further");
    for (what, path) in [
        ("the INT8 model as a standard ONNX file", format!("/v1/artifacts/{artifact}/download")),
        ("the report, layer by layer", format!("/v1/artifacts/{artifact}/report.html")),
        ("what Prometheus sees", "/metrics".to_owned()),
        ("every route", "/openapi.yaml".to_owned()),
        ("a page with all of it", "/".to_owned()),
    ] {
        println!("   {:<40} {url}{path}", format!("{what}:"));
    }
    Ok(())
}

struct Demo {
    url: String,
    folder: PathBuf,
    client: Client,
    /// Someone watches: bars instead of lines.
    live: bool,
}

impl Demo {
    fn wait_until_ready(&self, route: &str) -> Result<(), Error> {
        let (url, tried) = (format!("{}{route}", self.url), format!("GET {route}"));
        let begin = Instant::now();
        loop {
            match self.client.get(&url).send() {
                Ok(answer) if answer.status().is_success() => return Ok(()),
                Ok(_) | Err(_) if begin.elapsed() < Duration::from_secs(30) => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Ok(answer) => drop(checked(&tried, Ok(answer))?),
                Err(source) => return Err(Error::Http { tried, source }),
            }
        }
    }

    fn upload(&self, route: &str, name: &str) -> Result<(), Error> {
        let bytes = FILES.iter().find(|file| file.0 == name).expect("a bundled file").1;
        println!("   curl -T {} {}{route}", self.folder.join(name).display(), self.url);
        let bar = self.bar(name, bytes.len() as u64, "{bytes}/{total_bytes}");
        let body = Body::sized(bar.wrap_read(Cursor::new(bytes)), bytes.len() as u64);
        let answer =
            self.send(&format!("PUT {route}"), self.client.put(format!("{}{route}", self.url)).body(body));
        bar.finish_and_clear();
        answer?;
        println!("   {name}: {} kept", size(bytes.len() as f64));
        Ok(())
    }

    /// Follows a job to its end with one bar that changes with the phase.
    fn watch(&self, route: &str) -> Result<Value, Error> {
        let tried = format!("GET {route}");
        let bar = self.bar("queued", 0, "{pos}/{len}");
        loop {
            let job = self.send(&tried, self.client.get(format!("{}{route}", self.url)))?;
            match text(&job, "/state")? {
                "queued" | "running" => {}
                "succeeded" => {
                    bar.finish_and_clear();
                    return Ok(job);
                }
                state => {
                    bar.finish_and_clear();
                    let answer = format!("the job is {state}: {}", job["error"]);
                    return Err(Error::Answer { tried, answer });
                }
            }
            if let Some(phase) = job["phase"].as_str() {
                bar.set_prefix(phase.to_owned());
                bar.set_length(job["progress"]["total"].as_u64().unwrap_or(0));
                bar.set_position(job["progress"]["done"].as_u64().unwrap_or(0));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Seconds of each phase of the one job so far, as Prometheus sees them: progress is too coarse to tell.
    fn phases(&self) -> Result<String, Error> {
        let tried = "GET /metrics";
        let answer = checked(tried, self.client.get(format!("{}/metrics", self.url)).send())?;
        let metrics = answer.text().map_err(|source| Error::Http { tried: tried.to_owned(), source })?;
        Ok(phases(&metrics))
    }

    fn bar(&self, name: &str, total: u64, figures: &str) -> ProgressBar {
        if !self.live {
            return ProgressBar::hidden();
        }
        let template = format!("   {{prefix:10}} {{bar:32.cyan/black}} {figures}");
        let style = ProgressStyle::with_template(&template).expect("the template is one of ours");
        ProgressBar::new(total).with_style(style).with_prefix(name.to_owned())
    }

    fn send(&self, tried: &str, request: reqwest::blocking::RequestBuilder) -> Result<Value, Error> {
        let answer = checked(tried, request.send())?;
        let status = answer.status();
        let body = answer.text().map_err(|source| Error::Http { tried: tried.to_owned(), source })?;
        serde_json::from_str(&body).map_err(|e| Error::Answer {
            tried: tried.to_owned(),
            answer: format!("{status}, but no JSON: {e}"),
        })
    }
}

fn checked(tried: &str, answer: reqwest::Result<Response>) -> Result<Response, Error> {
    let answer = answer.map_err(|source| Error::Http { tried: tried.to_owned(), source })?;
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    Err(Error::Answer {
        tried: tried.to_owned(),
        answer: format!("{status}: {}", answer.text().unwrap_or_default()),
    })
}

fn text<'a>(value: &'a Value, pointer: &str) -> Result<&'a str, Error> {
    value.pointer(pointer).and_then(Value::as_str).ok_or_else(|| missing(value, pointer))
}

fn number(value: &Value, pointer: &str) -> Result<f64, Error> {
    value.pointer(pointer).and_then(Value::as_f64).ok_or_else(|| missing(value, pointer))
}

fn missing(value: &Value, pointer: &str) -> Error {
    Error::Answer { tried: format!("reading `{pointer}`"), answer: format!("it is not in {value}") }
}

/// Float against INT8, from the job's result.
fn table(job: &Value) -> Result<String, Error> {
    let (float, int8) = (number(job, "/result/accuracy/float")?, number(job, "/result/accuracy/int8")?);
    let (float_ms, int8_ms) =
        (number(job, "/result/latency/float_ms")?, number(job, "/result/latency/int8_ms")?);
    let (bytes, ratio) = (number(job, "/result/artifact/bytes")?, number(job, "/result/size_ratio")?);
    let samples = number(job, "/result/accuracy/samples")?;
    let mut out = String::new();
    let mut row = |what: &str, float: String, int8: String, says: String| {
        let _ = writeln!(out, "   {what:<18} {float:>10} {int8:>10}   {says}");
    };
    row("", "float".to_owned(), "INT8".to_owned(), String::new());
    row(
        "top-1 accuracy",
        format!("{:.2} %", float * 100.0),
        format!("{:.2} %", int8 * 100.0),
        format!("{:+.2} points on {samples} pictures", (int8 - float) * 100.0),
    );
    row("size", size(bytes / ratio), size(bytes), format!("{:.0} % of it", ratio * 100.0));
    row(
        "latency, batch 1",
        format!("{float_ms:.3} ms"),
        format!("{int8_ms:.3} ms"),
        format!("{:.1} times as fast", float_ms / int8_ms),
    );
    Ok(out)
}

fn size(bytes: f64) -> String {
    if bytes < 1e6 { format!("{:.0} kB", bytes / 1e3) } else { format!("{:.1} MB", bytes / 1e6) }
}

/// `import 0.01, calibrate 0.12, …` from the text of `/metrics`.
fn phases(metrics: &str) -> String {
    let mut out = String::new();
    for phase in ["import", "calibrate", "quantize", "evaluate", "measure", "export"] {
        let sample = format!("octet_job_phase_duration_seconds_sum{{phase=\"{phase}\"}} ");
        let seconds = metrics.lines().find_map(|line| line.strip_prefix(&sample)?.parse::<f64>().ok());
        if let Some(seconds) = seconds {
            let _ = write!(out, "{}{phase} {seconds:.2}", if out.is_empty() { "" } else { ", " });
        }
    }
    out
}

/// The class with the highest score, and the softmax of that score.
fn best(answer: &Value) -> Result<(&'static str, f64), Error> {
    let scores = answer.pointer("/outputs/0/data").and_then(Value::as_array);
    let scores: Vec<f64> = scores.into_iter().flatten().filter_map(Value::as_f64).collect();
    let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let class = scores.iter().position(|s| *s == top).and_then(|at| CLASSES.get(at));
    let class = class.ok_or_else(|| missing(answer, "/outputs/0/data"))?;
    Ok((class, 1.0 / scores.iter().map(|s| (s - top).exp()).sum::<f64>()))
}

/// The picture of an inference request, two rows of pixels a line.
fn picture(request: &Value) -> String {
    let data = request.pointer("/inputs/0/data").and_then(Value::as_array);
    let pixels: Vec<f64> = data
        .into_iter()
        .flatten()
        .filter_map(Value::as_f64)
        .map(|x| (x * STD + MEAN).clamp(0.0, 1.0))
        .collect();
    let mut out = String::new();
    for rows in pixels.chunks_exact(2 * 28) {
        let _ = write!(out, "\n     ");
        for (above, below) in rows[..28].iter().zip(&rows[28..]) {
            let shade = (above + below) / 2.0 * 5.0;
            out.push([' ', '.', ':', 'o', '#', '@'][shade.round() as usize]);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_becomes_a_table() {
        let job = json!({ "result": {
            "accuracy": { "float": 0.9126, "int8": 0.9130, "samples": 10000 },
            "latency": { "float_ms": 0.66, "int8_ms": 0.22 },
            "artifact": { "bytes": 150_000 }, "size_ratio": 0.3,
        }});
        let shown = table(&job).unwrap();
        for part in ["91.26 %", "91.30 %", "+0.04 points on 10000", "500 kB", "150 kB", "30 %", "3.0 times"] {
            assert!(shown.contains(part), "{part} is missing in\n{shown}");
        }
        assert!(table(&json!({})).unwrap_err().to_string().contains("/result/accuracy/float"));
    }

    #[test]
    fn phases_come_from_the_metrics_in_their_order() {
        let metrics = "# HELP x\n\
            octet_job_phase_duration_seconds_sum{phase=\"evaluate\"} 1.504\n\
            octet_job_phase_duration_seconds_sum{phase=\"import\"} 0.0123\n";
        assert_eq!(phases(metrics), "import 0.01, evaluate 1.50");
    }

    #[test]
    fn the_highest_score_names_the_class() {
        let answer = json!({ "outputs": [{ "data": [0.0, 0.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0] }] });
        let (class, share) = best(&answer).unwrap();
        assert_eq!(class, "pullover");
        assert!((share - 1.0 / (1.0 + 9.0 * (-2.0_f64).exp())).abs() < 1e-12);
        assert!(best(&json!({ "outputs": [] })).is_err());
    }

    #[test]
    fn the_bundled_request_is_one_picture() {
        let request: Value = serde_json::from_slice(FILES[3].1).unwrap();
        assert_eq!(request["inputs"][0]["data"].as_array().map(Vec::len), Some(28 * 28));
        let shown = picture(&request);
        assert_eq!(shown.lines().filter(|l| l.len() == 33).count(), 14, "{shown}");
    }
}
