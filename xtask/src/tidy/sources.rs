//! Rust files: their length, their names, and what production code may not hold.

use std::collections::BTreeSet;

use super::{
    Findings,
    rust::{code, has_word, without_tests},
    tree::Tree,
};

/// A file is read in one sitting.
const MOST_LINES: usize = 400;
const MANY_LINES: usize = 350;

/// Names that say nothing about what is inside.
const EMPTY_NAMES: &[&str] =
    &["utils", "util", "common", "helpers", "helper", "manager", "managers"];

/// Unfinished work, and what hides where a crash comes from.
const REFUSED: &[(&str, &str)] = &[
    (".unwrap()", "unwrap() outside of tests: return the error, or expect(\"why it cannot fail\")"),
    (".expect(\"\")", "expect without a reason"),
    ("todo!", "unfinished: todo!"),
    ("dbg!", "left behind: dbg!"),
];

/// Checks every Rust file.
pub fn check(tree: &Tree, found: &mut Findings) {
    for (path, text) in tree.texts().filter(|(path, _)| path.ends_with(".rs")) {
        let lines = text.lines().count();
        if lines > MOST_LINES {
            found.wrong(path, format!("{lines} lines, {MOST_LINES} at most: it wants to be two"));
        } else if lines > MANY_LINES {
            found.warnings.push(format!("{path}: {lines} lines, {MOST_LINES} at most"));
        }
        names(path, &code(text), found);
        unsafety(path, text, found);
    }
    for (folder, _) in tree.crates() {
        // What the testkit holds is test code wherever it stands.
        if folder == "crates/testkit" {
            continue;
        }
        for (path, code) in production(tree, folder) {
            for (i, line) in code.lines().enumerate() {
                let bad = REFUSED.iter().filter(|(what, _)| line.contains(what));
                bad.for_each(|(_, why)| found.wrong(format!("{path}:{}", i + 1), why));
            }
        }
    }
}

/// The code of a crate that is compiled without `cfg(test)`: path, and text without comments.
pub fn production(tree: &Tree, folder: &str) -> Vec<(String, String)> {
    let mut all = Vec::new();
    let mut tests = BTreeSet::new();
    for (path, text) in tree.rust(&format!("{folder}/src")) {
        let (code, modules) = without_tests(&code(text));
        tests.extend(modules.iter().map(|name| format!("{}/{name}", inner(path))));
        all.push((path.to_owned(), code));
    }
    let of_test = |path: &str| {
        let stem = path.trim_end_matches(".rs");
        tests.iter().any(|t| stem == t || stem.starts_with(&format!("{t}/")))
    };
    all.retain(|(path, _)| !of_test(path));
    all
}

/// The folder in which the modules of a file stand.
fn inner(path: &str) -> &str {
    let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
    match name {
        "lib.rs" | "main.rs" | "mod.rs" => folder,
        _ => path.trim_end_matches(".rs"),
    }
}

fn names(path: &str, code: &str, found: &mut Findings) {
    for name in EMPTY_NAMES {
        let named = path.split('/').any(|part| part.trim_end_matches(".rs") == *name);
        if named || has_word(code, &format!("mod {name}")) {
            found.wrong(path, format!("a module called {name} says nothing about what is inside"));
        }
    }
}

/// `unsafe` stands in the kernels alone, each time under a comment that says why it is sound.
fn unsafety(path: &str, text: &str, found: &mut Findings) {
    let lines: Vec<&str> = text.lines().collect();
    for (i, line) in code(text).lines().enumerate() {
        if !has_word(line, "unsafe") {
            continue;
        }
        let at = format!("{path}:{}", i + 1);
        if !path.starts_with("crates/kernels/") {
            found.wrong(at, "unsafe outside of crates/kernels");
        } else if opens_block(line) && !explained(&lines[..i]) && !lines[i].contains("// SAFETY:") {
            found.wrong(at, "unsafe without a SAFETY: comment above it");
        }
    }
}

/// A block or an implementation; a function says `# Safety` in its docs, which clippy checks.
fn opens_block(line: &str) -> bool {
    line.match_indices("unsafe").any(|(at, word)| {
        let after = line[at + word.len()..].trim_start();
        after.is_empty() || after.starts_with('{') || after.starts_with("impl")
    })
}

/// Whether the comment right above (attributes may stand between) holds `SAFETY:`.
fn explained(above: &[&str]) -> bool {
    let near = above.iter().rev().map(|line| line.trim());
    let mut near = near.skip_while(|line| line.starts_with("#["));
    near.by_ref().take_while(|line| line.starts_with("//")).any(|line| line.contains("SAFETY:"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(files: &[(&str, &str)]) -> Findings {
        let mut found = Findings::default();
        let manifests = [("crates/a/Cargo.toml", ""), ("crates/kernels/Cargo.toml", "")];
        check(&Tree::of(&[&manifests[..], files].concat()), &mut found);
        found
    }

    #[test]
    fn long_files_are_refused_and_nearly_long_ones_announced() {
        let of = |n: usize| "x\n".repeat(n);
        let found = findings(&[
            ("crates/a/src/long.rs", &of(401)),
            ("crates/a/src/near.rs", &of(400)),
            ("crates/a/src/fine.rs", &of(350)),
        ]);
        assert!(found.wrong.len() == 1 && found.wrong[0].contains("long.rs"), "{found:?}");
        assert!(found.warnings.len() == 1 && found.warnings[0].contains("near.rs"), "{found:?}");
    }

    #[test]
    fn unwrap_is_for_tests() {
        let found = findings(&[
            ("crates/a/src/lib.rs", "#[cfg(test)]\nmod deep;\nfn f() {\n    x.unwrap();\n}\n"),
            ("crates/a/src/deep.rs", "fn f() { x.unwrap() }"),
            ("crates/a/src/deep/er.rs", "fn f() { x.unwrap() }"),
            ("crates/a/src/b.rs", "// x.unwrap()\nfn f() { x.expect(\"is there\") }"),
            ("crates/a/src/c.rs", "fn f() { x.expect(\"\"); dbg!(y); todo!() }"),
            ("crates/a/src/d.rs", "fn f() {}\n#[cfg(test)]\nmod tests { fn g() { x.unwrap() } }"),
            ("crates/a/tests/e.rs", "fn f() { x.unwrap() }"),
        ]);
        let at: Vec<&str> =
            found.wrong.iter().map(|w| w.split(": ").next().unwrap_or_default()).collect();
        let c = "crates/a/src/c.rs:1";
        assert_eq!(at, [c, c, c, "crates/a/src/lib.rs:4"], "{found:?}");
    }

    #[test]
    fn unsafe_stands_in_kernels_and_is_explained() {
        let found = findings(&[
            ("crates/a/src/lib.rs", "fn f() { unsafe { g() } }"),
            (
                "crates/kernels/src/lib.rs",
                "fn f() {\n    // SAFETY: g is\n    // harmless.\n    unsafe { g() }\n    unsafe { g() }\n}\n\
                unsafe fn h() {}\n// not a word\nunsafe impl Send for X {}\n",
            ),
            ("crates/a/src/b.rs", "// unsafe\nlet x = \"unsafe {\";"),
        ]);
        let wrong = found.wrong.join("\n");
        assert!(wrong.contains("crates/a/src/lib.rs:1: unsafe outside"), "{wrong}");
        assert!(wrong.contains("crates/kernels/src/lib.rs:5: unsafe without"), "{wrong}");
        assert!(wrong.contains("crates/kernels/src/lib.rs:9: unsafe without"), "{wrong}");
        assert_eq!(found.wrong.len(), 3, "{wrong}");
    }

    #[test]
    fn names_must_say_something() {
        let found = findings(&[
            ("crates/a/src/utils.rs", ""),
            ("crates/a/tests/common/mod.rs", ""),
            ("crates/a/src/commons.rs", "mod helpers { }"),
        ]);
        assert_eq!(found.wrong.len(), 3, "{found:?}");
    }
}
