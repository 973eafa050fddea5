//! Two ways of drawing a categorical policy to a target, in the logits of its softmax.
//!
//! With `p = softmax(x)` and a target `q`:
//!
//! | | value | gradient in `x` | draws the policy |
//! |---|---|---|---|
//! | forward KL | `Σ q·ln(q/p)` | `p − q` | over all that the target has (mode-covering): maximum likelihood |
//! | reverse KL | `Σ p·ln(p/q)` | `p·(ln(p/q) − value)` | to what it has most of (mode-seeking): rewards, contrasts |
//!
//! Paper 24 (Tajwar et al. 2024) explains by it why on-policy samples and negative gradients reach a far
//! peak of the reward faster.

/// Logits as probabilities and their logarithms.
fn softmax(logits: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let log_z = top + logits.iter().map(|x| (x - top).exp()).sum::<f64>().ln();
    let logp: Vec<f64> = logits.iter().map(|x| x - log_z).collect();
    (logp.iter().map(|l| l.exp()).collect(), logp)
}

/// `KL(target ‖ policy)` and its gradient in the policy's logits.
pub fn forward_kl(target: &[f64], logits: &[f64]) -> (f64, Vec<f64>) {
    let (p, logp) = softmax(logits);
    // What the target never does costs nothing.
    let cost = |(q, logp): (&f64, &f64)| if *q > 0.0 { q * (q.ln() - logp) } else { 0.0 };
    let value = target.iter().zip(&logp).map(cost).sum();
    (value, p.iter().zip(target).map(|(p, q)| p - q).collect())
}

/// `KL(policy ‖ target)` and its gradient in the policy's logits.
pub fn reverse_kl(target: &[f64], logits: &[f64]) -> (f64, Vec<f64>) {
    let (p, logp) = softmax(logits);
    let ratios: Vec<f64> = logp.iter().zip(target).map(|(logp, q)| logp - q.ln()).collect();
    let value = p.iter().zip(&ratios).map(|(p, ratio)| p * ratio).sum::<f64>();
    (value, p.iter().zip(&ratios).map(|(p, ratio)| p * (ratio - value)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    type Kl = fn(&[f64], &[f64]) -> (f64, Vec<f64>);

    #[test]
    fn the_papers_two_bins() {
        let (target, logits) = ([0.1, 0.9], [0.9f64.ln(), 0.1f64.ln()]);
        let (value, gradient) = reverse_kl(&target, &logits);
        assert!((value - 1.75778).abs() < 1e-5, "{value}");
        assert!((gradient[0] - 0.39550).abs() < 1e-5 && (gradient[1] + 0.39550).abs() < 1e-5);
        let (_, gradient) = forward_kl(&target, &logits);
        assert!((gradient[0] - 0.8).abs() < 1e-12 && (gradient[1] + 0.8).abs() < 1e-12);
    }

    #[test]
    fn gradients_are_those_of_finite_differences() {
        let (target, logits) = ([0.05, 0.5, 0.15, 0.3], [0.3, -1.2, 2.0, 0.1]);
        for kl in [forward_kl as Kl, reverse_kl] {
            let (_, gradient) = kl(&target, &logits);
            for (i, got) in gradient.iter().enumerate() {
                let at = |by: f64| {
                    let mut moved = logits;
                    moved[i] += by;
                    kl(&target, &moved).0
                };
                assert!((got - (at(1e-6) - at(-1e-6)) / 2e-6).abs() < 1e-8);
            }
        }
        assert_eq!(forward_kl(&[0.0, 1.0], &[0.0, 800.0]).0, 0.0);
    }
}
