//! Nothing of the machine that something was written on: no private paths, no package registries.

use super::{Findings, tree::Tree};

/// Top folders under which people keep their own.
const FOLDERS: &[&str] = &["root", "home", "work", "Users"];

/// Hosts of package registries and their mirrors, in two parts so that this file does not hold them.
const HOSTS: &[(&str, &str)] = &[
    ("pypi", ".org"),
    ("pythonhosted", ".org"),
    ("crates", ".io"),
    ("npmjs", ".org"),
    ("artifact", "ory"),
    ("jf", "rog"),
    ("nexus", "."),
];

/// File, what it may hold, and why.
const ALLOWED: &[(&str, &str)] = &[
    // Cargo's own name for the public registry.
    ("Cargo.lock", concat!("crates", ".io")),
];

/// Checks every text file.
pub fn check(tree: &Tree, found: &mut Findings) {
    let folders = FOLDERS.iter().map(|name| format!("/{name}/"));
    let patterns: Vec<String> =
        folders.chain(HOSTS.iter().map(|(a, b)| format!("{a}{b}"))).collect();
    for (path, text) in tree.texts() {
        for (i, line) in text.lines().enumerate() {
            for pattern in patterns.iter().filter(|p| line.contains(p.as_str())) {
                let allowed = |(file, what): &(&str, &str)| *file == path && what == pattern;
                if !ALLOWED.iter().any(allowed) {
                    found.wrong(format!("{path}:{}", i + 1), format!("holds {pattern}"));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_registries_are_found_where_they_are_not_allowed() {
        let (path, host) =
            (format!("at /{}/me/x", "home"), format!("a\nhttps://{}.io/b", "crates"));
        let tree = Tree::of(&[
            ("a.md", &path),
            ("b.md", &host),
            ("Cargo.lock", &host),
            ("c.md", "/tmp/venv and homework/x"),
        ]);
        let mut found = Findings::default();
        check(&tree, &mut found);
        assert_eq!(found.wrong.len(), 2, "{found:?}");
        assert!(found.wrong[0].starts_with("a.md:1: ") && found.wrong[1].starts_with("b.md:2: "));
    }
}
