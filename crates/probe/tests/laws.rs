//! The laws of measuring: what is planted is found, and watching changes nothing.

mod fake;

use std::sync::Arc;

use candle_core::{Device, Tensor};
use fake::{Fake, VOCAB, random};
use luthier_core::{At, Batch, Hook, Policy, Result, Row, Rows, StateDict};
use luthier_probe::{
    Bootstrap, Capture, Comparison, Kind, METHODS, Score,
    delta::{Change, Changed, compare, low_rank_singular_values, measure, singular_values},
    metric::{NllReport, nll},
    stats::{Interval, Test},
};

fn matrix(rows: usize, cols: usize, seed: u64) -> Tensor {
    Tensor::from_vec(random(rows * cols, seed), (rows, cols), &Device::Cpu).unwrap()
}

fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// The twin: faer's full SVD in f64.
fn full_svd(tensor: &Tensor) -> Vec<f64> {
    let rows = tensor.to_vec2::<f32>().unwrap();
    let (m, n) = tensor.dims2().unwrap();
    let dense = faer::Mat::from_fn(m, n, |i, j| f64::from(rows[i][j]));
    dense.svd().unwrap().S().column_vector().iter().copied().collect()
}

fn close(got: &[f64], want: &[f64], within: f64) {
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() < within * want[0], "{i}: {g} {w}");
    }
}

#[test]
fn the_quick_spectra_equal_the_full_svd() {
    for (rows, cols, seed) in
        [(40, 24, 1), (24, 40, 2), (7, 7, 3), (1, 9, 4), (2500, 6, 5), (6, 2500, 6)]
    {
        let dense = matrix(rows, cols, seed);
        let got = singular_values("w", &flat(&dense), rows, cols).unwrap();
        assert_eq!(got.len(), rows.min(cols));
        close(&got, &full_svd(&dense), 1e-7);
    }
    for (o, i, r, seed) in [(30, 20, 4, 1), (20, 30, 1, 2), (5, 20, 8, 3), (20, 3, 6, 4)] {
        let (a_ri, b_or) = (matrix(r, i, seed), matrix(o, r, seed + 9));
        let scale = -1.7;
        let got = low_rank_singular_values("w", &flat(&a_ri), &flat(&b_or), r, scale).unwrap();
        let product = (b_or.matmul(&a_ri).unwrap() * scale).unwrap();
        close(&got, &full_svd(&product), 1e-6);
        assert_eq!(got.len(), r.min(o).min(i));
    }
}

#[test]
fn a_planted_change_is_found_with_its_rank_and_norm() {
    let (o, i, r) = (48, 36, 3);
    let (base, a_ri, b_or) = (matrix(o, i, 1), matrix(r, i, 2), matrix(o, r, 3));
    let scale = 0.25;
    let delta = (b_or.matmul(&a_ri).unwrap() * scale).unwrap();
    let norm = |t: &Tensor| flat(t).iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    let planted = norm(&delta);

    let name = "model.layers.7.mlp.up_proj.weight";
    let mut before = StateDict::default();
    before.insert(name, base.clone());
    before.insert("model.norm.weight", matrix(1, 5, 4).squeeze(0).unwrap());
    let mut after = before.clone();
    after.insert(name, (&base + &delta).unwrap());
    let seen = compare(&before, &after).unwrap();
    let low_rank = Changed {
        name: name.to_string(),
        base: Some(base.clone()),
        change: Change::LowRank { a_ri, b_or, scale },
    };
    let factored = measure(&[low_rank]).unwrap();
    for report in [&seen.matrices[0], &factored.matrices[0]] {
        assert_eq!((report.rank, report.rank99 <= r, report.layer), (r, true, Some(7)));
        assert!((report.frobenius / planted - 1.0).abs() < 1e-5);
        assert!((report.relative.unwrap() / (planted / norm(&base)) - 1.0).abs() < 1e-5);
        assert!(report.effective_rank > 1.0 && report.effective_rank <= r as f64 + 1e-3);
        assert!(report.stable_rank >= 1.0 && report.stable_rank <= r as f64);
    }
    let untouched = &seen.matrices[1];
    assert_eq!((untouched.rank, untouched.rank99, untouched.frobenius), (0, 0, 0.0));
    assert_eq!((untouched.effective_rank, untouched.layer), (0.0, None));
    assert!((seen.frobenius / planted - 1.0).abs() < 1e-5);
}

#[test]
fn spectra_have_the_same_bits_on_any_number_of_threads() {
    let changed = |seed: u64| {
        let (a_ri, b_or) = (matrix(16, 900, seed), matrix(700, 16, seed + 1));
        let low_rank = Change::LowRank { a_ri, b_or, scale: 2.0 };
        [Change::Dense(matrix(300, 200, seed)), low_rank].map(|change| Changed {
            name: "w".into(),
            base: None,
            change,
        })
    };
    let changed: Vec<Changed> = (0..3).flat_map(changed).collect();
    let on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        serde_json::to_string(&pool.install(|| measure(&changed)).unwrap()).unwrap()
    };
    assert_eq!(on(1), on(4));
}

#[test]
fn ranks_of_a_known_spectrum() {
    // diag(4, 2, 2, 0): energy 24, entropy of (1/2, 1/4, 1/4) is 1.5 ln 2.
    let diagonal = [4.0f32, 2.0, 2.0, 0.0];
    let values: Vec<f32> =
        (0..16).map(|k| if k % 5 == 0 { diagonal[k / 5] } else { 0.0 }).collect();
    let delta = Tensor::from_vec(values, (4, 4), &Device::Cpu).unwrap();
    let changed = Changed { name: "w".into(), base: None, change: Change::Dense(delta) };
    let report = &measure(&[changed]).unwrap().matrices[0];
    assert!((report.spectral - 4.0).abs() < 1e-12 && (report.stable_rank - 1.5).abs() < 1e-12);
    assert!((report.effective_rank - 8f64.sqrt()).abs() < 1e-6);
    assert_eq!((report.rank, report.rank99, report.relative), (3, 3, None));
}

#[test]
fn matrices_that_do_not_belong_together_are_refused_by_name() {
    let one: StateDict = [("a".to_string(), matrix(2, 3, 1))].into_iter().collect();
    let two: StateDict = [("a".to_string(), matrix(3, 2, 1))].into_iter().collect();
    assert!(compare(&one, &two).unwrap_err().to_string().starts_with("a: expected the shape"));
    assert!(compare(&one, &StateDict::default()).unwrap_err().to_string().starts_with("a: is in"));
    assert!(compare(&StateDict::default(), &one).unwrap_err().to_string().starts_with("a: is in"));
    let nan = Tensor::new(&[[f32::NAN]], &Device::Cpu).unwrap();
    let changed = Changed { name: "w".into(), base: None, change: Change::Dense(nan) };
    assert!(measure(&[changed]).unwrap_err().to_string().starts_with("w: "));
}

fn rows() -> Vec<Row> {
    let tokens = [&[1u32, 5, 2, 2, 7][..], &[3, 0, 4], &[6, 6, 1, 0, 2, 3]];
    let weights = [&[0.0f32, 0.0, 1.0, 1.0, 1.0][..], &[0.0, 1.0, 0.5], &[1.0; 6]];
    let row = |(i, (t, w)): (usize, (&&[u32], &&[f32]))| Row::from_tokens(t, w, i);
    tokens.iter().zip(&weights).enumerate().map(row).collect()
}

/// Softmax of every full logit vector, in f64, one row at a time.
fn naive_nll(policy: &Policy, row: &Row) -> f64 {
    let logits = policy.logits(&row.ids, Arc::new(Rows::single(row.len()))).unwrap();
    let logits = logits.to_vec2::<f32>().unwrap();
    let mut sum = 0.0;
    for (t, logits) in logits.iter().enumerate() {
        let z: f64 = logits.iter().map(|l| f64::from(*l).exp()).sum();
        let p = f64::from(logits[row.targets[t] as usize]).exp() / z;
        sum -= f64::from(row.weights[t]) * p.ln();
    }
    sum
}

#[test]
fn likelihoods_equal_the_softmax_row_by_row() {
    let (policy, rows) = (Fake::policy(), rows());
    let batches = [Batch::from_rows(&rows[..2]), Batch::from_rows(&rows[2..])];
    let measured = nll(&policy, &batches).unwrap();
    assert_eq!(measured, nll(&policy, [Batch::from_rows(&rows)]).unwrap());
    assert_eq!(
        measured.iter().map(|r| (r.example, r.tokens)).collect::<Vec<_>>(),
        [(0, 3), (1, 2), (2, 5)]
    );
    for (row, got) in rows.iter().zip(&measured) {
        let want = naive_nll(&policy, row);
        assert!((got.sum - want).abs() < 1e-5 * want.abs(), "{} {want}", got.sum);
    }
    let report = NllReport::from_rows(&measured, &Bootstrap::default()).unwrap();
    let (sum, weight) = (measured.iter().map(|r| r.sum).sum::<f64>(), 3.0 + 1.5 + 5.0);
    assert!((report.nll - sum / weight).abs() < 1e-12 && report.perplexity == report.nll.exp());
    assert!(report.ci95[0] < report.perplexity && report.perplexity < report.ci95[1]);
    let means = measured[0].sum / 3.0 + measured[1].sum / 1.5 + measured[2].sum / 5.0;
    assert!((report.row_mean - means / 3.0).abs() < 1e-12);
}

#[test]
fn rows_that_cannot_be_measured_are_refused() {
    let silent = Row::from_tokens(&[1, 2, 3], &[0.0; 3], 4);
    let mut rows = rows();
    rows.push(silent);
    let err = nll(&Fake::policy(), [Batch::from_rows(&rows)]).unwrap_err();
    assert!(err.to_string().starts_with("example 5: has no token"), "{err}");
    let stranger = Row::from_tokens(&[1, VOCAB as u32], &[1.0; 2], 0);
    assert_eq!(nll(&Fake::policy(), [Batch::from_rows([&stranger])]).unwrap_err().exit_code(), 2);
}

struct Nudge;

impl Hook for Nudge {
    fn after(&self, _at: &At, _x: &Tensor, y: Tensor) -> Result<Tensor> {
        Ok((y + 1e-3)?)
    }
}

#[test]
fn observing_leaves_logits_bit_equal() {
    let plain = Fake::policy();
    let (ids, rows) = ([1u32, 5, 2, 7, 3], Arc::new(Rows::new(&[3, 2], |_| 0)));
    let bits = |p: &Policy| -> Vec<u32> {
        flat(&p.logits(&ids, rows.clone()).unwrap()).iter().map(|x| x.to_bits()).collect()
    };
    let mut watched = plain.clone();
    let sites = plain.model.sites().clone();
    let capture = Capture::bind(&mut watched.hooks, &sites, "probe.at", "**").unwrap();
    assert_eq!(bits(&plain), bits(&watched));
    let mut nudged = plain.clone();
    nudged.hooks.bind(sites.get("layers.0.mlp.up").unwrap().id, Arc::new(Nudge));
    assert_ne!(bits(&plain), bits(&nudged), "this test must be able to fail");

    let report = capture.report();
    assert_eq!(report.len(), sites.len());
    let up = report.iter().find(|s| s.site == "layers.0.mlp.up").unwrap();
    let stream = report.iter().find(|s| s.site == "layers.0.resid_pre").unwrap();
    assert_eq!((up.output.vectors, stream.input), (5, None));
    // The stream before the first block is the embedding, and the input of `up`.
    assert_eq!(up.input.unwrap(), stream.output);
    let table = Fake::table();
    let seen: Vec<&[f32]> = ids.iter().map(|id| &table[*id as usize * 4..][..4]).collect();
    let length = |v: &[f32]| v.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    let norm = seen.iter().map(|v| length(v)).sum::<f64>() / 5.0;
    let mean = seen.iter().flat_map(|v| v.iter()).map(|x| f64::from(*x)).sum::<f64>() / 20.0;
    assert!((stream.output.norm - norm).abs() < 1e-12);
    assert!((stream.output.mean - mean).abs() < 1e-12);
}

#[test]
fn certainty_is_never_claimed_and_wilson_steps_in() {
    let bootstrap = Bootstrap::default();
    let sure = Score::of("exact_match", &[1.0; 10], &bootstrap).unwrap();
    assert_eq!((sure.value, sure.ci95[1], sure.interval), (1.0, 1.0, Interval::Wilson));
    assert!((sure.ci95[0] - 0.722467200137).abs() < 1e-11);
    let mixed = Score::of("exact_match", &[1.0, 0.0, 1.0, 1.0], &bootstrap).unwrap();
    assert_eq!((mixed.value, mixed.n, mixed.interval), (0.75, 4, Interval::Bootstrap));
    assert_eq!(mixed.ci95, [0.25, 1.0]);
    assert!(Score::of("exact_match", &[], &bootstrap).is_err());
}

#[test]
fn a_comparison_is_paired() {
    let before: Vec<f64> = (0..40).map(|i| f64::from(i % 2)).collect();
    let mut after = before.clone();
    (0..18).step_by(2).for_each(|i| after[i] = 1.0);
    after[1] = 0.0;
    let seen = Comparison::of("exact_match", &before, &after, &Bootstrap::default()).unwrap();
    assert_eq!((seen.better, seen.worse, seen.test), (9, 1, Test::Mcnemar));
    assert!((seen.p_value - 0.021484375).abs() < 1e-12 && (seen.difference - 0.2).abs() < 1e-12);
    assert!(seen.ci95[0] > 0.0 && seen.ci95[0] < 0.2 && seen.ci95[1] > 0.2);
    let graded: Vec<f64> = before.iter().map(|b| b + 0.25).collect();
    let graded = Comparison::of("nll", &before, &graded, &Bootstrap::default()).unwrap();
    assert_eq!((graded.test, graded.ci95), (Test::PairedBootstrap, [0.25, 0.25]));
    assert!(graded.p_value < 1e-3);
    let short = Comparison::of("nll", &before, &after[1..], &Bootstrap::default()).unwrap_err();
    assert_eq!(short.exit_code(), 2);
}

/// Probes that are no metrics of an answer.
const NOT_OF_TEXTS: &[&str] = &[
    "delta",
    "capture",
    "components",
    "fisher",
    "phrasing",
    "tuco",
    "novelty",
    "wanda",
    "graft",
    "diversity",
    "sharpness",
    "weighted_f1",
];

#[test]
fn metrics_are_named_and_total() {
    let known = METHODS.iter().map(|m| m.name).filter(|n| !NOT_OF_TEXTS.contains(n));
    for name in known {
        let kind = Kind::named("--metric", name).unwrap();
        assert_eq!(kind.name(), name);
        let again = serde_json::to_string(&kind).unwrap();
        assert_eq!(serde_json::from_str::<Kind>(&again).unwrap(), kind);
        let Some(metric) = kind.text() else { continue };
        let canonical = r#"{"a": 1}"#;
        assert_eq!(metric.judge(canonical, canonical).value, 1.0);
        for answer in ["", "\u{0}", "####", "\u{fffd}木", "{", "```", "`````", "[[[["] {
            let value = metric.judge(answer, canonical).value;
            // Degrees of likeness give something for a token in common.
            match ["bleu", "chrf", "rouge_l"].contains(&name) {
                true => assert!((0.0..0.5).contains(&value), "{name} {answer:?}: {value}"),
                false => assert_eq!(value, 0.0, "{name} {answer:?}"),
            }
        }
    }
    let err = Kind::named("--metric", "exact_mach").unwrap_err();
    assert!(err.to_string().contains("did you mean `exact_match`?"), "{err}");
    assert!(serde_json::from_str::<Kind>(r#"{"exact_match": {"lower": true}}"#).is_err());
}

#[test]
fn a_misspelt_site_names_its_neighbours() {
    let mut hooks = luthier_core::Hooks::none();
    let model = Fake::policy().model;
    let err = Capture::bind(&mut hooks, model.sites(), "probe.at", "layers.0.mlp.pu").unwrap_err();
    assert!(err.to_string().contains("layers.0.mlp.up"), "{err}");
}
