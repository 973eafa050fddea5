//! The rules of this repository that neither the compiler nor clippy knows.
//!
//! Every check takes a [`Tree`] of files and adds to [`Findings`], so that its tests are small trees
//! made by hand.

mod arrows;
mod leaks;
mod pages;
mod rust;
mod sources;
mod tree;

use std::path::Path;

use tree::Tree;

/// What is wrong, and what soon will be.
#[derive(Debug, Default)]
struct Findings {
    wrong: Vec<String>,
    warnings: Vec<String>,
}

impl Findings {
    /// `what` is wrong at `at` (a path, or `path:line`).
    fn wrong(&mut self, at: impl std::fmt::Display, what: impl std::fmt::Display) {
        self.wrong.push(format!("{at}: {what}"));
    }
}

/// Checks the repository under `root`.
pub fn check(root: &Path) -> Result<String, String> {
    let tree = Tree::tracked(root)?;
    let mut found = Findings::default();
    arrows::check(&tree, &mut found);
    sources::check(&tree, &mut found);
    leaks::check(&tree, &mut found);
    pages::check(&tree, &mut found);
    for warning in &found.warnings {
        eprintln!("warning: {warning}");
    }
    match found.wrong.len() {
        0 => Ok(format!("tidy: {} files in order", tree.len())),
        n => Err(format!("{}\ntidy: {n} findings", found.wrong.join("\n"))),
    }
}
