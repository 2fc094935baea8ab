//! The checks themselves, on small crates with one breach each.

use super::source::tokens;
use super::*;

const RULES: &str = "
```mermaid
flowchart TD
  main
  api
  subgraph engine[engine: computes]
    exec
    kernels
  end
  main --> api --> exec & kernels
  exec --> kernels
```
<!-- test: names -->
| name | modules | why |
|---|---|---|
| `axum::` | `api` | it speaks |
| `env::var`, `env::vars` | `main` | settings |

<!-- test: unsafe -->
| file | why |
|---|---|
| `src/engine/kernels/x86_64*.rs` | intrinsics |
";

/// A crate that keeps every rule, with the given files put in its place.
fn with(changes: &[(&str, &str)]) -> Vec<Source> {
    let mut files = BTreeMap::from([
        ("lib.rs", "//! Lib.\npub mod api;\npub mod engine;"),
        ("main.rs", "//! Main.\nfn main() { std::env::var(\"A\"); octet::api::serve() }"),
        ("api.rs", "//! Api.\nuse axum::Router;\nuse crate::engine::{exec::run, kernels};"),
        ("engine/mod.rs", "//! Engine.\npub mod exec;\npub mod kernels;"),
        ("engine/exec.rs", "//! Exec.\nuse super::kernels::gemm::product;"),
        ("engine/kernels/mod.rs", "//! Kernels.\npub mod gemm;\nmod x86_64_avx2;\npub struct Isa;"),
        ("engine/kernels/gemm.rs", "//! Gemm.\nuse super::Isa;"),
        ("engine/kernels/x86_64_avx2.rs", "//! Avx2.\nunsafe fn f() {}"),
    ]);
    files.extend(changes.iter().copied());
    files.into_iter().map(|(path, text)| Source::new(path, text)).collect()
}

fn faults(files: &[Source]) -> Vec<String> {
    let rules = Rules::read(RULES);
    let mut all = circles(&rules.arrows, "circle");
    all.extend(wrong_imports(&rules, files));
    all.extend(file_circles(files));
    all.extend(wrong_names(&rules, files));
    all.extend(wrong_unsafe(&rules, files));
    all.extend(silent_files(files));
    all
}

#[test]
fn a_crate_that_keeps_the_rules_has_no_fault() {
    assert_eq!(faults(&with(&[])), Vec::<String>::new());
}

#[test]
fn every_planted_breach_is_found_and_named() {
    let gemm = |text| ("engine/kernels/gemm.rs", text);
    let rows: &[(&str, (&str, &str), &str)] = &[
        (
            "import upward",
            gemm("//! G.\nuse super::Isa;\nuse crate::api::X;"),
            "gemm.rs:3: `engine::kernels` may not import `api`",
        ),
        ("in a group", gemm("//! G.\nuse crate::{engine::{exec::run}};"), "may not import `engine::exec`"),
        (
            "by a chain of super",
            gemm("//! G.\nfn f() { super::super::super::api::serve() }"),
            "may not import `api`",
        ),
        (
            "super in an inline module",
            gemm("//! G.\nmod tests { use super::super::super::exec; }"),
            "may not import `engine::exec`",
        ),
        (
            "in a test module",
            gemm("//! G.\n#[cfg(test)]\nmod tests { use crate::api::X; }"),
            "gemm.rs:3: `engine::kernels` may not import `api`",
        ),
        ("in a macro", gemm("//! G.\nmacro_rules! m { () => { $crate::api::X } }"), "may not import `api`"),
        ("by the name of the package", gemm("//! G.\nuse octet::api::X;"), "may not import `api`"),
        ("across lines", gemm("//! G.\nuse crate::\n  /* far */ api\n  ::X;"), "may not import `api`"),
        (
            "after a string with a quote",
            gemm("//! G.\nfn f() { let _ = '\"'; } use crate::api::X;"),
            "may not import `api`",
        ),
        (
            "through a declared module",
            ("engine/mod.rs", "//! E.\npub mod exec;\npub mod kernels;\npub use kernels::Isa;"),
            "only declares",
        ),
        ("a whole folder", ("api.rs", "//! A.\nuse crate::engine;"), "imports the whole folder `engine`"),
        (
            "a whole folder by self",
            ("api.rs", "//! A.\nuse crate::engine::{self as e, exec};"),
            "imports the whole folder `engine`",
        ),
        (
            "no module in the drawing",
            ("util.rs", "//! Util."),
            "src/util.rs: the drawing has no module for this file",
        ),
        (
            "an idle arrow",
            ("engine/exec.rs", "//! Exec."),
            "an arrow that no code needs: engine::exec --> engine::kernels",
        ),
        (
            "an arrow for tests only",
            ("engine/exec.rs", "//! Exec.\n#[cfg(test)]\nmod tests { use crate::engine::kernels::Isa; }"),
            "an arrow that no code needs: engine::exec --> engine::kernels",
        ),
        (
            "a circle of files",
            ("engine/kernels/mod.rs", "//! K.\npub mod gemm;\nmod x86_64_avx2;\npub use self::gemm::f;"),
            "engine::kernels::gemm -> engine::kernels -> engine::kernels::gemm",
        ),
        ("a confined crate", gemm("//! G.\nfn f() { axum::serve() }"), "`axum::serve` belongs to `api` only"),
        ("a confined crate by use", gemm("//! G.\nuse axum;"), "`axum` belongs to `api` only"),
        (
            "a confined crate in an attribute",
            gemm("//! G.\n#[axum::debug_handler]\nfn f() {}"),
            "belongs to `api` only",
        ),
        (
            "a confined path",
            gemm("//! G.\nuse std::{env::{var, args}, fs};"),
            "`std::env::var` belongs to `main` only",
        ),
        (
            "unsafe elsewhere",
            gemm("//! G.\nfn f() { unsafe { g() } }"),
            "src/engine/kernels/gemm.rs:2: `unsafe`",
        ),
        (
            "no unsafe left",
            ("engine/kernels/x86_64_avx2.rs", "//! A.\n// unsafe"),
            "x86_64*.rs for `unsafe`, and there is none",
        ),
        ("a silent file", gemm("use super::Isa;\n//! Late."), "gemm.rs: the first line is no `//!`"),
    ];
    for (breach, change, says) in rows {
        let found = faults(&with(&[*change]));
        assert!(found.iter().any(|f| f.contains(says)), "{breach}: want «{says}», found {found:#?}");
    }
}

#[test]
fn look_alikes_are_no_breach() {
    for text in [
        "//! G.\n// use crate::api::X;\n/* crate::api /* nested */ crate::api::Y */",
        "//! G.\nconst A: &str = \"crate::api::X\";\nconst B: &str = r#\"axum:: \" crate::api::X\"#;",
        "//! G.\n/// See [`crate::api::X`].\nfn f<'a>(x: &'a str) -> char { 'a' }",
        "//! G.\npub(in crate::engine) fn f() {}",
        "//! G.\nmod tests { use super::*; use super::super::Isa; }",
        "//! G.\nuse my_axum::x;\nfn f() { let unsafe_code = b'\\''; g::<axum>() }",
        "//! G.\n#[cfg(test)]\nmod tests { fn f() { std::env::var(\"UPDATE\"); } }",
        "//! G.\nuse std::env::args;\nuse super::gemm_other::var;",
    ] {
        assert_eq!(faults(&with(&[("engine/kernels/gemm.rs", text)])), Vec::<String>::new(), "{text}");
    }
}

#[test]
fn a_drawing_with_a_circle_is_refused() {
    let rules =
        Rules::read(&RULES.replace("exec --> kernels\n```", "exec --> kernels\n  kernels --> api\n```"));
    let found = circles(&rules.arrows, "circle");
    assert_eq!(found, ["circle api -> engine::exec -> engine::kernels -> api"]);
}

#[test]
fn tokens_leave_out_comments_and_literals_and_keep_lines() {
    let text =
        "a /* x /* y */ */ \"z\\\"\" // w\nr#\"q\"# b\"s\" 'c' '\\'' b'\\n' &'a b::c\n\"two\nlines\" d";
    let found: Vec<_> = tokens(text).into_iter().map(|t| (t.text, t.line)).collect();
    let want = [("a", 1), ("&", 2), ("'", 2), ("a", 2), ("b", 2), ("::", 2), ("c", 2), ("d", 4)];
    assert_eq!(found, want.map(|(text, line)| (text.to_owned(), line)));
}
