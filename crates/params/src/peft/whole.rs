//! `modules_to_save`: modules that learn as a whole, beside an adapter.

use std::collections::BTreeSet;

use candle_core::Tensor;
use luthier_core::{Error, Result, SiteInfo};
use serde_json::{Value, json};

use super::{load::Reader, module, modules, save::Out};
use crate::form::{head::WEIGHT, tokens::tied};

/// What was written as a whole.
pub(super) struct Whole {
    /// `modules_to_save`.
    pub names: Value,
    /// Whether the embedding is among them and the head follows it (`ensure_weight_tying`).
    pub tied: bool,
    /// How many modules these are.
    pub count: usize,
}

/// Writes the weights that learned themselves. PEFT wants all tensors of such a module, also those
/// that did not learn.
pub(super) fn write(out: &mut Out) -> Result<Whole> {
    // A new head has a place of its own, also where the base has one of that name.
    let head = out.bound.form.head.is_some();
    let learned = |name: &'_ str| {
        if head && name == WEIGHT {
            return None;
        }
        let (module, part) = name.rsplit_once('.')?;
        let known = matches!(part, "weight" | "bias") && out.sites.by_module(module).is_some();
        known.then(|| module.to_string())
    };
    let learned: BTreeSet<String> = out.left().filter_map(learned).collect();
    if learned.is_empty() {
        return Ok(Whole { names: Value::Null, tied: false, count: 0 });
    }
    let model = out.bound.policy.model.as_ref();
    for module in &learned {
        let Some(site) = out.sites.by_module(module) else { continue };
        let base = model.affine(site.id)?;
        for (part, base) in [("weight", Some(base.w_oi)), ("bias", base.b_o)] {
            let learned = out.take(&format!("{module}.{part}")).map(|v| v.as_detached_tensor());
            if let Some(tensor) = learned.or(base) {
                out.put(module, &format!(".{part}"), tensor);
            }
        }
    }
    let (all, chosen): (Vec<&str>, Vec<&str>) =
        (out.modules(), learned.iter().map(String::as_str).collect());
    let mut tied_head = false;
    if let (Some(embed), Some(head)) = (out.sites.get("embed"), out.sites.get("logits"))
        && learned.contains(module(embed)?)
        && tied(model)?
    {
        // PEFT keeps the head's copy under its own name too.
        let weight = model.affine(embed.id)?.w_oi;
        out.put(module(head)?, ".weight", weight);
        tied_head = true;
    }
    let names = modules::endings(&chosen, &all);
    Ok(Whole { names: json!(names), tied: tied_head, count: chosen.len() })
}

/// The same beside an adapter other than a LoRA.
pub(super) fn write_untied(out: &mut Out) -> Result<Whole> {
    let whole = write(out)?;
    if whole.tied {
        return Err(Error::failed("train.params.full", "learns an embedding that is the head too")
            .hint("PEFT keeps the two together beside a LoRA only"));
    }
    Ok(whole)
}

/// Takes the tensors `keys` of the file as those of whole modules that `modules_to_save` names, and
/// returns their sites.
pub(super) fn read<'m>(reader: &mut Reader<'m>, keys: Vec<String>) -> Result<Vec<&'m SiteInfo>> {
    let named: Vec<String> = match reader.get("modules_to_save") {
        Value::Array(names) => {
            names.iter().filter_map(|n| n.as_str().map(str::to_string)).collect()
        }
        _ => Vec::new(),
    };
    // A head that follows the embedding is in the file without being named.
    let follows = reader.get("ensure_weight_tying") == &json!(true);
    let head = reader.model.sites().get("logits").filter(|_| follows);
    let head = head.and_then(|site| site.module.as_deref());
    let mut sites: Vec<&SiteInfo> = Vec::new();
    for key in keys {
        let path = super::load::path(&key);
        let known = path.rsplit_once('.').filter(|(module, part)| {
            let named = named.iter().any(|name| module.ends_with(name));
            matches!(*part, "weight" | "bias") && (named || head == Some(module))
        });
        let Some((module, part)) = known else {
            return Err(reader.unknown(&key));
        };
        let site = reader.site(&key, module)?;
        let name = format!("{module}.{part}");
        let tensor = reader.take(&key)?;
        reader.state.insert(name, tensor);
        if sites.iter().all(|s| s.id != site.id) {
            sites.push(site);
        }
    }
    for name in &named {
        let found = sites.iter().filter_map(|s| s.module.as_deref()).any(|m| m.ends_with(name));
        if !found {
            let what = format!("names \"{name}\", but the file has no tensor of such a module");
            return Err(Error::input(reader.at_config("modules_to_save"), what));
        }
    }
    refuse_untied(reader, &mut sites)?;
    sites.sort_by_key(|site| site.id);
    Ok(sites)
}

/// Where the head is the embedding, one learned apart from the other would need another model.
fn refuse_untied(reader: &mut Reader, sites: &mut Vec<&SiteInfo>) -> Result<()> {
    let find = |name: &str| sites.iter().position(|site| site.name == name);
    let (embed, head) = (find("embed"), find("logits"));
    if embed.is_none() && head.is_none() || !tied(reader.model.as_ref())? {
        return Ok(());
    }
    let weight = |at: Option<usize>| -> Option<&Tensor> {
        reader.state.get(&format!("{}.weight", sites[at?].module.as_deref()?))
    };
    let same = match (weight(embed), weight(head)) {
        (Some(table), Some(head)) => {
            table.dims() == head.dims()
                && table.flatten_all()?.to_vec1::<f32>()? == head.flatten_all()?.to_vec1::<f32>()?
        }
        (Some(_), None) => reader.get("ensure_weight_tying") == &json!(true),
        _ => false,
    };
    if !same {
        let what = "learned the embedding apart from the head, but in this model they are one";
        return Err(Error::input(reader.at_config("modules_to_save"), what)
            .hint("train with ensure_weight_tying = true, or merge it with PEFT into a model"));
    }
    if let Some(at) = head {
        let site = sites.remove(at);
        reader.state.remove(&format!("{}.weight", site.module.as_deref().unwrap_or_default()));
    }
    Ok(())
}
