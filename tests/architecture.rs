//! The drawing in `docs/ARCHITECTURE.md`, as a test: which module may import which, which names belong to some
//! modules only, where `unsafe` lives. The tables are in the document and nowhere else; this file reads them there
//! and holds `src/` against them. It reads the sources as text: it links nothing of the crate and builds in a second.
//!
//! Code under `#[cfg(test)]` keeps to the same arrows as the code beside it, but does not justify one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use source::Source;

#[path = "architecture/planted.rs"]
mod planted;
#[path = "architecture/source.rs"]
mod source;

const DOCUMENT: &str = "docs/ARCHITECTURE.md";

#[test]
fn the_drawing_has_no_circle() {
    report(circles(&Rules::of_the_project().arrows, "the drawing goes in a circle through"));
}

#[test]
fn modules_import_only_along_the_arrows_and_every_arrow_is_used() {
    report(wrong_imports(&Rules::of_the_project(), &sources()));
}

#[test]
fn files_import_each_other_in_no_circle() {
    report(file_circles(&sources()));
}

#[test]
fn confined_names_stay_in_their_modules() {
    report(wrong_names(&Rules::of_the_project(), &sources()));
}

#[test]
fn unsafe_lives_where_the_table_says() {
    report(wrong_unsafe(&Rules::of_the_project(), &sources()));
}

#[test]
fn every_file_opens_by_saying_what_it_is() {
    report(silent_files(&sources()));
}

fn report(wrong: Vec<String>) {
    assert!(wrong.is_empty(), "\n\n{}\n\nThe rules are in {DOCUMENT}.\n", wrong.join("\n"));
}

// The checks: each takes the rules and the sources and gives one line for each fault.

fn wrong_imports(rules: &Rules, sources: &[Source]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut used = BTreeSet::new();
    for source in sources {
        let place = |line: usize| format!("src/{}:{line}", source.path);
        let own = rules.module_of(&source.module);
        if own.is_none() && source.module != "lib" && !rules.is_folder(&source.module) {
            wrong.push(format!("src/{}: the drawing has no module for this file", source.path));
            continue;
        }
        for import in source.imports() {
            let Some(target) = rules.module_of(&import.path) else {
                if import.path.is_empty() || rules.is_folder(&import.path) {
                    wrong.push(format!(
                        "{}: imports the whole folder `{}`: name the module that is needed",
                        place(import.line),
                        if import.path.is_empty() { "crate" } else { &import.path }
                    ));
                } else {
                    wrong.push(format!(
                        "{}: `{}` is in no module of the drawing",
                        place(import.line),
                        import.path
                    ));
                }
                continue;
            };
            let Some(own) = own else {
                wrong.push(format!(
                    "{}: a folder's `mod.rs` only declares, but this one imports `{}`",
                    place(import.line),
                    import.path
                ));
                continue;
            };
            if target == own {
                continue;
            }
            if !rules.arrows[own].contains(target) {
                wrong.push(format!(
                    "{}: `{own}` may not import `{target}` (it imports `{}`; its arrows go to {})",
                    place(import.line),
                    import.path,
                    list(&rules.arrows[own])
                ));
            }
            if !import.in_test {
                used.insert((own, target));
            }
        }
    }
    for (module, targets) in &rules.arrows {
        for target in targets {
            if !used.contains(&(module.as_str(), target.as_str())) {
                wrong.push(format!("the drawing has an arrow that no code needs: {module} --> {target}"));
            }
        }
        if !sources.iter().any(|s| rules.module_of(&s.module) == Some(module)) {
            wrong.push(format!("the drawing has a module without a file: {module}"));
        }
    }
    wrong
}

fn file_circles(sources: &[Source]) -> Vec<String> {
    let modules: BTreeSet<String> = sources.iter().map(|s| s.module.clone()).collect();
    let mut graph = BTreeMap::new();
    for source in sources {
        let targets = source.imports().into_iter().filter(|i| !i.in_test);
        let targets = targets.filter_map(|i| longest(&modules, &i.path).map(str::to_owned));
        graph.insert(source.module.clone(), targets.filter(|t| *t != source.module).collect());
    }
    circles(&graph, "files import each other in a circle:")
}

fn wrong_names(rules: &Rules, sources: &[Source]) -> Vec<String> {
    let mut wrong = Vec::new();
    for (name, homes) in &rules.names {
        let pattern: Vec<&str> = name.split("::").filter(|s| !s.is_empty()).collect();
        let is_crate = name.ends_with("::");
        for source in sources {
            let at_home = homes.iter().any(|h| within(&source.module, h));
            for path in &source.paths {
                let segments: Vec<&str> = path.segments.iter().map(String::as_str).collect();
                let hit = match is_crate {
                    true => segments.first() == pattern.first() && !source.children().contains(pattern[0]),
                    false => segments.windows(pattern.len()).any(|w| w == pattern),
                };
                // Tests may take the time and read the environment; a crate they may not name either.
                if hit && !at_home && (is_crate || !path.in_test) {
                    wrong.push(format!(
                        "src/{}:{}: `{}` belongs to {} only",
                        source.path,
                        path.line,
                        path.segments.join("::"),
                        list(homes)
                    ));
                }
            }
        }
        for home in homes {
            if !rules.arrows.contains_key(home) && !rules.is_folder(home) && home != "lib" {
                wrong.push(format!("the table gives `{name}` to `{home}`, which the drawing does not have"));
            }
        }
    }
    wrong
}

fn wrong_unsafe(rules: &Rules, sources: &[Source]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut used = BTreeSet::new();
    for source in sources {
        let Some(token) = source.tokens.iter().find(|t| t.text == "unsafe") else { continue };
        let path = format!("src/{}", source.path);
        match rules.unsafe_files.iter().find(|pattern| fits(pattern, &path)) {
            Some(pattern) => _ = used.insert(pattern),
            None => {
                wrong.push(format!("{path}:{}: `unsafe` in a file that the table does not list", token.line))
            }
        }
    }
    let idle = rules.unsafe_files.iter().filter(|pattern| !used.contains(pattern));
    wrong.extend(idle.map(|pattern| format!("the table lists {pattern} for `unsafe`, and there is none")));
    wrong
}

fn silent_files(sources: &[Source]) -> Vec<String> {
    let silent = sources.iter().filter(|s| !s.text.starts_with("//! "));
    silent.map(|s| format!("src/{}: the first line is no `//!` that says what the file is", s.path)).collect()
}

/// Takes away what points at nothing that is left, until nothing moves; then finds one circle in the rest.
fn circles(graph: &BTreeMap<String, BTreeSet<String>>, says: &str) -> Vec<String> {
    let mut left = graph.clone();
    loop {
        let names: BTreeSet<String> = left.keys().cloned().collect();
        left.values_mut().for_each(|to| to.retain(|t| names.contains(t)));
        let before = left.len();
        left.retain(|_, to| !to.is_empty());
        if left.len() == before {
            break;
        }
    }
    let Some(start) = left.keys().next() else { return Vec::new() };
    // Everything left leads on, so walking on must come back to where it was.
    let mut walk = vec![start.clone()];
    loop {
        let next = left[&walk[walk.len() - 1]].iter().next().expect("nodes without arrows were taken away");
        if let Some(at) = walk.iter().position(|w| w == next) {
            walk.drain(..at);
            walk.push(next.clone());
            return vec![format!("{says} {}", walk.join(" -> "))];
        }
        walk.push(next.clone());
    }
}

// The rules, as the document states them.

struct Rules {
    /// Every module of the drawing and what it may import.
    arrows: BTreeMap<String, BTreeSet<String>>,
    /// A name (`axum::` for a crate, `env::var` for the end of a path) and the modules it belongs to.
    names: BTreeMap<String, BTreeSet<String>>,
    /// Files that may hold `unsafe`, below the package; a `*` stands for the rest of a file name.
    unsafe_files: BTreeSet<String>,
}

impl Rules {
    fn of_the_project() -> Rules {
        Rules::read(&fs::read_to_string(root().join(DOCUMENT)).expect("the document is part of the project"))
    }

    fn read(document: &str) -> Rules {
        let names = table(document, "names").into_iter().map(|row| {
            let homes = quoted(&row[1]);
            assert!(!homes.is_empty(), "{DOCUMENT}: no module in backquotes in `{}`", row[1]);
            quoted(&row[0]).into_iter().map(move |name| (name, homes.clone()))
        });
        Rules {
            arrows: drawing(document),
            names: names.flatten().collect(),
            unsafe_files: table(document, "unsafe").iter().flat_map(|row| quoted(&row[0])).collect(),
        }
    }

    /// The module of the drawing that a file or an item falls into.
    fn module_of(&self, path: &str) -> Option<&str> {
        self.arrows.keys().filter(|m| within(path, m)).max_by_key(|m| m.len()).map(String::as_str)
    }

    fn is_folder(&self, path: &str) -> bool {
        self.arrows.keys().any(|m| m != path && within(m, path))
    }
}

/// Reads the one mermaid drawing: nodes, `subgraph NAME … end`, and `a & b --> c --> d`. A node inside a subgraph is
/// the module `subgraph::node`. Arrows may only name nodes that were declared on a line of their own.
fn drawing(document: &str) -> BTreeMap<String, BTreeSet<String>> {
    let block = document.split("```mermaid").nth(1).and_then(|rest| rest.split("```").next());
    let block = block.unwrap_or_else(|| panic!("{DOCUMENT} has no ```mermaid drawing"));
    let mut folder = None;
    let mut full = BTreeMap::new();
    let mut arrows: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in block.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with("%%")) {
        if line.starts_with("flowchart") {
            continue;
        } else if let Some(name) = line.strip_prefix("subgraph ") {
            folder = name.split(['[', ' ']).next();
        } else if line == "end" {
            folder = None;
        } else if line.contains("-->") {
            let steps: Vec<Vec<&str>> =
                line.split("-->").map(|step| step.split('&').map(str::trim).collect()).collect();
            let find = |id: &str| -> String {
                full.get(id)
                    .cloned()
                    .unwrap_or_else(|| panic!("{DOCUMENT}: `{line}`: `{id}` is not declared above"))
            };
            for pair in steps.windows(2) {
                for (from, to) in pair[0].iter().flat_map(|from| pair[1].iter().map(move |to| (from, to))) {
                    let new = arrows.get_mut(&find(from)).expect("declared").insert(find(to));
                    assert!(new, "{DOCUMENT}: `{line}`: the arrow {from} --> {to} stands there twice");
                }
            }
        } else {
            // `id[label]`: mermaid keeps words such as `graph` for itself, so where there is a label it is the name.
            let (id, label) =
                line.split_once('[').map_or((line, line), |(id, l)| (id, l.trim_end_matches(']')));
            let path = folder.map_or(label.to_owned(), |f| format!("{f}::{label}"));
            assert!(
                full.insert(id, path.clone()).is_none(),
                "{DOCUMENT}: the node `{id}` stands there twice"
            );
            arrows.insert(path, BTreeSet::new());
        }
    }
    arrows
}

/// The cells of the rows of the table that follows `<!-- test: NAME -->`, without its head.
fn table(document: &str, name: &str) -> Vec<Vec<String>> {
    let mark = format!("<!-- test: {name} -->");
    let after = document.split(mark.as_str()).nth(1).unwrap_or_else(|| panic!("{DOCUMENT} has no `{mark}`"));
    let rows = after.trim_start().lines().take_while(|l| l.starts_with('|')).skip(2);
    let cells = |row: &str| {
        row.trim_matches(['|', ' ']).split(" | ").map(|c| c.trim().to_owned()).collect::<Vec<_>>()
    };
    let rows: Vec<_> = rows.map(cells).collect();
    assert!(rows.iter().all(|r| r.len() >= 2), "{DOCUMENT}: a row after `{mark}` has no two cells");
    assert!(!rows.is_empty(), "{DOCUMENT}: no table after `{mark}`");
    rows
}

/// What stands in backquotes.
fn quoted(text: &str) -> BTreeSet<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

fn list(names: &BTreeSet<String>) -> String {
    let mut text = String::new();
    for name in names {
        let _ = write!(text, "{}`{name}`", if text.is_empty() { "" } else { ", " });
    }
    if text.is_empty() { "nothing".to_owned() } else { text }
}

/// Whether `path` is `module` or below it.
fn within(path: &str, module: &str) -> bool {
    path.strip_prefix(module).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

fn longest<'a>(modules: &'a BTreeSet<String>, path: &str) -> Option<&'a str> {
    modules.iter().filter(|m| within(path, m)).max_by_key(|m| m.len()).map(String::as_str)
}

fn fits(pattern: &str, path: &str) -> bool {
    match pattern.split_once('*') {
        Some((head, tail)) => path.strip_prefix(head).is_some_and(|rest| rest.ends_with(tail)),
        None => pattern == path,
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources() -> Vec<Source> {
    let src = root().join("src");
    let (mut files, mut folders) = (Vec::new(), vec![src.clone()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("src can be listed") {
            let path = entry.expect("src can be listed").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    assert!(!files.is_empty());
    let read = |file: &std::path::PathBuf| {
        let path = file.strip_prefix(&src).expect("found below src").to_str().expect("names here are ASCII");
        Source::new(path, &fs::read_to_string(file).expect("sources are UTF-8"))
    };
    files.iter().map(read).collect()
}
