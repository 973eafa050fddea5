//! What mergekit does not have: LiNeS, rows of breadcrumbs, transfer, WiSE-FT, Fisher, grafts, RegMean;
//! against the numbers of their specifications and naive twins.

mod support;

use luthier_core::Seed;
use luthier_weights::{Cutoffs, Given, Lines, Norms, Outside, Place, Schedule, Work, merge};
use support::{Held, given, held, near, run, run_with, spec, usual};

const PIECE: usize = 16;

fn of(dims: &[usize], inputs: &[&[f32]], base: Option<usize>) -> Held {
    let inputs = inputs.iter().map(|x| x.to_vec()).collect();
    Held { dims: dims.to_vec(), inputs, base }
}

fn set(given: &mut Given, key: &str, values: &[f64]) {
    let found = given.each.iter_mut().find(|(name, _)| *name == key).unwrap();
    found.1 = values.iter().map(|x| Some(*x)).collect();
}

#[test]
fn lines_has_the_factors_of_the_paper() {
    let schedule = |alpha: f64, beta: f64| Schedule {
        alpha: Some(alpha),
        beta: Some(beta),
        outside: Outside::Alpha,
    };
    let block = |alpha: f64, beta: f64, l: usize, n: usize| {
        schedule(alpha, beta).factor(alpha, Place::Block(l, n))
    };
    let is = |got: f64, want: f64| assert!((got - want).abs() < 5e-7, "{got}, expected {want}");
    is(block(0.3, 0.7, 2, 4), 0.766_666_7);
    for (l, want) in [(0, 0.2), (5, 0.563_636_4), (11, 1.0)] {
        is(block(0.2, 0.8, l, 12), want);
    }
    is(block(1.0, 0.0, 3, 7), 1.0);
    is(block(0.125, 0.4, 7, 8), 0.525);
    // Beta follows from alpha, and what stands outside has a choice.
    let rest = |outside: Outside, place: Place| {
        Schedule { alpha: Some(0.2), beta: None, outside }.factor(0.2, place)
    };
    is(rest(Outside::Alpha, Place::Block(1, 2)), 1.0);
    is(rest(Outside::Alpha, Place::Before), 0.2);
    is(rest(Outside::Deep, Place::Before), 0.2);
    for (outside, want) in [(Outside::Alpha, 0.2), (Outside::One, 1.0), (Outside::Deep, 1.0)] {
        is(rest(outside, Place::Behind), want);
    }
}

#[test]
fn lines_scales_what_any_merge_changes() {
    for name in ["task_arithmetic", "ties", "slerp", "model_stock", "arcee_fusion"] {
        let spec = spec(name);
        let held = held(spec, &[9, 11], usual(spec));
        let over = [("density", 0.6), ("t", 0.4)];
        let plain = run(spec, &held, &over);
        let base = &held.inputs[held.base.unwrap()];
        for factor in [0.0, 0.35, 1.0] {
            let settings = given(spec, usual(spec), &over);
            let lines = Lines { inner: spec.combine(&settings).unwrap(), factor };
            let out = std::sync::Mutex::new(vec![f32::NAN; plain.len()]);
            let work = Work::new(&held, Seed(1)).in_pieces_of(PIECE);
            merge(&lines, &work, &|from, values| {
                out.lock().unwrap()[from..from + values.len()].copy_from_slice(values);
                Ok(())
            })
            .unwrap();
            let want: Vec<f32> =
                base.iter().zip(&plain).map(|(b, y)| b + factor as f32 * (y - b)).collect();
            near(name, &out.into_inner().unwrap(), &want, 1e-6);
        }
    }
}

#[test]
fn the_rule_for_alpha_is_the_norm_of_the_sum_over_that_of_the_merge() {
    let ties = spec("ties");
    let held = held(ties, &[13, 17], 3);
    let over = [("density", 0.4), ("normalize", 0.0)];
    let alpha = |lambda: f64| {
        let settings = given(ties, 3, &[&over[..], &[("lambda", lambda)]].concat());
        let combine = ties.combine(&settings).unwrap();
        let mut norms = Norms::default();
        let work = Work::new(&held, Seed(1)).in_pieces_of(PIECE);
        norms.count(&work, combine.as_ref()).unwrap();
        norms.alpha(3)
    };
    let base = &held.inputs[held.base.unwrap()];
    let merged = run(ties, &held, &over);
    let others: Vec<&Vec<f32>> = held
        .inputs
        .iter()
        .enumerate()
        .filter(|(i, _)| Some(*i) != held.base)
        .map(|(_, x)| x)
        .collect();
    let (mut sum, mut after) = (0f64, 0f64);
    for i in 0..base.len() {
        let total: f32 = others.iter().map(|x| x[i] - base[i]).sum();
        sum += f64::from(total.abs());
        after += f64::from((merged[i] - base[i]).abs());
    }
    assert!((alpha(1.0) / (sum / after / 3.0) - 1.0).abs() < 1e-5);
    // A longer merge gets a smaller factor: what is added stays the same.
    assert!((alpha(4.0) * 4.0 / alpha(1.0) - 1.0).abs() < 1e-5);
    // Of a plain sum it is 1/T.
    let plain = spec("task_arithmetic");
    let mut settings = given(plain, 3, &[]);
    set(&mut settings, "weight", &[1.0; 3]);
    let mut norms = Norms::default();
    let work = Work::new(&held, Seed(1));
    norms.count(&work, plain.combine(&settings).unwrap().as_ref()).unwrap();
    assert!((norms.alpha(3) - 1.0 / 3.0).abs() < 1e-6);
}

/// What breadcrumbs keep of one difference from zeros.
fn crumbs(dims: &[usize], delta: &[f32], over: &[(&str, f64)]) -> Vec<f32> {
    let crumbs = spec("breadcrumbs");
    let held = of(dims, &[delta, &vec![0.0; delta.len()]], Some(1));
    let mut settings = given(crumbs, 1, over);
    set(&mut settings, "weight", &[1.0]);
    run_with(crumbs, &settings, &held, PIECE, 1)
}

#[test]
fn breadcrumbs_keep_what_the_paper_counts() {
    let delta: Vec<f32> = (0..1000).map(|i| ((i * 7) % 1000) as f32 + 1.0).collect();
    let kept = crumbs(&[1000], &delta, &[("gamma", 0.007), ("density", 0.15)]);
    for (y, d) in kept.iter().zip(&delta) {
        // The rank of a number from the largest, 1000, on.
        let rank = 1001 - *d as usize;
        assert_eq!(*y != 0.0, (8..=157).contains(&rank), "rank {rank}");
    }
    let short = [5.0, 4.0, 3.0, 2.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0];
    let over = [("gamma", 0.1), ("density", 0.2)];
    assert_eq!(crumbs(&[10], &short, &over)[..4], [0.0, 4.0, 3.0, 0.0]);
    let turned = [&over[..], &[("remove_first", 0.0)]].concat();
    assert_eq!(crumbs(&[10], &short, &turned)[..4], [0.0, 4.0, 0.0, 0.0]);
    // Nothing dropped and everything kept is the difference; no density is nothing.
    assert_eq!(crumbs(&[10], &short, &[("gamma", 0.0), ("density", 1.0)]), short);
    assert_eq!(crumbs(&[10], &short, &[("density", 0.0)]), [0.0; 10]);
}

#[test]
fn breadcrumbs_by_row_are_those_of_every_row_by_itself() {
    let delta: Vec<f32> = held(spec("ties"), &[7, 40], 1).inputs[0].clone();
    for remove_first in [1.0, 0.0] {
        let over = [("gamma", 0.1), ("density", 0.3), ("remove_first", remove_first)];
        let by_row = crumbs(&[7, 40], &delta, &[&over[..], &[("per", 1.0)]].concat());
        let rows = delta.chunks(40).flat_map(|row| crumbs(&[40], row, &over));
        assert_eq!(by_row, rows.collect::<Vec<f32>>());
        assert_ne!(by_row, crumbs(&[7, 40], &delta, &over));
        let scaled: Vec<f32> = delta.iter().map(|d| d * 8.0).collect();
        let again = crumbs(&[7, 40], &scaled, &[&over[..], &[("per", 1.0)]].concat());
        assert!(by_row.iter().zip(&again).all(|(x, y)| x * 8.0 == *y));
    }
}

#[test]
fn transfer_adds_the_difference_of_two_others() {
    let transfer = spec("transfer");
    // The source is the last of the inputs, as `given` marks it; the base stands between.
    let held = held(transfer, &[5, 6], 2);
    let (tuned, base, source) = (&held.inputs[0], &held.inputs[1], &held.inputs[2]);
    let got = run(transfer, &held, &[("lambda", 0.7)]);
    for i in 0..got.len() {
        let want = f64::from(base[i]) + 0.7 * (f64::from(tuned[i]) - f64::from(source[i]));
        assert_eq!(got[i], want as f32);
    }
    // To where it came from: the tuned model, bit for bit. From nowhere: the tuned model's row.
    let same = of(&[5, 6], &[tuned, base, base], Some(1));
    assert_eq!(&run(transfer, &same, &[]), tuned);
    let zeros = vec![0.0; base.len()];
    assert_eq!(&run(transfer, &of(&[5, 6], &[tuned, &zeros, &zeros], Some(1)), &[]), tuned);
    let mut marks = given(transfer, 2, &[]);
    set(&mut marks, "source", &[0.0, 0.0]);
    let error = transfer.combine(&marks).err().unwrap().to_string();
    assert!(error.contains("marks 0 of the models") && error.contains("source: true"), "{error}");
}

#[test]
fn wise_ft_ends_are_the_models_themselves() {
    let wise = spec("wise_ft");
    let held = held(wise, &[4, 5], 1);
    let (tuned, base) = (&held.inputs[0], &held.inputs[1]);
    assert_eq!(&run(wise, &held, &[("alpha", 0.0)]), base);
    assert_eq!(&run(wise, &held, &[("alpha", 1.0)]), tuned);
    let want: Vec<f32> = base.iter().zip(tuned).map(|(b, x)| b + 0.3 * (x - b)).collect();
    near("alpha 0.3", &run(wise, &held, &[("alpha", 0.3)]), &want, 1e-6);
}

#[test]
fn fisher_weighs_number_by_number() {
    let fisher = spec("fisher");
    let (a, b) = ([1.0f32, 2.0, 3.0, 4.0], [5.0f32, -2.0, 0.0, 8.0]);
    let (fa, fb) = ([1e-12f32, 0.0, 2.0, 0.0], [3e-12f32, 5.0, 2.0, 0.0]);
    let held = of(&[4], &[&a, &b, &fa, &fb], None);
    let mut settings = given(fisher, 2, &[]);
    set(&mut settings, "weight", &[1.0, 2.0]);
    settings.beside = vec![true, true];
    let got = run_with(fisher, &settings, &held, 3, 1);
    // Where no value says anything, the mean by weight.
    near("fisher", &got, &[(1.0 + 30.0) / 7.0, -2.0, 1.0, 20.0 / 3.0], 1e-6);
    settings.beside = vec![false, false];
    let plain = run_with(fisher, &settings, &of(&[4], &[&a, &b], None), 3, 1);
    near("without files", &plain, &[11.0 / 3.0, -2.0 / 3.0, 1.0, 20.0 / 3.0], 1e-6);
    settings.beside = vec![true, false];
    let error = fisher.combine(&settings).err().unwrap().to_string();
    assert!(error.contains("fisher of m1"), "{error}");
}

#[test]
fn grafts_take_masks_and_later_ones_speak() {
    let graft = spec("graft");
    let (a, b, base) = ([1.0f32; 5], [2.0f32; 5], [0.0f32; 5]);
    let (ma, mb) = ([1.0f32, 1.0, 0.0, 0.0, 0.6], [0.0f32, 1.0, 1.0, 0.4, 0.0]);
    let held = of(&[5], &[&base, &a, &b, &ma, &mb], Some(0));
    let mut settings = given(graft, 2, &[]);
    settings.each.iter_mut().for_each(|(_, values)| values.fill(None));
    settings.beside = vec![true, true];
    let got = run_with(graft, &settings, &held, 2, 1);
    assert_eq!(got, [1.0, 2.0, 2.0, 0.0, 1.0]);
    settings.merge.iter_mut().for_each(|(_, value)| *value = Some(0.0));
    assert_eq!(run_with(graft, &settings, &held, 2, 1), base);
    settings.beside = vec![false, false];
    settings.merge.iter_mut().for_each(|(_, value)| *value = Some(1.0));
    let error = graft.combine(&settings).err().unwrap().to_string();
    assert!(error.contains("mask of m0"), "{error}");
}

#[test]
fn the_top_share_is_found_over_all_tensors_together() {
    let graft = spec("graft");
    let tensors: Vec<Held> = [[40usize, 9], [25, 4], [3, 3]]
        .iter()
        .enumerate()
        .map(|(i, dims)| {
            let mut held = held(graft, dims, 2);
            // Some tensors move more than others.
            let base = held.inputs[1].clone();
            for input in [0, 2] {
                let x = held.inputs[input].iter_mut().zip(&base);
                x.for_each(|(x, b)| *x = b + (*x - b) * (1.0 + 3.0 * i as f32));
            }
            held
        })
        .collect();
    let deltas = |input: usize| -> Vec<f32> {
        let of = |held: &Held| -> Vec<f32> {
            held.inputs[input].iter().zip(&held.inputs[1]).map(|(x, b)| (x - b).abs()).collect()
        };
        tensors.iter().flat_map(of).collect()
    };
    let shares = [0.1, 1.0];
    let mut cutoffs = Cutoffs::new(&shares);
    for pass in 0..2 {
        for held in &tensors {
            cutoffs.count(&Work::new(held, Seed(1)).in_pieces_of(PIECE)).unwrap();
        }
        if pass == 0 {
            cutoffs.narrow();
        }
    }
    let edges = cutoffs.edges();
    let mut sorted = deltas(0);
    sorted.sort_by(|a, b| b.total_cmp(a));
    assert_eq!(edges[0], sorted[sorted.len() / 10], "the first that is out");
    assert!(edges[1] < 0.0, "all are in");
    let moved = |edge: f32| {
        tensors
            .iter()
            .map(|held| {
                let mut settings = given(graft, 2, &[]);
                set(&mut settings, "edge", &[f64::from(edge), f64::INFINITY]);
                let got = run_with(graft, &settings, held, PIECE, 1);
                got.iter().zip(&held.inputs[1]).filter(|(y, b)| y != b).count()
            })
            .sum::<usize>()
    };
    assert_eq!(moved(edges[0]), sorted.len() / 10);
}

#[test]
fn regmean_solves_for_the_map_with_the_nearest_outputs() {
    let regmean = spec("regmean");
    let (o, i) = (3, 4);
    let numbers = held(spec("linear"), &[2 * o + 2 * 9, i], 1).inputs[0].clone();
    let (w, x) = numbers.split_at(2 * o * i);
    let (wa, wb) = w.split_at(o * i);
    let gram = |x: &[f32]| -> Vec<f32> {
        let at = |r: usize, c: usize| x.chunks(i).map(|row| row[r] * row[c]).sum::<f32>();
        (0..i * i).map(|k| at(k / i, k % i)).collect()
    };
    let (ga, gb) = (gram(&x[..9 * i]), gram(&x[9 * i..]));
    let held = of(&[o, i], &[wa, wb, &ga, &gb], None);
    for scale in [1.0, 0.9] {
        let mut settings = given(regmean, 2, &[("scale", scale)]);
        set(&mut settings, "weight", &[1.0, 0.5]);
        settings.beside = vec![true, true];
        let got = run_with(regmean, &settings, &held, 5, 1);
        // What makes the sum of squares least: W · ΣG = ΣWG.
        let g = |of: &[f32], r: usize, c: usize| {
            f64::from(of[r * i + c]) * if r == c { 1.0 } else { scale }
        };
        for (row, out) in got.chunks(i).enumerate() {
            for c in 0..i {
                let product = |w: &[f32], of: &[f32]| -> f64 {
                    (0..i).map(|r| f64::from(w[r]) * g(of, r, c)).sum()
                };
                let left = product(out, &ga) + 0.5 * product(out, &gb);
                let (a, b) = (&wa[row * i..][..i], &wb[row * i..][..i]);
                let right = product(a, &ga) + 0.5 * product(b, &gb);
                assert!((left - right).abs() < 1e-4 * (1.0 + right.abs()), "{left} {right}");
            }
        }
    }
    // A plain mean without the matrices, and one model comes out as it is.
    let mut settings = given(regmean, 2, &[]);
    set(&mut settings, "weight", &[1.0, 3.0]);
    let mean: Vec<f32> = wa.iter().zip(wb).map(|(a, b)| 0.25 * a + 0.75 * b).collect();
    let plain = run_with(regmean, &settings, &of(&[o, i], &[wa, wb], None), 5, 1);
    near("mean", &plain, &mean, 1e-6);
    let mut settings = given(regmean, 2, &[]);
    settings.beside = vec![true, true];
    let same = of(&[o, i], &[wa, wa, &ga, &gb], None);
    near("equal models", &run_with(regmean, &settings, &same, 5, 1), wa, 1e-5);
}
