//! LN tuning on disk: `.ln_tuning_layers.weight`, the norm that takes the old one's place.

use luthier_core::{Error, Result, SiteInfo, SiteKind};

use super::{
    card::Card,
    config::{self, Written},
    ia3::full,
    load::{Reader, path},
    module, modules,
    save::{About, Out},
    whole,
};
use crate::{Globs, LnTuning, Params};

/// Every key of PEFT 0.21.2 with its default, in its order, and ours.
const TEMPLATE: &str = r#"{
    "auto_mapping": null, "base_model_name_or_path": null, "exclude_modules": null,
    "inference_mode": true, "luthier": null, "modules_to_save": null, "peft_type": "LN_TUNING",
    "peft_version": "0.21.2", "revision": null, "target_modules": null, "task_type": "CAUSAL_LM"
}"#;

const SUFFIX: &str = ".ln_tuning_layers.weight";

pub(super) fn write(norms: &LnTuning, out: &mut Out) -> Result<About> {
    let mut bound: Vec<&str> = Vec::new();
    for site in norms.targets(out.sites)? {
        let module = module(site)?;
        let scale_d = out.need(&format!("{module}.weight"))?;
        out.put(module, SUFFIX, scale_d);
        bound.push(module);
    }
    let whole = whole::write_untied(out)?;
    let own: Written = vec![
        ("modules_to_save", whole.names),
        ("target_modules", modules::target_modules(&bound, &out.modules())),
    ];
    let modules = bound.len() + whole.count;
    Ok(About {
        config: config::fill(TEMPLATE, own, out.base),
        card: Card { title: "LN tuning", tag: "ln_tuning", modules, settings: Vec::new() },
    })
}

pub(super) fn read(reader: &mut Reader) -> Result<Params> {
    let (mut norms, mut rest): (Vec<&SiteInfo>, Vec<String>) = (Vec::new(), Vec::new());
    for key in reader.keys() {
        let Some(module) = path(&key).strip_suffix(SUFFIX) else {
            rest.push(key);
            continue;
        };
        let site = reader.site(&key, module)?;
        if !matches!(site.kind, SiteKind::Norm { .. }) {
            let what = format!("does not fit {}, which is no norm", site.name);
            return Err(Error::input(reader.at(&key), what));
        }
        let (name, scale_d) = (format!("{module}.weight"), reader.take(&key)?);
        reader.state.insert(name, scale_d);
        norms.push(site);
    }
    let whole = whole::read(reader, rest)?;
    norms.sort_by_key(|site| site.id);
    let at = Globs(norms.iter().map(|site| site.name.clone()).collect());
    let ln_tuning = Some(LnTuning { at, exclude: Globs::default() });
    Ok(Params { full: full(&whole), ln_tuning, ..Params::default() })
}
