//! Writing an adapter folder.

use std::{collections::BTreeMap, path::Path};

use candle_core::{Tensor, Var};
use luthier_core::{Error, Result, SiteMap, StateDict, io};
use serde_json::Value;

use super::{
    Base, CONFIG, PREFIX, WEIGHTS, card::Card, head, ia3, ln_tuning, lora, prompt, tokens,
};
use crate::Bound;

/// What is being written.
pub(super) struct Out<'b> {
    pub bound: &'b Bound,
    pub sites: &'b SiteMap,
    pub base: &'b Base,
    /// Variables that no file holds yet.
    left: BTreeMap<&'b str, &'b Var>,
    state: StateDict,
}

/// What is written beside the tensors.
pub(super) struct About {
    pub config: Value,
    pub card: Card,
}

impl<'b> Out<'b> {
    /// A variable, to be put somewhere.
    pub fn take(&mut self, name: &str) -> Option<&'b Var> {
        self.left.remove(name)
    }

    /// The same for one that must be there.
    pub fn need(&mut self, name: &str) -> Result<Tensor> {
        let missing = || Error::failed(name, "is adapted but has no variable to save");
        Ok(self.take(name).ok_or_else(missing)?.as_detached_tensor())
    }

    /// Names of the variables that were not taken.
    pub fn left(&self) -> impl Iterator<Item = &'b str> {
        self.left.keys().copied()
    }

    /// Puts a tensor of a module.
    pub fn put(&mut self, module: &str, suffix: &str, tensor: Tensor) {
        self.state.insert(format!("{PREFIX}{module}{suffix}"), tensor);
    }

    /// Puts a tensor that belongs to no module.
    pub fn put_alone(&mut self, name: &str, tensor: Tensor) {
        self.state.insert(name, tensor);
    }

    /// All modules of the model.
    pub fn modules(&self) -> Vec<&'b str> {
        self.sites.iter().filter_map(|s| s.module.as_deref()).collect()
    }
}

/// Writes `dir` so that PEFT loads it; the same variables give the same bytes.
pub fn save(dir: &Path, bound: &Bound, sites: &SiteMap, base: &Base) -> Result<()> {
    if let Some(param) = bound.params.iter().find(|p| p.mask.is_some()) {
        return Err(Error::failed(
            &param.name,
            "learned in chosen entries, which PEFT cannot keep",
        ));
    }
    let left = bound.params.iter().map(|p| (p.name.as_str(), &p.var)).collect();
    let mut out = Out { bound, sites, base, left, state: StateDict::default() };
    let form = &bound.form;
    let mut about = match (&form.lora, &form.ia3, &form.ln_tuning, &form.tokens, &form.prompt) {
        (Some(lora), None, _, _, None) => lora::write(lora, &mut out)?,
        (None, Some(ia3), _, None, None) => ia3::write(ia3, &mut out)?,
        (None, None, Some(norms), None, None) => ln_tuning::write(norms, &mut out)?,
        (None, None, None, Some(tokens), None) => tokens::write(tokens, &mut out)?,
        (None, None, None, None, Some(prompt)) => prompt::write(prompt, &mut out)?,
        _ => {
            let keys: Vec<&str> = form.named().iter().map(|(key, _)| *key).collect();
            let what = format!("PEFT has no adapter for {} together", keys.join(", "));
            return Err(Error::failed("train.params", what));
        }
    };
    if let Some(form) = &form.head {
        head::write(form, &mut out, &mut about.config)?;
    }
    if let Some(name) = out.left().next() {
        return Err(Error::failed(name, "has no place in a PEFT adapter"));
    }
    let parameters = out.state.iter().map(|(_, tensor)| tensor.elem_count()).sum();
    out.state.save(&dir.join(WEIGHTS), &[("format", "pt")])?;
    io::write_json(&dir.join(CONFIG), &about.config)?;
    io::write_bytes(&dir.join("README.md"), about.card.text(parameters, base).as_bytes())
}
