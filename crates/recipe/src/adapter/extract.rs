//! A LoRA from the difference of two models, linear map by linear map, by SVD.

use std::path::Path;

use candle_core::DType;
use luthier_core::{Error, Result, SiteInfo, SiteKind};
use luthier_kernels::svd::Svd;
use rayon::prelude::*;

use super::{
    convert::{Found, check_rank, collect, exact, norm},
    write::{Converted, LeftOut, Piece, refuse_full, write},
};
use crate::open::Opened;

/// How much of the difference is kept.
#[derive(Clone, Copy, Debug)]
pub struct Extract {
    /// Ranks of a module at most.
    pub rank: usize,
    /// Parts whose singular value is not above this are left out.
    pub sv_epsilon: f64,
}

/// Writes to `out` the LoRA that makes `tuned` of `base`, as far as so few ranks can.
pub fn extract(base: &Opened, tuned: &Opened, how: Extract, out: &Path) -> Result<Converted> {
    refuse_full(out)?;
    check_rank(Some(how.rank))?;
    if !how.sv_epsilon.is_finite() || how.sv_epsilon < 0.0 {
        let what = format!("expected a number from 0 up, got {}", how.sv_epsilon);
        return Err(Error::input("--sv-epsilon", what));
    }
    exact(base)?;
    exact(tuned)?;
    same_architecture(base, tuned)?;
    let sites: Vec<&SiteInfo> = base.model.sites().iter().filter(|s| s.module.is_some()).collect();
    let found = sites.par_iter().map(|site| difference(base, tuned, site, how));
    let (pieces, left_out) = collect(found.collect::<Result<_>>()?);
    write(pieces, left_out, 0.0, base, out)
}

/// Models are compared site by site, so they must have the same ones.
fn same_architecture(base: &Opened, tuned: &Opened) -> Result<()> {
    let sites = |opened: &Opened| -> Vec<(String, SiteKind)> {
        opened.model.sites().iter().map(|s| (s.name.clone(), s.kind)).collect()
    };
    let (ours, theirs) = (sites(base), sites(tuned));
    let differs = |what: String| {
        Error::input(&tuned.name, what)
            .hint(format!("{} is another architecture, or has another vocabulary", base.name))
    };
    for ((name, kind), (other, other_kind)) in ours.iter().zip(&theirs) {
        if name != other {
            return Err(differs(format!("has {other} where the base has {name}")));
        }
        if kind != other_kind {
            return Err(differs(format!("{name}: expected {kind:?}, got {other_kind:?}")));
        }
    }
    match ours.len() == theirs.len() {
        true => Ok(()),
        false => Err(differs(format!("has {} sites, the base {}", theirs.len(), ours.len()))),
    }
}

fn difference<'m>(
    base: &'m Opened,
    tuned: &Opened,
    site: &'m SiteInfo,
    how: Extract,
) -> Result<Found<'m>> {
    let (before, now) = (base.model.affine(site.id)?, tuned.model.affine(site.id)?);
    let mut left_out = Vec::new();
    let mut leave = |what: &str, norm: f64| {
        if norm > 0.0 {
            left_out.push(LeftOut { site: site.name.clone(), what: what.to_string(), norm });
        }
    };
    if let (Some(before), Some(now)) = (&before.b_o, &now.b_o) {
        leave("a bias: LoRA has none", norm(&(now - before)?)?);
    }
    let delta = (now.w_oi.to_dtype(DType::F32)? - before.w_oi.to_dtype(DType::F32)?)?;
    let change = norm(&delta)?;
    // A tied head is the embedding table once more.
    let tied = site.name == "logits" && base.config.tied && tuned.config.tied;
    if change == 0.0 || tied {
        return Ok((None, left_out));
    }
    match site.kind {
        SiteKind::Linear { .. } => {}
        SiteKind::Embed { .. } => {
            leave("the embedding: linear maps alone are represented", change);
            return Ok((None, left_out));
        }
        _ => {
            leave("the scale of a norm: LoRA is for matrices", change);
            return Ok((None, left_out));
        }
    }
    let svd = Svd::dense(&site.name, &delta, how.rank)?;
    let rank = svd.sigma().iter().filter(|sigma| **sigma > how.sv_epsilon).count();
    if rank == 0 {
        leave("no singular value is above --sv-epsilon", change);
        return Ok((None, left_out));
    }
    Ok((Some(Piece::cut(site, &svd, rank, 1.0)?), left_out))
}
