//! (IA)³ on disk: `.ia3_l`, `(out, 1)` or at feed-forward modules `(1, in)`.

use luthier_core::{Error, Result, SiteInfo, SiteKind};
use serde_json::json;

use super::{
    card::Card,
    config::{self, Written},
    load::{Reader, path},
    module, modules,
    save::{About, Out},
    whole,
};
use crate::{Full, Globs, Ia3, Params};

/// Every key of PEFT 0.21.2 with its default, in its order, and ours.
const TEMPLATE: &str = r#"{
    "auto_mapping": null, "base_model_name_or_path": null, "exclude_modules": null,
    "fan_in_fan_out": false, "feedforward_modules": null, "inference_mode": true,
    "init_ia3_weights": true, "luthier": null, "modules_to_save": null, "peft_type": "IA3",
    "peft_version": "0.21.2", "revision": null, "target_modules": null, "task_type": "CAUSAL_LM"
}"#;

const SUFFIX: &str = ".ia3_l";

pub(super) fn write(ia3: &Ia3, out: &mut Out) -> Result<About> {
    let (mut bound, mut inputs): (Vec<&str>, Vec<&str>) = (Vec::new(), Vec::new());
    for (site, on_input) in ia3.targets(out.sites)? {
        let (module, l) = (module(site)?, out.need(&format!("{}.ia3_l", site.name))?);
        out.put(module, SUFFIX, l);
        bound.push(module);
        if on_input {
            inputs.push(module);
        }
    }
    let whole = whole::write_untied(out)?;
    // A list must be a part of `target_modules`, which whole paths never are.
    let names = modules::endings(&inputs, &bound);
    let feedforward = match names.iter().any(|name| inputs.contains(name)) {
        false => json!(names),
        true => modules::regex(&inputs),
    };
    let own: Written = vec![
        ("feedforward_modules", feedforward),
        ("modules_to_save", whole.names),
        ("target_modules", modules::target_modules(&bound, &out.modules())),
    ];
    let settings = vec![("scaled inputs", inputs.len().to_string())];
    let modules = bound.len() + whole.count;
    Ok(About {
        config: config::fill(TEMPLATE, own, out.base),
        card: Card { title: "(IA)³", tag: "ia3", modules, settings },
    })
}

pub(super) fn read(reader: &mut Reader) -> Result<Params> {
    reader.refuse(&["fan_in_fan_out"])?;
    let (mut at, mut feedforward): (Vec<&SiteInfo>, Vec<&SiteInfo>) = (Vec::new(), Vec::new());
    let mut rest = Vec::new();
    for key in reader.keys() {
        let Some(module) = path(&key).strip_suffix(SUFFIX) else {
            rest.push(key);
            continue;
        };
        let site = reader.site(&key, module)?;
        let l = reader.take(&key)?;
        let SiteKind::Linear { i, o, .. } = site.kind else {
            return Err(Error::input(reader.at(&key), format!("does not fit {}", site.name)));
        };
        // The shape says which side is scaled, as it does to PEFT.
        match l.dims() {
            [1, width] if *width == i => feedforward.push(site),
            [width, 1] if *width == o => {}
            other => {
                let what = format!("has shape {other:?}, expected [{o}, 1] or [1, {i}]");
                return Err(Error::input(reader.at(&key), what)
                    .hint("the adapter was trained on a model of another size"));
            }
        }
        at.push(site);
        reader.state.insert(format!("{}.ia3_l", site.name), l);
    }
    let whole = whole::read(reader, rest)?;
    let names = |mut sites: Vec<&SiteInfo>| {
        sites.sort_by_key(|site| site.id);
        Globs(sites.iter().map(|site| site.name.clone()).collect())
    };
    let ia3 = Ia3 { at: names(at), exclude: Globs::default(), feedforward: names(feedforward) };
    Ok(Params { full: full(&whole), ia3: Some(ia3), ..Params::default() })
}

/// `[train.params.full]` at these sites, if there are any.
pub(super) fn full(sites: &[&SiteInfo]) -> Option<Full> {
    let at = Globs(sites.iter().map(|site| site.name.clone()).collect());
    (!sites.is_empty()).then(|| Full { at, ..Full::default() })
}
