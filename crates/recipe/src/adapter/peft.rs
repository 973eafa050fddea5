//! What PEFT makes of a LoRA configuration: which modules are meant, and with which scale.

use luthier_params::peft::Patterns;
use regex::Regex;
use serde_json::Value;

use super::folder::Folder;

/// The parts of a configuration that decide what the tensors mean.
pub(super) struct Settings {
    pub r: usize,
    pub alpha: f64,
    pub rslora: bool,
    pub dora: bool,
    pub lora_bias: bool,
    rank_pattern: Patterns<f64>,
    alpha_pattern: Patterns<f64>,
    target: Option<Named>,
    exclude: Option<Named>,
    layers: Option<Vec<usize>>,
    /// What is wrong with the configuration itself.
    pub wrong: Vec<String>,
    /// What could not be followed here.
    pub unread: Vec<String>,
}

/// Modules as PEFT names them.
enum Named {
    /// Whole paths or their ends.
    List(Vec<String>),
    /// One pattern for whole paths.
    Pattern(Regex),
    /// All linear maps but the head.
    AllLinear,
    /// A pattern that Rust does not know.
    Unknown,
}

impl Settings {
    /// Reads what PEFT would read, with its defaults.
    pub fn of(folder: &Folder) -> Self {
        let (mut wrong, mut unread) = (Vec::new(), Vec::new());
        let flag = |key: &str| folder.get(key).as_bool().unwrap_or(false);
        let mut number = |key: &str| match folder.get(key) {
            Value::Null => 8.0,
            value => value.as_f64().filter(|x| x.is_finite()).unwrap_or_else(|| {
                wrong.push(format!("{key} is {value}, expected a number"));
                8.0
            }),
        };
        let (r, alpha) = (number("r"), number("lora_alpha"));
        if r < 1.0 || r.fract() != 0.0 {
            wrong.push(format!("r is {r}, expected a rank above 0"));
        }
        let rank_pattern = pattern(folder, "rank_pattern", &mut wrong, &mut unread);
        let alpha_pattern = pattern(folder, "alpha_pattern", &mut wrong, &mut unread);
        let layers = match folder.get("layers_to_transform") {
            Value::Null => None,
            Value::Array(all) => {
                Some(all.iter().filter_map(|l| Some(l.as_u64()? as usize)).collect())
            }
            one => one.as_u64().map(|l| vec![l as usize]),
        };
        Settings {
            r: r.max(1.0) as usize,
            alpha,
            rslora: flag("use_rslora"),
            dora: flag("use_dora"),
            lora_bias: flag("lora_bias"),
            rank_pattern,
            alpha_pattern,
            target: Named::of(folder, "target_modules", &mut unread),
            exclude: Named::of(folder, "exclude_modules", &mut unread),
            layers,
            wrong,
            unread,
        }
    }

    /// The rank the configuration gives a module.
    pub fn rank(&self, module: &str) -> usize {
        self.rank_pattern.of(module).map_or(self.r, |r| r as usize)
    }

    /// The alpha the configuration gives a module.
    pub fn alpha(&self, module: &str) -> f64 {
        self.alpha_pattern.of(module).unwrap_or(self.alpha)
    }

    /// What a module's product is multiplied by.
    pub fn scale(&self, module: &str, rank: usize) -> f64 {
        let by = if self.rslora { (rank as f64).sqrt() } else { rank as f64 };
        self.alpha(module) / by
    }

    /// Whether the configuration means this module; yes where that cannot be told.
    pub fn means(&self, module: &str) -> bool {
        let layer_fits = match (&self.layers, layer(module)) {
            (None, _) => true,
            (Some(layers), Some(layer)) => layers.contains(&layer),
            (Some(_), None) => false,
        };
        let names = |named: &Option<Named>, unknown: bool| match named {
            None => false,
            Some(Named::Unknown) => unknown,
            Some(Named::AllLinear) => module != "lm_head",
            Some(Named::Pattern(pattern)) => pattern.is_match(module),
            Some(Named::List(list)) => list.iter().any(|entry| {
                module
                    .strip_suffix(entry.as_str())
                    .is_some_and(|b| b.is_empty() || b.ends_with('.'))
            }),
        };
        layer_fits && names(&self.target, true) && !names(&self.exclude, false)
    }
}

impl Named {
    fn of(folder: &Folder, key: &str, unread: &mut Vec<String>) -> Option<Self> {
        match folder.get(key) {
            Value::Array(all) => {
                Some(Named::List(all.iter().filter_map(|e| Some(e.as_str()?.into())).collect()))
            }
            Value::String(text) if text == "all-linear" => Some(Named::AllLinear),
            Value::String(text) => Some(match Regex::new(&format!("^(?:{text})$")) {
                Ok(pattern) => Named::Pattern(pattern),
                Err(_) => {
                    unread.push(format!("{key}: the pattern `{text}` was not followed"));
                    Named::Unknown
                }
            }),
            _ => None,
        }
    }
}

/// The layer in a path: its first part that is a number.
fn layer(module: &str) -> Option<usize> {
    module.split('.').find_map(|part| part.parse().ok())
}

fn pattern(
    folder: &Folder,
    key: &str,
    wrong: &mut Vec<String>,
    unread: &mut Vec<String>,
) -> Patterns<f64> {
    let mut patterns = Patterns::default();
    for (text, value) in folder.get(key).as_object().into_iter().flatten() {
        let Some(value) = value.as_f64() else {
            wrong.push(format!("{key}.{text} is {value}, expected a number"));
            continue;
        };
        if patterns.add(text, value).is_err() {
            unread.push(format!("{key}: the pattern `{text}` was not followed"));
        }
    }
    patterns
}
