//! Which modules an adapter is for, in the ways PEFT can say it.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

fn last(module: &str) -> &str {
    module.rsplit('.').next().unwrap_or(module)
}

/// `target_modules` for exactly the modules `bound` out of `all`: a list of last names when those
/// name nothing else, otherwise one regular expression over whole paths.
pub(super) fn target_modules(bound: &[&str], all: &[&str]) -> Value {
    let chosen: BTreeSet<&str> = bound.iter().copied().collect();
    let names: BTreeSet<&str> = bound.iter().map(|m| last(m)).collect();
    if all.iter().all(|m| chosen.contains(m) || !names.contains(last(m))) {
        return json!(names);
    }
    regex(bound)
}

/// The shortest endings of paths, last names or whole, that name `bound` out of `all`. PEFT reads
/// `modules_to_save` and `feedforward_modules` so, dot or no dot before the ending.
pub(super) fn endings<'m>(bound: &[&'m str], all: &[&str]) -> Vec<&'m str> {
    let meant = |end: &str| all.iter().all(|m| bound.contains(m) || !m.ends_with(end));
    let shortest = |m: &&'m str| if meant(last(m)) { last(m) } else { *m };
    bound.iter().map(shortest).collect::<BTreeSet<_>>().into_iter().collect()
}

/// A regular expression for exactly the modules `bound`.
pub(super) fn regex(bound: &[&str]) -> Value {
    // Modules of the same layers share an alternative, layers of the same modules too.
    let mut layers_of: BTreeMap<(String, String), BTreeSet<usize>> = BTreeMap::new();
    let mut alternatives = Vec::new();
    let chosen: BTreeSet<&str> = bound.iter().copied().collect();
    for module in &chosen {
        match split_layer(module) {
            Some((before, layer, after)) => {
                layers_of.entry((before, after)).or_default().insert(layer);
            }
            None => alternatives.push(escape(module)),
        }
    }
    let mut modules_of: BTreeMap<(String, BTreeSet<usize>), Vec<String>> = BTreeMap::new();
    for ((before, after), layers) in layers_of {
        modules_of.entry((before, layers)).or_default().push(escape(&after));
    }
    for ((before, layers), modules) in modules_of {
        let layers: Vec<String> = layers.iter().map(usize::to_string).collect();
        alternatives.push(format!("{}{}\\.{}", escape(&before), any(&layers), any(&modules)));
    }
    Value::String(alternatives.join("|"))
}

/// `model.layers.3.self_attn.q_proj` as (`model.layers.`, 3, `self_attn.q_proj`).
fn split_layer(module: &str) -> Option<(String, usize, String)> {
    let parts: Vec<&str> = module.split('.').collect();
    let i = parts.iter().position(|p| p.bytes().all(|b| b.is_ascii_digit()) && !p.is_empty())?;
    let layer = parts[i].parse().ok()?;
    (i > 0 && i + 1 < parts.len())
        .then(|| (parts[..i].join(".") + ".", layer, parts[i + 1..].join(".")))
}

fn any(alternatives: &[String]) -> String {
    match alternatives {
        [one] => one.clone(),
        several => format!("(?:{})", several.join("|")),
    }
}

fn escape(text: &str) -> String {
    text.replace('.', "\\.")
}

/// `rank_pattern` or `alpha_pattern`: the values that differ from `default`, by last name where all
/// bound modules of that name agree, otherwise by whole path.
pub(super) fn pattern(values: &[(&str, Value)], default: &Value) -> Value {
    let mut by_name: BTreeMap<&str, Vec<(&str, &Value)>> = BTreeMap::new();
    for (module, value) in values {
        by_name.entry(last(module)).or_default().push((module, value));
    }
    let mut pattern = Map::new();
    for (name, modules) in by_name {
        let (_, first) = modules[0];
        if modules.iter().all(|(_, value)| *value == first) {
            if first != default {
                pattern.insert(name.into(), first.clone());
            }
            continue;
        }
        for (module, value) in modules.into_iter().filter(|(_, value)| *value != default) {
            pattern.insert(module.into(), value.clone());
        }
    }
    Value::Object(pattern)
}

#[cfg(test)]
mod tests {
    use regex::Regex;

    use super::*;

    fn all() -> Vec<String> {
        let mut all = vec!["model.embed_tokens".to_string(), "lm_head".to_string()];
        for l in 0..12 {
            for m in ["self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj", "input_layernorm"] {
                all.push(format!("model.layers.{l}.{m}"));
            }
        }
        all
    }

    #[test]
    fn whole_kinds_are_a_list_of_names() {
        let all = all();
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        let bound: Vec<&str> =
            all.iter().copied().filter(|m| m.ends_with("proj") || *m == "lm_head").collect();
        assert_eq!(target_modules(&bound, &all), json!(["lm_head", "q_proj", "up_proj", "v_proj"]));
    }

    #[test]
    fn anything_else_is_a_regex_that_matches_exactly() {
        let all = all();
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        // A different third of the modules each time, the head and the embedding among them.
        for k in 0..7 {
            let bound: Vec<&str> = (0..all.len()).filter(|i| i % 7 >= k).map(|i| all[i]).collect();
            let Value::String(text) = target_modules(&bound, &all) else {
                assert_eq!(k, 0);
                continue;
            };
            let regex = Regex::new(&format!("^(?:{text})$")).unwrap();
            for module in &all {
                assert_eq!(regex.is_match(module), bound.contains(module), "{text} {module}");
            }
        }
        let first: Vec<&str> = all.iter().copied().filter(|m| m.contains(".1.")).collect();
        let text = target_modules(&first[..2], &all);
        assert_eq!(text, json!("model\\.layers\\.1\\.(?:self_attn\\.q_proj|self_attn\\.v_proj)"));
    }

    #[test]
    fn endings_say_exactly_what_is_meant() {
        let all = ["model.embed_tokens", "a.norm", "a.input_norm", "b.norm", "lm_head"];
        let of = |bound: &[&'static str]| endings(bound, &all);
        assert_eq!(of(&["model.embed_tokens", "lm_head"]), ["embed_tokens", "lm_head"]);
        assert_eq!(of(&["a.norm", "b.norm", "lm_head"]), ["a.norm", "b.norm", "lm_head"]);
        assert_eq!(of(&["a.norm", "b.norm", "a.input_norm"]), ["input_norm", "norm"]);
        assert_eq!(of(&["b.norm", "a.input_norm"]), ["b.norm", "input_norm"]);
        assert_eq!(of(&[]), [""; 0]);
    }

    #[test]
    fn patterns_name_what_differs() {
        let of = |m, v| (m, json!(v));
        let values =
            [of("l.0.q_proj", 4), of("l.1.q_proj", 4), of("l.0.v_proj", 8), of("l.1.v_proj", 16)];
        assert_eq!(pattern(&values, &json!(8)), json!({"q_proj": 4, "l.1.v_proj": 16}));
    }
}
