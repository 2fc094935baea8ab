//! The drawing of the crate, as a test: which module may import which, which module may name which
//! crate, and where `unsafe` lives. It reads the sources as text, so it links nothing of the crate
//! and builds in seconds. Unit tests inside `src` keep to the same arrows as the code beside them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Every module of the drawing and the modules it imports, bottom layer first. A row may name only
/// rows above it, so the table cannot hold a circle. A file belongs to the longest row it fits.
const ARROWS: &[(&str, &[&str])] = &[
    // engine: computes. Values in, values out: no HTTP, no SQL, no async, no environment, no clock.
    ("engine::tensor", &[]),
    ("engine::onnx", &[]),
    ("engine::kernels", &[]),
    ("engine::graph", &["engine::onnx", "engine::tensor"]),
    ("engine::exec", &["engine::graph", "engine::kernels", "engine::tensor"]),
    ("engine::artifact", &["engine::graph", "engine::tensor"]),
    ("engine::quant", &["engine::exec", "engine::graph", "engine::tensor"]),
    ("engine::pipeline", &["engine::artifact", "engine::graph", "engine::quant"]),
    // service: keeps and schedules.
    ("service::metrics", &[]),
    ("service::store", &[]),
    ("service::jobs", &["engine::pipeline", "service::metrics", "service::store"]),
    (
        "service::infer",
        &["engine::artifact", "engine::exec", "engine::tensor", "service::metrics", "service::store"],
    ),
    // api: speaks. The only place that knows HTTP and gRPC.
    ("api", &["engine::tensor", "service::infer", "service::jobs", "service::metrics", "service::store"]),
    // The edge: reads the settings and ties the rest together.
    ("config", &[]),
    ("app", &["api", "config", "service::infer", "service::jobs", "service::metrics", "service::store"]),
];

/// Names that belong to some modules only.
const CONFINED: &[(&str, &[&str])] = &[
    ("axum::", &["api", "app"]),
    ("tonic::", &["api", "app"]),
    ("tower::", &["api", "app"]),
    ("http::", &["api"]),
    ("sqlx::", &["service::store"]),
    ("object_store::", &["service::store"]),
    ("prometheus::", &["service::metrics"]),
    ("tokio::", &["api", "app", "main", "service::infer", "service::jobs", "service::store"]),
    ("rayon::", &["app", "engine::exec", "engine::kernels", "engine::pipeline", "engine::quant"]),
    ("serde::", &["api", "config", "engine::artifact", "engine::quant", "service::jobs", "service::store"]),
    ("env::var", &["config"]),
    ("SystemTime::now", &["app"]),
];

/// Files that may hold `unsafe`, and why each must.
const UNSAFE_FILES: &[(&str, &str)] =
    &[("engine/kernels/x86_64.rs", "vector loads, and calls that need a target feature")];

#[test]
fn a_row_names_only_rows_above_it() {
    let mut above = BTreeSet::new();
    for (module, imports) in ARROWS {
        for import in *imports {
            assert!(above.contains(import), "`{module}` -> `{import}` points up or nowhere");
        }
        above.insert(module);
    }
}

#[test]
fn modules_import_only_along_the_arrows() {
    let mut wrong = Vec::new();
    let mut used = BTreeSet::new();
    for file in sources() {
        if file.is_root() {
            continue;
        }
        let Some(own) = row_of(&file.module) else {
            if file.code.contains("use ") || file.code.contains("fn ") {
                wrong.push(format!("src/{}: no row of ARROWS holds this module", file.path));
            }
            continue;
        };
        for import in file.imports() {
            let Some(target) = row_of(&import.path) else { continue };
            if target == own {
                continue;
            }
            used.insert((own, target));
            let allowed = ARROWS.iter().any(|(m, to)| *m == own && to.contains(&target));
            if !allowed {
                wrong.push(format!("src/{}:{}: `{own}` may not import `{target}`", file.path, import.line));
            }
        }
    }
    for (module, imports) in ARROWS {
        for import in *imports {
            if !used.contains(&(*module, *import)) {
                wrong.push(format!("nothing needs the arrow `{module}` -> `{import}`: drop it"));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[test]
fn files_import_each_other_in_no_circle() {
    let files = sources();
    let modules: BTreeSet<&str> = files.iter().map(|f| f.module.as_str()).collect();
    let mut graph: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for file in files.iter().filter(|f| !f.is_root()) {
        let to = file.imports().into_iter().filter_map(|i| longest(&modules, &i.path));
        graph.insert(&file.module, to.filter(|t| *t != file.module).collect());
    }
    // Take away files that import nothing that is left, until nothing is left or nothing moves.
    loop {
        let done: Vec<&str> = graph.iter().filter(|(_, to)| to.is_empty()).map(|(m, _)| *m).collect();
        if done.is_empty() {
            break;
        }
        for module in done {
            graph.remove(module);
        }
        let left: BTreeSet<&str> = graph.keys().copied().collect();
        graph.values_mut().for_each(|to| to.retain(|t| left.contains(t)));
    }
    assert!(graph.is_empty(), "files on or above a circle: {graph:#?}");
}

#[test]
fn confined_names_stay_in_their_modules() {
    let mut wrong = Vec::new();
    for file in sources() {
        let own = row_of(&file.module).unwrap_or(&file.module);
        for (name, homes) in CONFINED {
            for line in file.lines_with(name) {
                if !homes.contains(&own) {
                    wrong.push(format!("src/{}:{line}: `{name}` belongs to {homes:?}", file.path));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[test]
fn unsafe_lives_where_the_table_says() {
    let found: BTreeSet<String> =
        sources().into_iter().filter(|f| !f.lines_with("unsafe ").is_empty()).map(|f| f.path).collect();
    let listed = UNSAFE_FILES.iter().map(|(path, _)| path.to_string()).collect();
    assert_eq!(found, listed, "files with `unsafe`; left: on disk, right: in UNSAFE_FILES");
}

#[test]
fn every_file_opens_by_saying_what_it_is() {
    let silent: Vec<String> =
        sources().into_iter().filter(|f| !f.raw.starts_with("//!")).map(|f| f.path).collect();
    assert!(silent.is_empty(), "no `//!` on the first line: {silent:#?}");
}

struct Source {
    /// Below `src/`, such as `engine/graph/import.rs`.
    path: String,
    /// `engine::graph::import`; `lib` and `main` for the roots.
    module: String,
    raw: String,
    /// `raw` with comments and the insides of literals blanked; offsets of lines still match.
    code: String,
}

struct Import {
    line: usize,
    /// Absolute, without `crate::`.
    path: String,
}

impl Source {
    fn is_root(&self) -> bool {
        self.module == "lib" || self.module == "main"
    }

    /// Lines (1-based) where `code` holds `name`, not as the end of a longer name.
    fn lines_with(&self, name: &str) -> Vec<usize> {
        let inside = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
        self.code
            .match_indices(name)
            .filter(|(at, _)| name.starts_with("env") || !self.code[..*at].ends_with(inside))
            .map(|(at, _)| line_of(&self.code, at))
            .collect()
    }

    /// What the file names by `crate::…`, by `super::…`, or through a module that it declares.
    fn imports(&self) -> Vec<Import> {
        let mut out = Vec::new();
        let mut add = |at: usize, base: &[&str], rest: &str| {
            for tail in branches(rest) {
                let path: Vec<&str> = base.iter().copied().chain(tail.iter().map(String::as_str)).collect();
                out.push(Import { line: line_of(&self.code, at), path: path.join("::") });
            }
        };
        let word_before =
            |at: usize| self.code[..at].ends_with(|c: char| c.is_alphanumeric() || "_$:".contains(c));
        for (at, _) in self.code.match_indices("crate::") {
            if !word_before(at) {
                add(at, &[], &self.code[at + "crate::".len()..]);
            }
        }
        let own: Vec<&str> = self.module.split("::").collect();
        for (at, _) in self.code.match_indices("super::") {
            if word_before(at) {
                continue; // the rest of a chain that was counted from its first `super`
            }
            let climbed = self.code[at..].split("super::").take_while(|s| s.is_empty()).count();
            let up = climbed.saturating_sub(inline_mods_open(&self.code[..at]));
            let base = &own[..own.len().saturating_sub(up)];
            add(at, base, &self.code[at + climbed * "super::".len()..]);
        }
        for declared in self.code.lines().filter_map(|l| l.trim_end().strip_suffix(';')?.rsplit_once("mod "))
        {
            let child = format!("{}::", declared.1.trim());
            for (at, _) in self.code.match_indices(child.as_str()) {
                if !word_before(at) {
                    add(at, &own, &self.code[at..]);
                }
            }
        }
        out
    }
}

/// The row of `ARROWS` that a module or an item path falls into.
fn row_of(path: &str) -> Option<&'static str> {
    let rows: BTreeSet<&str> = ARROWS.iter().map(|(m, _)| *m).collect();
    let row = longest(&rows, path)?;
    ARROWS.iter().map(|(m, _)| *m).find(|m| *m == row)
}

fn longest<'a>(modules: &BTreeSet<&'a str>, path: &str) -> Option<&'a str> {
    let fits = |m: &&&str| path == **m || path.strip_prefix(**m).is_some_and(|rest| rest.starts_with("::"));
    modules.iter().filter(fits).max_by_key(|m| m.len()).copied()
}

/// The paths that follow a prefix: one, or one for each branch of a `{…}` group.
fn branches(rest: &str) -> Vec<Vec<String>> {
    let rest = rest.trim_start();
    if let Some(group) = rest.strip_prefix('{') {
        let (mut depth, mut start, mut out) = (1, 0, Vec::new());
        for (i, c) in group.char_indices() {
            depth += i32::from(c == '{') - i32::from(c == '}');
            if depth == 0 || (depth == 1 && c == ',') {
                out.extend(branches(&group[start..i]));
                start = i + 1;
            }
            if depth == 0 {
                break;
            }
        }
        return out;
    }
    let head: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    if head.is_empty() {
        return vec![Vec::new()];
    }
    match rest[head.len()..].strip_prefix("::") {
        Some(more) => branches(more).into_iter().map(|t| [vec![head.clone()], t].concat()).collect(),
        None => vec![vec![head]],
    }
}

/// How many `mod x {` blocks are open at the end of `code`.
fn inline_mods_open(code: &str) -> usize {
    let mut open: Vec<bool> = Vec::new();
    for (i, c) in code.char_indices() {
        if c == '{' {
            let before = code[..i].trim_end();
            let name = before.rsplit(|c: char| !(c.is_alphanumeric() || c == '_')).next().unwrap_or("");
            let head = before[..before.len() - name.len()].trim_end();
            open.push(
                !name.is_empty() && (head == "mod" || head.ends_with(" mod") || head.ends_with("\nmod")),
            );
        } else if c == '}' {
            open.pop();
        }
    }
    open.into_iter().filter(|is_mod| *is_mod).count()
}

fn line_of(text: &str, at: usize) -> usize {
    text[..at].matches('\n').count() + 1
}

fn sources() -> Vec<Source> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut files, mut dirs) = (Vec::<PathBuf>::new(), vec![src.clone()]);
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    assert!(!files.is_empty());
    let read = |file: PathBuf| {
        let path = file.strip_prefix(&src).unwrap().to_str().unwrap().to_owned();
        let module = path.trim_end_matches(".rs").trim_end_matches("/mod").replace('/', "::");
        let raw = fs::read_to_string(&file).unwrap();
        Source { path, module, code: blank(&raw), raw }
    };
    files.into_iter().map(read).collect()
}

/// Replaces comments and the insides of string and char literals by spaces; newlines stay.
fn blank(text: &str) -> String {
    let b: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut i = 0;
    while i < b.len() {
        let Some(end) = end_of_comment_or_literal(&b, i) else {
            out.push(b[i]);
            i += 1;
            continue;
        };
        let end = end.min(b.len());
        out.extend(b[i..end].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
        i = end;
    }
    out
}

fn end_of_comment_or_literal(b: &[char], i: usize) -> Option<usize> {
    let find =
        |from: usize, what: &[char]| (from..b.len()).find(|&j| b[j..].starts_with(what)).unwrap_or(b.len());
    if b[i..].starts_with(&['/', '/']) {
        return Some(find(i, &['\n']));
    }
    if b[i..].starts_with(&['/', '*']) {
        let (mut depth, mut j) = (1, i + 2);
        while j < b.len() && depth > 0 {
            match (b[j], b.get(j + 1)) {
                ('/', Some('*')) => (depth, j) = (depth + 1, j + 2),
                ('*', Some('/')) => (depth, j) = (depth - 1, j + 2),
                _ => j += 1,
            }
        }
        return Some(j);
    }
    let in_word = i > 0 && (b[i - 1].is_alphanumeric() || b[i - 1] == '_') && b[i - 1] != 'b';
    if b[i] == 'r' && !in_word {
        let hashes = b[i + 1..].iter().take_while(|c| **c == '#').count();
        if b.get(i + 1 + hashes) == Some(&'"') {
            let close: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
            return Some(find(i + 2 + hashes, &close) + close.len());
        }
    }
    if b[i] == '"' {
        let mut j = i + 1;
        while j < b.len() && b[j] != '"' {
            j += if b[j] == '\\' { 2 } else { 1 };
        }
        return Some(j + 1);
    }
    if b[i] == '\'' && b.get(i + 1) == Some(&'\\') {
        return Some(find(i + 3, &['\'']) + 1);
    }
    if b[i] == '\'' && b.get(i + 2) == Some(&'\'') {
        return Some(i + 3);
    }
    None
}

#[test]
fn blanking_keeps_code_and_lines() {
    let text = "a /* crate::x /* y */ */ \"crate::z\" // crate::w\nr#\"crate::q\"# 'c' '\\'' &'a b";
    let code = blank(text);
    assert!(!code.contains("crate"), "{code}");
    assert_eq!(code.matches('\n').count(), 1);
    assert!(code.starts_with("a ") && code.ends_with("&'a b"), "{code}");
}

#[test]
fn groups_unfold() {
    let unfolded = |text| branches(text).into_iter().map(|p| p.join("::")).collect::<Vec<_>>();
    assert_eq!(unfolded("engine::tensor::Tensor;"), ["engine::tensor::Tensor"]);
    assert_eq!(
        unfolded("engine::{graph::{Graph, Op}, exec}"),
        ["engine::graph::Graph", "engine::graph::Op", "engine::exec"]
    );
}
