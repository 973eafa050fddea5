//! The text files of the repository, by path.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

/// Files by their path from the root, with forward slashes; those that are not text are left out
/// of reading but known by name.
#[derive(Debug, Default)]
pub struct Tree {
    files: BTreeMap<String, Option<String>>,
}

impl Tree {
    /// What git tracks, and what it would track with the next `git add`.
    pub fn tracked(root: &Path) -> Result<Tree, String> {
        let listed = Command::new("git")
            .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
            .current_dir(root)
            .output()
            .map_err(|e| format!("git ls-files: {e}"))?;
        if !listed.status.success() {
            return Err(format!("git ls-files: {}", String::from_utf8_lossy(&listed.stderr)));
        }
        let mut tree = Tree::default();
        for name in String::from_utf8_lossy(&listed.stdout).split('\0').filter(|n| !n.is_empty()) {
            let path = root.join(name);
            // Deleted, but not yet in the index.
            if !path.is_file() {
                continue;
            }
            let bytes = std::fs::read(&path).map_err(|e| format!("{name}: {e}"))?;
            let text = Some(bytes).filter(|b| !b.contains(&0)).map(String::from_utf8);
            tree.files.insert(name.to_owned(), text.and_then(Result::ok));
        }
        Ok(tree)
    }

    /// A tree for a test.
    #[cfg(test)]
    pub fn of(files: &[(&str, &str)]) -> Tree {
        let own = |(path, text): &(&str, &str)| ((*path).to_owned(), Some((*text).to_owned()));
        Tree { files: files.iter().map(own).collect() }
    }

    /// Number of files.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Whether there is a file or a folder at `path`.
    pub fn holds(&self, path: &str) -> bool {
        let folder = format!("{}/", path.trim_end_matches('/'));
        self.files.contains_key(path) || self.files.keys().any(|f| f.starts_with(&folder))
    }

    /// The text at `path`.
    pub fn text(&self, path: &str) -> Option<&str> {
        self.files.get(path)?.as_deref()
    }

    /// Paths and texts, in the order of the paths.
    pub fn texts(&self) -> impl Iterator<Item = (&str, &str)> {
        self.files.iter().filter_map(|(path, text)| Some((path.as_str(), text.as_deref()?)))
    }

    /// The crates of the workspace: folder and manifest text.
    pub fn crates(&self) -> impl Iterator<Item = (&str, &str)> {
        self.texts().filter_map(|(path, text)| {
            let folder = path.strip_suffix("/Cargo.toml")?;
            (folder == "xtask" || folder.starts_with("crates/")).then_some((folder, text))
        })
    }

    /// The Rust files under `folder`.
    pub fn rust(&self, folder: &str) -> impl Iterator<Item = (&str, &str)> {
        let folder = format!("{folder}/");
        self.texts().filter(move |(path, _)| path.starts_with(&folder) && path.ends_with(".rs"))
    }
}
