//! What a copilot learns (Zou et al. 2025, paper 40): the errors of a pilot, the model that is tuned.
//!
//! At a target token the pilot's error is `l = 1[y] − softmax(logits)`; the copilot's `f` of what the
//! pilot read and held is trained on `sqrt(1/n Σ_i ‖f_i − l_i‖²)`, the root so that small errors are not
//! made smaller by the square. While answers are written, `softmax(logits) + λ f` takes the place of the
//! pilot's probabilities (`decode`'s `rectify`). No gradient passes between the two.
//!
//! `train`'s copilot pulls the distance back by hand, vocabulary rows at a time; [`distance`] is the
//! formula itself. **Departures**: where the paper's print of the mean under the root cannot be read, it
//! is taken over the tokens of an example.

use candle_core::{D, Tensor};
use luthier_core::{Error, Result};
use luthier_kernels::{tensor, threads};

/// Under every root: that of 0 has no slope, and this much is nothing beside any error.
pub const LEAST: f64 = 1e-12;

/// The pilot's error at every row of its logits, `(m, v)`; a constant.
pub fn errors(logits_mv: &Tensor, targets_m: &[u32]) -> Result<Tensor> {
    let (m, v) = logits_mv.dims2()?;
    if let Some(target) = targets_m.iter().find(|target| **target as usize >= v) {
        let what = format!("target {target} is beyond {v} logits");
        return Err(Error::failed("copilot", what));
    }
    if targets_m.len() != m {
        let what = format!("{} targets for {m} rows of logits", targets_m.len());
        return Err(Error::failed("copilot", what));
    }
    let mut errors = vec![0.0; m * v];
    tensor::with(&logits_mv.detach(), |logits| {
        let rows = errors.chunks_mut(v.max(1)).zip(logits.chunks(v.max(1))).zip(targets_m);
        threads::for_each(rows.collect(), |((errors, row), target)| {
            let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let e: Vec<f64> = row.iter().map(|x| f64::from(x - top).exp()).collect();
            let sum: f64 = e.iter().sum();
            for (id, (error, e)) in errors.iter_mut().zip(e).enumerate() {
                let gold = f64::from(u8::from(id == *target as usize));
                *error = (gold - e / sum) as f32;
            }
        });
    })?;
    Ok(Tensor::from_vec(errors, (m, v), logits_mv.device())?)
}

/// How far a copilot's corrections are from the errors of one example's tokens.
pub fn distance(f_mv: &Tensor, errors_mv: &Tensor) -> Result<Tensor> {
    let squares_m = (f_mv - errors_mv)?.sqr()?.sum(D::Minus1)?;
    Ok((squares_m.mean_all()? + LEAST)?.sqrt()?)
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    #[test]
    fn the_papers_numbers() {
        let even = Tensor::zeros((1, 4), candle_core::DType::F32, &Device::Cpu).unwrap();
        let errors_mv = errors(&even, &[0]).unwrap();
        assert_eq!(errors_mv.to_vec2::<f32>().unwrap()[0], [0.75, -0.25, -0.25, -0.25]);
        let none = Tensor::zeros((1, 4), candle_core::DType::F32, &Device::Cpu).unwrap();
        let apart = distance(&none, &errors_mv).unwrap().to_scalar::<f32>().unwrap();
        assert!((apart.powi(2) - 0.75).abs() < 1e-6);
        // Sure and wrong: nearly 2; sure and right: nothing.
        let sure = Tensor::new(&[[40f32, 0.0, 0.0]], &Device::Cpu).unwrap();
        let square = |target| {
            let l = errors(&sure, &[target]).unwrap();
            assert!(l.sum_all().unwrap().to_scalar::<f32>().unwrap().abs() < 1e-6);
            l.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap()
        };
        assert!((square(1) - 2.0).abs() < 1e-6 && square(1) <= 2.0 && square(0) < 1e-6);
    }

    #[test]
    fn the_root_of_the_mean_over_tokens_is_learned_and_the_pilot_is_not() {
        let logits =
            Var::from_slice(&[0.3f32, -0.2, 0.9, 0.1, 0.0, 0.4], (2, 3), &Device::Cpu).unwrap();
        let f = Var::from_slice(&[0.1f32, 0.0, 0.2, -0.3, 0.3, 0.1], (2, 3), &Device::Cpu).unwrap();
        let l = errors(&logits, &[1, 2]).unwrap();
        let apart = distance(&f, &l).unwrap();
        let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let gaps: Vec<f32> = flat(&f).iter().zip(flat(&l)).map(|(f, l)| f - l).collect();
        let want = (gaps.iter().map(|gap| gap * gap).sum::<f32>() / 2.0).sqrt();
        assert!((apart.to_scalar::<f32>().unwrap() - want).abs() < 1e-6);
        let store = apart.backward().unwrap();
        assert!(store.get(&logits).is_none());
        for (g, gap) in flat(store.get(&f).unwrap()).iter().zip(gaps) {
            assert!((g - gap / (2.0 * want)).abs() < 1e-6);
        }
        assert!(errors(&logits, &[1]).is_err() && errors(&logits, &[1, 3]).is_err());
    }
}
