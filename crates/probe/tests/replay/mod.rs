//! A model whose sites are fed what was written down beforehand.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use luthier_core::{
    Affine, Batch, Ctx, Error, Model, Policy, Result, Rows, SiteId, SiteKind, SiteMap,
};

/// Linear sites and what goes into each, by batch; the first id of a batch is its number.
#[derive(Clone, Default)]
pub struct Replay {
    sites: Vec<(String, usize, Vec<Tensor>)>,
}

struct Fed {
    map: SiteMap,
    sites: Vec<(SiteId, usize, Vec<Tensor>)>,
    layers: usize,
}

impl Replay {
    /// A site of `layer` with its inputs.
    pub fn add(&mut self, name: &str, layer: usize, inputs: Vec<Tensor>) {
        self.sites.push((name.to_string(), layer, inputs));
    }

    /// The model, with a residual stream of width 1 beside the sites.
    pub fn policy(&self) -> Policy {
        let mut map = SiteMap::default();
        let mut sites = Vec::new();
        for (name, layer, inputs) in &self.sites {
            let i = inputs[0].dims()[1];
            let kind = SiteKind::Linear { i, o: i, bias: false };
            let id = map.add(name.clone(), kind, Some(*layer), None);
            sites.push((id, *layer, inputs.clone()));
        }
        map.add("resid", SiteKind::Activation { d: 1 }, Some(0), None);
        let layers = 1 + self.sites.iter().map(|(_, layer, _)| *layer).max().unwrap_or(0);
        Policy::plain(Arc::new(Fed { map, sites, layers }))
    }
}

/// One row of tokens, one for each weight.
pub fn batch(number: u32, weights: &[f32]) -> Batch {
    let n = weights.len();
    Batch {
        ids_n: vec![number; n],
        targets_n: vec![0; n],
        weights_n: weights.to_vec(),
        rows: Arc::new(Rows::single(n)),
        examples_b: vec![number as usize],
        references_b: vec![0.0],
        tasks_b: vec![0],
        labels_b: vec![0.0],
        tags_n: vec![0; n],
        teachers_b: vec![None],
    }
}

impl Model for Fed {
    fn sites(&self) -> &SiteMap {
        &self.map
    }

    fn n_layers(&self) -> usize {
        self.layers
    }

    fn vocab(&self) -> usize {
        2
    }

    fn width(&self) -> usize {
        1
    }

    fn embed(&self, ids_n: &[u32], _ctx: &mut Ctx) -> Result<Tensor> {
        Ok(Tensor::ones((ids_n.len(), 1), DType::F32, &Device::Cpu)?)
    }

    fn block(&self, layer: usize, h_nd: Tensor, ctx: &mut Ctx) -> Result<Tensor> {
        let mut h_nd = h_nd;
        for (id, _, inputs) in self.sites.iter().filter(|(_, l, _)| *l == layer) {
            let x_ni = &inputs[ctx.ids_n[0] as usize];
            let y_no = ctx.through(&self.map, *id, x_ni, |x| Ok((x * 2.0)?))?;
            h_nd = (h_nd + y_no.mean_keepdim(1)?)?;
        }
        Ok(h_nd)
    }

    fn unembed(&self, h_nd: &Tensor, _ctx: &mut Ctx) -> Result<Tensor> {
        Ok(Tensor::cat(&[h_nd, h_nd], 1)?)
    }

    fn affine(&self, _site: SiteId) -> Result<Affine> {
        Err(Error::failed("replay", "has no weights"))
    }

    fn learn(&self, _sites: &[SiteId]) -> Result<luthier_core::Learned> {
        Err(Error::failed("replay", "learns nothing"))
    }
}
