//! Parameterised hypercomplex multiplication: a map that is a sum of Kronecker products.
//!
//! `y = x · H + b`, `H = Σᵢ Aᵢ ⊗ Bᵢ` over `division` terms, `Aᵢ` square of that size, `Bᵢ`
//! `(in / division, out / division)`, with `factorized` `Bᵢ = sᵢ · tᵢ` of `rank`. With `shared` the
//! `Aᵢ` are one variable of the whole adapter. Element `(p · in/division + r, q · out/division + c)`
//! of `A ⊗ B` is `A[p, q] · B[r, c]`. Shapes here: `k` terms, `p q` of A, `a c` of B, `r` rank.

use candle_core::{Tensor, Var};
use luthier_core::{Error, Result, SiteInfo};
use serde::{Deserialize, Serialize};

use super::KEY;
use crate::{Init, Scope};

/// `[train.params.bottleneck.phm]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Phm {
    /// Terms of the sum, and the size of the small matrices.
    pub division: usize,
    /// Rank of the large matrices.
    pub rank: usize,
    /// Whether all sites share the small matrices.
    pub shared: bool,
    /// Whether the large matrices are products of two.
    pub factorized: bool,
    /// Deviation of the small matrices at the start.
    pub init_range: f64,
}

impl Default for Phm {
    fn default() -> Self {
        Phm { division: 4, rank: 1, shared: true, factorized: true, init_range: 1e-4 }
    }
}

impl Phm {
    pub(super) fn check(&self) -> Result<()> {
        for (key, value) in [("division", self.division), ("rank", self.rank)] {
            if value == 0 {
                let what = "expected a number from 1 up, got 0";
                return Err(Error::input(format!("{KEY}.phm.{key}"), what));
            }
        }
        if !(self.init_range.is_finite() && self.init_range > 0.0) {
            let what = format!("expected a number above 0, got {}", self.init_range);
            return Err(Error::input(format!("{KEY}.phm.init_range"), what));
        }
        Ok(())
    }

    /// The map `part` of a site, `i` to `o` numbers.
    pub(super) fn layer(
        &self,
        site: &SiteInfo,
        part: &str,
        (i, o): (usize, usize),
        scope: &mut Scope,
    ) -> Result<Layer> {
        let k = self.division;
        if let Some(width) = [i, o].iter().find(|width| **width % k != 0) {
            let what = format!("{}: {width} values cannot be divided by {k}", site.name);
            return Err(Error::input(format!("{KEY}.phm.division"), what)
                .hint("choose a divisor of the width"));
        }
        let rule = Init::Normal(self.init_range);
        let rule_kpq = match self.shared {
            true => scope.shared("bottleneck.phm_rule", &[k, k, k], rule)?,
            false => scope.own(site, &format!("{part}.phm_rule"), &[k, k, k], rule)?,
        };
        let (a, c, r) = (i / k, o / k, self.rank);
        let mut own = |name: &str, dims: &[usize], init| {
            scope.own(site, &format!("{part}.{name}"), dims, init)
        };
        let weights = match self.factorized {
            true => Weights::Factors {
                left_kar: own("W_left", &[k, a, r], xavier(a, r))?,
                right_krc: own("W_right", &[k, r, c], xavier(r, c))?,
            },
            false => Weights::Whole(own("W", &[k, a, c], xavier(a, c))?),
        };
        Ok(Layer { rule_kpq, weights, b_o: own("b", &[o], Init::Zeros)? })
    }
}

/// Xavier's uniform range for a matrix of this shape, with the gain √2.
fn xavier(i: usize, o: usize) -> Init {
    Init::Uniform((2.0 * 6.0 / (i + o) as f64).sqrt())
}

/// `Σ Aᵢ ⊗ Bᵢ` of `(k, p, q)` and `(k, a, c)`: `(p·a, q·c)`.
pub fn kronecker_sum(a_kpq: &Tensor, b_kac: &Tensor) -> Result<Tensor> {
    let ((k, p, q), (_k, a, c)) = (a_kpq.dims3()?, b_kac.dims3()?);
    let flat = a_kpq.reshape((k, p * q))?.t()?.matmul(&b_kac.reshape((k, a * c))?)?;
    let blocks = flat.reshape((p, q, a, c))?.permute((0, 2, 1, 3))?;
    Ok(blocks.contiguous()?.reshape((p * a, q * c))?)
}

enum Weights {
    Whole(Var),
    Factors { left_kar: Var, right_krc: Var },
}

/// The variables of one map.
pub(super) struct Layer {
    rule_kpq: Var,
    weights: Weights,
    b_o: Var,
}

impl Layer {
    /// `x · H + b`.
    pub(super) fn apply(&self, x_ni: &Tensor) -> Result<Tensor> {
        let (_n, i) = x_ni.dims2()?;
        let o = self.b_o.dims1()?;
        let y_no = match &self.weights {
            Weights::Whole(b_kac) => x_ni.matmul(&kronecker_sum(&self.rule_kpq, b_kac)?)?,
            Weights::Factors { left_kar, right_krc } => {
                let (k, _a, r) = left_kar.dims3()?;
                // Through the factors a token costs (i + o)·k·r products, through H i·o.
                match (i + o) * k * r < i * o {
                    true => self.through_factors(x_ni, left_kar, right_krc)?,
                    false => {
                        let b_kac = left_kar.matmul(right_krc)?;
                        x_ni.matmul(&kronecker_sum(&self.rule_kpq, &b_kac)?)?
                    }
                }
            }
        };
        Ok(y_no.broadcast_add(&self.b_o)?)
    }

    /// `y[q] = Σₖ (Σₚ A[k, p, q] · x[p] · sₖ) · tₖ` over the parts of `x` and `y`.
    fn through_factors(&self, x_ni: &Tensor, left: &Tensor, right: &Tensor) -> Result<Tensor> {
        let (n, _i) = x_ni.dims2()?;
        let ((k, a, r), (_k, _r, c)) = (left.dims3()?, right.dims3()?);
        let left = left.permute((1, 0, 2))?.contiguous()?.reshape((a, k * r))?;
        let u_npkr = x_ni.reshape((n * k, a))?.matmul(&left)?.reshape((n, k, k, r))?;
        let u = u_npkr.permute((2, 0, 3, 1))?.contiguous()?.reshape((k, n * r, k))?;
        let v_knrq = u.matmul(&self.rule_kpq)?.reshape((k, n, r, k))?;
        let v = v_knrq.permute((1, 3, 0, 2))?.contiguous()?.reshape((n * k, k * r))?;
        Ok(v.matmul(&right.reshape((k * r, c))?)?.reshape((n, k * c))?)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use luthier_core::{Seed, SiteId, SiteKind};
    use luthier_testkit::assert_close;

    use super::*;

    fn layer(phm: &Phm, i: usize, o: usize) -> Layer {
        let site = SiteInfo {
            id: SiteId(0),
            name: "s".into(),
            kind: SiteKind::Activation { d: i },
            layer: None,
            module: None,
        };
        phm.layer(&site, "adapter_down", (i, o), &mut Scope::new(Seed(3))).unwrap()
    }

    #[test]
    fn the_way_through_the_factors_is_the_way_through_the_matrix() {
        for (division, rank, i, o) in [(4, 1, 48, 40), (2, 3, 40, 48), (1, 1, 9, 7)] {
            let phm = Phm { division, rank, init_range: 1.0, ..Phm::default() };
            let layer = layer(&phm, i, o);
            let x: Vec<f32> = (0..5 * i).map(|j| (j as f32 * 0.37).sin()).collect();
            let x_ni = Tensor::from_vec(x, (5, i), &Device::Cpu).unwrap();
            let Weights::Factors { left_kar, right_krc } = &layer.weights else { panic!() };
            let b_kac = left_kar.matmul(right_krc).unwrap();
            let h = kronecker_sum(&layer.rule_kpq, &b_kac).unwrap();
            let got = layer.through_factors(&x_ni, left_kar, right_krc).unwrap();
            assert_close("phm", &got, &x_ni.matmul(&h).unwrap(), 1e-5, 1e-6);
        }
    }

    #[test]
    fn factors_begin_in_the_published_range() {
        let layer = layer(&Phm::default(), 768, 24);
        let Weights::Factors { left_kar, right_krc } = &layer.weights else { panic!() };
        let largest = |t: &Tensor| {
            let all = t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            all.iter().fold(0f32, |m, x| m.max(x.abs()))
        };
        // √2 · √(6 / 193) and √2 · √(6 / 7).
        assert!(largest(left_kar) <= 0.2494 && largest(left_kar) > 0.247);
        assert!(largest(right_krc) <= 1.3094 && largest(right_krc) > 1.1);
        assert!(largest(&layer.rule_kpq) < 5e-4 && largest(&layer.rule_kpq) > 1e-4);
    }
}
