//! A two-matrix model whose sites call their hooks.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use luthier_core::{Affine, Ctx, Error, Model, Policy, Result, Seed, SiteId, SiteKind, SiteMap};

pub const VOCAB: usize = 8;
const WIDTH: usize = 4;

pub fn random(n: usize, seed: u64) -> Vec<f32> {
    let mut rng = Seed(seed).rng();
    (0..n).map(|_| rng.normal() as f32).collect()
}

fn matrix(rows: usize, cols: usize, seed: u64) -> Tensor {
    Tensor::from_vec(random(rows * cols, seed), (rows, cols), &Device::Cpu).unwrap()
}

pub struct Fake {
    sites: SiteMap,
    table_vd: Tensor,
    up_od: Tensor,
}

impl Fake {
    pub fn policy() -> Policy {
        let mut sites = SiteMap::default();
        let activation = |d| SiteKind::Activation { d };
        sites.add("embed", SiteKind::Embed { v: VOCAB, d: WIDTH }, None, None);
        sites.add("layers.0.resid_pre", activation(WIDTH), Some(0), None);
        let up = SiteKind::Linear { i: WIDTH, o: WIDTH, bias: false };
        sites.add("layers.0.mlp.up", up, Some(0), None);
        sites.add("logits", activation(VOCAB), None, None);
        let table_vd = matrix(VOCAB, WIDTH, 50);
        Policy::plain(Arc::new(Fake { sites, table_vd, up_od: matrix(WIDTH, WIDTH, 51) }))
    }

    pub fn table() -> Vec<f32> {
        random(VOCAB * WIDTH, 50)
    }
}

impl Model for Fake {
    fn sites(&self) -> &SiteMap {
        &self.sites
    }

    fn n_layers(&self) -> usize {
        1
    }

    fn vocab(&self) -> usize {
        VOCAB
    }

    fn width(&self) -> usize {
        WIDTH
    }

    fn embed(&self, ids_n: &[u32], ctx: &mut Ctx) -> Result<Tensor> {
        let empty = Tensor::zeros(0, candle_core::DType::F32, &Device::Cpu)?;
        ctx.through(&self.sites, SiteId(0), &empty, |_| {
            let index = Tensor::from_slice(ids_n, ids_n.len(), &Device::Cpu)?;
            Ok(self.table_vd.index_select(&index, 0)?)
        })
    }

    fn block(&self, _layer: usize, h_nd: Tensor, ctx: &mut Ctx) -> Result<Tensor> {
        let h_nd = ctx.watch(&self.sites, SiteId(1), h_nd)?;
        let up = ctx.through(&self.sites, SiteId(2), &h_nd, |x| Ok(x.matmul(&self.up_od.t()?)?))?;
        Ok((h_nd + up.tanh()?)?)
    }

    fn unembed(&self, h_nd: &Tensor, ctx: &mut Ctx) -> Result<Tensor> {
        let logits_nv = h_nd.matmul(&self.table_vd.t()?)?;
        ctx.watch(&self.sites, SiteId(3), logits_nv)
    }

    fn affine(&self, _site: SiteId) -> Result<Affine> {
        Err(Error::failed("fake", "gives no weights away"))
    }

    fn learn(&self, _sites: &[SiteId]) -> Result<luthier_core::Learned> {
        Err(Error::failed("fake", "learns nothing"))
    }
}
