//! How far every weight moved: the difference of folded and plain weights, site by site.

use luthier_core::{Policy, Result, SiteInfo};
use luthier_kernels::tensor;
use luthier_params::{Bound, Kind};
use luthier_probe::delta::{Change, Changed, DeltaReport, measure};

use crate::{open::Opened, report::SiteChange};

/// Measures every changed site. Low-rank changes are measured on their factors; the full product
/// is never formed.
pub fn changes(bound: &Bound, opened: &Opened) -> Result<DeltaReport> {
    let changed: Vec<Changed> = match &bound.kind {
        Kind::Lora(lora) => {
            let targets = lora.targets(opened.model.sites())?;
            targets
                .iter()
                .map(|t| low_rank(bound, opened, t.site, t.scale))
                .collect::<Result<_>>()?
        }
        Kind::Full(_) => {
            let sites = opened.model.sites().iter().filter(|s| s.module.is_some());
            let learned = sites.filter(|s| {
                let module = s.module.as_deref().unwrap_or_default();
                bound.vars.iter().any(|(name, _)| name == &format!("{module}.weight"))
            });
            learned.map(|site| learned_site(bound, opened, site)).collect::<Result<_>>()?
        }
    };
    measure(&changed)
}

fn low_rank(bound: &Bound, opened: &Opened, site: &SiteInfo, scale: f64) -> Result<Changed> {
    let var = |part: &str| {
        let name = format!("{}.{part}", site.name);
        bound.vars.iter().find(|(n, _)| *n == name).map(|(_, v)| v.as_detached_tensor())
    };
    let base = Some(opened.model.affine(site.id)?.w_oi);
    let change = match (var("lora_A"), var("lora_B")) {
        (Some(a_ri), Some(b_or)) => Change::LowRank { a_ri, b_or, scale },
        // Embeddings and other parts: through the fold, which every foldable hook has.
        _ => return dense(&bound.policy, opened, site),
    };
    Ok(Changed { name: site.name.clone(), base, change })
}

/// Against the weight as its file has it: what is held may be rounded, and is learned in place.
fn learned_site(bound: &Bound, opened: &Opened, site: &SiteInfo) -> Result<Changed> {
    let now = bound.policy.model.affine(site.id)?.w_oi;
    let name = format!("{}.weight", site.module.as_deref().unwrap_or(&site.name));
    let base = tensor::from_vec(opened.exact(&name)?, now.dims())?;
    let change = Change::Dense((now - &base)?);
    Ok(Changed { name: site.name.clone(), base: Some(base), change })
}

fn dense(policy: &Policy, opened: &Opened, site: &SiteInfo) -> Result<Changed> {
    let base = opened.model.affine(site.id)?.w_oi;
    let now = policy.model.affine(site.id)?;
    let now = policy.hooks.fold(policy.model.sites(), site.id, now.clone())?.unwrap_or(now);
    let change = Change::Dense((now.w_oi - &base)?);
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
