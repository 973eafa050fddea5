//! Which programs will run an adapter, from its files alone.
//!
//! A program that loads an adapter and computes something else than PEFT does counts as refusing it.
//! The rules are those of PEFT 0.21, of vLLM's loader (`peft_helper`, `parse_fine_tuned_lora_name`)
//! and of llama.cpp's `convert_lora_to_gguf.py`.

use std::path::{Path, PathBuf};

use luthier_core::Result;
use luthier_params::own;
use serde::Serialize;
use serde_json::Value;

use super::{
    folder::{Factors, Folder, PREFIX, Part, part},
    peft::Settings,
};

/// What was found in an adapter folder.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Checked {
    /// The folder.
    pub adapter: PathBuf,
    /// PEFT's name of its type, or `luthier` for files of our own.
    pub kind: String,
    /// The base it names.
    pub base: Option<String>,
    /// Modules with factors of LoRA.
    pub modules: usize,
    /// Smallest and largest rank among them.
    pub ranks: Option<[usize; 2]>,
    /// Who runs it.
    pub runtimes: Vec<Runtime>,
}

/// One program's answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Runtime {
    /// `PEFT`, `vLLM` or `llama.cpp`.
    pub name: &'static str,
    /// Whether it runs the adapter, and as it was meant.
    pub accepts: bool,
    /// Why not.
    pub reasons: Vec<String>,
    /// What to know where it does.
    pub notes: Vec<String>,
}

/// Types that PEFT 0.21.2 knows.
const TYPES: &[&str] = &[
    "PROMPT_TUNING",
    "MULTITASK_PROMPT_TUNING",
    "P_TUNING",
    "PREFIX_TUNING",
    "LORA",
    "ADALORA",
    "ADAMSS",
    "BOFT",
    "ADAPTION_PROMPT",
    "IA3",
    "BEFT",
    "LILY",
    "LOHA",
    "LOKR",
    "OFT",
    "POLY",
    "LN_TUNING",
    "VERA",
    "FROD",
    "PVERA",
    "FOURIERFT",
    "GLORA",
    "XLORA",
    "HRA",
    "VBLORA",
    "UNILORA",
    "CPT",
    "MISS",
    "RANDLORA",
    "ROAD",
    "TRAINABLE_TOKENS",
    "HIRA",
    "SHIRA",
    "C3A",
    "WAVEFT",
    "OSF",
    "DELORA",
    "GRALORA",
    "CARTRIDGE",
    "TINYLORA",
    "PSOFT",
    "PEANUT",
    "SHADOW",
    "SUPERTUNING",
    "DEFT",
];

/// Ranks that vLLM's `--max-lora-rank` takes; 16 is its default.
const VLLM_RANKS: [usize; 9] = [1, 8, 16, 32, 64, 128, 256, 320, 512];
const VLLM_DEFAULT_RANK: usize = 16;

/// Beginnings that change the base, which other programs than PEFT do not repeat.
const MOVING_INITS: [&str; 5] = ["pissa", "olora", "corda", "loftq", "lora_ga"];

/// Keys that change what the tensors mean and that only PEFT follows.
const PEFT_ALONE: [&str; 7] = [
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "monteclora_config",
    "target_parameters",
    "use_bdlora",
    "use_qalora",
];

const CONVERT: &str = "`luthier adapter convert` makes a plain LoRA of it";

/// Looks into an adapter folder.
pub fn check(dir: &Path) -> Result<Checked> {
    let (_, base) = luthier_params::base_of(dir)?;
    let adapter = dir.to_path_buf();
    if dir.join(own::CONFIG).is_file() {
        let reason = format!("its files ({}, {}) are luthier's own", own::CONFIG, own::WEIGHTS);
        let runtimes = ["PEFT", "vLLM", "llama.cpp"].map(|name| {
            Runtime::new(name, vec![format!("{reason}; {CONVERT} if it folds")], Vec::new())
        });
        let runtimes = runtimes.into();
        return Ok(Checked {
            adapter,
            kind: "luthier".into(),
            base,
            modules: 0,
            ranks: None,
            runtimes,
        });
    }
    let folder = Folder::open(dir)?;
    let kind = folder.get("peft_type").as_str().unwrap_or("unknown").to_string();
    let factors = folder.factors();
    let ranks = factors.values().filter_map(Factors::rank);
    let ranks = ranks.clone().min().zip(ranks.max()).map(|(least, most)| [least, most]);
    let settings = Settings::of(&folder);
    let (modules, runtimes) = match kind.as_str() {
        "LORA" => {
            let seen = Seen { folder: &folder, settings: &settings, factors: &factors };
            (factors.len(), vec![seen.peft(), seen.vllm(), seen.llama_cpp()])
        }
        _ => (0, other_type(&kind, &folder)),
    };
    Ok(Checked { adapter, kind, base, modules, ranks, runtimes })
}

impl Runtime {
    fn new(name: &'static str, reasons: Vec<String>, notes: Vec<String>) -> Self {
        Runtime { name, accepts: reasons.is_empty(), reasons, notes }
    }
}

/// The first names of a list, and how many more there are.
fn some(names: &[&str]) -> String {
    let shown = names[..names.len().min(2)].join(", ");
    match names.len().saturating_sub(2) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// Whether a key is set to something with a meaning.
fn set(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Array(items) => !items.is_empty(),
        Value::Object(items) => !items.is_empty(),
        _ => true,
    }
}

fn other_type(kind: &str, folder: &Folder) -> Vec<Runtime> {
    let mut reasons = Vec::new();
    let mut notes = Vec::new();
    if !TYPES.contains(&kind) {
        reasons.push(match folder.get("peft_type") {
            Value::Null => "adapter_config.json has no peft_type".to_string(),
            other => format!("PEFT 0.21.2 knows no type {other}"),
        });
    } else if kind == "IA3" {
        let strange: Vec<&str> = folder.names().filter(|n| !n.ends_with(".ia3_l")).collect();
        if !strange.is_empty() {
            reasons.push(format!("no part of an IA3 adapter: {}", some(&strange)));
        }
    } else {
        notes.push(format!("the tensors of a {kind} adapter were not looked at"));
    }
    let lora_only = format!("runs LoRA alone, this is {kind}; {CONVERT} if it folds");
    let no = |name| Runtime::new(name, vec![lora_only.clone()], Vec::new());
    vec![Runtime::new("PEFT", reasons, notes), no("vLLM"), no("llama.cpp")]
}

/// A LoRA adapter, read.
struct Seen<'a> {
    folder: &'a Folder,
    settings: &'a Settings,
    factors: &'a std::collections::BTreeMap<&'a str, Factors>,
}

impl Seen<'_> {
    fn modules(&self, which: impl Fn(&str, &Factors) -> bool) -> Vec<&str> {
        self.factors.iter().filter(|(m, f)| which(m, f)).map(|(m, _)| *m).collect()
    }

    fn names(&self, which: impl Fn(&str) -> bool) -> Vec<&str> {
        self.folder.names().filter(|name| which(name)).collect()
    }

    fn unread_pickle(&self) -> Vec<String> {
        match self.folder.tensors {
            Some(_) => Vec::new(),
            None => vec!["the weights are pickled and were not looked at".into()],
        }
    }

    /// `modules_to_save`: saved whole.
    fn saved_modules(&self) -> Vec<&str> {
        let all = self.folder.get("modules_to_save").as_array().into_iter().flatten();
        all.filter_map(Value::as_str).collect()
    }

    fn peft(&self) -> Runtime {
        let (folder, settings) = (self.folder, self.settings);
        let mut reasons = settings.wrong.clone();
        let mut say = |names: &[&str], what: &str| {
            if !names.is_empty() {
                reasons.push(format!("{what}: {}", some(names)));
            }
        };
        say(
            &self.names(|n| !n.starts_with(PREFIX)),
            "tensors without the prefix base_model.model.",
        );
        let saved = self.saved_modules();
        let biases = folder.get("bias").as_str().is_some_and(|b| b != "none");
        let tokens = set(folder.get("trainable_token_indices"));
        let parameters = set(folder.get("target_parameters"));
        say(
            &self.names(|name| match part(name) {
                Some((_, Part::Bias)) => !settings.lora_bias,
                Some((_, Part::Magnitude)) => !settings.dora,
                Some(_) => false,
                None => {
                    let module = name.rsplit_once('.').map_or(name, |(module, _)| module);
                    let whole = saved.iter().any(|s| module.ends_with(s));
                    let bias = biases && name.ends_with(".bias");
                    let token = tokens && name.ends_with("trainable_tokens_delta");
                    !(whole || bias || token || parameters)
                }
            }),
            "tensors that it leaves out, for the configuration does not ask for them",
        );
        say(
            &self.modules(|_, f| f.ranks.0.is_none() || f.ranks.1.is_none()),
            "one factor without the other",
        );
        say(
            &self.modules(|module, f| {
                let want = Some(settings.rank(module));
                [f.ranks.0, f.ranks.1].iter().any(|r| r.is_some() && *r != want)
            }),
            "another rank than the configuration gives",
        );
        if !parameters {
            say(
                &self.modules(|module, _| !settings.means(module)),
                "modules that the configuration does not name",
            );
        }
        if settings.dora {
            say(&self.modules(|_, f| !f.magnitude), "DoRA without lora_magnitude_vector");
        }
        if settings.lora_bias {
            say(&self.modules(|_, f| !f.bias && !f.embedding), "lora_bias without lora_B.bias");
        }
        if self.factors.is_empty() && folder.tensors.is_some() {
            reasons.push("there is no tensor of LoRA".into());
        }
        let mut notes = self.unread_pickle();
        notes.extend(settings.unread.iter().cloned());
        if let Some(init) = self.moving_init() {
            notes.push(format!(
                "{init} changes the base; it repeats that when it loads the adapter"
            ));
        }
        Runtime::new("PEFT", reasons, notes)
    }

    /// A beginning that changes the base.
    fn moving_init(&self) -> Option<&str> {
        let init = self.folder.get("init_lora_weights").as_str()?;
        MOVING_INITS.iter().any(|moving| init.starts_with(moving)).then_some(init)
    }

    /// What neither vLLM nor llama.cpp follows.
    fn plain_reasons(&self) -> Vec<String> {
        let mut reasons = self.settings.wrong.clone();
        if let Some(init) = self.moving_init() {
            reasons.push(format!("{init} changed the base, which it does not repeat; {CONVERT}"));
        }
        for key in PEFT_ALONE.iter().filter(|key| set(self.folder.get(key))) {
            reasons.push(format!("does not follow {key}"));
        }
        reasons
    }

    fn vllm(&self) -> Runtime {
        let (folder, settings) = (self.folder, self.settings);
        let (mut reasons, mut notes) = (self.plain_reasons(), self.unread_pickle());
        for key in ["r", "lora_alpha", "target_modules"] {
            if folder.get(key).is_null() {
                reasons.push(format!("{key} is missing in the configuration"));
            }
        }
        if !self.saved_modules().is_empty() {
            reasons.push(format!(
                "modules_to_save must be empty, it has {}",
                some(&self.saved_modules())
            ));
        }
        if settings.dora {
            reasons.push(format!("does not run DoRA (use_dora); {CONVERT}"));
        }
        if let Some(bias) = folder.get("bias").as_str().filter(|b| *b != "none") {
            reasons.push(format!("bias must be \"none\", it is \"{bias}\""));
        }
        if set(folder.get("alora_invocation_tokens")) {
            reasons.push("does not follow alora_invocation_tokens".into());
        }
        let known = |name: &str| {
            use Part::{A, B, Base, EmbeddingA, EmbeddingB};
            matches!(part(name), Some((_, A | B | EmbeddingA | EmbeddingB | Base)))
        };
        // A magnitude is DoRA's, which was spoken of.
        let strange = self.names(|name| {
            !known(name) && !matches!(part(name), Some((_, Part::Magnitude)) if settings.dora)
        });
        if !strange.is_empty() {
            reasons.push(format!("tensors that it does not know: {}", some(&strange)));
        }
        // One alpha and one r for all modules is what it reads.
        let by = if settings.rslora { (settings.r as f64).sqrt() } else { settings.r as f64 };
        let otherwise = self.modules(|module, f| {
            f.rank().is_some_and(|r| apart(settings.scale(module, r), settings.alpha / by))
        });
        if !otherwise.is_empty() {
            reasons.push(format!(
                "reads no rank_pattern or alpha_pattern and would scale otherwise: {}",
                some(&otherwise)
            ));
        }
        let most = self.factors.values().filter_map(Factors::rank).max().unwrap_or(0);
        let most = most.max(settings.r);
        match VLLM_RANKS.iter().find(|limit| **limit >= most) {
            None => reasons.push(format!("its ranks end at 512, this adapter has {most}")),
            Some(limit) if most > VLLM_DEFAULT_RANK => {
                notes.push(format!("rank {most}: start vLLM with --max-lora-rank {limit}"));
            }
            Some(_) => {}
        }
        let ends = self.modules(|module, f| f.embedding || module == "lm_head");
        if !ends.is_empty() {
            let which = some(&ends);
            notes.push(format!("{which}: only where vLLM adapts embedding and head of this model"));
        }
        Runtime::new("vLLM", reasons, notes)
    }

    fn llama_cpp(&self) -> Runtime {
        let settings = self.settings;
        let (mut reasons, mut notes) = (self.plain_reasons(), self.unread_pickle());
        let strange = self.names(|name| {
            use Part::{A, B, Base, EmbeddingA, EmbeddingB};
            let norm = name.contains("_layernorm") || name.contains(".norm");
            !norm && !matches!(part(name), Some((_, A | B | EmbeddingA | EmbeddingB | Base)))
        });
        if settings.dora {
            reasons.push(format!("does not run DoRA (use_dora); {CONVERT}"));
        }
        let strange: Vec<&str> = strange
            .into_iter()
            .filter(|name| !(settings.dora && matches!(part(name), Some((_, Part::Magnitude)))))
            .collect();
        if !strange.is_empty() {
            let what = "its converter takes factors and norms alone, not";
            reasons.push(format!("{what} {}", some(&strange)));
        }
        if settings.rslora {
            reasons.push(format!(
                "does not follow use_rslora: it would scale by alpha / r, not alpha / √r; {CONVERT} \
                 with alpha · √r"
            ));
        } else {
            // One alpha for all, divided by each module's own rank.
            let otherwise = self.modules(|module, f| {
                f.rank()
                    .is_some_and(|r| apart(settings.scale(module, r), settings.alpha / r as f64))
            });
            if !otherwise.is_empty() {
                let what = "reads no alpha_pattern and would scale otherwise";
                reasons.push(format!("{what}: {}", some(&otherwise)));
            }
        }
        if self.factors.contains_key("lm_head") {
            notes.push("lm_head: its converter refuses it where the base ties the head".into());
        }
        Runtime::new("llama.cpp", reasons, notes)
    }
}

/// Whether two scales differ by more than rounding.
fn apart(a: f64, b: f64) -> bool {
    (a - b).abs() > 1e-6 * a.abs().max(b.abs())
}
