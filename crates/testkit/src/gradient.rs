//! Backward against finite differences.

use candle_core::{DType, Device, Tensor, Var};
use luthier_core::{Error, Result, Seed};

/// Entries tried one by one in each variable; the random directions cover all others together.
const ENTRIES: usize = 24;
const DIRECTIONS: usize = 2;

/// Checks the gradient of scalar `f` for every variable, and panics with the worst disagreements.
///
/// # Panics
/// When backward and finite differences disagree, or `f` fails.
#[track_caller]
pub fn assert_gradients(name: &str, vars: &[Var], f: impl Fn(&[Var]) -> Result<Tensor>) {
    if let Err(e) = check_gradients(name, vars, f) {
        panic!("{e}");
    }
}

/// Compares candle's backward of scalar `f` with central differences.
///
/// Per variable: up to 24 single entries (a fixed choice by `name`) and two random directions
/// through all entries, so that no entry goes unchecked. Differences are extrapolated from two
/// step widths (Richardson), which leaves an error of fourth order. A disagreement is an error
/// when it exceeds 1 % of the larger value, plus 0.5 % of the variable's root mean square, plus
/// the rounding noise of `f`. `f` must be smooth near the variables' values, and deterministic.
pub fn check_gradients(
    name: &str,
    vars: &[Var],
    f: impl Fn(&[Var]) -> Result<Tensor>,
) -> Result<()> {
    let value = || -> Result<f64> { scalar(name, &f(vars)?) };
    let loss = f(vars)?;
    let size = scalar(name, &loss)?.abs();
    let grads = loss.backward()?;
    if scalar(name, &f(vars)?)?.abs() != size {
        return Err(Error::failed(name, "two calls gave two values: nothing to differentiate"));
    }
    let mut wrong = Vec::new();
    for (i, var) in vars.iter().enumerate() {
        let before = flat(var.as_tensor())?;
        let got = match grads.get(var.as_tensor()) {
            Some(g) => flat(g)?,
            None => vec![0.0; before.len()],
        };
        if got.len() != before.len() {
            let what =
                format!("variable {i} has {} entries, its gradient {}", before.len(), got.len());
            return Err(Error::failed(name, what));
        }
        let absent = grads.get(var.as_tensor()).is_none();
        let (h, epsilon) = match var.dtype() {
            DType::F64 => (1e-3, f64::EPSILON),
            _ => (1.5e-2, f64::from(f32::EPSILON)),
        };
        let mut tried = Vec::new();
        for (what, along) in directions(Seed(17).split(name).at(i as u64), before.len()) {
            let want = slope(var, &before, &along, h, &value)?;
            let got = along.iter().map(|(j, d)| got[*j] * d).sum::<f64>();
            tried.push((what, got, want));
        }
        let rms = (tried.iter().map(|t| t.2 * t.2).sum::<f64>() / tried.len().max(1) as f64).sqrt();
        let noise = 16.0 * epsilon * size / h;
        for (what, got, want) in tried {
            let allowed = 0.01 * got.abs().max(want.abs()) + 0.005 * rms + noise;
            // Written so that NaN is a disagreement.
            let agrees = (got - want).abs() <= allowed;
            if !agrees {
                let note = if absent { " (backward gave no gradient)" } else { "" };
                wrong.push(format!(
                    "variable {i} {:?} {what}: backward {got:.6e}, differences {want:.6e}{note}",
                    var.dims()
                ));
            }
        }
    }
    if wrong.is_empty() {
        return Ok(());
    }
    let shown = wrong.iter().take(8).cloned().collect::<Vec<_>>().join("\n  ");
    Err(Error::failed(name, format!("{} slopes disagree:\n  {shown}", wrong.len())))
}

/// A direction as the entries it moves and by how much.
type Direction = Vec<(usize, f64)>;

fn directions(seed: Seed, len: usize) -> Vec<(String, Direction)> {
    let mut rng = seed.rng();
    let mut order: Vec<usize> = (0..len).collect();
    if len > ENTRIES {
        rng.shuffle(&mut order);
        order.truncate(ENTRIES);
    }
    let mut all: Vec<_> = order.iter().map(|j| (format!("entry {j}"), vec![(*j, 1.0)])).collect();
    for k in 0..if len > 1 { DIRECTIONS } else { 0 } {
        // Unit length keeps the step inside the region where two step widths extrapolate well.
        let d: Vec<f64> = (0..len).map(|_| rng.normal()).collect();
        let norm = d.iter().map(|x| x * x).sum::<f64>().sqrt().max(f64::MIN_POSITIVE);
        all.push((format!("direction {k}"), d.iter().map(|x| x / norm).enumerate().collect()));
    }
    all
}

fn slope(
    var: &Var,
    before: &[f64],
    along: &Direction,
    h: f64,
    value: &impl Fn() -> Result<f64>,
) -> Result<f64> {
    // The step has to be large against the entries it moves, or their own rounding eats it.
    let moved = along.iter().map(|(j, d)| (before[*j] * d).abs()).fold(0.0, f64::max);
    let h = h * moved.max(1.0);
    let at = |step: f64| -> Result<f64> {
        let mut moved = before.to_vec();
        along.iter().for_each(|(j, d)| moved[*j] += step * d);
        put(var, moved)?;
        value()
    };
    let central = |step: f64| -> Result<f64> { Ok((at(step)? - at(-step)?) / (2.0 * step)) };
    let near = central(h);
    let far = central(2.0 * h);
    // Restored also when `f` failed half-way.
    put(var, before.to_vec())?;
    Ok((4.0 * near? - far?) / 3.0)
}

fn put(var: &Var, values: Vec<f64>) -> Result<()> {
    let tensor = Tensor::from_vec(values, var.dims(), &Device::Cpu)?;
    Ok(var.set(&tensor.to_dtype(var.dtype())?)?)
}

fn flat(tensor: &Tensor) -> Result<Vec<f64>> {
    Ok(tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?)
}

fn scalar(name: &str, tensor: &Tensor) -> Result<f64> {
    match flat(tensor)?.as_slice() {
        [one] if one.is_finite() => Ok(*one),
        [one] => Err(Error::failed(name, format!("the value is {one}"))),
        many => Err(Error::failed(name, format!("not a scalar but {} numbers", many.len()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn var(n: usize, m: usize) -> Var {
        let mut rng = Seed(3).split("var").at(n as u64).rng();
        let values: Vec<f32> = (0..n * m).map(|_| rng.normal() as f32).collect();
        Var::from_vec(values, (n, m), &Device::Cpu).unwrap()
    }

    fn energy(vars: &[Var]) -> Result<Tensor> {
        let y = vars[0].matmul(vars[1].as_tensor())?.tanh()?;
        Ok((y.sqr()?.sum_all()? + y.exp()?.mean_all()?)?)
    }

    #[test]
    fn a_right_gradient_passes_and_values_come_back() {
        let vars = [var(5, 8), var(8, 9)];
        let before = flat(vars[1].as_tensor()).unwrap();
        assert_gradients("energy", &vars, energy);
        assert_eq!(flat(vars[1].as_tensor()).unwrap(), before);
        let wide: Vec<Var> = vars
            .iter()
            .map(|v| Var::from_tensor(&v.to_dtype(DType::F64).unwrap()).unwrap())
            .collect();
        assert_gradients("energy in f64", &wide, energy);
    }

    #[test]
    fn wrong_gradients_are_found() {
        // Half of a product's derivative is lost.
        let half = |v: &[Var]| Ok((v[0].detach() * v[0].as_tensor())?.sum_all()?);
        let err = check_gradients("half", &[var(4, 30)], half).unwrap_err().to_string();
        assert!(err.contains("entry"), "{err}");
        // All of it is lost.
        let none = |v: &[Var]| Ok(v[0].detach().sqr()?.sum_all()?);
        let err = check_gradients("none", &[var(2, 2)], none).unwrap_err().to_string();
        assert!(err.contains("no gradient"), "{err}");
        // One part in twenty is wrong.
        let slight = |v: &[Var]| {
            let x = v[0].as_tensor();
            Ok(((x * 0.95)?.sin()?.sum_all()? + (x.detach() * 0.05)?.sum_all()?)?)
        };
        assert!(check_gradients("slight", &[var(3, 7)], slight).is_err());
    }

    #[test]
    fn a_single_wrong_entry_of_many_is_found_by_the_directions() {
        let mut mask = vec![1f32; 400];
        mask[123] = 0.0;
        let mask = Tensor::from_vec(mask, (20, 20), &Device::Cpu).unwrap();
        let f = move |v: &[Var]| -> Result<Tensor> {
            let x = v[0].as_tensor();
            let kept = ((x * &mask)? + (x.detach() * (1.0 - &mask)?)?)?;
            Ok((kept * 3.0)?.sum_all()?)
        };
        let err = check_gradients("one of 400", &[var(20, 20)], f).unwrap_err().to_string();
        assert!(err.contains("direction"), "{err}");
    }

    #[test]
    fn noise_in_the_function_is_refused() {
        let calls = std::cell::Cell::new(0.0);
        let f = |v: &[Var]| -> Result<Tensor> {
            calls.set(calls.get() + 1.0);
            Ok((v[0].sum_all()? + calls.get())?)
        };
        let err = check_gradients("dice", &[var(2, 2)], f).unwrap_err().to_string();
        assert!(err.contains("two values"), "{err}");
    }
}
