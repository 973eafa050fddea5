//! Wilson's score interval of a proportion (Wilson 1927).

/// The 97.5 % quantile of the standard normal distribution.
const Z95: f64 = 1.959_963_984_540_054;

/// 95 % interval of `successes / n`; `n` must not be 0.
pub fn wilson(successes: usize, n: usize) -> [f64; 2] {
    let (k, n) = (successes as f64, n as f64);
    let (p, z2) = (k / n, Z95 * Z95);
    let centre = (p + z2 / (2.0 * n)) / (1.0 + z2 / n);
    let half = Z95 * (p * (1.0 - p) / n + z2 / (4.0 * n * n)).sqrt() / (1.0 + z2 / n);
    // At the ends the bound is exactly 0 or 1; the formula reaches it only up to rounding.
    let low = if successes == 0 { 0.0 } else { centre - half };
    let high = if k == n { 1.0 } else { centre + half };
    [low, high]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equals_statsmodels() {
        // statsmodels 0.15.0: proportion_confint(k, n, method="wilson")
        let published = [
            (0, 10, [0.0, 0.277532799863]),
            (10, 10, [0.722467200137, 1.0]),
            (3, 10, [0.107791267406, 0.603221852539]),
            (97, 100, [0.915480635709, 0.989745475976]),
            (0, 1, [0.0, 0.793450685623]),
            (250, 1319, [0.169299163473, 0.211579025263]),
        ];
        for (k, n, want) in published {
            for (got, want) in wilson(k, n).iter().zip(want) {
                assert!((got - want).abs() < 1e-11, "{k}/{n}: {got} {want}");
            }
        }
    }
}
