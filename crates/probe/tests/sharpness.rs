//! Sharpness on losses that can be solved by hand.

use candle_core::{Device, Tensor};
use luthier_core::{Result, Seed, StateDict};
use luthier_probe::sharpness::{
    Case, Landscape, Layer, Sharpness, barrier, kendall, kendall_interval, normalised, stragglers,
    swaps,
};

fn state(tensors: &[(&str, &[f32])]) -> StateDict {
    let tensor = |x: &[f32]| Tensor::new(x, &Device::Cpu).unwrap();
    tensors.iter().map(|(name, x)| (name.to_string(), tensor(x))).collect()
}

fn numbers(state: &StateDict, name: &str) -> Vec<f32> {
    state.get(name).unwrap().to_vec1().unwrap()
}

/// `½ Σ h w²` over all tensors, `h` by the first letter of the name.
fn curved(h: impl Fn(&str) -> f64) -> impl Fn(&StateDict) -> Result<(f64, StateDict)> {
    move |weights: &StateDict| {
        let (mut loss, mut gradients) = (0.0, StateDict::default());
        for (name, _) in weights.iter() {
            let w = numbers(weights, name);
            loss += w.iter().map(|w| 0.5 * h(name) * f64::from(*w).powi(2)).sum::<f64>();
            let g: Vec<f32> = w.iter().map(|w| (h(name) * f64::from(*w)) as f32).collect();
            gradients.insert(name, Tensor::new(&g[..], &Device::Cpu)?);
        }
        Ok((loss, gradients))
    }
}

fn measure(rule: Sharpness, at: &StateDict, h: f64, layer: &dyn Fn(&str) -> bool) -> f64 {
    let gradient = curved(move |name| if name == "b" { 2.5 * h } else { h });
    let loss = |w: &StateDict| Ok(gradient(w)?.0);
    rule.measure(at, layer, &Landscape { loss: &loss, gradient: &gradient }).unwrap()
}

const RULE: Sharpness =
    Sharpness { rho: 0.1, adaptive: true, kind: Case::Worst, n_steps: 20, n_draws: 4000, seed: 1 };

#[test]
fn one_weight_is_as_sharp_as_the_formula_says() {
    let all = |_: &str| true;
    let one = state(&[("w", &[1.0])]);
    // ½ h w² ((1 + ρ)² − 1).
    assert!((measure(RULE, &one, 2.0, &all) - 0.21).abs() < 1e-6);
    // ½ h w² ρ².
    let average = measure(Sharpness { kind: Case::Average, ..RULE }, &one, 2.0, &all);
    assert!((average - 0.01).abs() < 0.008, "{average}");
    // w → a w, h → h / a²: the adaptive measure does not see it.
    let scaled = state(&[("w", &[4.0])]);
    assert!((measure(RULE, &scaled, 2.0 / 16.0, &all) - 0.21).abs() < 1e-6);
    let plain = Sharpness { adaptive: false, ..RULE };
    assert!((measure(plain, &one, 2.0, &all) - 0.21).abs() < 1e-6);
    assert!(
        (measure(plain, &scaled, 2.0 / 16.0, &all) - 0.0625 * (4.1f64.powi(2) - 16.0)).abs() < 1e-5
    );
    assert_eq!(measure(Sharpness { rho: 0.0, ..RULE }, &one, 2.0, &all), 0.0);
    // What is exactly 0 stays there.
    assert_eq!(measure(RULE, &state(&[("w", &[0.0])]), 2.0, &all), 0.0);
    assert!(measure(plain, &state(&[("w", &[0.0])]), 2.0, &all) >= 0.0);
}

#[test]
fn layers_of_a_separable_loss_add_up_and_are_below_the_whole() {
    let weights = state(&[("a", &[1.0, -2.0]), ("b", &[0.5])]);
    let of = |layer: &dyn Fn(&str) -> bool| measure(RULE, &weights, 2.0, layer);
    let (a, b, all) = (of(&|name| name == "a"), of(&|name| name == "b"), of(&|_| true));
    assert!(a > 0.0 && b > 0.0 && a < all && b < all);
    assert!((a + b - all).abs() < 1e-5, "{a} {b} {all}");
    let gradient = curved(|_| 1.0);
    let loss = |w: &StateDict| Ok(gradient(w)?.0);
    let on = Landscape { loss: &loss, gradient: &gradient };
    assert!(RULE.measure(&weights, &|name| name == "c", &on).is_err());
}

#[test]
fn a_maximum_on_the_way_counts_as_much_as_one_at_the_end() {
    // A ridge at 1.04, between the centre and the edge of the box, and a valley behind it.
    let value = |w: f64| -((w - 1.04).powi(2)) * 100.0;
    let gradient = |weights: &StateDict| -> Result<(f64, StateDict)> {
        let w = f64::from(numbers(weights, "w")[0]);
        Ok((value(w), state(&[("w", &[(-200.0 * (w - 1.04)) as f32])])))
    };
    let loss = |weights: &StateDict| Ok(value(f64::from(numbers(weights, "w")[0])));
    let on = Landscape { loss: &loss, gradient: &gradient };
    let found = RULE.measure(&state(&[("w", &[1.0])]), &|_| true, &on).unwrap();
    assert!((found - 0.16).abs() < 1e-4, "{found}");
}

#[test]
fn rankings_agree_as_kendall_counts() {
    let t = kendall(&[1.0, 2.0, 3.0, 4.0], &[1.0, 3.0, 2.0, 4.0]).unwrap();
    assert!((t - 4.0 / 6.0).abs() < 1e-12);
    assert_eq!(kendall(&[1.0, 2.0, 3.0], &[5.0, 4.0, 3.0]).unwrap(), -1.0);
    assert_eq!(kendall(&[1.0, 1.0, 2.0], &[1.0, 2.0, 3.0]).unwrap(), 2.0 / 3.0);
    assert!(kendall(&[1.0], &[1.0]).is_err());
    let (a, mut b): (Vec<f64>, Vec<f64>) = (0..24).map(|i| (i as f64, i as f64)).unzip();
    b.swap(3, 9);
    let all = kendall(&a, &b).unwrap();
    let [low, high] = kendall_interval(&a, &b, 500, Seed(1)).unwrap();
    assert!(low < all && all < high && high <= 1.0 && low > 0.5, "{low} {all} {high}");
}

#[test]
fn the_layer_that_does_harm_by_itself_is_found() {
    // The score falls with what `b` moved; `a` and `c` moved as far and do no harm.
    let base = state(&[("a", &[1.0]), ("b", &[1.0]), ("c", &[2.0])]);
    let tuned = state(&[("a", &[1.5]), ("b", &[1.5]), ("c", &[3.0])]);
    let score = |w: &StateDict| Ok(f64::from(-(numbers(w, "b")[0] - 1.0)));
    let layer = |name: &'static str| -> Layer<'static> {
        (name.to_string(), Box::new(move |tensor: &str| tensor == name))
    };
    let layers = [layer("a"), layer("b"), layer("c")];
    let found = swaps(&base, &tuned, &layers, &score).unwrap();
    assert_eq!((found[1].forward, found[1].backward), (-0.5, 0.5));
    assert_eq!((found[0].forward, found[0].backward, found[2].forward), (0.0, 0.0, 0.0));
    assert!(found.iter().all(|swap| (swap.moved - 0.5).abs() < 1e-6));
    assert_eq!(stragglers(&found, 0.15), [1]);
    assert_eq!(stragglers(&found, 0.5).len(), 2);
    assert_eq!(stragglers(&found, 0.0), [0usize; 0]);
}

#[test]
fn a_barrier_is_what_stands_above_the_straight_line() {
    // 4 α (1 − α) + α: a hill of 1 in the middle of a slope.
    let (base, tuned) =
        (state(&[("a", &[0.0]), ("b", &[9.0])]), state(&[("a", &[1.0]), ("b", &[7.0])]));
    let loss = |w: &StateDict| {
        assert_eq!(numbers(w, "b")[0], 9.0, "another layer moved");
        let x = f64::from(numbers(w, "a")[0]);
        Ok(4.0 * x * (1.0 - x) + x)
    };
    let layer = |name: &str| name == "a";
    let found = barrier(&base, (&base, &tuned), &layer, 10, &loss).unwrap();
    assert!((found - 1.0).abs() < 1e-6, "{found}");
    let bowl = |w: &StateDict| Ok(-loss(w)?);
    assert_eq!(barrier(&base, (&base, &tuned), &layer, 10, &bowl).unwrap(), 0.0);
}

#[test]
fn logits_of_any_size_are_of_the_same_length() {
    let rows = normalised(&[3.0, 4.0, 0.0, 30.0, 40.0, 0.0, 0.0, 0.0, 0.0], 3, 2.0);
    assert!(rows[..3].iter().zip(&rows[3..6]).all(|(a, b)| (a - b).abs() < 1e-6));
    assert_eq!(rows[6..], [0.0; 3]);
    assert!((rows[0] - 1.2).abs() < 1e-6 && (rows[1] - 1.6).abs() < 1e-6);
}
