//! A mask that begins as a new token would: as the mean of all tokens.
//!
//! The mask of [`super::Corrupt`] is a row that the embedding has and the data do not use. With
//! `mask_token_init = "mean"` training reads `embed[mask] + (mean − embed₀[mask])` wherever it stands, `embed₀`
//! and `mean` from when training began. So the mask is the mean at first; where the embedding learns, its row gets
//! the gradient that a new row would get and moves as that would, and where it rests it stays the mean. The
//! difference is a hook of the policy of a step, as noise is, so nothing else ever meets it: no evaluation, no
//! sample, no file.

use std::sync::Arc;

use candle_core::{DType, Tensor};
use luthier_core::{At, Ctx, Error, Hook, Hooks, Policy, Result, Rows};

use crate::{
    Train,
    draw::{MaskInit, MaskToken},
};

/// Rows of the embedding looked at together.
const ROWS: usize = 4096;

/// What is added to a mask as it is embedded.
#[derive(Clone)]
pub struct Fresh(Arc<Difference>);

struct Difference {
    mask: u32,
    /// From the mask's own row to the mean of all.
    by_1d: Tensor,
    /// Virtual tokens at the beginning of every row, which are embedded as something else.
    skipped: usize,
}

impl Fresh {
    /// The difference for a policy as it is; `None` where the mask begins as what it is.
    pub fn of(config: &Train, policy: &Policy) -> Result<Option<Self>> {
        let corrupt = config.corrupt.as_ref().filter(|c| c.mask_token_init == MaskInit::Mean);
        let Some(corrupt) = corrupt else { return Ok(None) };
        let Some(MaskToken::Id(mask)) = corrupt.mask_token else {
            return Err(Error::failed("train.corrupt.mask_token", "no id was found for it"));
        };
        let embedded = |ids: &[u32]| {
            let hooks = Hooks::none();
            let mut ctx = Ctx::new(&hooks, Arc::new(Rows::single(ids.len())), ids);
            policy
                .model
                .embed(ids, &mut ctx)?
                .detach()
                .to_dtype(DType::F32)?
                .to_vec2::<f32>()
                .map_err(Error::from)
        };
        let own = embedded(&[mask])?.remove(0);
        let all: Vec<u32> = (0..policy.model.vocab() as u32).collect();
        let mut sums = vec![0f64; own.len()];
        for ids in all.chunks(ROWS) {
            for row in embedded(ids)? {
                sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(x));
            }
        }
        let count = all.len() as f64;
        let by: Vec<f32> = sums
            .iter()
            .zip(&own)
            .map(|(sum, own)| (sum / count - f64::from(*own)) as f32)
            .collect();
        let by_1d = Tensor::from_vec(by, (1, own.len()), &candle_core::Device::Cpu)?;
        Ok(Some(Fresh(Arc::new(Difference { mask, by_1d, skipped: policy.hooks.virtual_tokens }))))
    }

    /// The policy that reads masks so.
    pub fn read_by(&self, policy: &Policy) -> Result<Policy> {
        let mut reading = policy.clone();
        let embed = policy.model.sites().get("embed").map(|site| site.id);
        let missing = || Error::failed("train.corrupt", "this model has no site embed");
        reading.hooks.bind(embed.ok_or_else(missing)?, self.0.clone());
        Ok(reading)
    }
}

impl Hook for Difference {
    fn after(&self, at: &At, _x: &Tensor, y: Tensor) -> Result<Tensor> {
        let mut masks = vec![0f32; at.ids_n.len()];
        for row in 0..at.rows.b() {
            for i in at.rows.range(row).skip(self.skipped) {
                masks[i] = if at.ids_n[i] == self.mask { 1.0 } else { 0.0 };
            }
        }
        if masks.iter().all(|mask| *mask == 0.0) {
            return Ok(y);
        }
        let masks_n1 = Tensor::from_vec(masks, (at.ids_n.len(), 1), y.device())?;
        let by_nd = masks_n1.broadcast_mul(&self.by_1d)?.to_dtype(y.dtype())?;
        Ok((y + by_nd)?)
    }
}

#[cfg(test)]
mod tests {
    use luthier_core::{Model, Seed};
    use luthier_model::{Decoder, Precision, Source};
    use luthier_params::Params;
    use luthier_testkit::golden;

    use super::*;

    const MASK: u32 = 7;

    fn bound(form: &str) -> luthier_params::Bound {
        let source = Source::open(&golden::golden("models/llama")).unwrap();
        let model: Arc<dyn Model> =
            Arc::new(Decoder::load(&source, Precision::F32, |_, _| ()).unwrap());
        toml::from_str::<Params>(form).unwrap().bind(&model, Seed(5)).unwrap()
    }

    fn config(init: &str) -> Train {
        let text = format!("[corrupt]\nmask_token = {MASK}\nmask_token_init = \"{init}\"\n");
        toml::from_str(&text).unwrap()
    }

    /// What is read of some tokens, two rows of them.
    fn embedded(policy: &Policy, ids: &[u32]) -> Vec<Vec<f32>> {
        let rows = Rows::new(&[2, ids.len() - 2], |_| 0);
        let mut ctx = Ctx::new(&policy.hooks, Arc::new(rows), ids);
        policy.model.embed(ids, &mut ctx).unwrap().to_vec2().unwrap()
    }

    fn near(a: &[f32], b: &[f64]) -> bool {
        a.iter().zip(b).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-5)
    }

    #[test]
    fn a_mask_begins_as_the_mean_and_moves_with_its_row() {
        let bound = bound("[full]\n");
        let policy = &bound.policy;
        assert!(Fresh::of(&config("own"), policy).unwrap().is_none());
        assert!(Fresh::of(&Train::default(), policy).unwrap().is_none());
        let all: Vec<u32> = (0..policy.model.vocab() as u32).collect();
        let table = embedded(policy, &all);
        let mean: Vec<f64> = (0..table[0].len())
            .map(|i| table.iter().map(|row| f64::from(row[i])).sum::<f64>() / table.len() as f64)
            .collect();
        let reading = Fresh::of(&config("mean"), policy).unwrap().unwrap().read_by(policy).unwrap();
        let ids = [MASK, 3, 3, MASK, 9];
        let (read, plain) = (embedded(&reading, &ids), embedded(policy, &ids));
        assert!(near(&read[0], &mean) && near(&read[3], &mean), "{read:?}");
        assert!(!near(&plain[0], &mean));
        for other in [1, 2, 4] {
            assert_eq!(read[other], plain[other]);
        }
        // Whatever its row learns, the mask learns, from where it began.
        let mut moved = 0;
        for param in &bound.params {
            let (rows, width) = match param.var.dims() {
                [rows, width] if *rows == all.len() => (*rows, *width),
                _ => continue,
            };
            let by: Vec<f32> = (0..rows * width)
                .map(|i| if i / width == MASK as usize { 0.5 } else { 0.0 })
                .collect();
            let by = Tensor::from_vec(by, (rows, width), param.var.device()).unwrap();
            param.var.set(&(param.var.as_tensor() + by).unwrap()).unwrap();
            moved += 1;
        }
        assert!(moved > 0, "no table learns");
        let want: Vec<f64> = mean.iter().map(|x| x + 0.5).collect();
        assert!(near(&embedded(&reading, &ids)[0], &want));
    }

    #[test]
    fn virtual_tokens_are_no_masks() {
        let bound = bound("[lora]\nr = 2\n");
        let mut policy = bound.policy.clone();
        policy.hooks.virtual_tokens = 1;
        let reading =
            Fresh::of(&config("mean"), &policy).unwrap().unwrap().read_by(&policy).unwrap();
        let ids = [MASK, MASK, MASK, 3];
        let (read, plain) = (embedded(&reading, &ids), embedded(&policy, &ids));
        let same: Vec<bool> = read.iter().zip(&plain).map(|(a, b)| a == b).collect();
        assert_eq!(same, [true, false, true, true]);
    }
}
