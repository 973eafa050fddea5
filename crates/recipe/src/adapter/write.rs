//! A LoRA adapter from its parts, written as a whole folder or not at all.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use candle_core::Tensor;
use luthier_core::{Error, Result, SiteInfo, SiteKind, StateDict};
use luthier_kernels::svd::Svd;
use luthier_params::{
    Globs, Lora, Params, Scope,
    peft::{self, Base},
};
use serde::Serialize;

use crate::open::Opened;

/// What a conversion did.
#[derive(Clone, Debug, Serialize)]
pub struct Converted {
    /// The new adapter's folder.
    pub adapter: PathBuf,
    /// Module by module.
    pub modules: Vec<Module>,
    /// Frobenius norm of what is lost over that of what was to be represented, all modules together.
    pub relative_error: f64,
    /// Changes that a LoRA cannot represent; they are not part of the error.
    pub left_out: Vec<LeftOut>,
}

/// One module of the new adapter.
#[derive(Clone, Debug, Serialize)]
pub struct Module {
    /// The site's name.
    pub site: String,
    /// Rank before, where it was a LoRA before.
    pub rank_before: Option<usize>,
    /// Rank now.
    pub rank: usize,
    /// Frobenius norm of the change that was to be represented.
    pub norm: f64,
    /// Share of it that is lost, `‖ΔW − s · B A‖ / ‖ΔW‖`.
    pub relative_error: f64,
}

/// A change that is not in the adapter.
#[derive(Clone, Debug, Serialize)]
pub struct LeftOut {
    /// Where.
    pub site: String,
    /// What and why.
    pub what: String,
    /// Its Frobenius norm.
    pub norm: f64,
}

/// The new factors of one site.
pub(super) struct Piece<'m> {
    pub site: &'m SiteInfo,
    pub module: Module,
    /// Norm of what is lost.
    pub lost: f64,
    pub scale: f64,
    /// `lora_A` and `lora_B`, or the embedding's, and a bias.
    pub a: Tensor,
    pub b: Tensor,
    pub bias: Option<Tensor>,
}

impl<'m> Piece<'m> {
    /// The first `r` parts of a change. At the embedding the change is that of the `(v, d)` table,
    /// whose LoRA is turned around.
    pub fn cut(site: &'m SiteInfo, svd: &Svd, r: usize, scale: f64) -> Result<Self> {
        let r = r.min(svd.sigma().len());
        let (a, b) = svd.factors(r, scale)?;
        let (a, b) = match site.kind {
            SiteKind::Embed { .. } => (b.t()?.contiguous()?, a.t()?.contiguous()?),
            _ => (a, b),
        };
        let (norm, lost) = (svd.norm(), svd.lost(r));
        let module = Module {
            site: site.name.clone(),
            rank_before: None,
            rank: r,
            norm,
            relative_error: ratio(lost, norm),
        };
        Ok(Piece { site, module, lost, scale, a, b, bias: None })
    }
}

pub(super) fn ratio(a: f64, b: f64) -> f64 {
    if b > 0.0 { a / b } else { 0.0 }
}

/// Refuses an output folder that holds something, before any work is done for it.
pub(super) fn refuse_full(out: &Path) -> Result<()> {
    let at = || out.display().to_string();
    if out.exists() && !out.is_dir() {
        return Err(Error::input(at(), "is a file, expected a folder to come"));
    }
    if out.read_dir().is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(Error::input(at(), "the output folder is not empty").hint("name a new folder"));
    }
    Ok(())
}

/// Writes the adapter that the pieces make up.
pub(super) fn write(
    pieces: Vec<Piece>,
    left_out: Vec<LeftOut>,
    dropout: f64,
    opened: &Opened,
    out: &Path,
) -> Result<Converted> {
    let Some(r) = pieces.iter().map(|p| p.module.rank).max() else {
        let error = Error::input(out.display().to_string(), "there is nothing to put into a LoRA");
        return Err(match left_out.first() {
            None => error.hint("no weight differs"),
            Some(left) => error.hint(format!("only {} differs: {}", left.site, left.what)),
        });
    };
    // What most modules have is said once, the others by name.
    let scale = pieces.iter().find(|p| p.module.rank == r).map_or(1.0, |p| p.scale);
    let alpha = round(scale * r as f64);
    let alpha_of = |p: &Piece| round(p.scale * p.module.rank as f64);
    let others = pieces.iter().filter(|p| p.module.rank != r);
    let rank_pattern: BTreeMap<String, usize> =
        others.map(|p| (p.site.name.clone(), p.module.rank)).collect();
    let others = pieces.iter().filter(|p| alpha_of(p) != alpha);
    let alpha_pattern: BTreeMap<String, f64> =
        others.map(|p| (p.site.name.clone(), alpha_of(p))).collect();
    let lora = Lora {
        r,
        alpha,
        dropout,
        bias: pieces.iter().any(|p| p.bias.is_some()),
        at: Globs(pieces.iter().map(|p| p.site.name.clone()).collect()),
        rank_pattern,
        alpha_pattern,
        ..Lora::default()
    };
    let square = |of: &dyn Fn(&Piece) -> f64| pieces.iter().map(|p| of(p).powi(2)).sum::<f64>();
    let relative_error = ratio(square(&|p| p.lost).sqrt(), square(&|p| p.module.norm).sqrt());

    let mut state = StateDict::default();
    let mut modules = Vec::with_capacity(pieces.len());
    for piece in pieces {
        let name = &piece.site.name;
        let (a, b) = match piece.site.kind {
            SiteKind::Embed { .. } => ("lora_embedding_A", "lora_embedding_B"),
            _ => ("lora_A", "lora_B"),
        };
        state.insert(format!("{name}.{a}"), piece.a);
        state.insert(format!("{name}.{b}"), piece.b);
        if let Some(bias) = piece.bias {
            state.insert(format!("{name}.lora_B.bias"), bias);
        }
        modules.push(piece.module);
    }
    let form = Params { lora: Some(lora), ..Params::default() };
    let bound = form.bind_in(&opened.model, Scope::given(state))?;
    let base = Base { name: opened.name.clone(), sha256: Some(opened.sha256.clone()) };
    whole(out, |dir| peft::save(dir, &bound, opened.model.sites(), &base).map(|_| ()))?;
    Ok(Converted { adapter: out.to_path_buf(), modules, relative_error, left_out })
}

/// A scale that came through f32 gives an alpha that is a whole number again.
fn round(alpha: f64) -> f64 {
    let whole = alpha.round();
    if (alpha - whole).abs() < 1e-6 * whole.abs() { whole } else { alpha }
}

/// Fills a folder beside `out` and gives it that name when it is complete.
fn whole(out: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    refuse_full(out)?;
    let name = out.file_name().ok_or_else(|| {
        Error::input(out.display().to_string(), "expected a folder's name at its end")
    })?;
    let part = out.with_file_name(format!(".{}.part", name.to_string_lossy()));
    if part.exists() {
        fs::remove_dir_all(&part).map_err(|e| Error::io(&part, e))?;
    }
    fs::create_dir_all(&part).map_err(|e| Error::io(&part, e))?;
    let moved = fill(&part).and_then(|()| {
        if out.exists() {
            fs::remove_dir(out).map_err(|e| Error::io(out, e))?;
        }
        fs::rename(&part, out).map_err(|e| Error::io(out, e))
    });
    if moved.is_err() {
        // The first error is the one to report; a leftover folder is harmless and named `.part`.
        let _ = fs::remove_dir_all(&part);
    }
    moved
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_appears_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("a");
        let error = whole(&out, |part| {
            fs::write(part.join("one"), "1").unwrap();
            Err(Error::failed("two", "cannot be written"))
        });
        assert!(error.unwrap_err().to_string().contains("two"));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        fs::create_dir(&out).unwrap();
        let write = |part: &Path| fs::write(part.join("one"), "1").map_err(|e| Error::io(part, e));
        whole(&out, write).unwrap();
        assert_eq!(fs::read_to_string(out.join("one")).unwrap(), "1");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(whole(&out, write).unwrap_err().to_string().contains("not empty"));
        assert!(refuse_full(&out.join("one")).unwrap_err().to_string().contains("is a file"));
    }

    #[test]
    fn alphas_that_were_whole_stay_whole() {
        let through = |alpha: f64, r: f64| round(f64::from((alpha / r) as f32) * r);
        assert_eq!((through(32.0, 6.0), through(10.0, 7.0)), (32.0, 10.0));
        assert_eq!(round(22.627_416_997), 22.627_416_997);
    }
}
