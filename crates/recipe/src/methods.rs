//! The table of everything a recipe or the command line can name, put together from the seams.

use luthier_core::Method;
use serde::Serialize;
use toml::{Table, Value};

/// One method.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct MethodRow {
    /// Number of the paper in `papers/`; `None` for what everybody uses.
    pub paper: Option<u32>,
    /// Its key in a recipe.
    pub name: &'static str,
    /// The seam it belongs to.
    pub seam: &'static str,
    /// One line for people.
    pub about: &'static str,
    /// A recipe that uses it.
    pub recipe: Option<&'static str>,
}

/// A path in the repository and the text that stands there.
macro_rules! recipes {
    ($($path:literal),* $(,)?) => {
        &[$(($path, include_str!(concat!("../../../", $path)))),*]
    };
}

/// The recipes that come with luthier: path in the repository and text.
pub const RECIPES: &[(&str, &str)] = recipes![
    "recipes/lora/sft.toml",
    "recipes/lora/dora.toml",
    "recipes/lora/eva.toml",
    "recipes/lora/loftq.toml",
    "recipes/lora/loraplus.toml",
    "recipes/lora/olora.toml",
    "recipes/lora/pissa.toml",
    "recipes/lora/qlora.toml",
    "recipes/lora/qlora_nf4.toml",
    "recipes/lora/rslora.toml",
    "recipes/adapter/align.toml",
    "recipes/adapter/bias.toml",
    "recipes/adapter/bottleneck.toml",
    "recipes/adapter/compacter.toml",
    "recipes/adapter/ia3.toml",
    "recipes/adapter/pool.toml",
    "recipes/adapter/prefix.toml",
    "recipes/adapter/prompt.toml",
    "recipes/adapter/ssf.toml",
    "recipes/adapter/tokens.toml",
    "recipes/full/sft.toml",
    "recipes/loss/copilot.toml",
    "recipes/loss/fait.toml",
    "recipes/loss/focal.toml",
    "recipes/loss/label_smoothing.toml",
    "recipes/loss/masked.toml",
    "recipes/loss/neftune.toml",
    "recipes/loss/penalty.toml",
    "recipes/loss/unlikelihood.toml",
    "recipes/full/freeze.toml",
    "recipes/full/green.toml",
    "recipes/full/half.toml",
    "recipes/full/llrd.toml",
    "recipes/full/norms.toml",
    "recipes/full/reinit.toml",
    "recipes/full/response.toml",
    "recipes/distil/kl.toml",
    "recipes/distil/gkd.toml",
    "recipes/distil/first.toml",
    "recipes/decode/cfg.toml",
    "recipes/decode/contrastive.toml",
    "recipes/decode/copilot.toml",
    "recipes/decode/emulate.toml",
    "recipes/decode/mixture.toml",
    "recipes/decode/ngram.toml",
    "recipes/decode/proxy.toml",
    "recipes/decode/rules.toml",
    "recipes/decode/scaled.toml",
    "recipes/sparse/lift.toml",
    "recipes/sparse/lottery.toml",
    "recipes/sparse/random.toml",
    "recipes/sparse/sara.toml",
    "recipes/steps/dpo.toml",
    "recipes/steps/advantage.toml",
    "recipes/steps/signed.toml",
    "recipes/correct/lemma.toml",
    "recipes/translate/stage1.toml",
    "recipes/translate/stage2.toml",
    "recipes/translate/stage2_full.toml",
    "recipes/tasks/tasks.toml",
    "recipes/tasks/coba.toml",
    "recipes/tasks/famo.toml",
    "recipes/tasks/rationale.toml",
    "recipes/tasks/tools.toml",
    "recipes/preference/bco.toml",
    "recipes/preference/deconfound.toml",
    "recipes/preference/dpo.toml",
    "recipes/preference/kto.toml",
    "recipes/preference/orpo.toml",
    "recipes/preference/rwr.toml",
    "recipes/preference/simpo.toml",
    "recipes/reward/classify.toml",
    "recipes/reward/regress.toml",
    "recipes/reward/reward.toml",
    "recipes/quickstart/quickstart.toml",
];

/// The merges that come with luthier, which are no training recipes: path in the repository and text.
pub const MERGES: &[(&str, &str)] = recipes![
    "recipes/merge/breadcrumbs.yaml",
    "recipes/merge/fisher.yaml",
    "recipes/merge/graft.yaml",
    "recipes/merge/greedy_soup.yaml",
    "recipes/merge/learned_soup.yaml",
    "recipes/merge/lines.yaml",
    "recipes/merge/regmean.yaml",
    "recipes/merge/soup.yaml",
    "recipes/merge/transfer.yaml",
    "recipes/merge/vanilla.yaml",
    "recipes/merge/wise_ft.yaml",
];

/// Whether a merge's file has this method, or this table beside one (`search.greedy`).
fn merge_method(text: &str, name: &str) -> bool {
    let Ok(file) = luthier_weights::config::read_yaml(text, "merge") else { return false };
    let named = file["merge_method"].as_str() == Some(name);
    named || file.pointer(&format!("/{}", name.replace('.', "/"))).is_some()
}

/// Where a method of the seam `weights` is named: as `merge_method`, or as a table beside it.
pub fn merge_key(name: &str) -> String {
    match luthier_weights::Spec::find(name) {
        Some(_) => format!("merge_method: {name}"),
        None => match name.split_once('.') {
            Some((table, key)) => format!("{table}: {{{key}: …}}, beside merge_method"),
            None => format!("{name}: {{…}}, beside merge_method"),
        },
    }
}

/// Every method of every seam.
pub fn all() -> Vec<MethodRow> {
    let seams = [
        ("data", luthier_data::METHODS),
        ("params", luthier_params::METHODS),
        ("loss", luthier_loss::METHODS),
        ("update", luthier_update::METHODS),
        ("decode", luthier_decode::METHODS),
        ("weights", luthier_weights::METHODS),
        ("probe", luthier_probe::METHODS),
    ];
    let row = |seam: &'static str, m: &Method| MethodRow {
        paper: m.paper,
        name: m.name,
        seam,
        about: m.about,
        recipe: None,
    };
    let mut rows: Vec<MethodRow> =
        seams.iter().flat_map(|(seam, methods)| methods.iter().map(|m| row(seam, m))).collect();
    for row in &mut rows {
        let uses = |text: &str| {
            text.parse::<Table>().is_ok_and(|recipe| uses(&recipe, row.seam, row.name))
        };
        if row.seam == "weights" {
            let own = format!("/{}.yaml", row.name);
            let using = MERGES.iter().filter(|(_, text)| merge_method(text, row.name));
            row.recipe = using.min_by_key(|(path, _)| !path.ends_with(&own)).map(|(path, _)| *path);
            continue;
        }
        // Several may: that of its own name first.
        let own = format!("/{}.toml", row.name.rsplit('.').next().unwrap_or(row.name));
        let using = RECIPES.iter().filter(|(_, text)| uses(text));
        row.recipe = using.min_by_key(|(path, _)| !path.ends_with(&own)).map(|(path, _)| *path);
    }
    rows
}

/// Settings of `[train]` that belong to a seam: rows and what is embedded are changed before any loss.
const OF_TRAIN: [&str; 5] =
    ["corrupt", "neftune_noise_alpha", "copilot", "balance.coba", "balance.famo"];

/// Where a recipe names a method of a seam.
pub fn place(seam: &str, name: &str) -> Option<&'static str> {
    match seam {
        "loss" if OF_TRAIN.contains(&name) => Some("train"),
        "data" => Some("data.steps"),
        "params" => Some("train.params"),
        "loss" => Some("train.loss"),
        "update" => Some("train.update"),
        "probe" => Some("eval.metric"),
        "weights" => Some("merge_method"),
        "decode" => Some("decode"),
        _ => None,
    }
}

/// Whether `recipe` names the method `name` of `seam`.
fn uses(recipe: &Table, seam: &str, name: &str) -> bool {
    let Some(path) = place(seam, name) else { return false };
    let mut keys = path.split('.');
    let first = keys.next().and_then(|key| recipe.get(key));
    let Some(found) = keys.try_fold(first, |at, key| Some(at?.get(key))).flatten() else {
        return false;
    };
    if seam == "decode" {
        // One table for each axis, and what chooses among answers beside them.
        let tables = ["combine", "constrain", "sampler"].into_iter().filter_map(|t| found.get(t));
        let sources = found.get("sources").and_then(Value::as_table).into_iter().flatten();
        let all = tables.chain(sources.map(|(_, source)| source)).chain([found]);
        return all.into_iter().any(|table| {
            let at =
                |key: &String| key == name || key.strip_prefix(name).is_some_and(|k| k == "_tau");
            table.as_table().is_some_and(|table| table.keys().any(at))
        });
    }
    match found {
        Value::Array(steps) => steps.iter().any(|step| step.get(name).is_some()),
        Value::String(metric) => metric == name,
        table => {
            let (path, last) = name.rsplit_once('.').map_or((None, name), |(p, l)| (Some(p), l));
            let mut path = path.into_iter().flat_map(|path| path.split('.'));
            // A choice within a method is a key of its own, or the value of one: init = "pissa".
            path.try_fold(table, |at, key| at.get(key)).is_some_and(|at| {
                let named = at.as_table().into_iter().flat_map(|t| t.values());
                at.get(last).is_some() || named.into_iter().any(|v| v.as_str() == Some(last))
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_seam_has_methods_and_no_name_stands_twice_in_one() {
        let all = all();
        let mut keys: Vec<_> = all.iter().map(|m| (m.seam, m.name)).collect();
        let n = keys.len();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), n);
        for seam in ["data", "params", "loss", "update", "decode", "probe"] {
            assert!(all.iter().any(|m| m.seam == seam), "{seam}");
        }
        assert!(all.iter().any(|m| (m.seam, m.name) == ("params", "lora") && m.paper.is_none()));
    }

    #[test]
    fn every_bundled_recipe_is_a_recipe_and_names_a_method() {
        for (path, text) in RECIPES {
            let recipe = crate::Recipe::parse(text, path).unwrap_or_else(|e| panic!("{e}"));
            recipe.train.iter().for_each(|t| t.check().unwrap_or_else(|e| panic!("{path}: {e}")));
            let table: Table = text.parse().unwrap();
            let named = all().iter().any(|m| uses(&table, m.seam, m.name));
            assert!(named, "{path} names no method");
        }
    }

    #[test]
    fn every_bundled_merge_can_be_read_and_is_found() {
        for (path, text) in MERGES {
            crate::merge::check(text, path).unwrap_or_else(|e| panic!("{e}"));
        }
        let recipe = |name: &str| {
            let row = all().into_iter().find(|m| (m.seam, m.name) == ("weights", name)).unwrap();
            row.recipe
        };
        for (name, path) in [
            ("graft", "recipes/merge/graft.yaml"),
            ("lines", "recipes/merge/lines.yaml"),
            ("search.greedy", "recipes/merge/greedy_soup.yaml"),
            ("search.learned", "recipes/merge/learned_soup.yaml"),
            ("task_arithmetic", "recipes/merge/vanilla.yaml"),
        ] {
            assert_eq!(recipe(name), Some(path));
        }
        assert_eq!(recipe("karcher"), None);
    }

    #[test]
    fn a_recipes_methods_are_found_at_their_place() {
        let recipe: Table = "[data]\nsteps = [{dedup = {}}]\n[train.params.lora]\nr = 4\n\
            [train.update.adamw]\n[train.update.schedule.cosine]\n[eval]\nmetric = \"nll\"\n"
            .parse()
            .unwrap();
        for (seam, name) in [
            ("data", "dedup"),
            ("params", "lora"),
            ("update", "adamw"),
            ("update", "schedule.cosine"),
            ("probe", "nll"),
        ] {
            assert!(uses(&recipe, seam, name), "{seam} {name}");
        }
        for (seam, name) in
            [("data", "limit"), ("params", "full"), ("loss", "nll"), ("decode", "top_k")]
        {
            assert!(!uses(&recipe, seam, name), "{seam} {name}");
        }
    }
}
