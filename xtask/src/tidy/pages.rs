//! Pages: every seam has its shape and its page, links lead somewhere, commands exist.

use super::{
    Findings,
    rust::{braces, code},
    tree::Tree,
};
use crate::methods::SEAMS;

/// The command that runs all tests: README promises it, `.ci/run` keeps the promise.
const TESTS: &str = "cargo test --release --workspace";

/// Checks seams and pages.
pub fn check(tree: &Tree, found: &mut Findings) {
    for (seam, _) in SEAMS {
        shape(tree, seam, found);
    }
    for at in ["README.md", ".ci/run"] {
        if !tree.text(at).is_some_and(|text| text.contains(TESTS)) {
            found.wrong(at, format!("does not hold the command `{TESTS}`"));
        }
    }
    let verbs = verbs(tree.text("crates/cli/src/main.rs").unwrap_or_default());
    for (path, text) in tree.texts().filter(|(path, _)| path.ends_with(".md")) {
        let mut fenced = false;
        for (i, line) in text.lines().enumerate() {
            let at = format!("{path}:{}", i + 1);
            if line.trim_start().starts_with("```") {
                fenced = !fenced;
            } else if fenced {
                if let Some(verb) = verb(line).filter(|v| !verbs.iter().any(|known| known == v)) {
                    found.wrong(at, format!("luthier has no verb {verb}"));
                }
            } else {
                for target in links(line).filter(|t| !leads_somewhere(tree, path, t)) {
                    found.wrong(&at, format!("the link to {target} leads nowhere"));
                }
            }
        }
    }
}

/// `lib.rs` with its page and its table of methods, and the laws that run over the table.
fn shape(tree: &Tree, seam: &str, found: &mut Findings) {
    let (folder, page) = (format!("crates/{seam}"), format!("docs/seams/{seam}.md"));
    if !tree.holds(&folder) {
        if tree.holds(&page) {
            found.wrong(page, format!("there is no crate {seam}"));
        }
        return;
    }
    let lib = format!("{folder}/src/lib.rs");
    let text = tree.text(&lib).unwrap_or_default();
    if !text.contains(&format!("include_str!(\"../../../{page}\")")) {
        found.wrong(&lib, format!("does not include {page} as its documentation"));
    }
    if !text.contains("pub const METHODS: &[Method]") {
        found.wrong(&lib, "has no table `pub const METHODS: &[Method]`");
    }
    let laws = [format!("{folder}/tests/laws.rs"), format!("{folder}/tests/laws/main.rs")];
    for (at, there) in [
        (page.as_str(), tree.holds(&page)),
        (laws[0].as_str(), laws.iter().any(|at| tree.holds(at))),
    ] {
        if !there {
            found.wrong(at, "is missing");
        }
    }
}

/// The verbs that `main.rs` knows, as they are typed.
fn verbs(main: &str) -> Vec<String> {
    let code = code(main);
    let Some(open) = code.find("enum Verb {").map(|at| at + "enum Verb ".len()) else {
        return Vec::new();
    };
    let body = &code[braces(&code, open)];
    let variants = body.lines().filter_map(|line| {
        let name = line.strip_prefix("    ").filter(|l| l.starts_with(char::is_uppercase))?;
        name.split(|c: char| !c.is_alphanumeric()).next()
    });
    variants.map(str::to_lowercase).chain(["help".to_owned()]).collect()
}

/// The verb of a command line in a page, if it is one of luthier's.
fn verb(line: &str) -> Option<&str> {
    let line = line.trim_start().trim_start_matches("$ ");
    let rest = line.strip_prefix("luthier ").or(line.strip_prefix("cargo run --release -- "))?;
    let word = rest.split_whitespace().next()?;
    word.chars().all(|c| c.is_ascii_lowercase()).then_some(word)
}

/// Targets of the links in a line.
fn links(line: &str) -> impl Iterator<Item = &str> {
    line.split("](").skip(1).filter_map(|rest| rest.split_once(')').map(|(target, _)| target))
}

/// Addresses are for browsers to check; a seam's page may name Rust items, which rustdoc checks.
fn leads_somewhere(tree: &Tree, page: &str, target: &str) -> bool {
    let (target, _) = target.split_once('#').unwrap_or((target, ""));
    let item = page.starts_with("docs/seams/") && !target.contains(['.', '/']);
    if target.is_empty() || target.contains(':') || item {
        return true;
    }
    let mut at: Vec<&str> = page.split('/').collect();
    at.pop();
    for part in target.trim_end_matches('/').split('/') {
        match part {
            "." => {}
            ".." => {
                at.pop();
            }
            part => at.push(part),
        }
    }
    tree.holds(&at.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIB: &str = "#![doc = include_str!(\"../../../docs/seams/loss.md\")]\n\
        pub const METHODS: &[Method] = &[];\n";

    fn findings(files: &[(&str, &str)]) -> String {
        let mut found = Findings::default();
        let usual = [("README.md", TESTS), (".ci/run", TESTS)];
        check(&Tree::of(&[&usual[..], files].concat()), &mut found);
        found.wrong.join("\n")
    }

    #[test]
    fn a_seam_needs_page_table_and_laws() {
        let whole = [
            ("crates/loss/src/lib.rs", LIB),
            ("crates/loss/tests/laws.rs", ""),
            ("docs/seams/loss.md", ""),
        ];
        assert_eq!(findings(&whole), "");
        let bare = findings(&[("crates/loss/src/lib.rs", "")]);
        for part in
            ["include docs/seams/loss.md", "METHODS", "laws.rs: is missing", "loss.md: is missing"]
        {
            assert!(bare.contains(part), "{part} in {bare}");
        }
        assert!(findings(&[("docs/seams/loss.md", "")]).contains("there is no crate loss"));
    }

    #[test]
    fn links_and_commands_must_exist() {
        let main =
            "enum Verb {\n    /// Run\n    Run(Args),\n    List {\n        Shell: X,\n    },\n}\n";
        let page = "[a](b.md#top) [c](../crates/cli/) [d](missing.md) [e](https://x.y) [f](a::B)\n\
            ```sh\nluthier run x\nluthier list\ncargo run --release -- runn\nluthier --help\n```\n";
        let wrong = findings(&[
            ("crates/cli/src/main.rs", main),
            ("docs/a.md", page),
            ("docs/b.md", "luthier nothing outside a fence"),
        ]);
        assert_eq!(
            wrong,
            "docs/a.md:1: the link to missing.md leads nowhere\ndocs/a.md:5: luthier has no verb runn"
        );
    }

    #[test]
    fn the_promised_test_command_must_be_the_one_that_runs() {
        let mut found = Findings::default();
        check(&Tree::of(&[("README.md", TESTS), (".ci/run", "cargo test")]), &mut found);
        assert!(found.wrong.len() == 1 && found.wrong[0].starts_with(".ci/run"), "{found:?}");
    }
}
