//! The components of a site's inputs: the published numbers and naive twins.

mod replay;

use std::{cell::Cell, collections::BTreeMap};

use candle_core::{Device, Tensor};
use faer::Mat;
use luthier_core::{Seed, StateDict};
use luthier_probe::{
    Components,
    components::{Allot, Incremental},
};
use replay::{Replay, batch};

fn random(n: usize, seed: u64) -> Vec<f32> {
    let mut rng = Seed(seed).rng();
    (0..n).map(|_| rng.normal() as f32).collect()
}

fn tensor(values: Vec<f32>, width: usize) -> Tensor {
    let m = values.len() / width;
    Tensor::from_vec(values, (m, width), &Device::Cpu).unwrap()
}

fn close(got: &[f64], want: &[f64], within: f64) {
    assert_eq!(got.len(), want.len());
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() <= within, "{i}: {g} {w}");
    }
}

/// Rows around their mean, as f64.
fn centred(rows: &[f32], d: usize) -> Mat<f64> {
    let m = rows.len() / d;
    let mean: Vec<f64> = (0..d)
        .map(|j| (0..m).map(|i| f64::from(rows[i * d + j])).sum::<f64>() / m as f64)
        .collect();
    Mat::from_fn(m, d, |i, j| f64::from(rows[i * d + j]) - mean[j])
}

/// Singular values and signed right vectors of a matrix, by faer's decomposition of it.
fn full(x: &Mat<f64>, keep: usize) -> (Vec<f64>, Vec<f64>) {
    let svd = x.svd().unwrap();
    let sigma: Vec<f64> = svd.S().column_vector().iter().copied().take(keep).collect();
    let mut rows = Vec::new();
    for j in 0..keep {
        let v: Vec<f64> = svd.V().col(j).iter().copied().collect();
        let largest = v.iter().fold(0.0f64, |l, x| if x.abs() > l.abs() { *x } else { l });
        rows.extend(v.iter().map(|x| x * largest.signum()));
    }
    (sigma, rows)
}

#[test]
fn four_rows_have_the_published_components() {
    let mut pca = Incremental::new(2, 2, true);
    assert!(pca.add("x", &[1.0, 0.0, -1.0, 0.0, 0.0, 0.5, 0.0, -0.5]).unwrap());
    close(&pca.components(), &[1.0, 0.0, 0.0, 1.0], 1e-15);
    close(pca.singular_values(), &[2f64.sqrt(), 0.5f64.sqrt()], 1e-15);
    close(&pca.variance(), &[2.0 / 3.0, 1.0 / 6.0], 1e-15);
    close(&pca.ratio(), &[0.8, 0.2], 1e-15);
}

#[test]
fn with_all_components_any_split_gives_the_analysis_of_all_rows() {
    let d = 7;
    let mut rows = random(60 * d, 1);
    // A mean that is far from 0, and other sizes in each column.
    rows.iter_mut().enumerate().for_each(|(k, x)| *x = *x * (1 + k % d) as f32 + 3.0);
    let (sigma, vectors) = full(&centred(&rows, d), d);
    let total: f64 = sigma.iter().map(|s| s * s).sum();
    for split in [vec![60], vec![7, 53], vec![20, 20, 20], vec![7, 8, 9, 10, 11, 15]] {
        let mut pca = Incremental::new(d, d, true);
        let mut from = 0;
        for n in &split {
            assert!(pca.add("x", &rows[from * d..(from + n) * d]).unwrap());
            from += n;
        }
        close(pca.singular_values(), &sigma, 1e-12 * sigma[0]);
        close(&pca.components(), &vectors, 1e-10);
        let ratio: Vec<f64> = sigma.iter().map(|s| s * s / total).collect();
        close(&pca.ratio(), &ratio, 1e-12);
    }
}

/// The rule as it is written: the stack laid out, and a full decomposition of it.
#[test]
fn truncated_components_equal_the_naive_twins() {
    // Few rows and many, few columns and many: every way the eigenpairs are sought.
    for (d, keep, center, m) in [
        (12, 3, true, 20),
        (12, 3, false, 20),
        (150, 5, true, 20),
        (150, 5, true, 170),
        (300, 4, true, 200),
    ] {
        let mut pca = Incremental::new(d, keep, center);
        let (mut n, mut mu) = (0usize, vec![0f64; d]);
        let (mut sigma, mut v): (Vec<f64>, Vec<f64>) = (Vec::new(), Vec::new());
        let mut seen: Vec<f32> = Vec::new();
        for step in 0..4 {
            let m = m + 5 * step;
            let mut rows = random(m * d, 10 + step as u64);
            rows.iter_mut().enumerate().for_each(|(k, x)| *x = *x / (1 + k % d) as f32 + 0.5);
            seen.extend(&rows);
            let at = |i: usize, j: usize| f64::from(rows[i * d + j]);
            let mean: Vec<f64> = (0..d)
                .map(|j| (0..m).map(|i| at(i, j)).sum::<f64>() / m as f64)
                .map(|mean| if center { mean } else { 0.0 })
                .collect();
            let by = ((n * m) as f64 / (n + m) as f64).sqrt();
            let known = sigma.len();
            let stack = Mat::from_fn(known + m + 1, d, |i, j| match i {
                i if i < known => sigma[i] * v[i * d + j],
                i if i < known + m => at(i - known, j) - mean[j],
                _ => by * (mu[j] - mean[j]),
            });
            (sigma, v) = full(&stack, keep);
            for (mu, mean) in mu.iter_mut().zip(&mean) {
                *mu = (n as f64 * *mu + m as f64 * mean) / (n + m) as f64;
            }
            n += m;
            assert!(pca.add("x", &rows).unwrap());
            close(pca.singular_values(), &sigma, 1e-11 * sigma[0]);
            close(&pca.components(), &v, 1e-8);
            let total: f64 = match center {
                true => centred(&seen, d)
                    .col_iter()
                    .flat_map(|c| c.iter().copied().collect::<Vec<_>>())
                    .map(|x| x * x)
                    .sum(),
                false => seen.iter().map(|x| f64::from(*x).powi(2)).sum(),
            };
            let ratio: Vec<f64> = sigma.iter().map(|s| s * s / total).collect();
            close(&pca.ratio(), &ratio, 1e-12);
        }
        assert_eq!(pca.cosines().len(), keep);
    }
}

#[test]
fn a_common_mean_is_the_first_direction_only_without_centring() {
    let d = 10;
    let direction = [1.0f32, -2.0, 0.0, 1.0, 0.5, 0.0, 0.0, 3.0, 0.0, 1.0];
    let size = direction.iter().map(|x| x * x).sum::<f32>().sqrt();
    let noise = random(200 * d, 3);
    let rows: Vec<f32> =
        noise.iter().enumerate().map(|(k, x)| 0.1 * x + 50.0 * direction[k % d] / size).collect();
    let along = |center: bool| {
        let mut pca = Incremental::new(d, 3, center);
        pca.add("x", &rows[..100 * d]).unwrap();
        pca.add("x", &rows[100 * d..]).unwrap();
        let dot = |v: &[f64]| {
            v.iter().zip(&direction).map(|(a, b)| a * f64::from(b / size)).sum::<f64>().abs()
        };
        pca.components().chunks(d).map(dot).collect::<Vec<f64>>()
    };
    assert!(along(false)[0] > 0.9999);
    assert!(along(true).iter().all(|cosine| *cosine < 0.9), "{:?}", along(true));
}

#[test]
fn a_batch_of_too_few_rows_is_left_out() {
    let (d, rows) = (6, random(40 * 6, 4));
    let (mut one, mut other) = (Incremental::new(d, 4, true), Incremental::new(d, 4, true));
    one.add("x", &rows[..20 * d]).unwrap();
    other.add("x", &rows[..20 * d]).unwrap();
    assert!(!other.add("x", &rows[20 * d..23 * d]).unwrap());
    assert_eq!(one.components(), other.components());
    assert!(!Incremental::new(d, 4, true).add("x", &rows[..3 * d]).unwrap());
}

fn every(rank: usize) -> Box<Allot<'static>> {
    Box::new(move |ratios| ratios.keys().map(|site| (site.clone(), rank)).collect())
}

fn wanted(sites: &[(&str, usize)]) -> BTreeMap<String, usize> {
    sites.iter().map(|(site, keep)| (site.to_string(), *keep)).collect()
}

fn numbers(state: &StateDict, key: &str) -> Vec<f32> {
    state.get(key).unwrap_or_else(|| panic!("{key}")).flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn sites_with_the_same_input_share_one_analysis() {
    let d = 8;
    let mut replay = Replay::default();
    let shared = random(3 * 30 * d, 5);
    let mut other = shared.clone();
    // One bit apart, in the first batch.
    other[17] = f32::from_bits(other[17].to_bits() ^ 1);
    for (site, rows) in [("q", &shared), ("k", &shared), ("v", &other)] {
        let batches = rows.chunks(30 * d).map(|rows| tensor(rows.to_vec(), d)).collect();
        replay.add(site, 0, batches);
    }
    let batches: Vec<_> = (0..3).map(|k| batch(k, &[1.0; 30])).collect();
    let asked = Cell::new(0);
    let allot = |ratios: &BTreeMap<String, Vec<f64>>| {
        assert_eq!(ratios["q"], ratios["k"]);
        // The larger of the two wishes is met for both.
        assert_eq!((ratios["q"].len(), ratios["v"].len()), (5, 3));
        asked.set(asked.get() + 1);
        ratios.keys().map(|site| (site.clone(), 2)).collect()
    };
    let settings = Components { svd_batches_max: 6, ..Components::default() };
    let sites = wanted(&[("q", 3), ("k", 5), ("v", 3)]);
    let found = settings.find(&replay.policy(), &batches, &sites, &allot).unwrap();
    assert_eq!(found.groups, [vec!["q", "k"], vec!["v"]]);
    assert_eq!(asked.get(), found.batches);
    assert_eq!(found.state.len(), 9);
    assert_eq!(numbers(&found.state, "q.components"), numbers(&found.state, "k.components"));
    assert_eq!(found.state.get("v.components").unwrap().dims(), [3, d]);
    // Groups are worked off each on one thread.
    let on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let find = || settings.find(&replay.policy(), &batches, &sites, &*every(2)).unwrap();
        pool.install(find).state.to_safetensors(&[]).unwrap()
    };
    assert_eq!(on(1), on(4));
}

#[test]
fn only_trained_tokens_count_unless_all_are_asked_for() {
    let (d, n) = (5, 40);
    let rows = random(n * d, 6);
    let weights: Vec<f32> = (0..n).map(|t| if t % 3 == 0 { 0.5 } else { 0.0 }).collect();
    let trained: Vec<f32> = rows.chunks(d).step_by(3).flat_map(|row| row.iter().copied()).collect();
    let mut replay = Replay::default();
    replay.add("down", 1, vec![tensor(rows.clone(), d)]);
    for (use_label_mask, rows) in [(true, trained), (false, rows)] {
        let settings = Components { use_label_mask, svd_batches_max: 2, ..Components::default() };
        let found = settings
            .find(&replay.policy(), &[batch(0, &weights)], &wanted(&[("down", 2)]), &*every(2))
            .unwrap();
        let (sigma, vectors) = full(&centred(&rows, d), 2);
        // The batch is read twice: the same directions, √2 as much.
        let got: Vec<f64> =
            numbers(&found.state, "down.singular_values").iter().map(|s| f64::from(*s)).collect();
        let want: Vec<f64> = sigma.iter().map(|s| s * 2f64.sqrt()).collect();
        close(&got, &want, 1e-5);
        let got: Vec<f64> =
            numbers(&found.state, "down.components").iter().map(|x| f64::from(*x)).collect();
        close(&got, &vectors, 1e-5);
        assert_eq!((found.batches, found.unconverged.len()), (2, 0));
    }
}

/// Batches that rotate a two-dimensional distribution a little further each time.
fn turning(site: &str, d: usize, steps: usize, replay: &mut Replay) {
    let batches = (0..steps).map(|step| {
        let noise = random(40 * d, 20 + step as u64);
        let angle = step as f64 * 0.8;
        let rows = noise.chunks(d).flat_map(|row| {
            let mut row = row.to_vec();
            let (x, y) = (f64::from(row[0]) * 9.0, f64::from(row[1]) * 6.0);
            row[0] = (x * angle.cos() - y * angle.sin()) as f32 * (step + 1) as f32;
            row[1] = (x * angle.sin() + y * angle.cos()) as f32 * (step + 1) as f32;
            row
        });
        tensor(rows.collect(), d)
    });
    replay.add(site, 0, batches.collect());
}

#[test]
fn what_does_not_settle_is_named_and_a_done_site_is_left_alone_until_more_is_asked_of_it() {
    let (d, steps) = (6, 5);
    let mut replay = Replay::default();
    turning("up", d, steps, &mut replay);
    // The same batch ever again: converged after the second.
    let still = tensor(random(40 * d, 7), d);
    replay.add("o", 0, vec![still; steps]);
    let batches: Vec<_> = (0..steps as u32).map(|k| batch(k, &[1.0; 40])).collect();
    let settings = Components { tau: 0.999999, svd_batches_max: steps, ..Components::default() };
    let sites = wanted(&[("up", 2), ("o", 2)]);
    let found = settings.find(&replay.policy(), &batches, &sites, &*every(2)).unwrap();
    assert_eq!((found.unconverged, found.batches), (vec!["up".to_string()], steps));
    let sigma = |found: &StateDict, site: &str| numbers(found, &format!("{site}.singular_values"));
    let once = full(&centred(&random(40 * d, 7), d), 2).0[0];
    // Two batches were taken, the others were not.
    assert!((f64::from(sigma(&found.state, "o")[0]) / once - 2f64.sqrt()).abs() < 1e-5);

    // Asked for nothing, `up` is done after one batch; later it is asked for one, and goes on.
    let calls = Cell::new(0);
    let allot = |_: &BTreeMap<String, Vec<f64>>| {
        calls.set(calls.get() + 1);
        wanted(&[("up", if calls.get() < 3 { 0 } else { 1 }), ("o", 2)])
    };
    let settings = Components { tau: 0.0, ..settings };
    let found = settings.find(&replay.policy(), &batches, &sites, &allot).unwrap();
    assert_eq!((calls.get(), found.batches), (2, 2), "{:?}", found.ranks);
    let settings = Components { tau: 0.999999, ..settings };
    calls.set(1);
    let found = settings.find(&replay.policy(), &batches, &sites, &allot).unwrap();
    assert_eq!((found.ranks["up"], found.unconverged.len()), (1, 1));
    assert_eq!(found.batches, steps);
}

#[test]
fn watching_changes_no_bit_and_bad_wishes_are_refused_by_name() {
    let d = 4;
    let mut replay = Replay::default();
    replay.add("q", 0, vec![tensor(random(9 * d, 8), d)]);
    let (policy, rows) = (replay.policy(), [batch(0, &[1.0; 9])]);
    let before = policy.logits(&rows[0].ids_n, rows[0].rows.clone()).unwrap();
    let settings = Components::default();
    let find = |sites: &[(&str, usize)], settings: &Components| {
        settings.find(&policy, &rows, &wanted(sites), &*every(1))
    };
    assert!(find(&[("q", 2)], &settings).is_ok());
    let after = policy.logits(&rows[0].ids_n, rows[0].rows.clone()).unwrap();
    assert_eq!(before.to_vec2::<f32>().unwrap(), after.to_vec2::<f32>().unwrap());
    for (sites, settings, want) in [
        (&[("p", 2)], settings.clone(), "p: this model has no such site"),
        (&[("resid", 2)], settings.clone(), "resid: is no linear map"),
        (&[("q", 5)], settings.clone(), "q: expected 1 to 4 components, got 5"),
        (&[("q", 0)], settings.clone(), "q: expected 1 to 4 components, got 0"),
        (&[("q", 2)], Components { tau: 1.5, ..settings.clone() }, "tau: expected"),
        (&[("q", 2)], Components { svd_batches_max: 1, ..settings.clone() }, "svd_batches_max"),
    ] {
        let error = find(sites, &settings).unwrap_err();
        assert!(error.to_string().starts_with(want), "{error}");
    }
    let few = [batch(0, &[0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0])];
    let error = settings.find(&policy, &few, &wanted(&[("q", 2)]), &*every(1)).unwrap_err();
    assert!(error.to_string().contains("no batch has the 2 rows"), "{error}");
    let none = [batch(0, &[0.0; 9])];
    let error = settings.find(&policy, &none, &wanted(&[("q", 2)]), &*every(1)).unwrap_err();
    assert!(error.to_string().contains("hold no row"), "{error}");
}
