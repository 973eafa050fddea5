//! Inverted dropout whose noise is a function of the seed and the element's index.
//!
//! Nothing is drawn in sequence and no mask is kept: the backward pass asks the same function again,
//! so recomputing a block, or another number of threads, gives the same bits.

use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor};
use luthier_core::Seed;
use rayon::prelude::*;

const CHUNK: usize = 1 << 13;

struct Dropout {
    seed: Seed,
    p: f64,
}

/// Zeroes a share `p` of the elements and scales the others by `1 / (1 − p)`.
pub(crate) fn dropout(x: &Tensor, p: f64, seed: Seed) -> candle_core::Result<Tensor> {
    if p == 0.0 {
        return Ok(x.clone());
    }
    x.contiguous()?.apply_op1(Dropout { seed, p })
}

impl CustomOp1 for Dropout {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn cpu_fwd(
        &self,
        storage: &CpuStorage,
        layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (CpuStorage::F32(data), Some((start, end))) = (storage, layout.contiguous_offsets())
        else {
            candle_core::bail!("dropout expects contiguous f32")
        };
        // 32 uniform bits an element, two elements a hash.
        let drop_below = (self.p * 2f64.powi(32)) as u64;
        let keep = (1.0 / (1.0 - self.p)) as f32;
        let mut out = vec![0f32; end - start];
        out.par_chunks_mut(CHUNK).zip(data[start..end].par_chunks(CHUNK)).enumerate().for_each(
            |(chunk, (out, x))| {
                let first = (chunk * CHUNK / 2) as u64;
                for (pair, (out, x)) in out.chunks_mut(2).zip(x.chunks(2)).enumerate() {
                    let mut bits = self.seed.at(first + pair as u64).0;
                    for (out, x) in out.iter_mut().zip(x) {
                        *out = if (bits & 0xffff_ffff) < drop_below { 0.0 } else { x * keep };
                        bits >>= 32;
                    }
                }
            },
        );
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    fn bwd(&self, _x: &Tensor, _y: &Tensor, dy: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let again = Dropout { seed: self.seed, p: self.p };
        Ok(Some(dy.contiguous()?.apply_op1_no_bwd(&again)?))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Var};

    use super::*;

    #[test]
    fn the_share_and_the_mean_are_right_and_gradients_follow_the_mask() {
        let x = Var::ones((200, 301), DType::F32, &Device::Cpu).unwrap();
        let y = dropout(&x, 0.25, Seed(3)).unwrap();
        let flat = y.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let zeros = flat.iter().filter(|v| **v == 0.0).count() as f64 / flat.len() as f64;
        assert!((zeros - 0.25).abs() < 0.01, "{zeros}");
        assert!(flat.iter().all(|v| *v == 0.0 || *v == 1.0 / 0.75));
        let grads = y.sum_all().unwrap().backward().unwrap();
        assert_eq!(grads.get(&x).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap(), flat);
    }

    #[test]
    fn threads_do_not_show_and_seeds_do() {
        let x = Tensor::ones((3, 9001), DType::F32, &Device::Cpu).unwrap();
        let run = |threads, seed| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let y = pool.install(|| dropout(&x, 0.5, Seed(seed)).unwrap());
            y.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        assert_eq!(run(1, 7), run(3, 7));
        assert_ne!(run(1, 7), run(1, 8));
    }
}
