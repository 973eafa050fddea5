#![doc = include_str!("../../../docs/seams/params.md")]

use std::{path::Path, sync::Arc};

use candle_core::Var;
use luthier_core::{Error, Model, Param, Policy, Result, Seed, io};
use serde::{Deserialize, Serialize};

pub mod choice;
pub mod copilot;
mod dropout;
mod globs;
pub mod own;
mod passing;
pub mod peft;
mod scope;
/// What a set of learned parameters looks like.
pub mod form {
    pub mod bottleneck;
    pub mod full;
    pub mod green;
    pub mod half;
    pub mod head;
    pub mod ia3;
    pub mod ln_tuning;
    pub mod lora;
    pub mod pool;
    pub mod prompt;
    pub mod sparse;
    pub mod ssf;
    pub mod tokens;
    mod weights;
}

pub use choice::{Choice, Chosen, Handover, Moment, Trial};
pub use form::bottleneck::{Bottleneck, Phm};
pub use form::full::Full;
pub use form::green::Green;
pub use form::half::Half;
pub use form::head::{Head, Labels};
pub use form::ia3::Ia3;
pub use form::ln_tuning::LnTuning;
pub use form::lora::{Eva, Lora, LoraInit, Target};
pub use form::pool::Pool;
pub use form::prompt::{Prompt, PromptInit, PromptKind};
pub use form::sparse::Sparse;
pub use form::ssf::Ssf;
pub use form::tokens::Tokens;
pub use globs::Globs;
pub use scope::{Exact, Init, Scope};

/// A way to make parts of a model learnable.
pub trait Form: Send + Sync {
    /// The policy with this form's variables, which are taken from `scope`.
    fn bind(&self, policy: Policy, scope: &mut Scope) -> Result<Policy>;

    /// What decides again during training which of the variables learn, if anything does.
    fn choice(&self) -> Option<Box<dyn Choice>> {
        None
    }

    /// How often the whole schedule is run, each time with a new optimizer.
    fn rounds(&self) -> usize {
        1
    }
}

pub use luthier_core::Method;

/// Every form that a recipe can name.
pub const METHODS: &[Method] = &[
    Method::usual("lora", "a low-rank addition to chosen weights"),
    Method::usual("lora.dora", "the same, with the lengths of the weight's rows learned apart"),
    Method::usual("lora.pissa", "the same, beginning at the weight's leading singular vectors"),
    Method::usual("lora.olora", "the same, beginning at the weight's QR decomposition"),
    Method::usual("lora.loftq", "the same, beginning at what quantising the base lost"),
    Method::of(69, "lora.eva", "the same, beginning at the main directions of a site's inputs"),
    Method::usual("ia3", "scales of keys, values and the MLP's inner activation"),
    Method::usual("ln_tuning", "the scales of norms, kept as an adapter"),
    Method::usual("tokens", "chosen rows of the embedding"),
    Method::usual("full", "the weights themselves"),
    Method::of(28, "half", "half of the tensors, another half in every round"),
    Method::of(10, "green", "the tensors that are worth their backward pass"),
    Method::usual("sparse.random", "entries of the weights, drawn"),
    Method::of(16, "sparse.lift", "entries that are large once the rank is reduced"),
    Method::of(29, "sparse.sara", "entries that are idle"),
    Method::of(7, "sparse.lottery", "entries that move most when all learn"),
    Method::of(47, "ssf", "a scale and a shift after every operation"),
    Method::usual("bottleneck", "a small network behind or beside each sub-layer"),
    Method::of(42, "bottleneck.phm", "the same of shared Kronecker products (Compacter)"),
    Method::of(20, "prompt", "virtual tokens in front of every row, or their keys and values"),
    Method::usual("head", "a head that scores labels in place of tokens"),
    Method::of(54, "pool", "modulators of which each prompt chooses one"),
];

/// `[train.params]`: one form or several, `lora` when none is named.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// The weights themselves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub full: Option<Full>,
    /// Half of the tensors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub half: Option<Half>,
    /// The tensors that are worth their backward pass.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub green: Option<Green>,
    /// Chosen entries of the weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sparse: Option<Sparse>,
    /// The scales of norms, as an adapter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ln_tuning: Option<LnTuning>,
    /// A low-rank addition.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora: Option<Lora>,
    /// Scales of inner values.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ia3: Option<Ia3>,
    /// Chosen rows of the embedding.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<Tokens>,
    /// A scale and a shift after every operation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ssf: Option<Ssf>,
    /// A small network behind or beside each sub-layer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bottleneck: Option<Bottleneck>,
    /// Modulators of which each prompt chooses one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<Pool>,
    /// A head that scores labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head: Option<Head>,
    /// Virtual tokens in front of every row.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt: Option<Prompt>,
}

/// Where what was learned is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// In the weights: what is saved is a model.
    Model,
    /// Beside them, in files that PEFT reads.
    Peft,
    /// Beside them, in a file of our own.
    Own,
}

/// A policy with the variables that can be learned.
#[derive(Clone)]
pub struct Bound {
    /// What runs.
    pub policy: Policy,
    /// What learns, in a fixed order.
    pub params: Vec<Param>,
    /// The form that each of them belongs to, as a recipe names it.
    pub forms: Vec<&'static str>,
    /// How it was bound.
    pub form: Params,
}

impl Bound {
    /// The variable of that name.
    pub fn var(&self, name: &str) -> Option<&Var> {
        self.params.iter().find(|p| p.name == name).map(|p| &p.var)
    }

    /// How many numbers learn.
    pub fn count(&self) -> u64 {
        self.params.iter().map(|p| p.count() as u64).sum()
    }
}

impl Params {
    /// The forms that are named with their keys, in the order they are bound: those that put
    /// variables in place of weights first, for hooks read the model they find.
    pub fn named(&self) -> Vec<(&'static str, &dyn Form)> {
        let full = self.full.as_ref().map(|f| ("full", f as &dyn Form));
        let half = self.half.as_ref().map(|f| ("half", f as &dyn Form));
        let green = self.green.as_ref().map(|f| ("green", f as &dyn Form));
        let sparse = self.sparse.as_ref().map(|f| ("sparse", f as &dyn Form));
        let ln_tuning = self.ln_tuning.as_ref().map(|f| ("ln_tuning", f as &dyn Form));
        let lora = self.lora.as_ref().map(|f| ("lora", f as &dyn Form));
        let ia3 = self.ia3.as_ref().map(|f| ("ia3", f as &dyn Form));
        let tokens = self.tokens.as_ref().map(|f| ("tokens", f as &dyn Form));
        let ssf = self.ssf.as_ref().map(|f| ("ssf", f as &dyn Form));
        let bottleneck = self.bottleneck.as_ref().map(|f| ("bottleneck", f as &dyn Form));
        let pool = self.pool.as_ref().map(|f| ("pool", f as &dyn Form));
        let prompt = self.prompt.as_ref().map(|f| ("prompt", f as &dyn Form));
        // Last: what learns of the body finds the head that it knows.
        let head = self.head.as_ref().map(|f| ("head", f as &dyn Form));
        let hooks = [lora, ia3, tokens, ssf, bottleneck, pool, prompt];
        let weights = [full, half, green, sparse, ln_tuning];
        weights.into_iter().chain(hooks).chain([head]).flatten().collect()
    }

    /// Where what is learned is kept.
    pub fn kept(&self) -> Kept {
        let keys: Vec<&str> = self.named().iter().map(|(key, _)| *key).collect();
        match keys.as_slice() {
            ["full" | "half" | "green"] | ["full" | "half" | "green", "head"] => Kept::Model,
            _ if peft::holds(self) => Kept::Peft,
            _ => Kept::Own,
        }
    }

    /// The same with the default written out, as a plan prints it.
    pub fn with_defaults(mut self) -> Self {
        if self.named().is_empty() {
            self.lora = Some(Lora::default());
        }
        self
    }

    /// What decides again during training which of a form's variables learn, and that form's key.
    /// Two forms that do so contradict each other.
    pub fn choice(&self) -> Result<Option<(&'static str, Box<dyn Choice>)>> {
        let choices =
            self.named().into_iter().filter_map(|(key, form)| Some((key, form.choice()?)));
        let mut choices: Vec<(&str, Box<dyn Choice>)> = choices.collect();
        if let [(one, _), (other, _), ..] = choices.as_slice() {
            let what = format!("both {one} and {other} choose what learns as training goes on");
            return Err(Error::input("train.params", what).hint("keep one of them"));
        }
        Ok(choices.pop())
    }

    /// How many placeholders every row must begin with, for virtual tokens to stand in their place.
    pub fn virtual_tokens(&self) -> usize {
        self.prompt.as_ref().map_or(0, |prompt| prompt.n_virtual)
    }

    /// How often the whole schedule is run.
    pub fn rounds(&self) -> usize {
        self.named().iter().map(|(_, form)| form.rounds()).max().unwrap_or(1)
    }

    /// Makes the model learnable; initial values depend on `seed` and each variable's name alone.
    pub fn bind(&self, model: &Arc<dyn Model>, seed: Seed) -> Result<Bound> {
        self.bind_in(model, Scope::new(seed.split("params")))
    }

    /// The same with the variables of `scope`.
    pub fn bind_in(&self, model: &Arc<dyn Model>, mut scope: Scope) -> Result<Bound> {
        let form = self.clone().with_defaults();
        let (mut policy, mut forms) = (Policy::plain(model.clone()), Vec::new());
        for (key, form) in form.named() {
            policy = form.bind(policy, &mut scope)?;
            // The head comes last, and may let go of the one that it replaces.
            if key == "head" {
                forms.truncate(scope.params().len().saturating_sub(1));
            }
            forms.resize(scope.params().len(), key);
        }
        policy.hooks.virtual_tokens = form.virtual_tokens();
        Ok(Bound { policy, params: scope.finish()?, forms, form })
    }
}

/// Whether a folder holds an adapter, PEFT's or our own.
pub fn is_adapter(dir: &Path) -> bool {
    [peft::CONFIG, own::CONFIG].iter().any(|file| dir.join(file).is_file())
}

/// Binds the adapter in `dir`, PEFT's or our own, to `model`; `base_sha256` is the hash of the
/// weights at hand, which must be those the adapter was trained on if it knows.
pub fn load(
    dir: &Path,
    model: &Arc<dyn Model>,
    base_sha256: Option<&str>,
    exact: Option<Exact>,
) -> Result<Bound> {
    let hub = ["adapter.safetensors", "pytorch_adapter.bin"];
    match dir.join(own::CONFIG).is_file() {
        true => own::load(dir, model, base_sha256, exact),
        false if hub.iter().any(|file| dir.join(file).is_file()) => {
            form::bottleneck::hub::load(dir, model)
        }
        false => peft::load(dir, model, base_sha256),
    }
}

/// The base that an adapter names, and the file that should.
pub fn base_of(dir: &Path) -> Result<(std::path::PathBuf, Option<String>)> {
    let (file, pointer) = match dir.join(own::CONFIG).is_file() {
        true => (dir.join(own::CONFIG), "/base/name"),
        false => (dir.join(peft::CONFIG), "/base_model_name_or_path"),
    };
    let config: serde_json::Value = io::read_json(&file)?;
    let name = config.pointer(pointer).and_then(serde_json::Value::as_str);
    let name = name.filter(|name| !name.is_empty()).map(str::to_string);
    Ok((file, name))
}
