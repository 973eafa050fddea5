//! Dependencies: arrows point down, everything that is listed is used.

use std::collections::BTreeSet;

use toml::{Table, Value};

use super::{
    Findings,
    rust::{code, has_word},
    sources::production,
    tree::Tree,
};

/// What each crate may depend on, lowest first. The eight seams never see each other; `data` and
/// `weights` do without a model.
const MAY: &[(&str, &[&str])] = &[
    ("core", &[]),
    ("kernels", &["core"]),
    ("model", &["core", "kernels"]),
    ("testkit", &["core", "kernels", "model"]),
    ("data", &["core"]),
    ("weights", &["core"]),
    ("rollout", &["core", "kernels", "model"]),
    ("probe", &["core", "kernels", "model"]),
    ("params", &["core", "kernels", "model"]),
    ("loss", &["core", "kernels", "model"]),
    ("update", &["core", "kernels", "model"]),
    ("decode", &["core", "kernels", "model"]),
    ("train", &["core", "kernels", "model", "params", "loss", "update", "decode"]),
    ("serve", &["core", "kernels", "model", "params", "loss", "update", "decode"]),
    ("recipe", BELOW_RECIPE),
    ("reproduce", BELOW_REPRODUCE),
    ("cli", BELOW_CLI),
    ("xtask", &["core"]),
];

const BELOW_RECIPE: &[&str] = BELOW_CLI.split_at(BELOW_CLI.len() - 2).0;

const BELOW_REPRODUCE: &[&str] = BELOW_CLI.split_at(BELOW_CLI.len() - 1).0;

const BELOW_CLI: &[&str] = &[
    "core",
    "kernels",
    "model",
    "data",
    "weights",
    "rollout",
    "probe",
    "params",
    "loss",
    "update",
    "decode",
    "train",
    "serve",
    "recipe",
    "reproduce",
];

/// Left in a manifest while many people build at once; must be gone when they are done.
const TEMPORARY: &str = "TEMP-UNIFY";

/// Checks the manifests.
pub fn check(tree: &Tree, found: &mut Findings) {
    let mut used = BTreeSet::new();
    for (folder, text) in tree.crates() {
        let at = format!("{folder}/Cargo.toml");
        let manifest: Table = match text.parse() {
            Ok(manifest) => manifest,
            Err(e) => {
                found.wrong(at, e);
                continue;
            }
        };
        for (kind, name) in dependencies(&manifest) {
            used.insert(name.clone());
            edge(&at, folder, kind, &name, found);
            if !is_used(tree, folder, kind, &name) {
                let where_ = if kind == "dependencies" { "outside of tests" } else { "anywhere" };
                found.wrong(&at, format!("{name} is in [{kind}] but not used {where_}"));
            }
        }
    }
    for (path, text) in tree.texts().filter(|(path, _)| path.ends_with("Cargo.toml")) {
        let marked = text.lines().enumerate().filter(|(_, line)| line.contains(TEMPORARY));
        marked.for_each(|(i, _)| {
            found.wrong(format!("{path}:{}", i + 1), "a marker was left behind")
        });
    }
    unused_in_workspace(tree, &used, found);
}

/// Kind and name of every dependency, those for one platform included.
fn dependencies(manifest: &Table) -> Vec<(&'static str, String)> {
    let kinds = ["dependencies", "dev-dependencies", "build-dependencies"];
    let platforms = manifest.get("target").and_then(Value::as_table).into_iter().flatten();
    let tables: Vec<&Table> =
        std::iter::once(manifest).chain(platforms.filter_map(|(_, t)| t.as_table())).collect();
    let mut all = Vec::new();
    for kind in kinds {
        for table in &tables {
            let listed = table.get(kind).and_then(Value::as_table).into_iter().flatten();
            all.extend(listed.map(|(name, _)| (kind, name.clone())));
        }
    }
    all
}

/// `crates/data` and `luthier-data` are both `data`.
fn short(name: &str) -> Option<&str> {
    name.strip_prefix("crates/").or(name.strip_prefix("luthier-"))
}

fn edge(at: &str, folder: &str, kind: &str, name: &str, found: &mut Findings) {
    let Some(to) = short(name) else { return };
    let from = short(folder).unwrap_or(folder);
    let Some((_, may)) = MAY.iter().find(|(known, _)| *known == from) else {
        found.wrong(at, format!("{from} has no place in the layout (xtask/src/tidy/arrows.rs)"));
        return;
    };
    let test_only = to == "testkit" && kind == "dev-dependencies" && from != "testkit";
    if may.contains(&to) || test_only {
        return;
    }
    let what = if to == "testkit" {
        format!("{from} → testkit is for [dev-dependencies] only")
    } else {
        let may = if may.is_empty() { "nothing".to_owned() } else { may.join(", ") };
        format!("{from} → {to} is no edge of the layout; {from} may see {may}")
    };
    found.wrong(at, what);
}

fn is_used(tree: &Tree, folder: &str, kind: &str, name: &str) -> bool {
    let name = name.replace('-', "_");
    if kind == "dependencies" {
        return production(tree, folder).iter().any(|(_, code)| has_word(code, &name));
    }
    tree.rust(folder).any(|(_, text)| has_word(&code(text), &name))
}

/// A line of `[workspace.dependencies]` that no crate asks for.
fn unused_in_workspace(tree: &Tree, used: &BTreeSet<String>, found: &mut Findings) {
    let manifest = tree.text("Cargo.toml").and_then(|text| text.parse::<Table>().ok());
    let Some(manifest) = manifest else { return };
    let listed = manifest.get("workspace").and_then(|w| w.get("dependencies"));
    for name in listed.and_then(Value::as_table).into_iter().flatten().map(|(name, _)| name) {
        // Our own crates may be listed for the next one to come.
        if short(name).is_none() && !used.contains(name) {
            found.wrong("Cargo.toml", format!("no crate depends on {name}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(files: &[(&str, &str)]) -> Vec<String> {
        let mut found = Findings::default();
        check(&Tree::of(files), &mut found);
        found.wrong
    }

    #[test]
    fn an_arrow_between_seams_or_upwards_is_named() {
        let loss = "[dependencies]\nluthier-core.workspace = true\nluthier-data.workspace = true\n";
        let (cli, recipe) =
            ("[dependencies]\nluthier-recipe = \"1\"\n", "[dependencies]\nluthier-train = \"1\"\n");
        let model = "[dependencies]\nluthier-train = { path = \"../train\" }\n";
        let wrong = findings(&[
            ("crates/cli/Cargo.toml", cli),
            ("crates/cli/src/main.rs", "use luthier_recipe::A;"),
            ("crates/recipe/Cargo.toml", recipe),
            ("crates/recipe/src/lib.rs", "use luthier_train::A;"),
            ("crates/loss/Cargo.toml", loss),
            ("crates/loss/src/lib.rs", "use luthier_core::A; use luthier_data::B;"),
            ("crates/model/Cargo.toml", model),
            ("crates/model/src/lib.rs", "use luthier_train::A;"),
        ]);
        assert_eq!(wrong.len(), 2, "{wrong:?}");
        assert!(
            wrong[0].starts_with("crates/loss/Cargo.toml: loss → data is no edge"),
            "{wrong:?}"
        );
        assert!(wrong[1].starts_with("crates/model/Cargo.toml: model → train is no edge"));
    }

    #[test]
    fn the_testkit_is_for_tests() {
        let normal = "[dependencies]\nluthier-testkit.workspace = true\n";
        let dev = "[dev-dependencies]\nluthier-testkit.workspace = true\n";
        let uses = "use luthier_testkit::A;";
        let wrong =
            findings(&[("crates/loss/Cargo.toml", normal), ("crates/loss/src/lib.rs", uses)]);
        assert!(wrong.len() == 1 && wrong[0].contains("[dev-dependencies] only"), "{wrong:?}");
        let right = findings(&[("crates/loss/Cargo.toml", dev), ("crates/loss/tests/a.rs", uses)]);
        assert!(right.is_empty(), "{right:?}");
    }

    #[test]
    fn a_dependency_without_use_and_a_marker_are_named() {
        let manifest = "[dependencies]\nserde.workspace = true\n# TEMP-UNIFY\nhalf.workspace = true\n\
            toml.workspace = true\n[target.'cfg(unix)'.dependencies]\nlibc = \"0.2\"\n";
        let wrong = findings(&[
            ("Cargo.toml", "[workspace.dependencies]\nserde = \"1\"\nzip = \"9\"\n"),
            ("crates/core/Cargo.toml", manifest),
            (
                "crates/core/src/lib.rs",
                "// half::f16\nuse serde::A;\n#[cfg(test)]\nmod tests { use toml::B; }\n",
            ),
        ]);
        let all = wrong.join("\n");
        for part in ["half is in", "toml is in", "libc is in", "Cargo.toml:3: a marker", "on zip"] {
            assert!(all.contains(part), "{part} in {all}");
        }
        assert_eq!(wrong.len(), 5, "{all}");
    }

    #[test]
    fn a_crate_without_a_place_is_named() {
        let manifest = "[dependencies]\nluthier-core.workspace = true\n";
        let wrong = findings(&[
            ("crates/extras/Cargo.toml", manifest),
            ("crates/extras/src/lib.rs", "use luthier_core::A;"),
        ]);
        assert!(wrong.len() == 1 && wrong[0].contains("extras has no place"), "{wrong:?}");
    }
}
