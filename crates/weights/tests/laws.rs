//! The laws of merges.

mod support;

use luthier_weights::{Given, METHODS, SPECS};
use support::{Held, given, held, near, run, run_with, spec, usual};

/// Settings under which random and magnitude masks have something to do.
const MASKED: &[(&str, f64)] = &[("density", 0.6), ("select_topk", 0.5), ("nuslerp_flatten", 0.0)];

#[test]
fn every_method_is_listed_and_has_its_settings() {
    let listed: Vec<&str> = METHODS.iter().map(|m| m.name).collect();
    let mut made: Vec<&str> = SPECS.iter().map(|s| s.name).collect();
    // What is no method of its own but a key of the file beside one.
    let beside = [
        "lines",
        "search.greedy",
        "search.learned",
        "search.grid",
        "search.coordinate",
        "antidote",
        "mend",
    ];
    for name in listed.iter().filter(|name| !beside.contains(name)) {
        assert!(made.contains(name), "{name}");
    }
    made.retain(|name| !listed.contains(name));
    assert!(made.is_empty(), "{made:?}");
}

#[test]
fn equal_inputs_come_out_as_they_are() {
    for spec in SPECS {
        for dims in [vec![6, 10], vec![17]] {
            let mut held = held(spec, &dims, usual(spec).min(2));
            let one = held.inputs[0].clone();
            held.inputs.iter_mut().for_each(|x| *x = one.clone());
            if spec.name == "model_stock" {
                held.inputs.push(one.clone());
            }
            let over = [("normalize", 1.0), ("t", 0.3)];
            near(spec.name, &run(spec, &held, &over), &one, 1e-6);
        }
    }
}

#[test]
fn threads_do_not_show_in_the_bits() {
    for spec in SPECS {
        let held = held(spec, &[37, 29], usual(spec));
        let given = given(spec, usual(spec), MASKED);
        let on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let out = pool.install(|| run_with(spec, &given, &held, 64, 1));
            out.into_iter().map(f32::to_bits).collect::<Vec<u32>>()
        };
        assert_eq!(on(1), on(4), "{}", spec.name);
    }
}

#[test]
fn the_size_of_pieces_does_not_matter() {
    for spec in SPECS {
        for dims in [vec![37, 29], vec![1003]] {
            let held = held(spec, &dims, usual(spec));
            for over in [MASKED, &[]] {
                let given = given(spec, usual(spec), over);
                let want = run_with(spec, &given, &held, 1 << 18, 1);
                for piece in [1, 7, 100, 512] {
                    near(spec.name, &run_with(spec, &given, &held, piece, 1), &want, 1e-6);
                }
            }
        }
    }
}

#[test]
fn a_model_of_weight_0_has_no_say() {
    for name in [
        "linear",
        "task_arithmetic",
        "ties",
        "dare_ties",
        "dare_linear",
        "breadcrumbs",
        "breadcrumbs_ties",
        "della",
        "della_linear",
        "multislerp",
    ] {
        let spec = spec(name);
        let three = held(spec, &[8, 12], 3);
        let mut two = three.clone();
        two.inputs.pop();
        let mut given = given(spec, 3, &[]);
        let weights = given.each.iter_mut().find(|(key, _)| *key == "weight").unwrap();
        weights.1[2] = Some(0.0);
        let got = run_with(spec, &given, &three, 1 << 18, 1);
        near(name, &got, &run(spec, &two, &[]), 1e-6);
        weights_of(&mut given)[2] = Some(0.5);
        let other = run_with(spec, &given, &three, 1 << 18, 1);
        assert!(got.iter().zip(&other).any(|(x, y)| (x - y).abs() > 0.01), "{name}");
    }
}

fn weights_of(given: &mut Given) -> &mut Vec<Option<f64>> {
    &mut given.each.iter_mut().find(|(key, _)| *key == "weight").unwrap().1
}

#[test]
fn the_order_of_models_does_not_matter() {
    for name in [
        "linear",
        "task_arithmetic",
        "ties",
        "breadcrumbs",
        "multislerp",
        "karcher",
        "sce",
        "model_stock",
        "ram",
        "ramplus_tl",
        "fisher",
        "regmean",
    ] {
        let spec = spec(name);
        let held = held(spec, &[8, 12], 3);
        let mut turned = held.clone();
        // The base stays where it is.
        let others: Vec<usize> = (0..held.inputs.len()).filter(|i| Some(*i) != held.base).collect();
        turned.inputs.swap(others[0], others[2]);
        let given = given(spec, 3, &[("density", 0.5), ("select_topk", 0.5)]);
        let mut turned_given = given.clone();
        turned_given.each.iter_mut().for_each(|(_, values)| values.swap(0, 2));
        let want = run_with(spec, &given, &held, 1 << 18, 1);
        near(name, &run_with(spec, &turned_given, &turned, 1 << 18, 1), &want, 1e-5);
    }
}

#[test]
fn a_merge_without_any_lambda_is_the_base() {
    for spec in SPECS.iter().filter(|s| s.keys.iter().any(|k| k.name == "lambda")) {
        let held = held(spec, &[8, 12], usual(spec));
        let over = [("lambda", 0.0), ("density", 0.5), ("epsilon", 0.1)];
        let base = &held.inputs[held.base.unwrap()];
        assert_eq!(&run(spec, &held, &over), base, "{}", spec.name);
    }
}

#[test]
fn ties_of_one_whole_model_is_task_arithmetic_with_weight_1() {
    let held = held(spec("ties"), &[8, 12], 1);
    let got = run(spec("ties"), &held, &[]);
    let given = given(spec("task_arithmetic"), 1, &[]);
    let mut one = given.clone();
    weights_of(&mut one)[0] = Some(1.0);
    near("ties", &got, &run_with(spec("task_arithmetic"), &one, &held, 1 << 18, 1), 1e-6);
    // And both are the model.
    near("ties", &got, &held.inputs[0], 1e-6);
}

#[test]
fn slerp_goes_from_the_base_to_the_other() {
    let spec = spec("slerp");
    let held = held(spec, &[8, 12], 1);
    let (base, other) = (&held.inputs[1], &held.inputs[0]);
    near("t = 0", &run(spec, &held, &[("t", 0.0)]), base, 1e-6);
    near("t = 1", &run(spec, &held, &[("t", 1.0)]), other, 1e-6);
}

/// What a masked difference kept: `(change, difference)` of one input of weight 1.
fn change(name: &str, held: &Held, over: &[(&str, f64)], seed: u64) -> Vec<(f32, f32)> {
    let spec = spec(name);
    let mut given = given(spec, 1, over);
    weights_of(&mut given)[0] = Some(1.0);
    let out = run_with(spec, &given, held, 1000, seed);
    let (base, other) = (&held.inputs[1], &held.inputs[0]);
    out.iter().zip(base).zip(other).map(|((y, b), x)| (y - b, x - b)).collect()
}

/// A base of zeros, so that differences are exact.
fn from_zero(dims: &[usize]) -> Held {
    let mut held = held(spec("ties"), dims, 1);
    held.inputs[1].fill(0.0);
    held
}

#[test]
fn random_masks_keep_their_share_and_what_they_keep_is_exact() {
    let held = from_zero(&[200, 200]);
    for (name, tolerance) in [("dare_linear", 0.01), ("della_linear", 0.01)] {
        let over = [("density", 0.3), ("rescale", 0.0)];
        let changes = change(name, &held, &over, 1);
        let kept: Vec<&(f32, f32)> = changes.iter().filter(|(y, _)| *y != 0.0).collect();
        assert!(kept.iter().all(|(y, d)| y == d), "{name}");
        let share = kept.len() as f64 / changes.len() as f64;
        assert!((share - 0.3).abs() < tolerance, "{name}: {share}");
        assert_eq!(changes, change(name, &held, &over, 1), "{name}");
        let same = changes.iter().zip(change(name, &held, &over, 2)).filter(|(a, b)| **a == *b);
        // Two independent masks of density 0.3 agree on 0.58 of the numbers.
        let same = same.count() as f64 / changes.len() as f64;
        assert!((same - 0.58).abs() < 0.03, "{name}: {same}");
    }
}

#[test]
fn rescaling_keeps_the_sum_of_magnitudes() {
    let held = from_zero(&[100, 40]);
    for name in ["dare_linear", "della_linear", "ties", "breadcrumbs"] {
        let over = [("density", 0.4), ("rescale", 1.0), ("normalize", 0.0)];
        let changes = change(name, &held, &over, 1);
        let sum = |of: &dyn Fn(&(f32, f32)) -> f32| {
            changes.iter().map(|c| f64::from(of(c).abs())).sum::<f64>()
        };
        let (got, want) = (sum(&|c| c.0), sum(&|c| c.1));
        assert!((got / want - 1.0).abs() < 1e-5, "{name}: {got} {want}");
        assert!(changes.iter().any(|(y, d)| *y == 0.0 && *d != 0.0), "{name}");
    }
}

#[test]
fn della_keeps_the_large_numbers_of_a_row_more_often() {
    let held = from_zero(&[400, 101]);
    let over = [("density", 0.5), ("epsilon", 0.4), ("rescale", 0.0)];
    let changes = change("della_linear", &held, &over, 1);
    let (mut low, mut high) = (0, 0);
    for row in changes.chunks(101) {
        let mut row = row.to_vec();
        row.sort_by(|a, b| a.1.abs().total_cmp(&b.1.abs()));
        low += row[..10].iter().filter(|(y, _)| *y != 0.0).count();
        high += row[91..].iter().filter(|(y, _)| *y != 0.0).count();
    }
    // The mean chances of the ten smallest and the ten largest are 0.136 and 0.864.
    let (low, high) = (low as f64 / 4000.0, high as f64 / 4000.0);
    assert!((low - 0.136).abs() < 0.02 && (high - 0.864).abs() < 0.02, "{low} {high}");
}

/// Ranks from the largest magnitude, equal ones by position: what masks by rank go by.
fn order(values: &[f32]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*b].abs().total_cmp(&values[*a].abs()).then(a.cmp(b)));
    order
}

#[test]
fn masks_by_rank_keep_exactly_what_a_sort_would_keep() {
    for coarse in [false, true] {
        let mut held = from_zero(&[61, 50]);
        if coarse {
            // Differences of numbers of 16 bits and fewer are often equal.
            held.inputs[0].iter_mut().for_each(|x| *x = (*x * 8.0).round() / 8.0);
        }
        let order = order(&held.inputs[0]);
        for (name, density, gamma, kept) in [
            ("ties", 0.31, 0.0, 0..945),
            ("ties", 0.0001, 0.0, 0..1),
            ("breadcrumbs", 0.5, 0.1, 305..1830),
            ("breadcrumbs", 0.95, 0.1, 153..3050),
        ] {
            let over = [("density", density), ("gamma", gamma), ("normalize", 0.0)];
            let changes = change(name, &held, &over, 1);
            for (rank, i) in order.iter().enumerate() {
                let (y, d) = changes[*i];
                let want = if kept.contains(&rank) { d } else { 0.0 };
                assert_eq!(y, want, "{name} {density} {coarse}: rank {rank}");
            }
        }
    }
}

#[test]
fn an_empty_tensor_and_a_single_number_are_tensors() {
    for spec in SPECS {
        for dims in [vec![0, 4], vec![1], vec![1, 1]] {
            let held = held(spec, &dims, usual(spec));
            assert_eq!(run(spec, &held, MASKED).len(), dims.iter().product::<usize>());
        }
    }
}

#[test]
fn settings_without_a_meaning_are_refused() {
    let refused = |name: &str, over: &[(&str, f64)]| {
        spec(name).combine(&given(spec(name), 2, over)).err().unwrap().to_string()
    };
    let density = refused("ties", &[("density", 1.5)]);
    assert_eq!(density, "m.yml: density of m0: expected 0 to 1, got 1.5");
    assert!(refused("dare_linear", &[("density", -0.1)]).contains("got -0.1"));
    assert!(refused("breadcrumbs", &[("gamma", 2.0)]).contains("gamma of m0"));
    assert!(refused("sce", &[("select_topk", 7.0)]).contains("select_topk"));
    assert!(refused("della", &[("density", 0.9), ("epsilon", 0.2)]).contains("0.9 ± epsilon 0.2"));
    let mut none = given(spec("linear"), 2, &[]);
    *weights_of(&mut none) = vec![Some(1.0), Some(-1.0)];
    let error = spec("linear").combine(&none).err().unwrap().to_string();
    assert!(error.contains("add up to 0"), "{error}");
}
