//! LoRA and DoRA on disk.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::Tensor;
use luthier_core::{Error, LowRank, Result, SiteId, SiteInfo, SiteKind};
use serde_json::json;

use super::{
    CONFIG, PREFIX,
    card::Card,
    config::{self, Read},
    ia3::full,
    load::{Reader, path},
    module,
    save::{About, Out},
    tokens, whole,
};
use crate::{Lora, LoraInit, Params, Target};

/// Our name of a part, and PEFT's suffix for it.
type Part = (&'static str, &'static str);

const LINEAR: &[Part] = &[
    ("lora_A", ".lora_A.weight"),
    ("lora_B", ".lora_B.weight"),
    ("lora_B.bias", ".lora_B.bias"),
    ("lora_magnitude_vector", ".lora_magnitude_vector"),
];
const EMBED: &[Part] = &[
    ("lora_embedding_A", ".lora_embedding_A"),
    ("lora_embedding_B", ".lora_embedding_B"),
    ("lora_magnitude_vector", ".lora_magnitude_vector"),
];

fn parts(site: &SiteInfo) -> &'static [Part] {
    match site.kind {
        SiteKind::Embed { .. } => EMBED,
        _ => LINEAR,
    }
}

pub(super) fn write(lora: &Lora, out: &mut Out) -> Result<About> {
    let mut targets: Vec<(&str, Target)> = Vec::new();
    for target in lora.resolve(out.sites)? {
        let (site, module) = (target.site, module(target.site)?);
        let removed = removed(lora, out, site);
        let mut rank = None;
        for (part, suffix) in parts(site) {
            let Some(var) = out.take(&format!("{}.{part}", site.name)) else { continue };
            let mut tensor = var.as_detached_tensor();
            if let Some(LowRank { a_ri, b_or, .. }) = &removed {
                // What PEFT's conversion does: [A; A₀] and [B, −B₀] make up for an untouched base.
                tensor = match *part {
                    "lora_A" => Tensor::cat(&[&tensor, a_ri], 0)?,
                    "lora_B" => Tensor::cat(&[&tensor, &b_or.neg()?], 1)?,
                    _ => tensor,
                };
            }
            if part.ends_with("_A") {
                rank = tensor.dims().first().copied();
            }
            out.put(module, suffix, tensor);
        }
        match rank {
            Some(r) => targets.push((module, as_written(lora, target, r, removed.is_some()))),
            // EVA gives some sites no rank, and no adapter.
            None if lora.init == LoraInit::Eva => {}
            None => {
                return Err(Error::failed(&site.name, "is adapted but has no variable to save"));
            }
        }
    }
    let mut more = Vec::new();
    if let Some(chosen) = &out.bound.form.tokens {
        more.push(("trainable_token_indices", tokens::write_beside(chosen, out)?));
    }
    let whole = whole::write(out)?;
    more.push(("modules_to_save", whole.names));
    more.push(("ensure_weight_tying", json!(whole.tied)));
    let lora = &doubled(lora);
    let card = card(lora, targets.len() + whole.count);
    Ok(About { config: config::lora(lora, &targets, &out.modules(), more, out.base), card })
}

/// The constant part that a site's weight is without.
fn removed(lora: &Lora, out: &Out, site: &SiteInfo) -> Option<LowRank> {
    let hooks = out.bound.policy.hooks.get(site.id).iter().filter(|_| lora.init.removes());
    let mut low = hooks.filter_map(|hook| hook.low_rank());
    low.find(|low| !low.a_ri.is_variable() && !low.b_or.is_variable())
}

/// Rank and alpha of a target whose first factor has `r` rows in the file.
fn as_written<'s>(lora: &Lora, target: Target<'s>, r: usize, doubled: bool) -> Target<'s> {
    let alpha = match lora.init {
        LoraInit::Eva => lora.eva.alpha(target.alpha, target.r, r),
        _ if doubled && lora.rslora => target.alpha * 2f64.sqrt(),
        _ if doubled => target.alpha * 2.0,
        _ => target.alpha,
    };
    Target::new(target.site, r, alpha, lora.rslora)
}

/// The settings of the file: those of twice the rank where a constant part is written along.
fn doubled(lora: &Lora) -> Lora {
    let mut written = lora.clone();
    if lora.init.removes() {
        written.r *= 2;
        written.alpha *= if lora.rslora { 2f64.sqrt() } else { 2.0 };
        written.init = LoraInit::Kaiming;
    }
    written
}

fn card(lora: &Lora, modules: usize) -> Card {
    let scale = if lora.rslora { "alpha / sqrt(r)" } else { "alpha / r" };
    let settings = vec![
        ("r", lora.r.to_string()),
        ("alpha", lora.alpha.to_string()),
        ("scale", scale.to_string()),
        ("dropout", lora.dropout.to_string()),
    ];
    Card { title: if lora.dora { "DoRA" } else { "LoRA" }, tag: "lora", modules, settings }
}

pub(super) fn read(reader: &mut Reader) -> Result<Params> {
    let read = Read::new(reader)?;
    let mut parts_of: BTreeMap<SiteId, BTreeSet<&str>> = BTreeMap::new();
    let mut rest = Vec::new();
    for key in reader.keys() {
        if let Some(module) = path(&key).strip_suffix(".base_layer.weight") {
            let (site, saved) = (reader.site(&key, module)?, reader.take(&key)?);
            same_as_base(reader, &key, &saved, site)?;
            continue;
        }
        let Some((module, suffix)) = split(path(&key)) else {
            rest.push(key);
            continue;
        };
        let site = reader.site(&key, module)?;
        let Some((part, _)) = parts(site).iter().find(|(_, known)| *known == suffix) else {
            return Err(Error::input(reader.at(&key), format!("does not fit {}", site.name)));
        };
        let tensor = reader.take(&key)?;
        check_shape(&reader.at(&key), part, &tensor, site, read.rank(module))?;
        parts_of.entry(site.id).or_default().insert(part);
        reader.state.insert(format!("{}.{part}", site.name), tensor);
    }
    let (tokens, rest) = tokens::read_beside(reader, rest)?;
    let whole = whole::read(reader, rest)?;
    if parts_of.is_empty() {
        let at = reader.at("lora_A.weight");
        return Err(Error::input(at, "the file holds no LoRA factor"));
    }
    let mut sites = Vec::with_capacity(parts_of.len());
    for (id, found) in parts_of {
        let site = reader.model.sites().info(id);
        let module = module(site)?;
        for (part, suffix) in parts(site) {
            let (needed, key) = match *part {
                "lora_B.bias" => (read.lora.bias, "lora_bias"),
                "lora_magnitude_vector" => (read.lora.dora, "use_dora"),
                _ => (true, ""),
            };
            if needed != found.contains(part) {
                let what = match needed {
                    true => "is missing".to_string(),
                    false => format!("is there, but {key} is false"),
                };
                let at = reader.at(&format!("{PREFIX}{module}{suffix}"));
                return Err(Error::input(at, what));
            }
        }
        sites.push((site, read.rank(module), read.alpha(module)));
    }
    let lora = Some(read.lora.exactly(&sites));
    Ok(Params { full: full(&whole), lora, tokens, ..Params::default() })
}

/// A path without PEFT's prefix as (module, suffix).
fn split(path: &str) -> Option<(&str, &str)> {
    let known = LINEAR.iter().chain(EMBED);
    let suffix = known.map(|(_, suffix)| *suffix).find(|suffix| path.ends_with(suffix))?;
    Some((path.strip_suffix(suffix)?, suffix))
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
fn same_as_base(reader: &Reader, key: &str, saved: &Tensor, site: &SiteInfo) -> Result<()> {
    let base = reader.model.affine(site.id)?.w_oi;
    let differs = || {
        let what = format!("is not the weight of {} in this model", site.name);
        Error::input(reader.at(key), what).hint(
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
