//! What a run leaves behind: an adapter in PEFT's layout, or a Hugging Face folder.

use std::{
    borrow::Cow,
    path::{Path, PathBuf},
};

use candle_core::{DType, Tensor};
use luthier_core::{Affine, Error, Hooks, Model, Policy, Result, SiteInfo, SiteKind};
use luthier_model::{
    ModelConfig,
    config::Arch,
    names::tensors,
    save::{Save, SaveDtype, save_hf},
};
use luthier_params::{
    Bound, Kept, own,
    peft::{self, Base},
};

use crate::open::Opened;

/// Writes the trained parts of `bound` into `dir`: the adapter, or the whole model.
pub fn trained(bound: &Bound, opened: &Opened, dir: &Path) -> Result<Vec<PathBuf>> {
    let base = Base { name: opened.name.clone(), sha256: Some(opened.sha256.clone()) };
    match bound.form.kept() {
        Kept::Peft => {
            peft::save(dir, bound, opened.model.sites(), &base)?;
            Ok([peft::CONFIG, peft::WEIGHTS, "README.md"].iter().map(|f| dir.join(f)).collect())
        }
        Kept::Own => own::save(dir, bound, &base, &|name| opened.exact(name)),
        Kept::Model => {
            // What did not learn comes from the file: a model may hold it rounded.
            let load = |name: &str| match bound.var(name) {
                Some(var) => Ok(var.flatten_all()?.to_vec1::<f32>()?),
                None => opened.exact(name),
            };
            let config = match &bound.form.head {
                Some(head) => Cow::Owned(opened.config.clone().scoring(&head.labels.names())?),
                None => Cow::Borrowed(&opened.config),
            };
            write(&config, opened, SaveDtype::F32, dir, load)
        }
    }
}

/// Writes the policy as one plain model, its hooks folded into the weights. A tied head is written
/// out by itself when only one of the two uses of the table changed.
pub fn merged(
    policy: &Policy,
    opened: &Opened,
    dtype: SaveDtype,
    dir: &Path,
) -> Result<Vec<PathBuf>> {
    let (model, hooks) = (policy.model.as_ref(), &policy.hooks);
    let config = folded_config(&opened.config, model, hooks)?;
    write(&config, opened, dtype, dir, |name| tensor(model, hooks, name))
}

/// The configuration of what becomes of a model once `hooks` are folded into it; refuses hooks that
/// cannot be.
pub(crate) fn folded_config(
    plain: &ModelConfig,
    model: &dyn Model,
    hooks: &Hooks,
) -> Result<ModelConfig> {
    let mut config = plain.clone();
    let changed = |site: &str| model.sites().get(site).is_some_and(|s| hooks.watched(s.id));
    if config.tied && (changed("embed") || changed("logits")) {
        config.tied = false;
        config.raw.insert("tie_word_embeddings".into(), false.into());
    }
    refuse_unfoldable(model, hooks)?;
    add_biases(&mut config, model, hooks)?;
    Ok(config)
}

/// Whether all that hooks do at a site is to add a product of two factors, which folds and gives no
/// bias: this need not be tried.
fn low_rank(hooks: &Hooks, site: &SiteInfo) -> bool {
    site.linear().is_some() && hooks.get(site.id).iter().all(|hook| hook.low_rank().is_some())
}

/// A model's folder from its tensors by name.
fn write(
    config: &ModelConfig,
    opened: &Opened,
    dtype: SaveDtype,
    dir: &Path,
    load: impl FnMut(&str) -> Result<Vec<f32>>,
) -> Result<Vec<PathBuf>> {
    let list = tensors(config);
    let mut files = save_hf(dir, config, &list, load, &Save { dtype, ..Save::default() })?;
    opened.tokenizer.save(dir)?;
    let text = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"];
    files.extend(text.iter().map(|f| dir.join(f)).filter(|f| f.exists()));
    Ok(files)
}

/// Hooks on values rather than weights have no place in a plain model.
fn refuse_unfoldable(model: &dyn Model, hooks: &Hooks) -> Result<()> {
    let sites = hooks.sites().map(|id| model.sites().info(id));
    for site in sites.filter(|site| !low_rank(hooks, site)) {
        if site.module.is_none()
            || hooks.fold(model.sites(), site.id, model.affine(site.id)?)?.is_none()
        {
            return Err(Error::input(&site.name, "what is bound here cannot become a weight")
                .hint("keep the adapter beside the model instead of folding it"));
        }
    }
    Ok(())
}

/// Lets the file have the biases that folding gives to linear maps without one.
fn add_biases(config: &mut ModelConfig, model: &dyn Model, hooks: &Hooks) -> Result<()> {
    for site in hooks.sites().map(|id| model.sites().info(id)) {
        let SiteKind::Linear { bias: false, .. } = site.kind else { continue };
        if low_rank(hooks, site) {
            continue;
        }
        let folded = hooks.fold(model.sites(), site.id, model.affine(site.id)?)?;
        if folded.is_none_or(|affine| affine.b_o.is_none()) {
            continue;
        }
        let key = match (config.arch, site.name.contains(".attn."), site.name.contains(".mlp.")) {
            (Arch::Llama | Arch::SmolLM3, true, _) => {
                (config.qkv_bias, config.o_bias) = (true, true);
                "attention_bias"
            }
            (Arch::Llama | Arch::SmolLM3, _, true) => {
                config.mlp_bias = true;
                "mlp_bias"
            }
            (arch, ..) => {
                let what = format!(
                    "folding gives it a bias, which {} has no place for",
                    arch.model_type()
                );
                return Err(Error::input(&site.name, what)
                    .hint("keep the adapter beside the model instead of folding it"));
            }
        };
        config.raw.insert(key.into(), true.into());
    }
    Ok(())
}

/// One tensor of the folded model by its Hugging Face name.
pub(crate) fn tensor(model: &dyn Model, hooks: &Hooks, name: &str) -> Result<Vec<f32>> {
    let site = name.rsplit_once('.').and_then(|(module, _)| site_of(model, module));
    let Some(site) = site else {
        return Err(Error::failed(name, "belongs to no site of this model"));
    };
    let plain = model.affine(site.id)?;
    let folded = hooks.fold(model.sites(), site.id, plain)?;
    let Some(Affine { w_oi, b_o }) = folded else {
        return Err(Error::failed(&site.name, "what is bound here cannot become a weight"));
    };
    let tensor = match (name.ends_with(".bias"), b_o) {
        (false, _) => w_oi,
        (true, Some(b_o)) => b_o,
        // Its neighbours got one, and the file has a bias for all of them or none.
        (true, None) => Tensor::zeros(w_oi.dims()[0], DType::F32, w_oi.device())?,
    };
    Ok(tensor.flatten_all()?.to_vec1::<f32>()?)
}

fn site_of<'m>(model: &'m dyn Model, module: &str) -> Option<&'m SiteInfo> {
    model.sites().by_module(module)
}

/// The configuration as it will be written, for whoever describes it.
pub fn describe(config: &ModelConfig) -> String {
    let kind = config.arch.model_type();
    format!("{kind}, {} layers of width {}", config.layers, config.hidden)
}
