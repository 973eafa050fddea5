//! What a whole distribution tells beyond the probability of its target: five numbers of each row of
//! logits, and how far it is from another's.
//!
//! With `p = softmax(logits)`, `lse = log Σ e^logits` and `V` tokens, [`facets`] gives
//!
//! | column | number | gradient by logit `j` |
//! |---|---|---|
//! | [`NLL`] | `lse − logit[target]` | `p_j − 1[j = target]` |
//! | [`SMOOTH`] | `lse − mean(logits)`, the mean of `−log p` | `p_j − 1/V` |
//! | [`SQUARE`] | `lse²` | `2·lse·p_j` |
//! | [`RULED_OUT`] | `−Σ_c log max(1 − p_c, 1e-5)` | `Σ_c p_c/(1 − p_c)·(1[j = c] − p_j)` |
//! | [`ENTROPY`] | `−Σ p log p` | `−p_j·(log p_j + entropy)` |
//!
//! and [`divergence()`] how far it has gone from another.
//! Nothing of the vocabulary's size is kept but the logits; the backward pass makes the probabilities
//! again. An objective asks for the logits of a few tokens at a time (`Logits::sum`).

use std::ops::Range;

use candle_core::{D, Tensor, bail};
use luthier_core::{Result, model::gather_logp};
use luthier_kernels::math::{exp_sum, max};

use crate::rows::{self, RowWise};

pub mod divergence;

pub use divergence::{divergence, naive_divergence};

/// Tokens whose logits exist at a time: with 49 152 of them, 12 MB for each table.
pub const PIECE: usize = 64;

/// How many numbers [`facets`] gives of a row.
pub const FACETS: usize = 5;
/// `−log p(target)`.
pub const NLL: usize = 0;
/// The mean of `−log p` over the vocabulary.
pub const SMOOTH: usize = 1;
/// The square of the logarithm of the sum of exponentials.
pub const SQUARE: usize = 2;
/// `−log(1 − p)` of what should not come, summed.
pub const RULED_OUT: usize = 3;
/// How undecided it is, in nats.
pub const ENTROPY: usize = 4;

/// Least `1 − p` whose logarithm is taken, as in the code of Welleck et al.; below it there is no gradient.
const LEAST: f64 = 1e-5;

/// Tokens that should not come, for each of several rows: those of a run of a list, but for the target.
#[derive(Clone, Debug, Default)]
pub struct RuledOut {
    /// Token ids, distinct within every run.
    pub tokens: Vec<u32>,
    /// The run of each row.
    pub runs_m: Vec<Range<usize>>,
}

impl RuledOut {
    fn of(&self, row: usize, target: u32) -> impl Iterator<Item = usize> {
        let run = self.runs_m.get(row).cloned().unwrap_or_default();
        self.tokens[run].iter().filter(move |t| **t != target).map(|t| *t as usize)
    }
}

/// The five numbers of each row, `(m, 5)`.
pub fn facets(logits_mv: &Tensor, targets_m: &[u32], ruled_out: RuledOut) -> Result<Tensor> {
    rows::alone(logits_mv, Facets { targets_m: targets_m.to_vec(), ruled_out })
}

/// [`facets`] in plain tensor operations.
pub fn naive_facets(logits_mv: &Tensor, targets_m: &[u32], ruled_out: &RuledOut) -> Result<Tensor> {
    let (m, v) = logits_mv.dims2()?;
    let (log_p_mv, lse_m) = log_softmax(logits_mv)?;
    let p_mv = log_p_mv.exp()?;
    let mut ones = vec![0f32; m * v];
    for (row, target) in targets_m.iter().enumerate() {
        ruled_out.of(row, *target).for_each(|c| ones[row * v + c] = 1.0);
    }
    let ones_mv = Tensor::from_vec(ones, (m, v), logits_mv.device())?;
    let left_mv = (1.0 - &p_mv)?.clamp(LEAST, 2.0)?;
    let columns = [
        gather_logp(logits_mv, targets_m)?.neg()?,
        log_p_mv.mean(D::Minus1)?.neg()?,
        lse_m.sqr()?,
        (left_mv.log()? * ones_mv)?.sum(D::Minus1)?.neg()?,
        (p_mv * log_p_mv)?.sum(D::Minus1)?.neg()?,
    ];
    Ok(Tensor::stack(&columns, 1)?)
}

/// Log-probabilities, and the logarithm of the sum of exponentials of each row.
pub fn log_softmax(logits_mv: &Tensor) -> Result<(Tensor, Tensor)> {
    let top_m1 = logits_mv.max_keepdim(D::Minus1)?.detach();
    let shifted_mv = logits_mv.broadcast_sub(&top_m1)?;
    let log_sum_m1 = shifted_mv.exp()?.sum_keepdim(D::Minus1)?.log()?;
    let lse_m = (&log_sum_m1 + top_m1)?.squeeze(1)?;
    Ok((shifted_mv.broadcast_sub(&log_sum_m1)?, lse_m))
}

/// Probabilities of a row in `e`, the logarithm of the sum of exponentials, and `Σ p·logit`.
pub(crate) fn probabilities(x: &[f32], e: &mut Vec<f32>) -> (f64, f64) {
    let top = max(x);
    e.clear();
    e.extend_from_slice(x);
    let sum = exp_sum(e, 1.0, top);
    let mut mean = 0.0;
    for (e, x) in e.iter_mut().zip(x) {
        *e /= sum;
        // What is impossible adds nothing, though its logit be −∞.
        if *e > 0.0 {
            mean += f64::from(*e) * f64::from(*x);
        }
    }
    (f64::from(top) + f64::from(sum).ln(), mean)
}

struct Facets {
    targets_m: Vec<u32>,
    ruled_out: RuledOut,
}

impl RowWise for Facets {
    const NAME: &'static str = "facets";
    const NUMBERS: usize = FACETS;

    fn check(&self, m: usize, v: usize) -> candle_core::Result<()> {
        let runs = self.ruled_out.runs_m.len();
        if runs != m && runs != 0 {
            bail!("facets: logits ({m}, {v}), {runs} runs");
        }
        rows::tokens(Self::NAME, (m, v), &self.targets_m, &self.ruled_out.tokens)
    }

    fn row(&self, row: usize, x: &[f32], _other: &[f32], out: &mut [f32]) {
        let mut e = Vec::with_capacity(x.len());
        let (target, (lse, mean)) = (self.targets_m[row], probabilities(x, &mut e));
        let all: f64 = x.iter().map(|x| f64::from(*x)).sum();
        let left = |c: usize| (1.0 - f64::from(e[c])).max(LEAST).ln();
        let ruled_out: f64 = self.ruled_out.of(row, target).map(left).sum();
        let entropy = (lse - mean).max(0.0);
        let nll = lse - f64::from(x[target as usize]);
        let all = [nll, lse - all / x.len() as f64, lse * lse, -ruled_out, entropy];
        out.copy_from_slice(&all.map(|f| f as f32));
    }

    fn row_backward(&self, row: usize, x: &[f32], _other: &[f32], by: &[f32], d: &mut [f32]) {
        let mut e = Vec::with_capacity(x.len());
        let (target, (lse, mean)) = (self.targets_m[row], probabilities(x, &mut e));
        let odds = |c: usize| match f64::from(e[c]) {
            p if 1.0 - p <= LEAST => 0.0,
            p => p / (1.0 - p),
        };
        let ruled_out: f64 = match by[RULED_OUT] == 0.0 {
            true => 0.0,
            false => self.ruled_out.of(row, target).map(odds).sum(),
        };
        let of = |facet: usize| f64::from(by[facet]);
        let every = of(NLL) + of(SMOOTH) + 2.0 * lse * of(SQUARE) - of(RULED_OUT) * ruled_out;
        let each = (of(SMOOTH) / x.len() as f64) as f32;
        if by[ENTROPY] == 0.0 {
            d.iter_mut().zip(&e).for_each(|(d, p)| *d = every as f32 * p - each);
        } else {
            // log p + entropy = (x − lse) + (lse − mean).
            for ((d, p), x) in d.iter_mut().zip(&e).zip(x) {
                let more = if *p > 0.0 { f64::from(*x) - mean } else { 0.0 };
                *d = ((every - of(ENTROPY) * more) * f64::from(*p)) as f32 - each;
            }
        }
        d[target as usize] -= by[NLL];
        if by[RULED_OUT] != 0.0 {
            self.ruled_out.of(row, target).for_each(|c| d[c] += (of(RULED_OUT) * odds(c)) as f32);
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};
    use luthier_core::Seed;
    use luthier_testkit::random;

    use super::*;

    /// Values and gradients of `Σ by·of(x)`.
    fn run(x: &Var, by: &Tensor, of: &dyn Fn(&Tensor) -> Result<Tensor>) -> [Vec<f32>; 2] {
        let out = of(x).unwrap();
        let store = (&out * by).unwrap().sum_all().unwrap().backward().unwrap();
        [&out, store.get(x).unwrap()].map(|t| t.flatten_all().unwrap().to_vec1().unwrap())
    }

    fn near(got: &[Vec<f32>; 2], want: &[Vec<f32>; 2], what: &str) {
        for (got, want) in got.iter().zip(want) {
            assert_eq!(got.len(), want.len(), "{what}");
            for (got, want) in got.iter().zip(want) {
                assert!((got - want).abs() < 2e-5 * (1.0 + want.abs()), "{what}: {got} {want}");
            }
        }
    }

    #[test]
    fn numbers_and_gradients_are_those_of_plain_tensor_operations() {
        for (m, v) in [(1, 2), (7, 33), (3, 1000)] {
            let x = Var::from_tensor(&random((m, v), 3.0, Seed(1))).unwrap();
            let targets: Vec<u32> = (0..m).map(|i| (i * 5 % v) as u32).collect();
            let tokens: Vec<u32> = (0..v as u32).step_by(3).collect();
            let runs_m = (0..m).map(|i| 0..tokens.len().min(i * 4)).collect();
            let ruled_out = RuledOut { tokens, runs_m };
            for facet in 0..FACETS {
                let mut by = vec![0f32; m * FACETS];
                (0..m).for_each(|i| by[i * FACETS + facet] = 0.3 + i as f32);
                let by = Tensor::from_vec(by, (m, FACETS), &Device::Cpu).unwrap();
                let got = run(&x, &by, &|x| facets(x, &targets, ruled_out.clone()));
                let want = run(&x, &by, &|x| naive_facets(x, &targets, &ruled_out));
                near(&got, &want, &format!("({m}, {v}) {facet}"));
            }
            let (by, other) =
                (random((m, 1), 3.0, Seed(3)).squeeze(1).unwrap(), random((m, v), 3.0, Seed(2)));
            let got = run(&x, &by, &|x| divergence(x, &other));
            near(&got, &run(&x, &by, &|x| naive_divergence(x, &other)), "divergence");
        }
    }

    #[test]
    fn even_and_certain_distributions_are_what_they_are_known_for() {
        let of = |x: &[f32], target: u32, out: &[u32]| {
            let x = Tensor::from_slice(x, (1, x.len()), &Device::Cpu).unwrap();
            let run = 0..out.len();
            let ruled_out = RuledOut { tokens: out.to_vec(), runs_m: vec![run] };
            facets(&x, &[target], ruled_out).unwrap().to_vec2::<f32>().unwrap().remove(0)
        };
        let four = 4f32.ln();
        let even = of(&[2.0; 4], 1, &[0, 1, 3]);
        // The target is never ruled out: two times −log(3/4).
        let want = [four, four, (2.0 + four).powi(2), 2.0 * (4f32 / 3.0).ln(), four];
        even.iter()
            .zip(want)
            .for_each(|(got, want)| assert!((got - want).abs() < 1e-5, "{even:?}"));
        let certain = of(&[60.0, 0.0, 0.0], 0, &[0]);
        assert!(certain[NLL] < 1e-6 && certain[ENTROPY] < 1e-6 && certain[RULED_OUT] == 0.0);
        // Certain of what should not come: as much as there can be, not infinitely much.
        let wrong = of(&[60.0, 0.0, 0.0], 1, &[0]);
        assert!((wrong[RULED_OUT] + (LEAST as f32).ln()).abs() < 1e-3, "{wrong:?}");
        let impossible = of(&[1.0, f32::NEG_INFINITY, 1.0], 0, &[1]);
        assert!((impossible[ENTROPY] - 2f32.ln()).abs() < 1e-6 && impossible[RULED_OUT] == 0.0);
    }

    #[test]
    fn a_distribution_is_not_apart_from_itself_and_the_other_gets_no_gradient() {
        let (x, other) = (
            Var::from_tensor(&random((4, 50), 3.0, Seed(1))).unwrap(),
            random((4, 50), 3.0, Seed(2)),
        );
        let r = Var::from_tensor(&other).unwrap();
        let store = divergence(&x, &r).unwrap().sum_all().unwrap().backward().unwrap();
        assert!(store.get(&r).is_none());
        let itself = divergence(&x, &x.detach()).unwrap();
        assert_eq!(itself.to_vec1::<f32>().unwrap(), [0.0; 4]);
        let store = itself.sum_all().unwrap().backward().unwrap();
        let d = store.get(&x).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(d.iter().all(|d| *d == 0.0));
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let x = random((2, 5), 3.0, Seed(1));
        let none = RuledOut::default;
        assert!(facets(&x, &[0], none()).is_err() && facets(&x, &[0, 5], none()).is_err());
        let beyond = RuledOut { tokens: vec![9], runs_m: vec![0..1, 0..0] };
        assert!(facets(&x, &[0, 1], beyond).is_err());
        assert!(divergence(&x, &random((2, 4), 3.0, Seed(1))).is_err());
    }
}
