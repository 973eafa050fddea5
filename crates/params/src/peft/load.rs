//! Reading an adapter folder: the tensors say what is adapted, the config says how strongly.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
};

use candle_core::Tensor;
use luthier_core::{Error, Model, Result, SiteInfo, SiteKind, StateDict, io, nearest::nearest};
use serde_json::{Map, Value};

use super::{CONFIG, PREFIX, WEIGHTS, config::Read, parts};
use crate::{Bound, Globs, Kind, Lora, Scope};

/// Binds the adapter in `dir` to `model`. Its variables can be trained further.
///
/// `base_sha256` is the hash of the model at hand; it is compared when the adapter knows its own.
pub fn load(dir: &Path, model: &Arc<dyn Model>, base_sha256: Option<&str>) -> Result<Bound> {
    let (path, weights) = (dir.join(CONFIG), dir.join(WEIGHTS));
    let config: Map<String, Value> = io::read_json(&path)?;
    let read = Read::new(&path, &config)?;
    check_base(dir, &read, &config, base_sha256)?;
    if !weights.exists() && dir.join("adapter_model.bin").exists() {
        let at = dir.join("adapter_model.bin").display().to_string();
        return Err(Error::input(at, "a pickled adapter cannot be read safely")
            .hint("load it with PEFT and save it again: that writes adapter_model.safetensors"));
    }
    let (state, sites) = rename(&weights, StateDict::load(&weights)?, model, &read)?;
    let lora = as_bound(&read, &sites);
    let mut scope = Scope::given(state);
    let policy = lora.bind_targets(model, &lora.resolve(model.sites())?, &mut scope)?;
    Ok(Bound { policy, vars: scope.finish()?, kind: Kind::Lora(lora) })
}

fn check_base(
    dir: &Path,
    read: &Read,
    config: &Map<String, Value>,
    base_sha256: Option<&str>,
) -> Result<()> {
    match (&read.base_sha256, base_sha256) {
        (Some(theirs), Some(ours)) if theirs != ours => {
            let name = config.get("base_model_name_or_path").and_then(Value::as_str);
            let what = format!(
                "was trained on another base model: expected weights with SHA-256 {theirs}, got {ours}"
            );
            Err(Error::input(dir.display().to_string(), what)
                .hint(format!("its base is {}", name.unwrap_or("not recorded"))))
        }
        _ => Ok(()),
    }
}

/// Tensors under our names, and the sites they adapt, each with its rank and alpha.
type Renamed<'m> = (StateDict, Vec<(&'m SiteInfo, usize, f64)>);

/// The tensors under our names, and the sites they adapt with the settings of each.
fn rename<'m>(
    weights: &Path,
    file: StateDict,
    model: &'m Arc<dyn Model>,
    read: &Read,
) -> Result<Renamed<'m>> {
    let at = |key: &str| format!("{}: {key}", weights.display());
    let mut state = StateDict::default();
    let mut parts_of: BTreeMap<u32, BTreeSet<&str>> = BTreeMap::new();
    for (key, tensor) in file.iter() {
        let path = key.strip_prefix(PREFIX).unwrap_or(key);
        if let Some(module) = path.strip_suffix(".base_layer.weight") {
            let site = find(&at(key), module, model)?;
            same_as_base(&at(key), tensor, site, model)?;
            continue;
        }
        let (module, suffix) = split(path).ok_or_else(|| {
            Error::input(at(key), "is not part of a plain LoRA adapter").hint(
                "expected …lora_A.weight, …lora_B.weight, …lora_B.bias or …lora_embedding_A/B",
            )
        })?;
        let site = find(&at(key), module, model)?;
        let Some((part, _)) = parts(site).iter().find(|(_, known)| *known == suffix) else {
            return Err(Error::input(at(key), format!("does not fit {}", site.name)));
        };
        check_shape(&at(key), part, tensor, site, read.rank(module))?;
        parts_of.entry(site.id.0).or_default().insert(part);
        state.insert(format!("{}.{part}", site.name), tensor.clone());
    }
    if parts_of.is_empty() {
        return Err(Error::input(weights.display().to_string(), "holds no adapter tensor"));
    }
    let mut sites = Vec::with_capacity(parts_of.len());
    for (id, found) in parts_of {
        let site = model.sites().info(luthier_core::SiteId(id));
        let module = site.module.as_deref().expect("it was found by its module");
        for (part, suffix) in parts(site) {
            let needed = *part != "lora_B.bias" || read.bias;
            if needed != found.contains(part) {
                let what = if needed { "is missing" } else { "is there, but lora_bias is false" };
                return Err(Error::input(at(&format!("{PREFIX}{module}{suffix}")), what));
            }
        }
        sites.push((site, read.rank(module), read.alpha(module)));
    }
    Ok((state, sites))
}

/// A path without PEFT's prefix as (module, suffix).
fn split(path: &str) -> Option<(&str, &str)> {
    let known = super::LINEAR.iter().chain(super::EMBED);
    let suffix = known.map(|(_, suffix)| *suffix).find(|suffix| path.ends_with(suffix))?;
    Some((path.strip_suffix(suffix)?, suffix))
}

fn find<'m>(at: &str, module: &str, model: &'m Arc<dyn Model>) -> Result<&'m SiteInfo> {
    model.sites().by_module(module).ok_or_else(|| {
        let known = model.sites().iter().filter_map(|s| s.module.as_deref());
        let near = nearest(module, known, 2).join(" or ");
        let what = format!("this model has no module {module}");
        let hint = if near.is_empty() { "the adapter is for another model".into() } else { near };
        Error::input(at, what).hint(format!("nearest: {hint}"))
    })
}

fn check_shape(at: &str, part: &str, tensor: &Tensor, site: &SiteInfo, r: usize) -> Result<()> {
    let (i, o) = match site.kind {
        SiteKind::Linear { i, o, .. } => (i, o),
        SiteKind::Embed { v, d } => (v, d),
        _ => return Err(Error::input(at, format!("{} has no weight to adapt", site.name))),
    };
    let (expected, rank) = match part {
        "lora_A" | "lora_embedding_A" => (vec![r, i], tensor.dims().first()),
        "lora_B" | "lora_embedding_B" => (vec![o, r], tensor.dims().get(1)),
        _ => (vec![o], None),
    };
    if tensor.dims() == expected {
        return Ok(());
    }
    let what = format!("has shape {:?}, expected {expected:?}", tensor.dims());
    let other_rank = tensor.dims().len() == 2
        && rank.is_some_and(|got| *got != r)
        && (tensor.dims().contains(&i) || tensor.dims().contains(&o));
    let hint = match other_rank {
        true => format!("{CONFIG} gives this module rank {r}"),
        false => "the adapter was trained on a model of another size".to_string(),
    };
    Err(Error::input(at, what).hint(hint))
}

/// PEFT also saves the base weight of adapted embeddings; it must be the one at hand.
fn same_as_base(at: &str, saved: &Tensor, site: &SiteInfo, model: &Arc<dyn Model>) -> Result<()> {
    let base = model.affine(site.id)?.w_oi;
    let differs = || {
        Error::input(at, format!("is not the weight of {} in this model", site.name)).hint(
            "the adapter comes with an embedding of its own (added tokens?), or with another base",
        )
    };
    if saved.dims() != base.dims() {
        return Err(differs());
    }
    let (saved, base) = (saved.flatten_all()?, base.flatten_all()?);
    let apart = (&saved - &base)?.abs()?.max(0)?.to_scalar::<f32>()?;
    let size = base.abs()?.max(0)?.to_scalar::<f32>()?;
    // One of the two may have been through bf16.
    if apart <= size / 128.0 { Ok(()) } else { Err(differs()) }
}

/// The recipe that would bind the same.
fn as_bound(read: &Read, sites: &[(&SiteInfo, usize, f64)]) -> Lora {
    let ranks = sites.iter().filter(|(_, r, _)| *r != read.r);
    let alphas = sites.iter().filter(|(_, _, alpha)| *alpha != read.alpha);
    Lora {
        r: read.r,
        alpha: read.alpha,
        dropout: read.dropout,
        rslora: read.rslora,
        bias: read.bias,
        init: read.init,
        at: Globs(sites.iter().map(|(site, ..)| site.name.clone()).collect()),
        exclude: Globs::default(),
        rank_pattern: ranks.map(|(site, r, _)| (site.name.clone(), *r)).collect(),
        alpha_pattern: alphas.map(|(site, _, alpha)| (site.name.clone(), *alpha)).collect(),
    }
}
