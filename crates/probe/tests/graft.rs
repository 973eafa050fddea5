//! Grafting: the numbers of its paper's specification, and a planted region that is found.

use candle_core::{Device, Tensor};
use luthier_core::{Result, Seed, StateDict};
use luthier_probe::graft::{Graft, Search, apply, largest, overlap, random, share, soft};

fn state(tensors: &[(&str, &[f32])]) -> StateDict {
    let tensor = |x: &[f32]| Tensor::new(x, &Device::Cpu).unwrap();
    tensors.iter().map(|(name, x)| (name.to_string(), tensor(x))).collect()
}

fn numbers(state: &StateDict, name: &str) -> Vec<f32> {
    state.get(name).unwrap().to_vec1().unwrap()
}

#[test]
fn the_soft_mask_is_that_of_the_paper() {
    let near = |got: f64, want: f64| assert!((got / want - 1.0).abs() < 1e-3, "{got} {want}");
    near(soft(0.0, 0.0, 10.0), 4.5398e-5);
    near(soft(0.0, 1.0, 10.0), 1.2339e-4);
    let middle = soft(0.0, 0.5, 10.0);
    near(middle * (1.0 - middle), 7.484e-5);
    assert_eq!(soft(1.0, f64::NEG_INFINITY, 10.0), 1.0);
    assert_eq!(soft(1.0, 10.5, 10.0).round(), 0.0);
    assert_eq!(soft(0.0, 10.5, 10.0).round(), 1.0);
    assert_eq!(soft(0.0, 9.5, 10.0).round(), 0.0);
}

#[test]
fn all_or_nothing_is_one_of_the_two_models() {
    let base = state(&[("a", &[0.1, -3.0]), ("b", &[7.0])]);
    let tuned = state(&[("a", &[0.3, 1e-9]), ("b", &[8.0])]);
    let whole = |x: f32| state(&[("a", &[x, x]), ("b", &[x])]);
    for (x, want) in [(1.0, &tuned), (0.0, &base)] {
        let got = apply(&base, &tuned, &whole(x)).unwrap();
        assert!(["a", "b"].iter().all(|name| numbers(&got, name) == numbers(want, name)));
    }
    let wrong = state(&[("a", &[1.0])]);
    let error = apply(&base, &tuned, &wrong).unwrap_err().to_string();
    assert!(error.starts_with("a: expected shape [1] in the base, got Some([2])"), "{error}");
}

#[test]
fn the_largest_are_those_of_all_tensors_together() {
    let base = state(&[("a", &[0.0; 4]), ("b", &[0.0; 4]), ("head", &[0.0; 2])]);
    let tuned = state(&[
        ("a", &[0.5, -9.0, 8.0, 0.1]),
        ("b", &[-1.0, 1.0, 0.0, 0.2]),
        ("head", &[100.0, 100.0]),
    ]);
    let body = |name: &str| name != "head";
    let mask = largest(&base, &tuned, 0.25, &body).unwrap();
    assert_eq!(numbers(&mask, "a"), [0.0, 1.0, 1.0, 0.0]);
    assert!(mask.get("head").is_none() && numbers(&mask, "b") == [0.0; 4]);
    // The edge would cut between two equals: neither is in.
    let mask = largest(&base, &tuned, 0.375, &body).unwrap();
    assert_eq!(share(&mask).unwrap(), 0.25);
    assert_eq!(share(&largest(&base, &tuned, 1.0, &body).unwrap()).unwrap(), 1.0);
    let drawn = random(&base, &tuned, 0.375, &body, Seed(1)).unwrap();
    assert_eq!(share(&drawn).unwrap(), 0.375);
    assert!(largest(&base, &tuned, 1.5, &body).is_err());
}

#[test]
fn overlap_has_a_direction() {
    let (a, b) = (state(&[("w", &[1.0, 1.0, 1.0, 0.0])]), state(&[("w", &[0.0, 0.0, 1.0, 1.0])]));
    assert_eq!((overlap(&a, &b).unwrap(), overlap(&b, &a).unwrap()), (1.0 / 3.0, 0.5));
}

/// `L = ½ Σ (w − target)²` for weights that tuning moved to 1: a target of 1 wants the tuned number.
fn quadratic(target: [f32; 6]) -> impl Fn(&StateDict) -> (f64, StateDict) {
    move |weights: &StateDict| {
        let w = numbers(weights, "w");
        let errors: Vec<f32> = w.iter().zip(target).map(|(w, t)| w - t).collect();
        let loss = 0.5 * errors.iter().map(|e| f64::from(e * e)).sum::<f64>();
        (loss, state(&[("w", &errors)]))
    }
}

#[test]
fn a_planted_region_is_found_and_a_wrong_patch_corrected() {
    let (base, tuned) = (state(&[("w", &[0.0; 6])]), state(&[("w", &[1.0; 6])]));
    let target = [1.0, 0.0, 1.0, 0.0, 0.0, 1.0];
    let loss = quadratic(target);
    let seen = std::cell::RefCell::new(Vec::new());
    let patch = state(&[("w", &[1.0, 1.0, 0.0, 0.0, 0.0, 0.0])]);
    let mut gradient = |_: u64, now: &StateDict| -> Result<StateDict> {
        seen.borrow_mut().push(numbers(now, "w"));
        Ok(loss(now).1)
    };
    let mut score = |now: &StateDict| -> Result<f64> { Ok(4.0 - loss(now).0) };
    let mut on = Search {
        base: &base,
        tuned: &tuned,
        candidates: &|_| true,
        gradient: &mut gradient,
        score: &mut score,
        seed: Seed(3),
    };
    let rule = Graft { learning_rate: 4e4, steps: 40, ..Graft::default() };
    let found = rule.search_from(&mut on, &patch).unwrap();
    assert_eq!(numbers(&found.mask, "w"), target);
    assert_eq!((found.share, found.score), (0.5, 4.0));
    // The first gradient is taken at the grafted weights: near the patch, not at either model.
    let first = &seen.borrow()[0];
    let soft = |x: &f32, want: f32| (x - want).abs() > 1e-6 && (x - want).abs() < 2e-4;
    assert!(first.iter().zip(numbers(&patch, "w")).all(|(x, want)| soft(x, want)), "{first:?}");
}

#[test]
fn a_step_moves_towards_what_lowers_the_loss() {
    // One step, judged by the soft weights of the next: b = 0 and g·Δ < 0 raises S; b = 1 lowers it.
    let (base, tuned) = (state(&[("w", &[0.0, 0.0])]), state(&[("w", &[1.0, 1.0])]));
    let patch = state(&[("w", &[0.0, 1.0])]);
    let seen = std::cell::RefCell::new(Vec::new());
    let mut gradient = |_: u64, now: &StateDict| -> Result<StateDict> {
        seen.borrow_mut().push(numbers(now, "w"));
        Ok(state(&[("w", &[-1.0, -1.0])]))
    };
    let mut score = |_: &StateDict| -> Result<f64> { Ok(1.0) };
    let mut on = Search {
        base: &base,
        tuned: &tuned,
        candidates: &|_| true,
        gradient: &mut gradient,
        score: &mut score,
        seed: Seed(3),
    };
    Graft { learning_rate: 1e4, steps: 2, ..Graft::default() }
        .search_from(&mut on, &patch)
        .unwrap();
    let seen = seen.borrow();
    assert!(seen[1][0] > seen[0][0] && seen[1][1] > seen[0][1], "{seen:?}");
}

#[test]
fn a_mask_that_grows_too_large_ends_the_search() {
    let (base, tuned) = (state(&[("w", &[0.0; 6])]), state(&[("w", &[1.0; 6])]));
    let loss = quadratic([1.0; 6]);
    let run = |most: Option<f64>| {
        let mut gradient = |_: u64, now: &StateDict| -> Result<StateDict> { Ok(loss(now).1) };
        let mut score = |now: &StateDict| -> Result<f64> { Ok(4.0 - loss(now).0) };
        let mut on = Search {
            base: &base,
            tuned: &tuned,
            candidates: &|_| true,
            gradient: &mut gradient,
            score: &mut score,
            seed: Seed(3),
        };
        let patch = state(&[("w", &[1.0, 0.0, 0.0, 0.0, 0.0, 0.0])]);
        let rule = Graft { learning_rate: 3e4, steps: 40, most, ..Graft::default() };
        rule.search_from(&mut on, &patch).unwrap().share
    };
    assert_eq!(run(None), 1.0);
    assert!(run(Some(0.9)) < 0.9);
}
