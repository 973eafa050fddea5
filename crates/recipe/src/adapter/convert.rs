//! Any adapter that folds into weights as a plain LoRA: of another rank, without rsLoRA, DoRA, or a
//! changed base, or from luthier's own files.
//!
//! Where everything at a site is low-rank, its product is decomposed through the factors; elsewhere
//! the difference of folded and plain weight is. Either way by SVD, whose truncation is the best
//! approximation of that rank.

use std::{path::Path, sync::Arc};

use candle_core::{DType, Tensor};
use luthier_core::{Error, Hook, Result, SiteInfo, SiteKind};
use luthier_kernels::num::Precision;
use luthier_kernels::svd::Svd;
use luthier_params::{Bound, LoraInit, Target};
use rayon::prelude::*;

use super::write::{Converted, LeftOut, Module, Piece, refuse_full, write};
use crate::open::Opened;

/// What a site gives.
pub(super) type Found<'m> = (Option<Piece<'m>>, Vec<LeftOut>);

/// Writes the adapter in `dir` to `out` as a plain LoRA of rank `rank` at most. Without a rank a plain
/// LoRA keeps its factors bit by bit, and anything else is asked for one.
pub fn convert(opened: &Opened, dir: &Path, rank: Option<usize>, out: &Path) -> Result<Converted> {
    refuse_full(out)?;
    check_rank(rank)?;
    exact(opened)?;
    let bound = opened.with_adapter(dir)?;
    let dropout = bound.form.lora.as_ref().map_or(0.0, |lora| lora.dropout);
    let found: Vec<Found> = match (plain(&bound, opened), rank) {
        (Some(targets), rank) => {
            let rslora = bound.form.lora.as_ref().is_some_and(|lora| lora.rslora);
            refuse_same(dir, &targets, rslora, rank)?;
            targets.par_iter().map(|t| resize(&bound, t, rank)).collect::<Result<_>>()?
        }
        (None, Some(rank)) => {
            let sites: Vec<&SiteInfo> = opened.model.sites().iter().collect();
            sites.par_iter().map(|site| fold(&bound, opened, site, rank)).collect::<Result<_>>()?
        }
        (None, None) => {
            let what = "missing: what is no plain LoRA is approximated, by which rank?";
            return Err(
                Error::input("--rank", what).hint("--rank 16; a larger one leaves a smaller error")
            );
        }
    };
    let (pieces, left_out) = collect(found);
    write(pieces, left_out, dropout, opened, out)
}

pub(super) fn check_rank(rank: Option<usize>) -> Result<()> {
    match rank {
        Some(0) => Err(Error::input("--rank", "expected a rank above 0, got 0")),
        _ => Ok(()),
    }
}

/// Rounded weights would give their rounding as a difference.
pub(super) fn exact(opened: &Opened) -> Result<()> {
    match opened.precision {
        Precision::F32 => Ok(()),
        _ => Err(Error::failed(&opened.name, "is open for products in bf16, this needs f32")),
    }
}

pub(super) fn collect<'m>(found: Vec<Found<'m>>) -> (Vec<Piece<'m>>, Vec<LeftOut>) {
    let (pieces, left): (Vec<_>, Vec<_>) = found.into_iter().unzip();
    (pieces.into_iter().flatten().collect(), left.into_iter().flatten().collect())
}

/// The targets of an adapter that is nothing but a LoRA over the base as it is.
fn plain<'m>(bound: &Bound, opened: &'m Opened) -> Option<Vec<Target<'m>>> {
    let keys: Vec<&str> = bound.form.named().iter().map(|(key, _)| *key).collect();
    let lora = bound.form.lora.as_ref().filter(|_| keys == ["lora"])?;
    let removed = matches!(lora.init, LoraInit::Pissa | LoraInit::Olora);
    let same_base = Arc::ptr_eq(&bound.policy.model, &opened.model);
    if lora.dora || removed || !same_base {
        return None;
    }
    lora.targets(opened.model.sites()).ok()
}

/// A conversion that changes nothing is a mistake worth telling.
fn refuse_same(dir: &Path, targets: &[Target], rslora: bool, rank: Option<usize>) -> Result<()> {
    let most = targets.iter().map(|t| t.r).max().unwrap_or(0);
    let what = match rank {
        _ if rslora => return Ok(()),
        Some(rank) if rank < most => return Ok(()),
        Some(rank) => format!("has rank {most}, which is not above {rank}: nothing to cut"),
        None => "is a plain LoRA already".to_string(),
    };
    Err(Error::input(dir.display().to_string(), what)
        .hint(format!("--rank R with R below {most} makes it smaller")))
}

/// A LoRA's site with fewer ranks, or as it is.
fn resize<'m>(bound: &Bound, target: &Target<'m>, rank: Option<usize>) -> Result<Found<'m>> {
    let Target { site, r, scale, .. } = *target;
    let var = |part: &str| {
        bound.var(&format!("{}.{part}", site.name)).map(|var| var.as_detached_tensor())
    };
    let (a, b) = match site.kind {
        SiteKind::Embed { .. } => (var("lora_embedding_A"), var("lora_embedding_B")),
        _ => (var("lora_A"), var("lora_B")),
    };
    let (Some(a), Some(b)) = (a, b) else {
        return Err(Error::failed(&site.name, "is adapted but has no factors"));
    };
    let svd = Svd::low_rank(&site.name, &a, &b, scale)?;
    let mut piece = match rank {
        Some(rank) if rank < r => {
            let (a, b) = svd.factors(rank, scale)?;
            let (rank, lost) = (a.dims()[0], svd.lost(rank));
            let module = module(site, rank, svd.norm(), lost);
            Piece { site, module, lost, scale, a, b, bias: None }
        }
        _ => Piece {
            site,
            module: module(site, r, svd.norm(), 0.0),
            lost: 0.0,
            scale,
            a,
            b,
            bias: None,
        },
    };
    piece.module.rank_before = Some(r);
    piece.bias = var("lora_B.bias");
    Ok((Some(piece), Vec::new()))
}

fn module(site: &SiteInfo, rank: usize, norm: f64, lost: f64) -> Module {
    let relative_error = super::write::ratio(lost, norm);
    Module { site: site.name.clone(), rank_before: None, rank, norm, relative_error }
}

/// What an adapter of any kind does at a site, as a LoRA.
fn fold<'m>(
    bound: &Bound,
    opened: &'m Opened,
    site: &'m SiteInfo,
    rank: usize,
) -> Result<Found<'m>> {
    let policy = &bound.policy;
    let hooks = policy.hooks.get(site.id);
    let same_base = Arc::ptr_eq(&policy.model, &opened.model);
    if hooks.is_empty() && (same_base || site.module.is_none()) {
        return Ok((None, Vec::new()));
    }
    let unfoldable = || {
        Error::input(&site.name, "what is bound here cannot become a weight")
            .hint("this adapter has no LoRA; keep it as it is")
    };
    if site.module.is_none() {
        return Err(unfoldable());
    }
    if same_base && let Some((a, b, r)) = stacked(hooks)? {
        let svd = Svd::low_rank(&site.name, &a, &b, 1.0)?;
        let mut piece = Piece::cut(site, &svd, rank, 1.0)?;
        piece.module.rank_before = Some(r);
        return Ok((Some(piece), Vec::new()));
    }
    let before = opened.model.affine(site.id)?;
    let now = policy.model.affine(site.id)?;
    let now = policy.hooks.fold(policy.model.sites(), site.id, now)?.ok_or_else(unfoldable)?;
    let mut left_out = Vec::new();
    let bias = match (&before.b_o, &now.b_o) {
        (Some(before), Some(now)) => norm(&(now - before)?)?,
        (None, Some(now)) => norm(now)?,
        _ => 0.0,
    };
    if bias > 0.0 {
        let what = "a bias: LoRA has none".to_string();
        left_out.push(LeftOut { site: site.name.clone(), what, norm: bias });
    }
    let delta = (now.w_oi.to_dtype(DType::F32)? - before.w_oi.to_dtype(DType::F32)?)?;
    let change = norm(&delta)?;
    if change == 0.0 {
        return Ok((None, left_out));
    }
    if delta.dims().len() != 2 {
        let what = "a scale of a norm: LoRA is for matrices".to_string();
        left_out.push(LeftOut { site: site.name.clone(), what, norm: change });
        return Ok((None, left_out));
    }
    let svd = Svd::dense(&site.name, &delta, rank)?;
    Ok((Some(Piece::cut(site, &svd, rank, 1.0)?), left_out))
}

/// The factors of all hooks at a linear site as one pair, with the scales in B, and the rank of the
/// last; `None` where one of them is more than low-rank.
fn stacked(hooks: &[Arc<dyn Hook>]) -> Result<Option<(Tensor, Tensor, usize)>> {
    let Some(all) = hooks.iter().map(|hook| hook.low_rank()).collect::<Option<Vec<_>>>() else {
        return Ok(None);
    };
    let Some(last) = all.last() else { return Ok(None) };
    let r = last.a_ri.dims()[0];
    let mut pairs = (Vec::with_capacity(all.len()), Vec::with_capacity(all.len()));
    for low in &all {
        pairs.0.push(low.a_ri.detach().to_dtype(DType::F32)?);
        pairs.1.push((low.b_or.detach().to_dtype(DType::F32)? * f64::from(low.scale))?);
    }
    Ok(Some((Tensor::cat(&pairs.0, 0)?, Tensor::cat(&pairs.1, 1)?, r)))
}

/// Frobenius norm.
pub(super) fn norm(t: &Tensor) -> Result<f64> {
    let flat: Vec<f32> = t.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
    Ok(flat.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt())
}
