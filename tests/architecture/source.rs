//! Reads Rust sources as text: tokens, paths, imports. Knows nothing of the rules.

use std::collections::BTreeSet;

pub(crate) struct Source {
    /// Below `src/`, such as `engine/graph/import.rs`.
    pub(crate) path: String,
    /// `engine::graph::import`; `lib` and `main` for the roots.
    pub(crate) module: String,
    pub(crate) text: String,
    pub(crate) tokens: Vec<Token>,
    /// Every path of two segments or more, and every `use` of one.
    pub(crate) paths: Vec<PathIn>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Token {
    /// A word, `::`, or one other character.
    pub(crate) text: String,
    /// From 1.
    pub(crate) line: usize,
}

/// `a::b::c` as it stands in the code; each branch of a `{…}` group is a path of its own.
pub(crate) struct PathIn {
    pub(crate) segments: Vec<String>,
    pub(crate) line: usize,
    /// Inline modules around it, innermost last.
    pub(crate) inline: Vec<String>,
    /// Under `#[cfg(test)]`.
    pub(crate) in_test: bool,
}

/// What a path means: from the root of the crate, without `crate::`.
pub(crate) struct Import {
    pub(crate) path: String,
    pub(crate) line: usize,
    pub(crate) in_test: bool,
}

impl Source {
    pub(crate) fn new(path: &str, text: &str) -> Source {
        let module = path.trim_end_matches(".rs").trim_end_matches("/mod").replace('/', "::");
        let (path, text, tokens) = (path.to_owned(), text.to_owned(), tokens(text));
        let mut source = Source { path, module, text, tokens, paths: Vec::new() };
        source.paths = source.find_paths();
        source
    }

    /// Modules that the file declares with `mod name;`.
    pub(crate) fn children(&self) -> BTreeSet<&str> {
        let found = self.tokens.windows(3).filter(|w| w[0].text == "mod" && w[2].text == ";");
        found.map(|w| w[1].text.as_str()).collect()
    }

    /// What the file names of its own crate, by `crate::`, `octet::`, `self::`, `super::` or a module it declares.
    pub(crate) fn imports(&self) -> Vec<Import> {
        let is_root = self.module == "lib" || self.module == "main";
        let children = self.children();
        let mut out = Vec::new();
        for path in &self.paths {
            let own = if is_root { "" } else { &self.module };
            let mut base: Vec<&str> = own.split("::").filter(|s| !s.is_empty()).collect();
            base.extend(path.inline.iter().map(String::as_str));
            let mut rest = path.segments.as_slice();
            match rest[0].as_str() {
                "crate" | "octet" => (base, rest) = (Vec::new(), &rest[1..]),
                "self" | "super" => {
                    while let Some(first) = rest.first().filter(|s| *s == "self" || *s == "super") {
                        if first == "super" {
                            base.pop();
                        }
                        rest = &rest[1..];
                    }
                }
                first if path.inline.is_empty() && children.contains(first) => {}
                _ => continue,
            }
            // `use a::{self}` names `a`.
            base.extend(rest.iter().map(String::as_str).filter(|s| *s != "self"));
            // What a root file names of itself, as `use super::*` in its tests, is no import.
            if !(is_root && base.is_empty()) {
                out.push(Import { path: base.join("::"), line: path.line, in_test: path.in_test });
            }
        }
        out
    }

    fn find_paths(&self) -> Vec<PathIn> {
        let word = |at: usize| self.tokens.get(at).is_some_and(|t| is_word(&t.text));
        let text = |at: usize| self.tokens.get(at).map_or("", |t| t.text.as_str());
        let mut out = Vec::new();
        // Tests that fill a file of their own are declared under `#[cfg(test)]` by the file that they test.
        let all_tests = self.path.ends_with("/tests.rs");
        // For each open brace: the inline module it opens, and whether it is under `#[cfg(test)]`.
        let mut open: Vec<(Option<String>, bool)> = Vec::new();
        let mut test_next = false;
        for at in 0..self.tokens.len() {
            if ["#", "[", "cfg", "(", "test", ")", "]"].iter().enumerate().all(|(i, t)| text(at + i) == *t) {
                test_next = true;
            }
            match text(at) {
                "{" => {
                    let inline = at >= 2 && text(at - 2) == "mod" && word(at - 1);
                    let in_test = std::mem::take(&mut test_next) || open.last().is_some_and(|o| o.1);
                    open.push((inline.then(|| text(at - 1).to_owned()), in_test));
                }
                "}" => _ = open.pop(),
                ";" => test_next = false,
                _ => {}
            }
            let starts = word(at)
                && (at == 0 || text(at - 1) != "::" || !(at >= 2 && (word(at - 2) || text(at - 2) == ">")))
                && (text(at + 1) == "::" || (at > 0 && text(at - 1) == "use"))
                // `pub(in crate::a)` says who may see, it imports nothing; `$crate` is the same crate.
                && !(at >= 2 && text(at - 1) == "in" && text(at - 2) == "(");
            // Inside a group the branches were read with its head.
            if starts && !self.inside_group(at) {
                let inline: Vec<String> = open.iter().filter_map(|o| o.0.clone()).collect();
                let in_test = all_tests || test_next || open.last().is_some_and(|o| o.1);
                for segments in self.branches(at) {
                    let (line, inline) = (self.tokens[at].line, inline.clone());
                    out.push(PathIn { segments, line, inline, in_test });
                }
            }
        }
        out
    }

    /// Whether the token stands in a `use a::{…}` group.
    fn inside_group(&self, at: usize) -> bool {
        let mut depth = 0;
        for back in (1..at).rev() {
            match self.tokens[back].text.as_str() {
                "}" => depth += 1,
                "{" if depth > 0 => depth -= 1,
                "{" => return self.tokens[back - 1].text == "::",
                ";" if depth == 0 => return false,
                _ => {}
            }
        }
        false
    }

    /// The paths that begin at a token: one, or one for each branch of a group.
    fn branches(&self, at: usize) -> Vec<Vec<String>> {
        let text = |at: usize| self.tokens.get(at).map_or("", |t| t.text.as_str());
        if text(at) == "{" {
            let (mut out, mut depth, mut start) = (Vec::new(), 0, at + 1);
            for i in at.. {
                match text(i) {
                    "{" => depth += 1,
                    "}" => depth -= 1,
                    "" => return out,
                    _ => {}
                }
                if (depth == 1 && text(i) == ",") || depth == 0 {
                    if start < i {
                        out.extend(self.branches(start));
                    }
                    start = i + 1;
                }
                if depth == 0 {
                    return out;
                }
            }
        }
        if !is_word(text(at)) {
            return vec![Vec::new()]; // `*`, or `<` of a turbofish
        }
        let head = text(at).to_owned();
        match text(at + 1) {
            "::" => {
                let tails = self.branches(at + 2).into_iter();
                tails.map(|tail| [vec![head.clone()], tail].concat()).collect()
            }
            _ => vec![vec![head]],
        }
    }
}

fn is_word(text: &str) -> bool {
    text.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// Words, `::` and single characters; comments and literals are left out.
pub(crate) fn tokens(text: &str) -> Vec<Token> {
    let c: Vec<char> = text.chars().collect();
    let (mut out, mut at, mut line) = (Vec::new(), 0, 1);
    while at < c.len() {
        let start = at;
        let word = c[at].is_alphanumeric() || c[at] == '_';
        if let Some(end) = end_of_comment_or_literal(&c, at) {
            at = end.min(c.len());
        } else if word {
            while at < c.len() && (c[at].is_alphanumeric() || c[at] == '_') {
                at += 1;
            }
        } else {
            at += if c[at..].starts_with(&[':', ':']) { 2 } else { 1 };
        }
        if end_of_comment_or_literal(&c, start).is_none() && !c[start].is_whitespace() {
            out.push(Token { text: c[start..at].iter().collect(), line });
        }
        line += c[start..at].iter().filter(|c| **c == '\n').count();
    }
    out
}

fn end_of_comment_or_literal(c: &[char], at: usize) -> Option<usize> {
    let find =
        |from: usize, what: &[char]| (from..c.len()).find(|&i| c[i..].starts_with(what)).unwrap_or(c.len());
    let rest = &c[at..];
    if rest.starts_with(&['/', '/']) {
        return Some(find(at, &['\n']));
    }
    if rest.starts_with(&['/', '*']) {
        let (mut depth, mut i) = (1, at + 2);
        while i < c.len() && depth > 0 {
            match (c[i], c.get(i + 1)) {
                ('/', Some('*')) => (depth, i) = (depth + 1, i + 2),
                ('*', Some('/')) => (depth, i) = (depth - 1, i + 2),
                _ => i += 1,
            }
        }
        return Some(i);
    }
    // r"…", r#"…"#, b"…", br"…", c"…": the prefix is read as part of the literal.
    let prefix = rest.iter().take_while(|x| matches!(x, 'r' | 'b' | 'c')).count().min(2);
    let hashes = rest[prefix..].iter().take_while(|x| **x == '#').count();
    if rest.get(prefix + hashes) == Some(&'"') && (prefix > 0 || hashes == 0) {
        if rest[..prefix].contains(&'r') {
            let close: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
            return Some(find(at + prefix + hashes + 1, &close) + close.len());
        }
        if hashes == 0 {
            let mut i = at + prefix + 1;
            while i < c.len() && c[i] != '"' {
                i += if c[i] == '\\' { 2 } else { 1 };
            }
            return Some(i + 1);
        }
    }
    let quote = usize::from(rest[0] == 'b');
    if rest.get(quote) == Some(&'\'') {
        if rest.get(quote + 1) == Some(&'\\') {
            return Some(find(at + quote + 3, &['\'']) + 1);
        }
        if rest.get(quote + 2) == Some(&'\'') {
            return Some(at + quote + 3);
        }
    }
    None
}
