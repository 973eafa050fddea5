//! The diagonal of the empirical Fisher information, against numbers known by other means.

use candle_core::{Device, Tensor};
use luthier_core::{Seed, StateDict};
use luthier_probe::Fisher;

fn state(values: &[(&str, &[f32])]) -> StateDict {
    let tensor = |v: &[f32]| Tensor::new(v, &Device::Cpu).unwrap();
    values.iter().map(|(name, v)| (name.to_string(), tensor(v))).collect()
}

fn numbers(state: &StateDict, name: &str) -> Vec<f32> {
    state.get(name).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn it_is_the_mean_of_squares_not_the_square_of_the_mean() {
    let mut fisher = Fisher::default();
    fisher.add(&state(&[("a", &[1.0, -2.0]), ("b", &[0.0])])).unwrap();
    fisher.add(&state(&[("a", &[-1.0, 4.0]), ("b", &[3.0])])).unwrap();
    assert_eq!(fisher.rows(), 2);
    let found = fisher.finish().unwrap();
    assert_eq!((numbers(&found, "a"), numbers(&found, "b")), (vec![1.0, 10.0], vec![4.5]));
}

/// For a coin with `p = 1 / (1 + e^{-θ})` the information about θ is `p (1 − p)`; the gradient of
/// the log-likelihood is `x − p`.
#[test]
fn a_coins_information_is_found_from_its_throws() {
    let theta = 0.7f64;
    let p = 1.0 / (1.0 + (-theta).exp());
    let mut rng = Seed(1).rng();
    let mut fisher = Fisher::default();
    for _ in 0..20_000 {
        let x = f64::from(u8::from(rng.uniform() < p));
        fisher.add(&state(&[("theta", &[(x - p) as f32])])).unwrap();
    }
    let found = f64::from(numbers(&fisher.finish().unwrap(), "theta")[0]);
    assert!((found - p * (1.0 - p)).abs() < 0.003, "{found} {}", p * (1.0 - p));
}

#[test]
fn shapes_stay_and_threads_change_nothing() {
    let n = 300_000;
    let mut rng = Seed(2).rng();
    let rows: Vec<StateDict> = (0..3)
        .map(|_| {
            let values: Vec<f32> = (0..n).map(|_| rng.normal() as f32).collect();
            let tensor = Tensor::from_vec(values, (n / 100, 100), &Device::Cpu).unwrap();
            [("w".to_string(), tensor)].into_iter().collect()
        })
        .collect();
    let on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let mut fisher = Fisher::default();
        pool.install(|| rows.iter().try_for_each(|row| fisher.add(row))).unwrap();
        fisher.finish().unwrap()
    };
    let (one, four) = (on(1), on(4));
    assert_eq!(one.get("w").unwrap().dims(), [n / 100, 100]);
    assert_eq!(numbers(&one, "w"), numbers(&four, "w"));
    let naive: Vec<f32> = (0..n)
        .map(|i| rows.iter().map(|r| f64::from(numbers(r, "w")[i % 7]).powi(2)).sum::<f64>())
        .map(|s| (s / 3.0) as f32)
        .take(7)
        .collect();
    for (i, want) in naive.iter().enumerate() {
        assert!((numbers(&one, "w")[i] - want).abs() < 1e-6 * want.max(1.0));
    }
}

#[test]
fn a_row_of_other_parameters_is_refused_whole() {
    let mut fisher = Fisher::default();
    fisher.add(&state(&[("a", &[1.0]), ("b", &[1.0])])).unwrap();
    for (bad, want) in [
        (state(&[("a", &[9.0])]), "expected gradients of 2 parameters, got 1"),
        (state(&[("a", &[9.0]), ("c", &[1.0])]), "c: has a gradient now"),
        (state(&[("a", &[9.0]), ("b", &[1.0, 2.0])]), "b: expected a gradient of shape [1]"),
        (state(&[("a", &[9.0]), ("b", &[f32::NAN])]), "b: its gradient is not finite"),
    ] {
        let error = fisher.add(&bad).unwrap_err().to_string();
        assert!(error.contains(want), "{error}");
    }
    assert_eq!(numbers(&fisher.finish().unwrap(), "a"), [1.0]);
    assert!(Fisher::default().finish().unwrap_err().to_string().contains("no row"));
}
