//! A model with an adapter: its weights are those of the adapter folded into the base, one at a time as
//! they are asked for, with the same arithmetic as `luthier fold`.

use std::{path::Path, sync::Arc};

use luthier_core::{Error, Model, Policy, Result, io};
use luthier_model::{ModelConfig, Source};
use luthier_params::{own, peft};
use serde_json::Value;

use crate::export;

mod skeleton;

use skeleton::Skeleton;

/// An adapter bound to its base.
pub(super) struct Tuned {
    policy: Policy,
    /// Variables of the adapter that take the place of whole tensors.
    whole: Vec<String>,
    source: Arc<Source>,
    /// The configuration of base and adapter as one model.
    pub config: ModelConfig,
}

impl Tuned {
    /// Binds the adapter in `dir`, PEFT's or our own, to the weights of `source`.
    pub(super) fn open(source: &Arc<Source>, dir: &Path) -> Result<Tuned> {
        if !luthier_params::is_adapter(dir) {
            let what = format!("holds no adapter: neither {} nor {}", peft::CONFIG, own::CONFIG);
            return Err(Error::input(dir.display().to_string(), what)
                .hint("the part after `+` names an adapter"));
        }
        let skeleton: Arc<dyn Model> = Arc::new(Skeleton::new(source.clone()));
        let exact = |name: &str| source.has(name).then(|| source.load_f32(name)).transpose();
        // Hashing the base takes as long as reading it.
        let sha256 = if knows_base(dir)? { Some(source.sha256()?) } else { None };
        let bound = luthier_params::load(dir, &skeleton, sha256, Some(&exact))?;
        let (model, hooks) = (bound.policy.model.as_ref(), &bound.policy.hooks);
        let config = export::folded_config(source.config(), model, hooks)
            .map_err(|e| Error::within(dir.display(), e))?;
        let sites = model.sites();
        let is_weight = |name: &&str| {
            name.rsplit_once('.').is_some_and(|(module, _)| sites.by_module(module).is_some())
        };
        let names = bound.params.iter().map(|param| param.name.as_str());
        let whole = names.filter(is_weight).map(str::to_string).collect();
        Ok(Tuned { policy: bound.policy, whole, source: source.clone(), config })
    }

    /// Whether a tensor is another than the base's.
    pub(super) fn changes(&self, tensor: &str) -> bool {
        let (sites, hooks) = (self.policy.model.sites(), &self.policy.hooks);
        let site = tensor.rsplit_once('.').and_then(|(module, _)| sites.by_module(module));
        let hooked = site.is_some_and(|site| hooks.watched(site.id));
        hooked || !self.source.has(tensor) || self.whole.iter().any(|name| name == tensor)
    }

    /// A tensor of the two as one model.
    pub(super) fn load(&self, tensor: &str) -> Result<Vec<f32>> {
        export::tensor(self.policy.model.as_ref(), &self.policy.hooks, tensor)
    }
}

/// Whether an adapter knows the hash of the weights that it was trained beside.
fn knows_base(dir: &Path) -> Result<bool> {
    let (file, pointer) = match dir.join(own::CONFIG).is_file() {
        true => (own::CONFIG, "/base/sha256"),
        false => (peft::CONFIG, "/luthier/base_sha256"),
    };
    let config: Value = io::read_json(&dir.join(file))?;
    Ok(config.pointer(pointer).is_some_and(Value::is_string))
}
