//! How far every weight moved: the difference of folded and plain weights, site by site.

use std::sync::Arc;

use luthier_core::{Hook, Result, SiteInfo};
use luthier_kernels::tensor;
use luthier_params::Bound;
use luthier_probe::delta::{Change, Changed, DeltaReport, measure};

use crate::{open::Opened, report::SiteChange};

/// Measures every changed site. Low-rank changes are measured on their factors; the full product
/// is never formed.
pub fn changes(bound: &Bound, opened: &Opened) -> Result<DeltaReport> {
    let mut changed = Vec::new();
    for site in opened.model.sites().iter().filter(|s| s.module.is_some()) {
        let weight = format!("{}.weight", site.module.as_deref().unwrap_or_default());
        match bound.policy.hooks.get(site.id) {
            [] if bound.var(&weight).is_some() => changed.push(learned_site(bound, opened, site)?),
            [] => {}
            hooks => changed.extend(hooked_site(bound, opened, site, hooks)?),
        }
    }
    measure(&changed)
}

/// What hooks do to a weight; `None` where they cannot be folded into one.
fn hooked_site(
    bound: &Bound,
    opened: &Opened,
    site: &SiteInfo,
    hooks: &[Arc<dyn Hook>],
) -> Result<Option<Changed>> {
    let base = opened.model.affine(site.id)?.w_oi;
    if let [hook] = hooks
        && let Some(low) = hook.low_rank()
    {
        let (a_ri, b_or) = (low.a_ri.detach(), low.b_or.detach());
        let change = Change::LowRank { a_ri, b_or, scale: f64::from(low.scale) };
        return Ok(Some(Changed { name: site.name.clone(), base: Some(base), change }));
    }
    let (model, hooks) = (&bound.policy.model, &bound.policy.hooks);
    let Some(now) = hooks.fold(model.sites(), site.id, model.affine(site.id)?)? else {
        return Ok(None);
    };
    let change = Change::Dense((now.w_oi - &base)?);
    Ok(Some(Changed { name: site.name.clone(), base: Some(base), change }))
}

/// Against the weight as its file has it: what is held may be rounded, and is learned in place.
fn learned_site(bound: &Bound, opened: &Opened, site: &SiteInfo) -> Result<Changed> {
    let now = bound.policy.model.affine(site.id)?.w_oi;
    let name = format!("{}.weight", site.module.as_deref().unwrap_or(&site.name));
    let base = tensor::from_vec(opened.exact(&name)?, now.dims())?;
    let change = Change::Dense((now - &base)?);
    Ok(Changed { name: site.name.clone(), base: Some(base), change })
}

/// For the report's heat map.
pub fn for_report(report: &DeltaReport) -> Vec<SiteChange> {
    let one = |m: &luthier_probe::delta::MatrixReport| {
        let site = match m.layer {
            Some(layer) => m.name.replacen(&format!("layers.{layer}."), "", 1),
            None => m.name.clone(),
        };
        SiteChange {
            layer: m.layer,
            site,
            relative_norm: m.relative.unwrap_or(f64::NAN),
            effective_rank: Some(m.effective_rank),
        }
    };
    report.matrices.iter().map(one).collect()
}
