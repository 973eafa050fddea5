//! Writing an adapter folder.

use std::{collections::HashMap, path::Path};

use candle_core::Var;
use luthier_core::{Error, Result, SiteMap, StateDict, io};

use super::{Base, CONFIG, PREFIX, WEIGHTS, card, config, parts};
use crate::{Lora, Target};

/// Writes `dir` so that PEFT loads it; the same variables give the same bytes.
pub fn save(
    dir: &Path,
    lora: &Lora,
    vars: &[(String, Var)],
    sites: &SiteMap,
    base: &Base,
) -> Result<()> {
    let mut left: HashMap<&str, &Var> = vars.iter().map(|(n, v)| (n.as_str(), v)).collect();
    let mut state = StateDict::default();
    let mut targets: Vec<(&str, Target)> = Vec::new();
    for target in lora.resolve(sites)? {
        let site = target.site;
        let module = site.module.as_deref().ok_or_else(|| {
            Error::failed(&site.name, "has no Hugging Face name to save its adapter under")
        })?;
        let before = left.len();
        for (part, suffix) in parts(site) {
            if let Some(var) = left.remove(format!("{}.{part}", site.name).as_str()) {
                state.insert(format!("{PREFIX}{module}{suffix}"), var.as_detached_tensor());
            }
        }
        if left.len() == before {
            return Err(Error::failed(&site.name, "is adapted but has no variable to save"));
        }
        targets.push((module, target));
    }
    if let Some(name) = left.keys().min() {
        return Err(Error::failed(*name, "has no place in a LoRA adapter"));
    }
    let all: Vec<&str> = sites.iter().filter_map(|s| s.module.as_deref()).collect();
    state.save(&dir.join(WEIGHTS), &[("format", "pt")])?;
    io::write_json(&dir.join(CONFIG), &config::write(lora, &targets, &all, base))?;
    io::write_bytes(&dir.join("README.md"), card::card(lora, &targets, base).as_bytes())
}
