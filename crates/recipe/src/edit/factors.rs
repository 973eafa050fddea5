//! The two factors of a linear map's gradient: what goes in, and what is asked of what comes out.
//!
//! For `y = W x` the gradient of a loss is `Σ_t δ_t x_tᵀ` over tokens, with `δ_t = ∂L/∂y_t`. Hooks keep the
//! inputs and add variables of zeros to the outputs, whose gradients are the δ.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, Tensor, Var};
use luthier_core::{
    At, Batch, Ctx, Error, Head, Hook, Hooks, Model, Policy, Result, Row, SiteInfo,
};

/// Inputs and output gradients of one map, token by token; tokens without either are left out.
#[derive(Clone, Debug)]
pub struct Factors {
    /// `(t, in)`.
    pub x_ti: Tensor,
    /// `(t, out)`.
    pub delta_to: Tensor,
}

/// Takes the input away and gives the output a leaf to find its gradient at.
#[derive(Default)]
struct Tap(Mutex<Option<(Tensor, Var)>>);

impl Hook for Tap {
    fn after(&self, _at: &At, x: &Tensor, y: Tensor) -> Result<Tensor> {
        let zeros = Var::zeros(y.dims(), DType::F32, &Device::Cpu)?;
        let y = (y + zeros.as_tensor())?;
        let seen = Some((x.detach().to_dtype(DType::F32)?, zeros));
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = seen;
        Ok(y)
    }
}

/// The stream behind the last block at the trained tokens, `(m, d)`, with its graph above the lowest
/// hook.
pub(super) fn trained_stream(model: &dyn Model, batch: &Batch, ctx: &mut Ctx) -> Result<Tensor> {
    let hooked = ctx.hooks.sites().map(|id| model.sites().info(id).layer.unwrap_or(0)).min();
    let mut h_nd = model.embed(&batch.ids_n, ctx)?;
    for layer in 0..model.n_layers() {
        h_nd = match hooked {
            Some(lowest) if layer >= lowest => model.block(layer, h_nd, ctx)?,
            _ => model.forward(layer, h_nd, ctx)?,
        };
    }
    Head { model, h_nd: &h_nd, ctx }.pick(&batch.trained_m())
}

/// The tokens that are asked for, in the order of [`trained_stream`].
pub(super) fn trained_targets(batch: &Batch) -> Vec<u32> {
    batch.trained_m().iter().map(|i| batch.targets_n[*i as usize]).collect()
}

/// The factors at `sites` of the mean negative log-likelihood of all trained tokens of `rows`, and that
/// loss.
pub fn factors(policy: &Policy, sites: &[&SiteInfo], rows: &[Row]) -> Result<(f64, Vec<Factors>)> {
    let taps: Vec<Arc<Tap>> = sites.iter().map(|_| Arc::default()).collect();
    let mut hooks = Hooks::none();
    sites.iter().zip(&taps).for_each(|(site, tap)| hooks.bind(site.id, tap.clone()));
    let hooks = policy.hooks.clone().and(&hooks);
    let batch = Batch::from_rows(rows);
    let mut ctx = Ctx::new(&hooks, batch.rows.clone(), &batch.ids_n);
    let model = policy.model.as_ref();
    let h_md = trained_stream(model, &batch, &mut ctx)?;
    let logp_m = model.logp(&h_md, &trained_targets(&batch), &mut ctx)?;
    let loss = logp_m.mean_all()?.neg()?;
    let value = f64::from(loss.to_scalar::<f32>()?);
    if !value.is_finite() {
        return Err(Error::failed("edit", "the loss of what shall be said is not finite"));
    }
    let store = loss.backward()?;
    let mut all = Vec::with_capacity(sites.len());
    for (site, tap) in sites.iter().zip(taps) {
        let seen = tap.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some((x_ni, zeros)) = seen else {
            return Err(Error::failed(&site.name, "was not met in the pass"));
        };
        let delta_no = match store.get(zeros.as_tensor()) {
            Some(delta_no) => delta_no.clone(),
            None => zeros.zeros_like()?,
        };
        all.push(kept(&x_ni, &delta_no)?);
    }
    Ok((value, all))
}

/// The tokens at which neither factor is all zeros.
fn kept(x_ni: &Tensor, delta_no: &Tensor) -> Result<Factors> {
    let alive = |t: &Tensor| -> Result<Vec<bool>> {
        let rows = t.to_vec2::<f32>()?;
        Ok(rows.iter().map(|row| row.iter().any(|x| *x != 0.0)).collect())
    };
    let both = alive(x_ni)?.into_iter().zip(alive(delta_no)?);
    let keep: Vec<u32> =
        (0u32..).zip(both).filter(|(_, (x, delta))| *x && *delta).map(|(i, _)| i).collect();
    let index = Tensor::from_slice(&keep, keep.len(), &Device::Cpu)?;
    Ok(Factors { x_ti: x_ni.index_select(&index, 0)?, delta_to: delta_no.index_select(&index, 0)? })
}
