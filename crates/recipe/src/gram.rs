//! Inner products of what linear maps read, `XᵀX` over tokens: what `merge_method: regmean` takes
//! beside each model.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use candle_core::{DType, Tensor};
use luthier_core::{At, Batch, Ctx, Error, Hook, Hooks, Policy, Result, Seed, SiteInfo, StateDict};
use luthier_kernels::threads;

use crate::training::Stage;

/// Adds up the products at the sites it is bound to.
#[derive(Default)]
struct Grams(Mutex<BTreeMap<String, Tensor>>);

impl Hook for Grams {
    fn after(&self, at: &At, x: &Tensor, y: Tensor) -> Result<Tensor> {
        let (_n, _i) = x.dims2()?;
        let x_ni = x.detach().to_dtype(DType::F32)?;
        let product_ii = x_ni.t()?.matmul(&x_ni)?;
        let mut sums = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let sum = match sums.remove(&at.site.name) {
            Some(sum) => (sum + product_ii)?,
            None => product_ii,
        };
        sums.insert(at.site.name.clone(), sum);
        Ok(y)
    }
}

/// The site that reads the same as this linear map of a block, and stands for it.
fn reads(site: &SiteInfo) -> Option<String> {
    site.linear()?;
    site.layer?;
    let name = &site.name;
    let same = [(".attn.k", ".attn.q"), (".attn.v", ".attn.q"), (".mlp.up", ".mlp.gate")];
    let found = same.iter().find_map(|(one, other)| Some((name.strip_suffix(one)?, other)));
    Some(found.map_or_else(|| name.clone(), |(stem, other)| format!("{stem}{other}")))
}

/// The mean products over the tokens of so many training rows of a recipe, drawn with its seed, under
/// the names of the weights of all linear maps in blocks; and the number of tokens.
pub fn gram(stage: &Stage, rows: usize, told: &dyn Fn(usize)) -> Result<(StateDict, usize)> {
    if rows == 0 {
        return Err(Error::input("rows", "expected at least 1, got 0"));
    }
    let (bound, all) = (&stage.bound, &stage.train.rows);
    let mut order: Vec<usize> = (0..all.len()).collect();
    Seed(stage.config.seed).split("gram").rng().shuffle(&mut order);
    order.truncate(rows);
    let (model, grams) = (&bound.policy.model, Arc::new(Grams::default()));
    let mut hooks = Hooks::none();
    for site in model.sites().iter().filter(|site| reads(site).as_ref() == Some(&site.name)) {
        hooks.bind(site.id, grams.clone());
    }
    let hooks = bound.policy.hooks.clone().and(&hooks);
    let policy = Policy { model: model.clone(), hooks };
    let mut tokens = 0;
    for (done, row) in order.iter().enumerate() {
        let batch = Batch::from_rows([&all[*row]]);
        tokens += batch.ids_n.len();
        let mut ctx = Ctx::new(&policy.hooks, batch.rows.clone(), &batch.ids_n);
        threads::together(|| policy.hidden(&mut ctx))?;
        told(done + 1);
    }
    let sums = grams.0.lock().unwrap_or_else(PoisonError::into_inner);
    let mut found = StateDict::default();
    for site in model.sites().iter() {
        let (Some(name), Some(module)) = (reads(site), &site.module) else { continue };
        let sum = sums.get(&name).ok_or_else(|| Error::failed(&name, "read nothing"))?;
        found.insert(format!("{module}.weight"), (sum / tokens.max(1) as f64)?);
    }
    Ok((found, tokens))
}
