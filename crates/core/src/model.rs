//! A model is immutable weights and three public steps; everything else is a loop over them.

use std::sync::Arc;

use candle_core::{D, DType, Tensor, Var};

use crate::{Affine, At, Cache, Error, Hooks, Result, Rows, Seed, SiteId, SiteMap};

/// What a forward pass carries from step to step.
pub struct Ctx<'a> {
    /// Code bound to sites.
    pub hooks: &'a Hooks,
    /// Bounds and positions of the flat tokens.
    pub rows: Arc<Rows>,
    /// The input ids, for hooks that need them.
    pub ids_n: &'a [u32],
    /// What each token's target counts, where targets are known, for hooks that need it.
    pub weights_n: Option<&'a [f32]>,
    /// Keys and values of earlier tokens, when decoding.
    pub cache: Option<&'a mut Cache>,
    /// The seed for noise such as dropout; `None` outside of training.
    pub noise: Option<Seed>,
    /// Rotation angles of the tokens: filled by the first block, shared by the others.
    pub angles: Option<Arc<Vec<f32>>>,
}

impl<'a> Ctx<'a> {
    /// A pass without cache or noise.
    pub fn new(hooks: &'a Hooks, rows: Arc<Rows>, ids_n: &'a [u32]) -> Self {
        Ctx { hooks, rows, ids_n, weights_n: None, cache: None, noise: None, angles: None }
    }

    /// Runs `f` at `site` between the hooks' `before` and `after`. Without hooks this is `f(x)`.
    pub fn through(
        &self,
        sites: &SiteMap,
        site: SiteId,
        x: &Tensor,
        f: impl FnOnce(&Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let hooks = self.hooks.get(site);
        if hooks.is_empty() {
            return f(x);
        }
        let at = self.at(sites, site);
        let mut x = x.clone();
        for hook in hooks {
            x = hook.before(&at, x)?;
        }
        let mut y = f(&x)?;
        for hook in hooks {
            y = hook.after(&at, &x, y)?;
        }
        Ok(y)
    }

    /// Lets the hooks of an activation site watch or replace `y`.
    pub fn watch(&self, sites: &SiteMap, site: SiteId, y: Tensor) -> Result<Tensor> {
        let mut y = y;
        for hook in self.hooks.get(site) {
            let x = y.clone();
            y = hook.after(&self.at(sites, site), &x, y)?;
        }
        Ok(y)
    }

    fn at<'s>(&'s self, sites: &'s SiteMap, site: SiteId) -> At<'s> {
        At {
            site: sites.info(site),
            rows: &self.rows,
            ids_n: self.ids_n,
            weights_n: self.weights_n,
            cache: self.cache.as_deref(),
            noise: self.noise.map(|seed| seed.at(u64::from(site.0))),
        }
    }
}

/// A model some of whose weights are variables, and these variables by name.
pub type Learned = (Arc<dyn Model>, Vec<(String, Var)>);

/// Adds a gradient to the numbers of a sum.
pub type AddTo = Box<dyn FnOnce(&mut [f32]) -> Result<()> + Send>;

/// What one place of a model adds to a variable's gradient.
pub enum Gradient {
    /// All its numbers.
    Dense(Tensor),
    /// Adds itself to the sum: for tables, whose gradient is too large to exist once per batch.
    Into(AddTo),
}

/// Takes the gradient of a variable from one place that read it.
pub type Found<'a> = dyn FnMut(&Tensor, Gradient) -> Result<()> + 'a;

/// An output and, if there is anything to pull back through it, its tape.
pub type Taped = (Tensor, Option<Box<dyn Tape>>);

/// What a block or a head keeps of its forward pass for a backward pass of its own, without a graph.
pub trait Tape: Send {
    /// Pulls the output's gradient back: hands every variable's gradient to `found` and returns
    /// the gradient of the input if `need_dx`.
    fn backward(
        self: Box<Self>,
        dy: &Tensor,
        need_dx: bool,
        found: &mut Found,
    ) -> Result<Option<Tensor>>;
}

/// How a block rotates the heads of queries and keys: number `i` of a head with number `i + half`, where
/// `half` is the number of frequencies, by the angle `position · inv_freq[i]`.
#[derive(Clone, Copy, Debug)]
pub struct Rotary<'a> {
    /// Radians per position.
    pub inv_freq: &'a [f32],
    /// On cosine and sine.
    pub factor: f32,
}

/// Immutable weights and their forward pass.
///
/// Hooks are an argument ([`Ctx::hooks`]), never state: the reference model is the same model
/// with [`Hooks::none`].
pub trait Model: Send + Sync {
    /// The places hooks can be bound to.
    fn sites(&self) -> &SiteMap;

    /// Number of blocks.
    fn n_layers(&self) -> usize;

    /// Rows of the output distribution.
    fn vocab(&self) -> usize;

    /// Width of the residual stream.
    fn width(&self) -> usize;

    /// Token ids to the residual stream, `(n, d)`.
    fn embed(&self, ids_n: &[u32], ctx: &mut Ctx) -> Result<Tensor>;

    /// One block, `(n, d)` to `(n, d)`.
    fn block(&self, layer: usize, h_nd: Tensor, ctx: &mut Ctx) -> Result<Tensor>;

    /// [`Model::block`] without a graph. A model overrides it to do without the graph's costs.
    fn forward(&self, layer: usize, h_nd: Tensor, ctx: &mut Ctx) -> Result<Tensor> {
        Ok(self.block(layer, h_nd, ctx)?.detach())
    }

    /// [`Model::block`] with a backward pass of the model's own; `None` where only the graph of
    /// `block` will do. Without a tape in the answer there is nothing to pull back: nothing in the
    /// block learns and, by `below`, nothing under it.
    fn tape(
        &self,
        _layer: usize,
        _h_nd: &Tensor,
        _below: bool,
        _ctx: &mut Ctx,
    ) -> Result<Option<Taped>> {
        Ok(None)
    }

    /// Final norm and head, `(n, d)` to `(n, v)`.
    fn unembed(&self, h_nd: &Tensor, ctx: &mut Ctx) -> Result<Tensor>;

    /// Log-probability of one target per row of `h_md`, `(m,)`. The default goes through
    /// [`Model::unembed`]; a model overrides it to keep the logits from ever being stored.
    fn logp(&self, h_md: &Tensor, targets_m: &[u32], ctx: &mut Ctx) -> Result<Tensor> {
        let logits_mv = self.unembed(h_md, ctx)?;
        gather_logp(&logits_mv, targets_m)
    }

    /// [`Model::logp`] with a backward pass of the model's own, as [`Model::tape`] is for a block.
    fn logp_tape(
        &self,
        _h_md: &Tensor,
        _targets_m: &[u32],
        _below: bool,
        _ctx: &mut Ctx,
    ) -> Result<Option<Taped>> {
        Ok(None)
    }

    /// Pulls the gradient of [`Model::embed`]'s output back to the table; false where only the
    /// graph of `embed` will do.
    fn embed_backward(
        &self,
        _ids_n: &[u32],
        _dh_nd: &Tensor,
        _ctx: &mut Ctx,
        _found: &mut Found,
    ) -> Result<bool> {
        Ok(false)
    }

    /// Weight and bias at a linear, embedding (table) or norm (scale) site, in f32.
    fn affine(&self, site: SiteId) -> Result<Affine>;

    /// How a block rotates queries and keys; `None` where it does not.
    fn rotation(&self, _layer: usize) -> Option<Rotary<'_>> {
        None
    }

    /// The same model with the weights of `sites` as variables, and these variables by their
    /// Hugging Face names. Everything else is shared.
    fn learn(&self, sites: &[SiteId]) -> Result<Learned>;

    /// The same model with `w_oi`, a score for each of `o` labels, in place of its head: what it
    /// unembeds are labels.
    fn with_head(&self, _w_oi: &Tensor) -> Result<Arc<dyn Model>> {
        Err(Error::failed("model", "has a head that cannot be replaced"))
    }

    /// The same model with those of its variables as constants that `learns` does not accept. They
    /// stay in the same memory, so a change of the variable is a change of the model.
    fn resting(&self, _learns: &dyn Fn(&Tensor) -> bool) -> Result<Arc<dyn Model>> {
        Err(Error::failed("model", "its weights learn all the time or never"))
    }
}

/// `log softmax(logits)[target]` in plain tensor operations.
pub fn gather_logp(logits_mv: &Tensor, targets_m: &[u32]) -> Result<Tensor> {
    let (m, _v) = logits_mv.dims2()?;
    let max_m1 = logits_mv.max_keepdim(D::Minus1)?.detach();
    let shifted_mv = logits_mv.broadcast_sub(&max_m1)?;
    let log_sum_m = shifted_mv.exp()?.sum(D::Minus1)?.log()?;
    let targets = Tensor::from_slice(targets_m, (m, 1), logits_mv.device())?;
    Ok((shifted_mv.gather(&targets, 1)?.squeeze(1)? - log_sum_m)?)
}

/// A model with its hooks bound.
#[derive(Clone)]
pub struct Policy {
    /// The weights.
    pub model: Arc<dyn Model>,
    /// What is bound to them.
    pub hooks: Hooks,
}

impl Policy {
    /// The plain model.
    pub fn plain(model: Arc<dyn Model>) -> Self {
        Policy { model, hooks: Hooks::none() }
    }

    /// Runs all blocks: ids to the last residual stream, `(n, d)`, without a graph. The cache, if
    /// there is one, grows by the rows' tokens.
    pub fn hidden(&self, ctx: &mut Ctx) -> Result<Tensor> {
        let ids_n = ctx.ids_n;
        let mut h_nd = self.model.embed(ids_n, ctx)?.detach();
        for layer in 0..self.model.n_layers() {
            h_nd = self.model.forward(layer, h_nd, ctx)?;
        }
        if let Some(cache) = ctx.cache.as_deref_mut() {
            cache.advance((0..ctx.rows.b()).map(|i| ctx.rows.range(i).len()));
        }
        Ok(h_nd)
    }

    /// Logits at every token, `(n, v)`, with their graph: for short texts and tests.
    pub fn logits(&self, ids_n: &[u32], rows: Arc<Rows>) -> Result<Tensor> {
        let mut ctx = Ctx::new(&self.hooks, rows, ids_n);
        let mut h_nd = self.model.embed(ids_n, &mut ctx)?;
        for layer in 0..self.model.n_layers() {
            h_nd = self.model.block(layer, h_nd, &mut ctx)?;
        }
        self.model.unembed(&h_nd, &mut ctx)
    }
}

/// Makes one piece of a sum from what it asks: a scalar with its graph.
pub type Piece<'a> = dyn FnMut(&mut dyn Logits, usize) -> Result<Tensor> + 'a;

/// What an objective may ask at the end of a forward pass. Indices are tokens of the batch.
pub trait Logits {
    /// Log-probability of `targets_m[j]` at token `index_m[j]`, `(m,)`, never storing logits.
    fn logp(&mut self, index_m: &[u32], targets_m: &[u32]) -> Result<Tensor>;

    /// Full logits at the named tokens, `(m, v)`.
    fn logits(&mut self, index_m: &[u32]) -> Result<Tensor>;

    /// The residual stream after the last block, before the final norm, at the named tokens, `(m, d)`.
    fn hidden(&mut self, index_m: &[u32]) -> Result<Tensor>;

    /// The sum of `pieces` pieces. Each is pulled back before the next is made, so that what it asks
    /// for, logits mostly, exists for one piece at a time.
    fn sum(&mut self, pieces: usize, piece: &mut Piece) -> Result<Tensor>;
}

/// The end of one model's forward pass: its last residual stream, ready for the head.
pub struct Head<'a, 'c> {
    /// The weights.
    pub model: &'a dyn Model,
    /// `(n, d)` after the last block.
    pub h_nd: &'a Tensor,
    /// The pass.
    pub ctx: &'a mut Ctx<'c>,
}

impl Head<'_, '_> {
    /// The residual stream at the named tokens, `(m, d)`.
    pub fn pick(&self, index_m: &[u32]) -> Result<Tensor> {
        let (n, _d) = self.h_nd.dims2()?;
        if index_m.len() == n && index_m.iter().enumerate().all(|(i, j)| i as u32 == *j) {
            return Ok(self.h_nd.clone());
        }
        if index_m.is_empty() {
            return Err(Error::failed("batch", "no token is trained"));
        }
        let index = Tensor::from_slice(index_m, index_m.len(), self.h_nd.device())?;
        Ok(self.h_nd.index_select(&index, 0)?)
    }
}

impl Logits for Head<'_, '_> {
    fn logp(&mut self, index_m: &[u32], targets_m: &[u32]) -> Result<Tensor> {
        let h_md = self.pick(index_m)?;
        self.model.logp(&h_md, targets_m, self.ctx)
    }

    fn logits(&mut self, index_m: &[u32]) -> Result<Tensor> {
        let h_md = self.pick(index_m)?;
        self.model.unembed(&h_md, self.ctx)
    }

    fn hidden(&mut self, index_m: &[u32]) -> Result<Tensor> {
        self.pick(index_m)
    }

    /// Where the residual stream is a constant nothing is pulled back, and no graph is kept.
    fn sum(&mut self, pieces: usize, piece: &mut Piece) -> Result<Tensor> {
        let mut sum = Tensor::zeros((), DType::F32, self.h_nd.device())?;
        for i in 0..pieces {
            let one = piece(&mut *self, i)?;
            sum = (sum + if self.h_nd.track_op() { one } else { one.detach() })?;
        }
        Ok(sum)
    }
}
