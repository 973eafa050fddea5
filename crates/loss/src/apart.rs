//! How far a distribution is from a target token and from another distribution: `−log p(target)` and
//! `KL(r ‖ p) = Σ_v r_v (log r_v − log p_v)` with `p = softmax(logits)`, `r = softmax(reference)`.
//!
//! Nothing of the vocabulary's size is kept but the two sets of logits: the backward pass computes
//! the probabilities again. `r` is a constant. With `g` and `k` the gradients of the two numbers,
//! `∂/∂logits = (g + k)·p − g·1[target] − k·r`, which is 0 to the last bit where `p = r` and `g = 0`.

use candle_core::{D, Tensor};
use luthier_core::{Result, model::gather_logp};
use luthier_kernels::math::{exp_sum, max};

use crate::{
    distribution::log_softmax,
    rows::{self, RowWise},
};

/// `−log p(target)` and `KL(r ‖ p)` of each row, `(m, 2)`; no gradient reaches the reference.
pub fn apart(logits_mv: &Tensor, targets_m: &[u32], reference_mv: &Tensor) -> Result<Tensor> {
    rows::beside(logits_mv, reference_mv, Apart { targets_m: targets_m.to_vec() })
}

/// [`apart`] in plain tensor operations.
pub fn naive_apart(logits_mv: &Tensor, targets_m: &[u32], reference_mv: &Tensor) -> Result<Tensor> {
    let (log_p_mv, _) = log_softmax(logits_mv)?;
    let (log_r_mv, _) = log_softmax(&reference_mv.detach())?;
    let kl_m = (log_r_mv.exp()? * (&log_r_mv - log_p_mv)?)?.sum(D::Minus1)?;
    let nll_m = gather_logp(logits_mv, targets_m)?.neg()?;
    Ok(Tensor::stack(&[nll_m, kl_m], 1)?)
}

struct Apart {
    targets_m: Vec<u32>,
}

/// `e^(x − top)` into `e`; the largest of `x` and the sum of `e`.
fn exponentials(x: &[f32], e: &mut Vec<f32>) -> (f32, f32) {
    let top = max(x);
    e.clear();
    e.extend_from_slice(x);
    (top, exp_sum(e, 1.0, top))
}

impl RowWise for Apart {
    const NAME: &'static str = "apart";
    const NUMBERS: usize = 2;

    fn check(&self, m: usize, v: usize) -> candle_core::Result<()> {
        rows::tokens(Self::NAME, (m, v), &self.targets_m, [])
    }

    fn row(&self, i: usize, x: &[f32], reference: &[f32], out: &mut [f32]) {
        let mut e = Vec::with_capacity(x.len());
        let (top, sum) = exponentials(x, &mut e);
        let log_z = f64::from(top) + f64::from(sum).ln();
        let nll = log_z - f64::from(x[self.targets_m[i] as usize]);
        let (top, sum) = exponentials(reference, &mut e);
        let log_z_reference = f64::from(top) + f64::from(sum).ln();
        let mut apart = 0.0;
        for ((e, x), reference) in e.iter().zip(x).zip(reference) {
            // What the reference rules out adds nothing, whatever the other makes of it.
            if *e > 0.0 {
                apart += f64::from(*e) * (f64::from(*reference) - f64::from(*x));
            }
        }
        let kl = apart / f64::from(sum) - log_z_reference + log_z;
        // Rounding may make a little less than 0 of it.
        out.copy_from_slice(&[nll as f32, if kl < 0.0 { 0.0 } else { kl as f32 }]);
    }

    fn row_backward(&self, i: usize, x: &[f32], reference: &[f32], g: &[f32], d: &mut [f32]) {
        let (g, k) = (g[0], g[1]);
        let mut e = Vec::with_capacity(x.len());
        let (_, sum) = exponentials(x, &mut e);
        d.iter_mut().zip(&e).for_each(|(d, e)| *d = (g + k) * (e / sum));
        let (_, sum) = exponentials(reference, &mut e);
        d.iter_mut().zip(&e).for_each(|(d, e)| *d -= k * (e / sum));
        d[self.targets_m[i] as usize] -= g;
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};
    use luthier_core::Seed;
    use luthier_testkit::random;

    use super::*;

    fn logits(rows: &[&[f32]]) -> Tensor {
        let (m, v) = (rows.len(), rows[0].len());
        Tensor::from_vec(rows.concat(), (m, v), &Device::Cpu).unwrap()
    }

    fn kl(reference: &[f32], of: &[f32]) -> f32 {
        let log = |p: &[f32]| logits(&[&p.iter().map(|p| p.ln()).collect::<Vec<f32>>()]);
        apart(&log(of), &[0], &log(reference)).unwrap().to_vec2::<f32>().unwrap()[0][1]
    }

    #[test]
    fn the_papers_distributions_are_as_far_apart_as_it_says() {
        let (even, uneven) = ([0.5, 0.5], [0.9, 0.1]);
        assert!((kl(&even, &uneven) - 0.5108).abs() < 5e-5);
        assert!((kl(&uneven, &even) - 0.3681).abs() < 5e-5);
        assert_eq!(kl(&uneven, &uneven), 0.0);
        // What the reference rules out may be anything; what it allows must be possible.
        assert!((kl(&[1.0, 0.0], &[0.5, 0.5]) - 2f32.ln()).abs() < 1e-6);
        assert!(kl(&[1.0, 0.0], &[1.0, 0.0]).abs() < 1e-6);
        assert_eq!(kl(&[0.5, 0.5], &[1.0, 0.0]), f32::INFINITY);
    }

    #[test]
    fn numbers_and_gradients_are_those_of_plain_tensor_operations() {
        for (m, v) in [(1, 2), (7, 33), (3, 1000)] {
            let (x, reference) = (
                Var::from_tensor(&random((m, v), 3.0, Seed(1))).unwrap(),
                random((m, v), 3.0, Seed(2)),
            );
            let targets: Vec<u32> = (0..m).map(|i| (i * 5 % v) as u32).collect();
            let by = random((m, 2), 3.0, Seed(3));
            let run = |f: fn(&Tensor, &[u32], &Tensor) -> Result<Tensor>| {
                let out = f(&x, &targets, &reference).unwrap();
                let sum = (&out * &by).unwrap().sum_all().unwrap();
                let store = sum.backward().unwrap();
                let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                (flat(&out), flat(store.get(&x).unwrap()))
            };
            let ((out, d), (want, want_d)) = (run(apart), run(naive_apart));
            for (got, want) in out.iter().zip(&want).chain(d.iter().zip(&want_d)) {
                assert!((got - want).abs() < 2e-5 * (1.0 + want.abs()), "({m}, {v}): {got} {want}");
            }
        }
    }

    #[test]
    fn where_both_agree_there_is_no_gradient_and_none_ever_reaches_the_reference() {
        let (x, reference) = (random((4, 50), 3.0, Seed(1)), random((4, 50), 3.0, Seed(2)));
        let gradient = |x: &Tensor, reference: &Tensor| {
            let (x, r) = (Var::from_tensor(x).unwrap(), Var::from_tensor(reference).unwrap());
            let kl_m = apart(&x, &[0; 4], &r).unwrap().narrow(1, 1, 1).unwrap();
            let store = kl_m.sum_all().unwrap().backward().unwrap();
            assert!(store.get(&r).is_none());
            let d = store.get(&x).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            d.iter().fold(0f32, |most, d| most.max(d.abs()))
        };
        assert_eq!(gradient(&x, &x), 0.0);
        assert!(gradient(&x, &reference) > 0.1);
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let x = random((2, 5), 3.0, Seed(1));
        assert!(apart(&x, &[0], &x).is_err());
        assert!(apart(&x, &[0, 5], &x).is_err());
        assert!(apart(&x, &[0, 1], &random((2, 4), 3.0, Seed(1))).is_err());
    }
}
