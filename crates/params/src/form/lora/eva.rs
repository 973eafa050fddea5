//! EVA (Paischer et al. 2024): A begins at the main directions of a site's own inputs, and ranks go
//! where these explain most.
//!
//! A probe measures, per linear site S, `S.components` (orthonormal rows, the most important first),
//! `S.ratio` (share of the variance each explains) and, for whitening, `S.singular_values`. The
//! ratios of all sites are pooled, and the largest `Σ r` of them give their sites a rank each, at most
//! `round(r · rho)` of a site; A is made of the first components, B of zeros; a site without a rank
//! gets no adapter. **Departures**: (1) ranks are given out in forward order where ratios are equal,
//! where the published code's sort leaves it open; (2) a rank never exceeds the smaller width.

use std::collections::BTreeMap;

use candle_core::Tensor;
use luthier_core::{Error, Result, SiteKind};
use serde::{Deserialize, Serialize};

use super::{KEY, Target, start::Start};
use crate::Scope;

/// `[train.params.lora.eva]`, with `init = "eva"`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Eva {
    /// A site's rank is at most this times `r`; 1 gives every site its `r`.
    pub rho: f64,
    /// The directions stand when each of them moves by less than this cosine between batches.
    pub tau: f64,
    /// Measure only tokens that are trained on.
    pub use_label_mask: bool,
    /// Divide each direction by the root of its singular value.
    pub whiten: bool,
    /// Keep alpha / r as it is where the rank changes.
    pub adjust_scaling_factors: bool,
    /// Take off the mean before directions are sought.
    pub center: bool,
}

impl Default for Eva {
    fn default() -> Self {
        Eva {
            rho: 2.0,
            tau: 0.99,
            use_label_mask: true,
            whiten: false,
            adjust_scaling_factors: true,
            center: true,
        }
    }
}

impl Eva {
    /// Whether nothing is set otherwise than by default.
    pub(super) fn is_default(&self) -> bool {
        *self == Eva::default()
    }

    pub(super) fn check(&self) -> Result<()> {
        if !(self.rho.is_finite() && self.rho >= 1.0) {
            let what = format!("expected a number from 1 up, got {}", self.rho);
            return Err(Error::input(format!("{KEY}.eva.rho"), what));
        }
        if !(0.0..1.0).contains(&self.tau) {
            let what = format!("expected at least 0 and below 1, got {}", self.tau);
            return Err(Error::input(format!("{KEY}.eva.tau"), what));
        }
        Ok(())
    }

    /// How many components the probe should give a site of rank `r`: Python's rounding, to even.
    pub fn components(&self, r: usize) -> usize {
        (r as f64 * self.rho).round_ties_even() as usize
    }

    /// Ranks by site, from as many explained variance ratios by site as [`Eva::components`] asked
    /// for: of `targets` in forward order.
    pub fn ranks(
        &self,
        targets: &[Target],
        ratios: &BTreeMap<String, Vec<f64>>,
    ) -> BTreeMap<String, usize> {
        let measured: Vec<(&Target, Vec<f32>)> = targets
            .iter()
            .filter_map(|target| {
                let most = self.components(target.r).min(target.widths().1);
                let ratios = ratios.get(&target.site.name)?.iter().take(most);
                Some((target, ratios.map(|r| *r as f32).collect()))
            })
            .collect();
        let lists: Vec<&[f32]> = measured.iter().map(|(_, ratios)| ratios.as_slice()).collect();
        let ranks = allot(&lists, measured.iter().map(|(target, _)| target.r).sum());
        measured.iter().zip(ranks).map(|((target, _), r)| (target.site.name.clone(), r)).collect()
    }

    /// Alpha of a site whose rank changed from `r` to `now`.
    pub(crate) fn alpha(&self, alpha: f64, r: usize, now: usize) -> f64 {
        match self.adjust_scaling_factors && now != r {
            true => alpha * now as f64 / r as f64,
            false => alpha,
        }
    }

    /// The targets with the ranks that what was measured gives them, those that get none left out,
    /// and where their factors begin.
    pub(super) fn settle<'s>(
        &self,
        rslora: bool,
        targets: Vec<Target<'s>>,
        scope: &Scope,
    ) -> Result<Vec<(Target<'s>, Start)>> {
        let mut measured: Vec<Option<(Tensor, Vec<f32>)>> = Vec::with_capacity(targets.len());
        for target in &targets {
            measured.push(match target.site.kind {
                SiteKind::Linear { .. } => Some(self.measured(target, scope)?),
                _ => None,
            });
        }
        let linear = || targets.iter().zip(&measured).filter_map(|(t, m)| Some((t, m.as_ref()?)));
        let ratios: Vec<&[f32]> = linear().map(|(_, (_, ratios))| ratios.as_slice()).collect();
        let budget = linear().map(|(target, _)| target.r).sum();
        let mut ranks = allot(&ratios, budget).into_iter();
        let mut settled = Vec::with_capacity(targets.len());
        for (target, measured) in targets.into_iter().zip(measured) {
            let Some((components_ki, _)) = measured else {
                settled.push((target, Start::default()));
                continue;
            };
            let r = ranks.next().unwrap_or(0);
            if r > 0 {
                let alpha = self.alpha(target.alpha, target.r, r);
                let a_ri = Some(components_ki.narrow(0, 0, r)?.contiguous()?);
                let target = Target::new(target.site, r, alpha, rslora);
                settled.push((target, Start { a_ri, ..Start::default() }));
            }
        }
        Ok(settled)
    }

    /// The directions of a site, as many as its rank may be, and the share of each.
    fn measured(&self, target: &Target, scope: &Scope) -> Result<(Tensor, Vec<f32>)> {
        let name = &target.site.name;
        let find = |part: &str| {
            let missing = || {
                Error::failed(format!("{name}.{part}"), "was not measured")
                    .hint("init = \"eva\" begins at what a probe of the training data finds")
            };
            scope.found(&format!("{name}.{part}")).ok_or_else(missing)
        };
        let (i, o) = target.widths();
        let (components, ratios) = (find("components")?, find("ratio")?.to_vec1::<f32>()?);
        let (n, width) = components.dims2()?;
        if width != i || ratios.len() != n {
            let what = format!("{n} components of width {width} with {} ratios", ratios.len());
            return Err(Error::failed(
                name,
                what + &format!(" do not fit its inputs of width {i}"),
            ));
        }
        let most = self.components(target.r).min(n).min(o);
        let mut components = components.narrow(0, 0, most)?;
        if self.whiten {
            let by = find("singular_values")?.narrow(0, 0, most)?.sqrt()?;
            components = components.broadcast_div(&by.unsqueeze(1)?)?;
        }
        Ok((components, ratios[..most].to_vec()))
    }
}

/// How many of its ratios each site has among the `budget` largest of all; of equal ones those of the
/// first site count first.
pub(super) fn allot(ratios: &[&[f32]], budget: usize) -> Vec<usize> {
    let all = ratios.iter().enumerate();
    let mut pooled: Vec<(f32, usize)> =
        all.flat_map(|(site, ratios)| ratios.iter().map(move |ratio| (*ratio, site))).collect();
    // A stable sort: sites stay in their order.
    pooled.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    let mut ranks = vec![0; ratios.len()];
    pooled.iter().take(budget).for_each(|(_, site)| ranks[*site] += 1);
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_go_to_the_largest_ratios() {
        let a = [0.6f32, 0.2, 0.1, 0.05];
        let b = [0.3f32, 0.25, 0.2, 0.15];
        let c = [0.9f32, 0.05, 0.02, 0.01];
        assert_eq!(allot(&[&a, &b, &c], 6), [2, 3, 1]);
        // Capped at r by rho = 1, everybody gets r; what is not there cannot be given out.
        assert_eq!(allot(&[&a[..2], &b[..2], &c[..2]], 6), [2, 2, 2]);
        assert_eq!(allot(&[&a[..1], &c[..1]], 6), [1, 1]);
        // Equal ratios go to the first site, and a site may go without.
        assert_eq!(allot(&[&b, &b], 3), [2, 1]);
        assert_eq!(allot(&[&c, &c[1..]], 1), [1, 0]);
    }

    #[test]
    fn caps_are_rounded_as_python_does() {
        let caps = |rho: f64| [1, 3, 5].map(|r| Eva { rho, ..Eva::default() }.components(r));
        assert_eq!(caps(1.5), [2, 4, 8]);
        assert_eq!(caps(2.0), [2, 6, 10]);
        assert_eq!(caps(0.5), [0, 2, 2]);
    }
}
