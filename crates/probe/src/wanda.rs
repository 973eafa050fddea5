//! How much each weight matters on given data (Wanda; Sun et al. 2024), turned around by Antidote
//! (Huang et al. 2025, paper 04), which prunes what matters most on harmful data.
//!
//! `s_j = (1/N) Σ_rows Σ_tokens x_j²` over all tokens of a row, `score_ij = |w_ij| · √s_j`. A share
//! `alpha` of every output row is marked: of `n` numbers the `n − ⌊n (1 − alpha)⌋` with the largest
//! scores; of equal ones the last. **Departures**: sums are f64 where the original's are f32.

use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Tensor};
use luthier_core::{At, Error, Hook, Result, Seed};
use serde::{Deserialize, Serialize};

/// A hook that changes nothing and keeps the mean squared inputs of its site, perhaps also those of a
/// second map behind a narrow one: the inputs of LoRA's B are `x Aᵀ`.
#[derive(Debug, Default)]
pub struct InputNorms {
    a_ri: Option<Tensor>,
    sums: Mutex<Sums>,
}

#[derive(Debug, Default)]
struct Sums {
    rows: usize,
    squares_i: Vec<f64>,
    narrow_r: Vec<f64>,
}

/// Within what the largest scores are looked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Every output row by itself.
    #[default]
    Row,
    /// The whole tensor.
    Tensor,
}

impl InputNorms {
    /// Also looks at what a narrow map of the same input gives.
    pub fn behind(a_ri: Tensor) -> Self {
        InputNorms { a_ri: Some(a_ri.detach()), sums: Mutex::default() }
    }

    /// Mean over rows of the summed squares of each input.
    pub fn squares(&self) -> Result<Vec<f64>> {
        let sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        mean(&sums.squares_i, sums.rows)
    }

    /// The same behind the narrow map.
    pub fn narrow_squares(&self) -> Result<Vec<f64>> {
        let sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        mean(&sums.narrow_r, sums.rows)
    }
}

fn mean(sums: &[f64], rows: usize) -> Result<Vec<f64>> {
    match rows {
        0 => Err(Error::failed("wanda", "no row was read")),
        _ => Ok(sums.iter().map(|sum| sum / rows as f64).collect()),
    }
}

impl Hook for InputNorms {
    fn after(&self, at: &At, x: &Tensor, y: Tensor) -> Result<Tensor> {
        let (_n, _i) = x.dims2()?;
        let x_ni = x.detach().to_dtype(DType::F32)?;
        let narrow_nr = match &self.a_ri {
            Some(a_ri) => Some(x_ni.matmul(&a_ri.t()?)?),
            None => None,
        };
        let mut sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        sums.rows += at.rows.b();
        add_squares(&mut sums.squares_i, &x_ni)?;
        if let Some(narrow_nr) = narrow_nr {
            add_squares(&mut sums.narrow_r, &narrow_nr)?;
        }
        Ok(y)
    }
}

/// Adds each column's squares.
fn add_squares(sums: &mut Vec<f64>, x_ni: &Tensor) -> Result<()> {
    let (_n, i) = x_ni.dims2()?;
    sums.resize(i, 0.0);
    for token in x_ni.flatten_all()?.to_vec1::<f32>()?.chunks_exact(i.max(1)) {
        sums.iter_mut().zip(token).for_each(|(sum, x)| *sum += f64::from(*x).powi(2));
    }
    Ok(())
}

/// `|w_ij| · √s_j`, row-major; without inputs the size of the weight alone.
pub fn scores(w_oi: &Tensor, squares_i: Option<&[f64]>) -> Result<Vec<f32>> {
    let (_o, i) = w_oi.dims2()?;
    let roots: Vec<f64> = match squares_i {
        Some(squares) if squares.len() == i => squares.iter().map(|s| s.sqrt()).collect(),
        Some(squares) => {
            let what = format!("expected the norms of {i} inputs, got {}", squares.len());
            return Err(Error::failed("wanda", what));
        }
        None => vec![1.0; i],
    };
    let numbers = w_oi.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    let score = |(k, w): (usize, &f32)| (f64::from(w.abs()) * roots[k % i]) as f32;
    Ok(numbers.iter().enumerate().map(score).collect())
}

/// Scores by chance, for a control of equal size.
pub fn random(n: usize, seed: Seed) -> Vec<f32> {
    let mut rng = seed.rng();
    (0..n).map(|_| rng.uniform() as f32).collect()
}

/// How many of `n` numbers a share `alpha` is.
pub fn count(n: usize, alpha: f64) -> usize {
    n - (n as f64 * (1.0 - alpha)) as usize
}

/// Marks the share `alpha` of the largest scores of an `(o, i)` matrix.
pub fn largest(scores: &[f32], i: usize, alpha: f64, scope: Scope) -> Vec<bool> {
    let of = match scope {
        Scope::Row => i,
        Scope::Tensor => scores.len(),
    };
    let mut marked = vec![false; scores.len()];
    for (scores, marked) in scores.chunks(of.max(1)).zip(marked.chunks_mut(of.max(1))) {
        let mut ascending: Vec<usize> = (0..scores.len()).collect();
        ascending.sort_by(|a, b| scores[*a].total_cmp(&scores[*b]));
        for at in ascending.iter().rev().take(count(scores.len(), alpha)) {
            marked[*at] = true;
        }
    }
    marked
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use candle_core::Device;
    use luthier_core::{Batch, Ctx, Hooks, Policy, Row};
    use luthier_testkit::{Fake, Shape};

    use super::*;

    fn published() -> (Tensor, Vec<f64>) {
        let w = [[0.5f32, -2.0, 1.0, 0.1], [3.0, 0.1, -1.0, 0.2]];
        (Tensor::new(&w, &Device::Cpu).unwrap(), [4.0, 0.5, 1.0, 10.0].map(|n| n * n).to_vec())
    }

    fn columns(marked: &[bool]) -> Vec<Vec<usize>> {
        marked.chunks(4).map(|row| (0..4).filter(|j| row[*j]).collect()).collect()
    }

    #[test]
    fn the_published_matrix_has_its_scores_and_marks() {
        let (w, squares) = published();
        let scores = scores(&w, Some(&squares)).unwrap();
        for (got, want) in scores.iter().zip([2.0f32, 1.0, 1.0, 1.0, 12.0, 0.05, 1.0, 2.0]) {
            assert!((got - want).abs() < 1e-6, "{got} {want}");
        }
        let marks = |alpha| columns(&largest(&scores, 4, alpha, Scope::Row));
        assert_eq!(marks(0.25), [[0], [0]]);
        assert_eq!(marks(0.5), [[0, 3], [0, 3]]);
        assert_eq!((marks(0.0), marks(1.0)), (vec![vec![]; 2], vec![vec![0, 1, 2, 3]; 2]));
        // The four largest of all, of which three stand in the second row.
        let whole = columns(&largest(&scores, 4, 0.5, Scope::Tensor));
        assert_eq!(whole, [vec![0], vec![0, 2, 3]]);
        assert!(super::scores(&w, Some(&squares[..3])).is_err());
        // Sizes alone.
        let sizes = super::scores(&w, None).unwrap();
        assert_eq!(columns(&largest(&sizes, 4, 0.25, Scope::Row)), [[1], [0]]);
    }

    #[test]
    fn a_share_is_counted_as_published() {
        let counted = [(256, 0.1), (4096, 0.1), (256, 0.05), (8, 0.1)].map(|(n, a)| count(n, a));
        assert_eq!(counted, [26, 410, 13, 1]);
    }

    #[test]
    fn scaling_inputs_moves_no_mark_and_one_input_its_column() {
        let (w, squares) = published();
        let all: Vec<f64> = squares.iter().map(|s| 9.0 * s).collect();
        let mut one = squares.clone();
        one[1] *= 16.0;
        let of = |squares: &[f64]| scores(&w, Some(squares)).unwrap();
        let marks = |squares: &[f64]| largest(&of(squares), 4, 0.5, Scope::Row);
        assert_eq!(marks(&all), marks(&squares));
        for (k, (a, b)) in of(&one).iter().zip(of(&squares)).enumerate() {
            let by = if k % 4 == 1 { 4.0 } else { 1.0 };
            assert!((a - by * b).abs() < 1e-6);
        }
    }

    #[test]
    fn the_mean_over_rows_is_that_of_a_running_mean_in_any_order() {
        let model = Arc::new(Fake::new(Shape::default(), Seed(1)));
        let rows: Vec<Row> = [vec![1, 2, 3, 4], vec![5, 6], vec![7, 8, 9]]
            .iter()
            .map(|ids| Row::from_tokens(ids, &vec![0.0; ids.len()], 0))
            .collect();
        let policy = Policy::plain(model.clone());
        let site = policy.model.sites().get("layers.1.mlp.up").unwrap().id;
        let a_ri = Tensor::randn(0f32, 1.0, (2, 6), &Device::Cpu).unwrap();
        let watch = |passes: &[&[usize]]| {
            let norms = Arc::new(InputNorms::behind(a_ri.clone()));
            let mut hooks = Hooks::none();
            hooks.bind(site, norms.clone());
            for pass in passes {
                let batch = Batch::from_rows(pass.iter().map(|i| &rows[*i]));
                let mut ctx = Ctx::new(&hooks, batch.rows.clone(), &batch.ids_n);
                policy.hidden(&mut ctx).unwrap();
            }
            [norms.squares().unwrap(), norms.narrow_squares().unwrap()].concat()
        };
        let close = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5 * b);
        let together = watch(&[&[0, 1, 2]]);
        assert_eq!(together.len(), 8);
        assert!(close(&watch(&[&[2], &[0], &[1]]), &together));
        // s ← s · n / (n + 1) + ‖x‖² / (n + 1), row by row.
        let mut running = vec![0.0; 8];
        for i in 0..3 {
            let one = watch(&[&[i]]);
            let n = i as f64;
            running.iter_mut().zip(one).for_each(|(s, x)| *s = *s * n / (n + 1.0) + x / (n + 1.0));
        }
        assert!(close(&running, &together));
        assert!(InputNorms::default().squares().is_err());
    }
}
