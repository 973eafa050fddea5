//! Who runs a LoRA adapter of PEFT.

use std::collections::BTreeMap;

use super::{
    check::{CONVERT, Runtime, saved_modules, saved_whole, set, some},
    folder::{Factors, Folder, PREFIX, Part, part},
    peft::Settings,
};

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

/// A LoRA adapter, read.
pub(super) struct Seen<'a> {
    pub folder: &'a Folder,
    pub settings: &'a Settings,
    pub factors: &'a BTreeMap<&'a str, Factors>,
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

    pub fn peft(&self) -> Runtime {
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
        let saved = saved_modules(folder);
        let biases = folder.get("bias").as_str().is_some_and(|b| b != "none");
        let tokens = set(folder.get("trainable_token_indices"));
        let parameters = set(folder.get("target_parameters"));
        say(
            &self.names(|name| match part(name) {
                Some((_, Part::Bias)) => !settings.lora_bias,
                Some((_, Part::Magnitude)) => !settings.dora,
                Some(_) => false,
                None => {
                    let whole = saved_whole(name, &saved);
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

    pub fn vllm(&self) -> Runtime {
        let (folder, settings) = (self.folder, self.settings);
        let (mut reasons, mut notes) = (self.plain_reasons(), self.unread_pickle());
        for key in ["r", "lora_alpha", "target_modules"] {
            if folder.get(key).is_null() {
                reasons.push(format!("{key} is missing in the configuration"));
            }
        }
        let saved = saved_modules(folder);
        if !saved.is_empty() {
            reasons.push(format!("modules_to_save must be empty, it has {}", some(&saved)));
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

    pub fn llama_cpp(&self) -> Runtime {
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
