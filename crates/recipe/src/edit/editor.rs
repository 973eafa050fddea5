//! The networks that make an edit of a gradient's factors.

use std::{path::Path, sync::Arc};

use candle_core::{DType, Device, Tensor, Var};
use luthier_core::{
    Affine, At, Error, Hook, LowRank, Model, Param, Result, Seed, SiteId, SiteInfo, StateDict, io,
};
use serde::{Deserialize, Serialize};

use super::{Factors, Mend};

/// Layers of a network.
const LAYERS: usize = 2;
/// Added to a deviation before it divides.
const EPS: f64 = 1e-7;

/// The networks' numbers.
pub const WEIGHTS: &str = "editor.safetensors";
/// Settings, sites and counts.
pub const CONFIG: &str = "editor.json";

/// One network for every shape, and what each map has of its own.
pub struct Editor {
    /// The settings.
    pub mend: Mend,
    nets: Vec<Net>,
    maps: Vec<Map>,
}

/// Shared by all maps of one shape.
struct Net {
    i: usize,
    o: usize,
    layers: Vec<Layer>,
    seen: Seen,
}

struct Layer {
    u_dr: Var,
    v_rd: Var,
    b_d: Var,
}

/// Running mean and squared deviations of every element of `[x; δ]` (Welford), token by token.
#[derive(Clone, Default)]
struct Seen {
    n: u64,
    mean: Vec<f64>,
    squares: Vec<f64>,
}

/// One edited matrix.
struct Map {
    site: String,
    id: SiteId,
    net: usize,
    /// Of each layer.
    scales: Vec<Var>,
    shifts: Vec<Var>,
    alpha: Var,
}

/// What is written beside the numbers.
#[derive(Serialize, Deserialize)]
struct Config {
    version: String,
    base: String,
    mend: Mend,
    /// Tokens that each network's statistics are of.
    seen: Vec<u64>,
}

/// An edit that still hangs on the networks: `y ← y − α · (x x̂ᵀ) δ̂`.
pub(super) struct Pending {
    x_ti: Tensor,
    delta_to: Tensor,
    alpha: Tensor,
}

/// An edit that is made: `y ← y + x Aᵀ Bᵀ` with `A = x̂` and `B = −α δ̂ᵀ`.
pub struct Edited {
    a_ti: Tensor,
    b_ot: Tensor,
}

impl Hook for Pending {
    fn after(&self, _at: &At, x: &Tensor, y: Tensor) -> Result<Tensor> {
        let (_n, _i) = x.dims2()?;
        let by_nt = x.to_dtype(DType::F32)?.matmul(&self.x_ti.t()?)?;
        let change_no = by_nt.matmul(&self.delta_to)?.broadcast_mul(&self.alpha)?;
        Ok((y - change_no)?)
    }
}

impl Pending {
    /// The same as numbers.
    pub fn made(&self) -> Result<Edited> {
        let b_ot = self.delta_to.t()?.broadcast_mul(&self.alpha)?.neg()?;
        let (a_ti, b_ot) = (self.x_ti.contiguous()?, b_ot.contiguous()?);
        Ok(Edited { a_ti: a_ti.detach(), b_ot: b_ot.detach() })
    }
}

impl Edited {
    /// What is added to the weight, `(out, in)`.
    pub fn delta(&self) -> Result<Tensor> {
        Ok(self.b_ot.matmul(&self.a_ti)?)
    }
}

impl Hook for Edited {
    fn after(&self, _at: &At, x: &Tensor, y: Tensor) -> Result<Tensor> {
        let (_n, _i) = x.dims2()?;
        let by_nt = x.to_dtype(DType::F32)?.matmul(&self.a_ti.t()?)?;
        Ok((y + by_nt.matmul(&self.b_ot.t()?)?)?)
    }

    fn fold(&self, _site: &SiteInfo, lin: &Affine) -> Result<Option<Affine>> {
        let w_oi = (lin.w_oi.to_dtype(DType::F32)? + self.delta()?)?;
        Ok(Some(Affine { w_oi, b_o: lin.b_o.clone() }))
    }

    fn low_rank(&self) -> Option<LowRank> {
        let (a_ri, b_or) = (self.a_ti.clone(), self.b_ot.clone());
        Some(LowRank { a_ri, b_or, scale: 1.0, dropout: 0.0 })
    }
}

impl Seen {
    fn see(&mut self, z_td: &Tensor) -> Result<()> {
        let (_t, d) = z_td.dims2()?;
        self.mean.resize(d, 0.0);
        self.squares.resize(d, 0.0);
        for row in z_td.to_vec2::<f32>()? {
            self.n += 1;
            for ((mean, squares), x) in self.mean.iter_mut().zip(&mut self.squares).zip(row) {
                let off = f64::from(x) - *mean;
                *mean += off / self.n as f64;
                *squares += off * (f64::from(x) - *mean);
            }
        }
        Ok(())
    }

    /// Means, and deviations with the divisor `n − 1`.
    fn statistics(&self) -> Result<(Tensor, Tensor)> {
        if self.n < 2 {
            let what = format!("its statistics are of {} tokens, 2 are needed", self.n);
            return Err(Error::failed("editor", what).hint("train it first"));
        }
        let by = (self.n - 1) as f64;
        let mean: Vec<f32> = self.mean.iter().map(|m| *m as f32).collect();
        let deviation: Vec<f32> = self.squares.iter().map(|s| (s / by).sqrt() as f32).collect();
        let d = mean.len();
        let tensor = |x: Vec<f32>| Tensor::from_vec(x, d, &Device::Cpu);
        Ok((tensor(mean)?, tensor(deviation)?))
    }

    fn apply(&self, z_td: &Tensor) -> Result<Tensor> {
        let (mean_d, deviation_d) = self.statistics()?;
        Ok(z_td.broadcast_sub(&mean_d)?.broadcast_div(&(deviation_d + EPS)?)?)
    }
}

/// `max(z, 0)` whose slope at 0 is 1: where the networks begin, all they would clamp is exactly 0.
fn relu(z: &Tensor) -> Result<Tensor> {
    let open = z.detach().ge(0.0)?.to_dtype(DType::F32)?;
    Ok((z * open)?)
}

impl Net {
    /// `z ← z + relu(s ∘ (U V z + b) + o)`, layer after layer.
    fn apply(&self, z_td: Tensor, map: &Map) -> Result<Tensor> {
        let mut z_td = z_td;
        for ((layer, scale_d), shift_d) in self.layers.iter().zip(&map.scales).zip(&map.shifts) {
            let narrow_tr = z_td.matmul(&layer.v_rd.t()?)?;
            let inner_td = narrow_tr.matmul(&layer.u_dr.t()?)?.broadcast_add(&layer.b_d)?;
            let inner_td = inner_td.broadcast_mul(scale_d)?.broadcast_add(shift_d)?;
            z_td = (z_td + relu(&inner_td)?)?;
        }
        Ok(z_td)
    }

    fn name(&self) -> String {
        format!("net.{}_{}", self.o, self.i)
    }
}

impl Editor {
    /// Networks that leave factors as they are, for the maps that the settings name.
    pub fn new(model: &dyn Model, mend: &Mend) -> Result<Self> {
        mend.check()?;
        let sites = mend.sites(model)?;
        let (mut nets, mut maps): (Vec<Net>, Vec<Map>) = (Vec::new(), Vec::new());
        let (ones, zeros) = (Var::ones, Var::zeros);
        for site in sites {
            let Some((i, o)) = site.linear() else {
                return Err(Error::input(&site.name, "is no linear map, so it cannot be edited"));
            };
            let d = i + o;
            let known = nets.iter().position(|net| (net.i, net.o) == (i, o));
            let net = match known {
                Some(net) => net,
                None => {
                    let (layers, seen) = (Vec::new(), Seen::default());
                    let mut net = Net { i, o, layers, seen };
                    for k in 0..LAYERS {
                        let seed = Seed(mend.seed).split(&format!("{}.{k}.v", net.name()));
                        net.layers.push(Layer::new(d, mend.rank.min(d), seed)?);
                    }
                    nets.push(net);
                    nets.len() - 1
                }
            };
            let each = |make: &dyn Fn() -> candle_core::Result<Var>| -> Result<Vec<Var>> {
                Ok((0..LAYERS).map(|_| make()).collect::<candle_core::Result<_>>()?)
            };
            maps.push(Map {
                site: site.name.clone(),
                id: site.id,
                net,
                scales: each(&|| ones(d, DType::F32, &Device::Cpu))?,
                shifts: each(&|| zeros(d, DType::F32, &Device::Cpu))?,
                alpha: Var::from_tensor(&Tensor::new(mend.edit_lr as f32, &Device::Cpu)?)?,
            });
        }
        Ok(Editor { mend: mend.clone(), nets, maps })
    }

    /// Everything that learns, by name.
    pub fn params(&self) -> Vec<Param> {
        let mut all = Vec::new();
        let mut add = |name: String, var: &Var| {
            // A map of which no token is left has no gradient.
            all.push(Param { optional: true, ..Param::whole(name, var.clone()) });
        };
        for net in &self.nets {
            for (k, Layer { u_dr, v_rd, b_d }) in net.layers.iter().enumerate() {
                for (part, var) in [("u", u_dr), ("v", v_rd), ("b", b_d)] {
                    add(format!("{}.{k}.{part}", net.name()), var);
                }
            }
        }
        for map in &self.maps {
            for (k, (scale, shift)) in map.scales.iter().zip(&map.shifts).enumerate() {
                add(format!("{}.{k}.scale", map.site), scale);
                add(format!("{}.{k}.shift", map.site), shift);
            }
            add(format!("{}.alpha", map.site), &map.alpha);
        }
        all
    }

    /// Takes note of the size of factors; only training does so.
    pub(super) fn see(&mut self, factors: &[Factors]) -> Result<()> {
        for (map, Factors { x_ti, delta_to }) in self.maps.iter().zip(factors) {
            self.nets[map.net].seen.see(&Tensor::cat(&[x_ti, delta_to], 1)?)?;
        }
        Ok(())
    }

    /// The edit of every map that has a token, hanging on the networks.
    pub(super) fn pending(&self, factors: &[Factors]) -> Result<Vec<(SiteId, Arc<Pending>)>> {
        let mut all = Vec::with_capacity(self.maps.len());
        for (map, Factors { x_ti, delta_to }) in self.maps.iter().zip(factors) {
            let (t, i) = x_ti.dims2()?;
            let (_t, o) = delta_to.dims2()?;
            if t == 0 {
                continue;
            }
            let net = &self.nets[map.net];
            let z_td = Tensor::cat(&[x_ti, delta_to], 1)?;
            let z_td = if self.mend.norm { net.seen.apply(&z_td)? } else { z_td };
            let z_td = net.apply(z_td, map)?;
            let (x_ti, delta_to) = (z_td.narrow(1, 0, i)?, z_td.narrow(1, i, o)?);
            let (x_ti, delta_to) = (x_ti.contiguous()?, delta_to.contiguous()?);
            let alpha = map.alpha.as_tensor().clone();
            all.push((map.id, Arc::new(Pending { x_ti, delta_to, alpha })));
        }
        Ok(all)
    }

    /// Writes the editor of a model that `base` names into `dir`.
    pub fn save(&self, dir: &Path, base: &str) -> Result<()> {
        let mut state = StateDict::default();
        for Param { name, var, .. } in self.params() {
            state.insert(name, var.as_detached_tensor());
        }
        for net in self.nets.iter().filter(|net| net.seen.n >= 2) {
            let (mean, deviation) = net.seen.statistics()?;
            state.insert(format!("{}.mean", net.name()), mean);
            state.insert(format!("{}.deviation", net.name()), deviation);
        }
        let config = Config {
            version: env!("CARGO_PKG_VERSION").into(),
            base: base.into(),
            mend: self.mend.clone(),
            seen: self.nets.iter().map(|net| net.seen.n).collect(),
        };
        state.save(&dir.join(WEIGHTS), &[("format", "luthier")])?;
        io::write_json(&dir.join(CONFIG), &config)
    }

    /// Reads the editor in `dir` for `model`, whose name or hash must be what it was made for.
    pub fn load(dir: &Path, model: &dyn Model, base: &str) -> Result<Self> {
        let path = dir.join(CONFIG);
        let config: Config = io::read_json(&path)?;
        let at = path.display().to_string();
        if config.base != base {
            let what = format!("was trained for the model {}, this is {base}", config.base);
            return Err(Error::input(at, what).hint("an editor knows one model"));
        }
        let mut editor = Editor::new(model, &config.mend)?;
        let path = dir.join(WEIGHTS);
        let mut state = StateDict::load(&path)?;
        let missing = |name: &str| {
            Error::input(format!("{}: {name}", path.display()), "is missing or of another shape")
        };
        for Param { name, var, .. } in editor.params() {
            let value = state.remove(&name).filter(|value| value.dims() == var.dims());
            var.set(&value.ok_or_else(|| missing(&name))?)?;
        }
        if config.seen.len() != editor.nets.len() {
            return Err(Error::input(at, "has statistics of other maps"));
        }
        for (net, n) in editor.nets.iter_mut().zip(config.seen).filter(|(_, n)| *n >= 2) {
            let d = net.i + net.o;
            let mut numbers = |part: &str| -> Result<Vec<f64>> {
                let name = format!("{}.{part}", net.name());
                let value = state.remove(&name).filter(|value| value.dims() == [d]);
                let value = value.ok_or_else(|| missing(&name))?.to_vec1::<f32>()?;
                Ok(value.into_iter().map(f64::from).collect())
            };
            let (mean, deviation) = (numbers("mean")?, numbers("deviation")?);
            let squares = deviation.iter().map(|s| s * s * (n - 1) as f64).collect();
            net.seen = Seen { n, mean, squares };
        }
        Ok(editor)
    }
}

impl Layer {
    fn new(d: usize, r: usize, seed: Seed) -> Result<Self> {
        let mut rng = seed.rng();
        let normal: Vec<f32> = (0..r * d).map(|_| rng.normal() as f32).collect();
        let v_rd = Tensor::from_vec(normal, (r, d), &Device::Cpu)?;
        Ok(Layer {
            u_dr: Var::zeros((d, r), DType::F32, &Device::Cpu)?,
            v_rd: Var::from_tensor(&v_rd)?,
            b_d: Var::zeros(d, DType::F32, &Device::Cpu)?,
        })
    }
}
