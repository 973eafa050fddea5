//! A model without weights whose next token depends on every earlier token and its position.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use luthier_core::{Affine, Ctx, Error, Held, Model, Policy, Result, SiteId, SiteKind, SiteMap};
use luthier_decode::TokenText;

pub const VOCAB: usize = 19;

pub struct Fake {
    sites: SiteMap,
    salt: u64,
}

fn mix(state: u64, value: u64) -> u64 {
    (state ^ value.wrapping_add(0x9e37_79b9)).wrapping_mul(0x100_0000_01b3).rotate_left(23)
}

/// The two blocks hash what they see; one keeps its past in `k`, like a real cache.
fn block(past: &[f32], positions: &[u32], salt: u64) -> f32 {
    let hash = past
        .iter()
        .zip(positions)
        .fold(salt, |h, (x, p)| mix(mix(h, x.to_bits().into()), u64::from(*p)));
    (mix(hash, 1) % 65_521) as f32
}

impl Fake {
    pub fn policy(salt: u64) -> Policy {
        let mut sites = SiteMap::default();
        sites.add("logits", SiteKind::Activation { d: VOCAB }, None, None);
        Policy::plain(Arc::new(Fake { sites, salt }))
    }
}

impl Model for Fake {
    fn sites(&self) -> &SiteMap {
        &self.sites
    }

    fn n_layers(&self) -> usize {
        2
    }

    fn vocab(&self) -> usize {
        VOCAB
    }

    fn width(&self) -> usize {
        1
    }

    fn embed(&self, ids_n: &[u32], _ctx: &mut Ctx) -> Result<Tensor> {
        let h: Vec<f32> = ids_n.iter().map(|id| *id as f32).collect();
        Ok(Tensor::from_vec(h, (ids_n.len(), 1), &Device::Cpu)?)
    }

    fn block(&self, layer: usize, h_nd: Tensor, ctx: &mut Ctx) -> Result<Tensor> {
        let h: Vec<f32> = h_nd.flatten_all()?.to_vec1()?;
        let mut out = Vec::with_capacity(h.len());
        for row in 0..ctx.rows.b() {
            let range = ctx.rows.range(row);
            let (mut past, mut positions) = (Vec::new(), Vec::new());
            if let Some(cache) = ctx.cache.as_deref_mut() {
                let kv = cache.kv(row, layer);
                let (Held::F32(k), Held::F32(v)) = (&mut kv.k, &mut kv.v) else {
                    unreachable!("this model writes f32 only")
                };
                past.extend_from_slice(k);
                positions.extend(v.iter().map(|p| *p as u32));
                k.extend_from_slice(&h[range.clone()]);
                v.extend(ctx.rows.positions_n[range.clone()].iter().map(|p| *p as f32));
            }
            for i in range {
                past.push(h[i]);
                positions.push(ctx.rows.positions_n[i]);
                out.push(block(&past, &positions, self.salt + layer as u64));
            }
        }
        Ok(Tensor::from_vec(out, (h.len(), 1), &Device::Cpu)?)
    }

    fn unembed(&self, h_nd: &Tensor, ctx: &mut Ctx) -> Result<Tensor> {
        let h: Vec<f32> = h_nd.flatten_all()?.to_vec1()?;
        let logit = |x: f32, v: usize| (mix(x.to_bits().into(), v as u64) % 1000) as f32 / 150.0;
        let logits: Vec<f32> =
            h.iter().flat_map(|x| (0..VOCAB).map(move |v| logit(*x, v))).collect();
        let logits_nv = Tensor::from_vec(logits, (h.len(), VOCAB), &Device::Cpu)?;
        ctx.watch(&self.sites, SiteId(0), logits_nv)
    }

    fn affine(&self, _site: SiteId) -> Result<Affine> {
        Err(Error::failed("fake", "has no weights"))
    }

    fn learn(&self, _sites: &[SiteId]) -> Result<luthier_core::Learned> {
        Err(Error::failed("fake", "has no weights"))
    }
}

/// Token 3 is the letter d, and so on.
pub struct Letters;

impl TokenText for Letters {
    fn decode(&self, ids: &[u32]) -> String {
        ids.iter().map(|id| char::from(b'a' + *id as u8)).collect()
    }
}
