//! The exact McNemar test (McNemar 1947): are gains and losses equally likely?
//!
//! Only examples on which the two models disagree tell them apart. Under "no difference" each of
//! the `n` is a gain with probability ½: `p = min(1, 2 · P[Binomial(n, ½) ≤ min(gains, losses)])`.

/// Two-sided p-value.
pub fn mcnemar(gains: usize, losses: usize) -> f64 {
    let (n, k) = (gains + losses, gains.min(losses));
    // ln of C(n, i) / 2ⁿ, from one term to the next, so that nothing overflows.
    let mut ln_term = -(n as f64) * std::f64::consts::LN_2;
    let mut sum = ln_term.exp();
    for i in 1..=k {
        ln_term += ((n - i + 1) as f64 / i as f64).ln();
        sum += ln_term.exp();
    }
    (2.0 * sum).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equals_statsmodels() {
        // statsmodels 0.15.0: mcnemar([[7, b], [c, 11]], exact=True).pvalue
        let published = [
            (5, 15, 0.04138946533203125),
            (1, 9, 0.021484375),
            (10, 10, 1.0),
            (3, 0, 0.25),
            (120, 171, 0.0033087986331269033),
            (0, 40, 1.8189894035458565e-12),
        ];
        for (b, c, want) in published {
            for got in [mcnemar(b, c), mcnemar(c, b)] {
                assert!((got / want - 1.0).abs() < 1e-10, "{b} {c}: {got} {want}");
            }
        }
    }

    #[test]
    fn no_disagreement_is_no_evidence() {
        assert_eq!(mcnemar(0, 0), 1.0);
        let large = mcnemar(5000, 5000);
        assert!(large > 0.99 && large <= 1.0);
    }
}
