//! The one way to watch or change a forward pass.

use std::sync::Arc;

use candle_core::Tensor;

use crate::{Batch, Cache, Result, Rows, Seed, SiteId, SiteInfo, SiteMap};

/// Where and under what circumstances a hook is called.
pub struct At<'a> {
    /// The site.
    pub site: &'a SiteInfo,
    /// Bounds of the rows in the flat run of tokens.
    pub rows: &'a Arc<Rows>,
    /// Input token ids, when the pass started from ids.
    pub ids_n: &'a [u32],
    /// What each token's target counts, where targets are known: 0 is not trained.
    pub weights_n: Option<&'a [f32]>,
    /// What is known of earlier tokens, when decoding.
    pub cache: Option<&'a Cache>,
    /// The seed for noise in training; `None` outside of training.
    pub noise: Option<Seed>,
}

/// Weight and bias of a linear site.
#[derive(Clone, Debug)]
pub struct Affine {
    /// `(out, in)`.
    pub w_oi: Tensor,
    /// `(out,)`.
    pub b_o: Option<Tensor>,
}

/// What a low-rank hook adds at a linear site: `y += scale · dropout(x) · Aᵀ · Bᵀ`. Factors that are
/// variables learn, others do not.
#[derive(Clone, Debug)]
pub struct LowRank {
    /// First factor, `(r, in)`.
    pub a_ri: Tensor,
    /// Second factor, `(out, r)`.
    pub b_or: Tensor,
    /// On the product.
    pub scale: f32,
    /// Share of the inputs that the addition does not see in training.
    pub dropout: f64,
}

/// Watches or changes a forward pass at the sites it is bound to.
///
/// At a linear, embedding or norm site `x` is the input and `y` the output; at an activation site
/// only `after` is called, with `x = y` the value itself. At `embed`, `x` is an empty tensor: the
/// input are the ids in [`At::ids_n`].
pub trait Hook: Send + Sync {
    /// Called with the site's input.
    fn before(&self, _at: &At, x: Tensor) -> Result<Tensor> {
        Ok(x)
    }

    /// Called with the site's input and output.
    fn after(&self, _at: &At, _x: &Tensor, y: Tensor) -> Result<Tensor> {
        Ok(y)
    }

    /// The weight and bias that would do the same without this hook, if there are any. At `embed`
    /// the "weight" is the `(v, d)` table.
    fn fold(&self, _site: &SiteInfo, _lin: &Affine) -> Result<Option<Affine>> {
        Ok(None)
    }

    /// Whether `before` changes the input. What hooks do to the output is folded first, for it read
    /// the changed input; then what they do to the input, the last hook first.
    fn on_input(&self) -> bool {
        false
    }

    /// What this hook adds to what is minimised, summed over the rows of a pass that has just run;
    /// the loss has its mean over the rows of a step.
    fn penalty(&self, _batch: &Batch) -> Result<Option<Tensor>> {
        Ok(None)
    }

    /// The low-rank addition that is all this hook does at its linear site, if so: models may then
    /// compute it together with the site's own product.
    fn low_rank(&self) -> Option<LowRank> {
        None
    }
}

/// Hooks by site; the empty table is the plain model.
#[derive(Clone, Default)]
pub struct Hooks {
    at: Vec<Vec<Arc<dyn Hook>>>,
    /// Placeholders that every row must begin with, for hooks to put learned vectors in their place.
    pub virtual_tokens: usize,
}

impl Hooks {
    /// The table without hooks.
    pub fn none() -> Self {
        Hooks::default()
    }

    /// Binds `hook` at `site`, after those already bound there.
    pub fn bind(&mut self, site: SiteId, hook: Arc<dyn Hook>) {
        let i = site.0 as usize;
        if self.at.len() <= i {
            self.at.resize_with(i + 1, Vec::new);
        }
        self.at[i].push(hook);
    }

    /// The hooks at `site`, in the order they were bound.
    pub fn get(&self, site: SiteId) -> &[Arc<dyn Hook>] {
        self.at.get(site.0 as usize).map_or(&[], Vec::as_slice)
    }

    /// Whether somebody watches `site`.
    pub fn watched(&self, site: SiteId) -> bool {
        !self.get(site).is_empty()
    }

    /// Whether nothing is bound anywhere.
    pub fn is_empty(&self) -> bool {
        self.at.iter().all(Vec::is_empty)
    }

    /// The sites with at least one hook.
    pub fn sites(&self) -> impl Iterator<Item = SiteId> {
        let bound = self.at.iter().enumerate().filter(|(_, hooks)| !hooks.is_empty());
        bound.map(|(i, _)| SiteId(i as u32))
    }

    /// This table followed by another's hooks.
    pub fn and(mut self, other: &Hooks) -> Self {
        self.virtual_tokens = self.virtual_tokens.max(other.virtual_tokens);
        for site in other.sites() {
            for hook in other.get(site) {
                self.bind(site, hook.clone());
            }
        }
        self
    }

    /// Folds every hook of `site` into `lin`; `None` when one of them cannot be folded.
    pub fn fold(&self, sites: &SiteMap, site: SiteId, lin: Affine) -> Result<Option<Affine>> {
        let mut lin = lin;
        let (input, output): (Vec<_>, Vec<_>) = self.get(site).iter().partition(|h| h.on_input());
        for hook in output.into_iter().chain(input.into_iter().rev()) {
            match hook.fold(sites.info(site), &lin)? {
                Some(folded) => lin = folded,
                None => return Ok(None),
            }
        }
        Ok(Some(lin))
    }
}
