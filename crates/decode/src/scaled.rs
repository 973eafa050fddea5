//! Scaling what tuning contributes, block by block (FTC-scaling; Nuti et al. 2025, paper 27).
//!
//! Both models' blocks read one and the same residual stream, which moves on by
//! `h ← base_l(h) + alpha · (tuned_l(h) − base_l(h))`; embedding, final norm and head are the tuned
//! model's. `alpha = 1` is the tuned model, 0 the base's blocks between the tuned model's ends, above 1
//! more of the tuning than there is. Keys and values of the two differ on the same stream, so each
//! model has a cache of its own. With an adapter the base is the same model without hooks, and the
//! weights are held once.
//!
//! **Departures**: (1) the paper leaves open whose norm and head end the pass; the tuned model's, for
//! otherwise `alpha = 1` would not be the tuned model.

use std::sync::Arc;

use candle_core::Tensor;
use luthier_core::{Cache, Ctx, Error, Policy, Result, Rows};

use crate::sources::{Source, Step};

const KEY: &str = "decode.sources.scaled";

/// Two models whose blocks take turns on one stream.
#[derive(Clone, Copy)]
pub struct Scaled<'a> {
    base: &'a Policy,
    tuned: &'a Policy,
    alpha: f64,
}

/// The same as a source of logits.
pub struct ScaledSource<'a> {
    scaled: Scaled<'a>,
    /// Of the base and of the tuned model.
    caches: [Cache; 2],
}

impl<'a> Scaled<'a> {
    /// What `tuned` is more than `base`, times `alpha`. Refuses models of different shapes.
    pub fn new(base: &'a Policy, tuned: &'a Policy, alpha: f64) -> Result<Self> {
        if !alpha.is_finite() {
            let what = format!("expected a finite number, got {alpha}");
            return Err(Error::input(format!("{KEY}.alpha"), what));
        }
        let shape = |policy: &Policy| {
            let model = &policy.model;
            [("blocks", model.n_layers()), ("width", model.width()), ("tokens", model.vocab())]
        };
        for ((what, of_base), (_, of_tuned)) in shape(base).into_iter().zip(shape(tuned)) {
            if of_base != of_tuned {
                let what = format!("the base has {of_base} ({what}), the tuned model {of_tuned}");
                return Err(Error::input(KEY, what)
                    .hint("the base is the model that the tuned one was made of"));
            }
        }
        if base.hooks.virtual_tokens + tuned.hooks.virtual_tokens > 0 {
            let what =
                "virtual tokens are in no block, so there is nothing to scale block by block";
            return Err(Error::input(KEY, what).hint("use an adapter without virtual tokens"));
        }
        Ok(Scaled { base, tuned, alpha })
    }

    /// The stream behind the last block. The caches, if there are any, grow by the rows' tokens.
    fn hidden(
        &self,
        ids_n: &[u32],
        rows: &Arc<Rows>,
        caches: Option<&mut [Cache; 2]>,
    ) -> Result<Tensor> {
        let (base, tuned) = (self.base, self.tuned);
        let mut base_ctx = Ctx::new(&base.hooks, rows.clone(), ids_n);
        let mut tuned_ctx = Ctx::new(&tuned.hooks, rows.clone(), ids_n);
        if let Some([of_base, of_tuned]) = caches {
            (base_ctx.cache, tuned_ctx.cache) = (Some(of_base), Some(of_tuned));
        }
        let mut h_nd = tuned.model.embed(ids_n, &mut tuned_ctx)?.detach();
        for layer in 0..tuned.model.n_layers() {
            let plain_nd = base.model.forward(layer, h_nd.clone(), &mut base_ctx)?;
            let tuned_nd = tuned.model.forward(layer, h_nd, &mut tuned_ctx)?;
            h_nd = (&plain_nd + ((tuned_nd - &plain_nd)? * self.alpha)?)?;
        }
        for cache in [base_ctx.cache, tuned_ctx.cache].into_iter().flatten() {
            cache.advance((0..rows.b()).map(|i| rows.range(i).len()));
        }
        Ok(h_nd)
    }

    /// Logits at every token of whole texts, `(n, v)`.
    pub fn logits(&self, ids_n: &[u32], rows: &Arc<Rows>) -> Result<Tensor> {
        let h_nd = self.hidden(ids_n, rows, None)?;
        let mut ctx = Ctx::new(&self.tuned.hooks, rows.clone(), ids_n);
        self.tuned.model.unembed(&h_nd, &mut ctx)
    }

    /// Logits at the last token of each of whole texts, flat `(b, v)`.
    pub fn last_logits(&self, ids_n: &[u32], rows: &Arc<Rows>) -> Result<Vec<f32>> {
        let h_nd = self.hidden(ids_n, rows, None)?;
        let (rows, read_b) = (rows.clone(), vec![1; rows.b()]);
        let nobody: &[usize] = &[];
        let step = Step {
            ids_n,
            rows,
            slots_b: nobody,
            from_b: nobody,
            prompts_b: nobody,
            read_b: &read_b,
        };
        let mut logits_bv = Vec::new();
        step.asked_logits(self.tuned, &h_nd, self.tuned.model.vocab(), &mut logits_bv)?;
        Ok(logits_bv)
    }

    /// A source with room for `max_batch` live sequences.
    pub fn source(self, max_batch: usize) -> ScaledSource<'a> {
        let cache = || Cache::new(max_batch, self.tuned.model.n_layers());
        ScaledSource { scaled: self, caches: [cache(), cache()] }
    }
}

impl Source for ScaledSource<'_> {
    fn vocab(&self) -> usize {
        self.scaled.tuned.model.vocab()
    }

    fn step(&mut self, step: &Step, logits_bv: &mut Vec<f32>) -> Result<()> {
        self.caches.iter_mut().for_each(|cache| step.take_up(cache));
        let h_nd = self.scaled.hidden(step.ids_n, &step.rows, Some(&mut self.caches))?;
        step.asked_logits(self.scaled.tuned, &h_nd, self.vocab(), logits_bv)
    }

    fn free(&mut self, slot: usize) {
        self.caches.iter_mut().for_each(|cache| cache.clear(slot));
    }
}
