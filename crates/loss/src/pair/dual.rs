//! A number and how it changes with the two log-probabilities of a pair: formulas are written once,
//! and their derivatives follow.

use std::ops::{Add, Mul, Neg, Sub};

/// A value and its derivatives by the log-probability of the chosen and of the rejected answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dual {
    /// The value.
    pub v: f64,
    /// The derivatives.
    pub d: [f64; 2],
}

impl Dual {
    /// A number that depends on neither.
    pub fn constant(v: f64) -> Self {
        Dual { v, d: [0.0; 2] }
    }

    /// The log-probability of the chosen (0) or the rejected answer (1) itself.
    pub fn logp(v: f64, side: usize) -> Self {
        let mut d = [0.0; 2];
        d[side] = 1.0;
        Dual { v, d }
    }

    /// A function with this value and this derivative here.
    fn chain(self, v: f64, slope: f64) -> Self {
        Dual { v, d: self.d.map(|d| if d == 0.0 { 0.0 } else { slope * d }) }
    }

    /// `eˣ`.
    pub fn exp(self) -> Self {
        let e = self.v.exp();
        self.chain(e, e)
    }

    /// `1 / (1 + e⁻ˣ)`.
    pub fn sigmoid(self) -> Self {
        let s = sigmoid(self.v);
        self.chain(s, s * sigmoid(-self.v))
    }

    /// `ln σ(x)`, also where `σ(x)` is 0 in floating point.
    pub fn log_sigmoid(self) -> Self {
        let v = self.v.min(0.0) - (-self.v.abs()).exp().ln_1p();
        self.chain(v, sigmoid(-self.v))
    }

    /// `ln(1 − eˣ)` for `x < 0`.
    pub fn log_1m_exp(self) -> Self {
        let v = if self.v > -std::f64::consts::LN_2 {
            (-self.v.exp_m1()).ln()
        } else {
            (-self.v.exp()).ln_1p()
        };
        self.chain(v, 1.0 / (1.0 - (-self.v).exp()))
    }

    /// `max(x, 0)`.
    pub fn relu(self) -> Self {
        if self.v > 0.0 { self } else { Dual::constant(0.0) }
    }

    /// `min(x, most)`.
    pub fn at_most(self, most: f64) -> Self {
        if self.v <= most { self } else { Dual::constant(most) }
    }

    /// `x²`.
    pub fn square(self) -> Self {
        self * self
    }
}

fn sigmoid(x: f64) -> f64 {
    if x >= 0.0 { 1.0 / (1.0 + (-x).exp()) } else { x.exp() / (1.0 + x.exp()) }
}

impl Add for Dual {
    type Output = Dual;
    fn add(self, o: Dual) -> Dual {
        Dual { v: self.v + o.v, d: [self.d[0] + o.d[0], self.d[1] + o.d[1]] }
    }
}

impl Sub for Dual {
    type Output = Dual;
    fn sub(self, o: Dual) -> Dual {
        self + -o
    }
}

impl Neg for Dual {
    type Output = Dual;
    fn neg(self) -> Dual {
        self * -1.0
    }
}

impl Mul for Dual {
    type Output = Dual;
    #[expect(clippy::suspicious_arithmetic_impl, reason = "the product rule is a sum")]
    fn mul(self, o: Dual) -> Dual {
        let d = |i: usize| self.d[i] * o.v + self.v * o.d[i];
        Dual { v: self.v * o.v, d: [d(0), d(1)] }
    }
}

impl Mul<f64> for Dual {
    type Output = Dual;
    fn mul(self, by: f64) -> Dual {
        Dual { v: self.v * by, d: self.d.map(|d| d * by) }
    }
}

impl Add<f64> for Dual {
    type Output = Dual;
    fn add(self, by: f64) -> Dual {
        Dual { v: self.v + by, ..self }
    }
}

impl Sub<f64> for Dual {
    type Output = Dual;
    fn sub(self, by: f64) -> Dual {
        self + -by
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derivatives_are_those_of_finite_differences() {
        type Formula = fn(Dual, Dual) -> Dual;
        let all: [(&str, Formula); 8] = [
            ("product", |a, b| (a - b) * (a + 2.0) * 3.0),
            ("exp", |a, b| (a * 0.3 - b).exp()),
            ("sigmoid", |a, b| (a - b * 2.0).sigmoid()),
            ("log sigmoid", |a, b| -(a - b).log_sigmoid() + (b - a * 40.0).log_sigmoid()),
            ("log 1 − exp", |a, b| a.log_1m_exp() - (b * 0.01).log_1m_exp()),
            ("relu", |a, b| (b - a).relu() + (a - b).relu()),
            ("square", |a, b| (a - b + 0.5).square()),
            ("at most", |a, b| (a + 10.0).at_most(3.0) + b.at_most(3.0)),
        ];
        for (name, f) in all {
            for (a, b) in [(-1.3, -2.4), (-0.2, -0.7), (-3.0, -0.1)] {
                let at = |a, b| f(Dual::logp(a, 0), Dual::logp(b, 1));
                let got = at(a, b);
                let by = 1e-6;
                let want = [
                    (at(a + by, b).v - at(a - by, b).v) / (2.0 * by),
                    (at(a, b + by).v - at(a, b - by).v) / (2.0 * by),
                ];
                for (got, want) in got.d.iter().zip(want) {
                    assert!((got - want).abs() < 1e-6 * (1.0 + want.abs()), "{name}: {got} {want}");
                }
            }
        }
    }

    #[test]
    fn nothing_overflows_far_out() {
        let far = Dual::logp(-4000.0, 0);
        assert_eq!((far.log_sigmoid().v, far.log_sigmoid().d[0]), (-4000.0, 1.0));
        assert_eq!((-far).log_sigmoid(), Dual { v: 0.0, d: [0.0, 0.0] });
        assert_eq!((far.sigmoid().v, far.log_1m_exp().v), (0.0, 0.0));
    }
}
