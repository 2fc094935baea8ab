//! What documents and dashboards speak of exists: files, metrics, settings. Reads text, links nothing of the crate.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path))
        .unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// The files in a folder and in those in it, as paths from the root.
fn files_below(folder: &str) -> Vec<String> {
    let mut files = Vec::new();
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)).unwrap() {
        let entry = entry.unwrap();
        let path = format!("{folder}/{}", entry.file_name().to_str().unwrap());
        if entry.file_type().unwrap().is_dir() {
            files.extend(files_below(&path));
        } else {
            files.push(path);
        }
    }
    files.sort();
    files
}

fn check(wrong: Vec<String>) {
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[test]
fn files_that_documents_name_exist() {
    let mut wrong = Vec::new();
    let mut documents = files_below("docs");
    documents.push("README.md".to_owned());
    assert!(documents.len() > 5, "{documents:?}");
    for document in documents {
        for name in in_backquotes(&read(&document)) {
            let is_path =
                ["src/", "docs/", "docker/", "tests/", "examples/", "config/", "migrations/", "benches/"]
                    .iter()
                    .any(|top| name.starts_with(top));
            let whole = name.split(['*', ' ']).next().unwrap_or(&name);
            let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(whole);
            // `src/a/b*.rs`: the folder is there.
            let there =
                if name.contains('*') { file.parent().is_some_and(Path::exists) } else { file.exists() };
            if is_path && !there {
                wrong.push(format!("{document}: `{name}` does not exist"));
            }
        }
    }
    check(wrong);
}

#[test]
fn dashboard_and_alerts_ask_for_metrics_that_exist() {
    let declared = read("src/service/metrics.rs");
    let mut wrong = Vec::new();
    for file in ["docker/grafana/dashboard.json", "docker/alerts.yml"] {
        let names = metric_names(&read(file));
        assert!(!names.is_empty(), "{file} names no metric");
        for name in names {
            let plain = name.strip_prefix("octet_").unwrap_or(&name);
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| plain.strip_suffix(end));
            let is_declared = |name: &str| declared.contains(&format!("\"{name}\" "));
            if !is_declared(plain) && !base.is_some_and(is_declared) {
                wrong.push(format!("{file}: src/service/metrics.rs declares no `{name}`"));
            }
        }
    }
    check(wrong);
}

#[test]
fn settings_that_the_image_and_the_documents_name_exist() {
    let config = read("config/default.toml");
    let mut keys = BTreeSet::new();
    let mut section = String::new();
    for line in config.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[') {
            section = format!("{}__", name.trim_end_matches(']'));
        } else if let Some((key, _)) = line.split_once(" = ").filter(|_| !line.starts_with('#')) {
            keys.insert(format!("OCTET_{section}{key}").to_uppercase());
        }
    }
    let mut wrong = Vec::new();
    let mut files = ["docs", "docker"].map(files_below).concat();
    files.extend(["README.md", "tests/clients/bad_inputs.py", "tests/clients/restart.py"].map(str::to_owned));
    assert!(files.iter().any(|file| file == "docker/k8s/deployment.yaml"), "{files:?}");
    for file in files {
        for name in words(&read(&file)).filter(|w| w.starts_with("OCTET_")) {
            if !keys.contains(&name) {
                wrong.push(format!("{file}: config/default.toml has no key for `{name}`"));
            }
        }
    }
    check(wrong);
}

fn words(text: &str) -> impl Iterator<Item = String> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).map(str::to_owned)
}

fn metric_names(text: &str) -> BTreeSet<String> {
    words(text).filter(|w| w.starts_with("octet_")).collect()
}

/// What stands between single backquotes; fenced blocks are left out.
fn in_backquotes(text: &str) -> Vec<String> {
    let outside = text.split("```").step_by(2);
    outside.flat_map(|part| part.split('`').skip(1).step_by(2)).map(str::to_owned).collect()
}
