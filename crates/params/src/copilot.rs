//! A copilot (Transformer Copilot, Zou et al. 2025, paper 40): a small decoder beside a pilot, the model
//! that is tuned. It reads what the pilot read and held, and the pilot's errors so far, and says by how
//! much the next probabilities will be wrong.
//!
//! A row has `n` tokens, of which those at the positions `at` predict targets. The copilot has one place
//! for each of these, and no positions:
//!
//! ```text
//! h_k   = R e_{k−1} + b                 e the pilot's errors (decoding: its own f); 0 where a gap is before
//! odd   h += O · attention(norm h)      over the places up to k
//! even  h += O · attention(norm h, S)   S = [norm(A x̃); norm(A mean_l h_l)], rows up to at[k] of both halves
//! both  h += down(silu(gate n) · up n), n = norm h
//! f_k   = H norm h_k
//! ```
//!
//! `x̃` is what the pilot's first block reads, `h_l` what stands behind its block `l`.
//!
//! **Departures**: (1) it begins from scratch or from an earlier copilot, not from a pretrained decoder:
//! none has these inputs; `H` begins at 0, so that what has learned nothing corrects nothing; (2) `A`
//! stands there also where both widths are the same, and a norm behind it, for a pilot's stream grows by
//! orders of magnitude from block to block; (3) the prompt's tokens have no places: their errors would be
//! 0; (4) no dropout.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use candle_core::{D, DType, Device, Tensor, Var};
use luthier_core::{Error, Param, Result, Seed, StateDict, io};
use luthier_kernels::norm::rms_norm;
use serde::{Deserialize, Serialize};

/// What a copilot is.
pub const CONFIG: &str = "copilot.json";
/// Its weights.
pub const WEIGHTS: &str = "copilot.safetensors";

/// Of every norm: Llama's.
const EPS: f64 = 1e-5;
/// Added to the score of what a place must not see.
const UNSEEN: f32 = -1e30;

/// The variable that reads errors, `(d, v)`.
pub const READ: &str = "read.weight";
/// The variable that gives corrections, `(v, d)`.
pub const HEAD: &str = "head.weight";

/// How large a copilot is, and for whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sizes {
    /// Blocks; every second one looks at the pilot.
    pub layers: usize,
    /// Width of its stream.
    pub width: usize,
    /// Attention heads.
    pub heads: usize,
    /// Tokens of the pilot's vocabulary.
    pub vocab: usize,
    /// Width of the pilot's stream.
    pub pilot_width: usize,
}

/// What stands in [`CONFIG`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Whose errors it learned: the name of the base.
    pub base: String,
    /// How much of a correction is meant to be used.
    pub lambda: f64,
    /// Its own sizes and the pilot's.
    pub sizes: Sizes,
}

/// A copilot's weights.
pub struct Copilot {
    /// How large it is.
    pub sizes: Sizes,
    vars: BTreeMap<String, Var>,
}

/// What a copilot reads of a pilot's pass.
#[derive(Default)]
pub struct States {
    x_nd: Option<Tensor>,
    sum_nd: Option<Tensor>,
    blocks: usize,
}

impl States {
    /// Takes a residual stream as a constant: first what the first block reads, then what stands behind
    /// each block.
    pub fn take(&mut self, h_nd: &Tensor) -> Result<()> {
        let h_nd = h_nd.detach().to_dtype(DType::F32)?;
        if self.x_nd.is_none() {
            self.x_nd = Some(h_nd);
            return Ok(());
        }
        self.blocks += 1;
        self.sum_nd = Some(match self.sum_nd.take() {
            None => h_nd,
            Some(sum_nd) => (sum_nd + h_nd)?,
        });
        Ok(())
    }

    /// What was embedded, and the mean of what stands behind the blocks.
    pub fn pooled(self) -> Result<[Tensor; 2]> {
        let (Some(x_nd), Some(sum_nd)) = (self.x_nd, self.sum_nd) else {
            return Err(Error::failed("copilot", "the pilot showed no block"));
        };
        Ok([x_nd, (sum_nd / self.blocks as f64)?])
    }
}

impl Sizes {
    /// Refuses what cannot be built; `at` is the table it comes from.
    pub fn check(&self, at: &str) -> Result<()> {
        if self.layers < 2 {
            let what = format!("expected at least 2, got {}", self.layers);
            return Err(Error::input(format!("{at}.layers"), what)
                .hint("the first block reads errors, the second looks at the pilot"));
        }
        if self.heads == 0 || self.width == 0 || !self.width.is_multiple_of(self.heads) {
            let what = format!("{} heads do not share a width of {}", self.heads, self.width);
            return Err(Error::input(format!("{at}.heads"), what)
                .hint("train.copilot.width is a multiple of heads"));
        }
        Ok(())
    }

    /// Every variable by name with its shape, and the spread it begins with; `None` begins at 1.
    fn vars(&self) -> Vec<(String, Vec<usize>, Option<f64>)> {
        let Sizes { layers, width: d, vocab: v, pilot_width: p, .. } = *self;
        // Llama's ratio, up to a multiple of eight.
        let f = (8 * d).div_ceil(3).next_multiple_of(8);
        let linear =
            |name: String, o: usize, i: usize| (name, vec![o, i], Some(1.0 / (i as f64).sqrt()));
        let mut all = vec![
            // As an embedding: one error is little more than one token.
            (READ.to_string(), vec![d, v], Some(1.0 / (d as f64).sqrt())),
            ("read.bias".to_string(), vec![d], Some(1.0 / (d as f64).sqrt())),
            linear("align.weight".into(), d, p),
            ("align_norm.weight".to_string(), vec![d], None),
            ("norm.weight".to_string(), vec![d], None),
            (HEAD.to_string(), vec![v, d], Some(0.0)),
        ];
        for l in 0..layers {
            for part in ["q", "k", "v", "o"] {
                all.push(linear(format!("layers.{l}.attn.{part}.weight"), d, d));
            }
            all.push(linear(format!("layers.{l}.mlp.gate.weight"), f, d));
            all.push(linear(format!("layers.{l}.mlp.up.weight"), f, d));
            all.push(linear(format!("layers.{l}.mlp.down.weight"), d, f));
            all.push((format!("layers.{l}.attn_norm.weight"), vec![d], None));
            all.push((format!("layers.{l}.mlp_norm.weight"), vec![d], None));
        }
        all
    }
}

impl Copilot {
    /// From scratch.
    pub fn new(sizes: Sizes, seed: Seed) -> Result<Self> {
        sizes.check("train.copilot")?;
        let mut vars = BTreeMap::new();
        for (name, dims, spread) in sizes.vars() {
            let (n, mut rng) = (dims.iter().product(), seed.split(&name).rng());
            let values: Vec<f32> = match spread {
                None => vec![1.0; n],
                Some(0.0) => vec![0.0; n],
                Some(spread) => (0..n).map(|_| (spread * rng.normal()) as f32).collect(),
            };
            vars.insert(name, Var::from_vec(values, dims, &Device::Cpu)?);
        }
        Ok(Copilot { sizes, vars })
    }

    /// The one in a folder, with what stands beside it.
    pub fn open(dir: &Path) -> Result<(Self, Config)> {
        let file = dir.join(CONFIG);
        if !file.is_file() {
            let what = format!("is no copilot: it holds no {CONFIG}");
            return Err(Error::input(dir.display().to_string(), what).hint(
                "a folder that training with [train.copilot] has written, or a checkpoint in it",
            ));
        }
        let config: Config = io::read_json(&file)?;
        config.sizes.check(&file.display().to_string())?;
        let copilot = Copilot::new(config.sizes, Seed(0))?;
        copilot.load(dir)?;
        Ok((copilot, config))
    }

    /// Takes the weights in a folder.
    pub fn load(&self, dir: &Path) -> Result<()> {
        let file = dir.join(WEIGHTS);
        let saved = StateDict::load(&file)?;
        for (name, var) in &self.vars {
            let found = saved.get(name).filter(|value| value.dims() == var.dims());
            let Some(value) = found else {
                let got = saved.get(name).map_or("nothing".into(), |t| format!("{:?}", t.dims()));
                let what = format!("`{name}`: expected {:?}, got {got}", var.dims());
                return Err(Error::input(file.display().to_string(), what)
                    .hint(format!("{CONFIG} beside it is of another copilot")));
            };
            var.set(value)?;
        }
        Ok(())
    }

    /// Writes both files into `dir`.
    pub fn save(&self, dir: &Path, base: &str, lambda: f64) -> Result<Vec<PathBuf>> {
        let state = self.vars.iter().map(|(name, var)| (name.clone(), var.as_detached_tensor()));
        let config = Config { base: base.to_string(), lambda, sizes: self.sizes };
        let files = vec![dir.join(WEIGHTS), dir.join(CONFIG)];
        state.collect::<StateDict>().save(&files[0], &[])?;
        io::write_json(&files[1], &config)?;
        Ok(files)
    }

    /// Its variables, in the order of their names.
    pub fn params(&self) -> Vec<Param> {
        self.vars.iter().map(|(name, var)| Param::whole(name, var.clone())).collect()
    }

    /// How many numbers it has.
    pub fn count(&self) -> usize {
        self.vars.values().map(|var| var.elem_count()).sum()
    }

    fn weight(&self, name: &str) -> Result<&Tensor> {
        let missing = || Error::failed(name, "is no variable of the copilot");
        Ok(self.vars.get(name).ok_or_else(missing)?.as_tensor())
    }

    fn linear(&self, name: &str, x: &Tensor) -> Result<Tensor> {
        Ok(x.matmul(&self.weight(&format!("{name}.weight"))?.t()?)?)
    }

    fn norm(&self, name: &str, x: &Tensor) -> Result<Tensor> {
        Ok(rms_norm(x, self.weight(&format!("{name}.weight"))?, EPS)?)
    }

    /// Errors, or its own corrections in their place, as it reads them, `(m, d)`.
    pub fn read(&self, errors_mv: &Tensor) -> Result<Tensor> {
        Ok(errors_mv.matmul(&self.weight(READ)?.t()?)?)
    }

    /// Both halves of what it sees of the pilot, each `(n, d)`.
    pub fn align(&self, pooled: &[Tensor; 2]) -> Result<[Tensor; 2]> {
        let half = |h_nd: &Tensor| self.norm("align_norm", &self.linear("align", h_nd)?);
        Ok([half(&pooled[0])?, half(&pooled[1])?])
    }

    /// Its last stream at every place, normed, `(m, d)`. `read_md` is what was read of each place's own
    /// error, and moves on by one here; `at_m` are the places' positions among the `n` tokens.
    pub fn hidden(&self, read_md: &Tensor, aligned: &[Tensor; 2], at_m: &[u32]) -> Result<Tensor> {
        let (m, d) = read_md.dims2()?;
        let n = aligned[0].dim(0)?;
        let device = read_md.device();
        let with_none = Tensor::cat(&[&Tensor::zeros((1, d), DType::F32, device)?, read_md], 0)?;
        let before = |k: usize| match k > 0 && at_m[k - 1] + 1 == at_m[k] {
            true => k as u32,
            false => 0,
        };
        let before = Tensor::from_vec((0..m).map(before).collect::<Vec<u32>>(), m, device)?;
        let mut h_md =
            with_none.index_select(&before, 0)?.broadcast_add(self.weight("read.bias")?)?;
        let seen_md = Tensor::cat(aligned, 0)?;
        let own = mask(m, m, |k, j| j <= k)?;
        let pilots = mask(m, 2 * n, |k, j| j % n <= at_m[k] as usize)?;
        for l in 0..self.sizes.layers {
            let x_md = self.norm(&format!("layers.{l}.attn_norm"), &h_md)?;
            let attended = match l % 2 {
                0 => self.attend(l, &x_md, &x_md, &own)?,
                _ => self.attend(l, &x_md, &seen_md, &pilots)?,
            };
            h_md = (h_md + attended)?;
            let x_md = self.norm(&format!("layers.{l}.mlp_norm"), &h_md)?;
            let gate = self.linear(&format!("layers.{l}.mlp.gate"), &x_md)?.silu()?;
            let up = self.linear(&format!("layers.{l}.mlp.up"), &x_md)?;
            h_md = (h_md + self.linear(&format!("layers.{l}.mlp.down"), &(gate * up)?)?)?;
        }
        self.norm("norm", &h_md)
    }

    /// Corrections from the last stream, `(m, v)`.
    pub fn correct(&self, hidden_md: &Tensor) -> Result<Tensor> {
        Ok(hidden_md.matmul(&self.weight(HEAD)?.t()?)?)
    }

    fn attend(&self, l: usize, x_md: &Tensor, seen: &Tensor, mask: &Tensor) -> Result<Tensor> {
        let ((m, d), h) = (x_md.dims2()?, self.sizes.heads);
        let e = d / h;
        let heads = |part: &str, x: &Tensor| -> Result<Tensor> {
            let y = self.linear(&format!("layers.{l}.attn.{part}"), x)?;
            Ok(y.reshape((x.dim(0)?, h, e))?.transpose(0, 1)?.contiguous()?)
        };
        let (q, k, v) = (heads("q", x_md)?, heads("k", seen)?, heads("v", seen)?);
        let keys = k.transpose(1, 2)?.contiguous()?;
        let scores = (q.matmul(&keys)? / (e as f64).sqrt())?.broadcast_add(mask)?;
        let weights = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?.exp()?;
        let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
        let y = weights.matmul(&v)?.transpose(0, 1)?.contiguous()?.reshape((m, d))?;
        self.linear(&format!("layers.{l}.attn.o"), &y)
    }
}

/// What is added to scores, `(1, m, keys)`.
fn mask(m: usize, keys: usize, sees: impl Fn(usize, usize) -> bool) -> Result<Tensor> {
    let all = (0..m).flat_map(|k| (0..keys).map(move |j| (k, j)));
    let values: Vec<f32> = all.map(|(k, j)| if sees(k, j) { 0.0 } else { UNSEEN }).collect();
    Ok(Tensor::from_vec(values, (1, m, keys), &Device::Cpu)?)
}
