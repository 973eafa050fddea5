//! Penalties, noise and clipping by hand.

use luthier_core::Seed;

use super::*;

/// Goes away from where it began by `apart`, then steps with a gradient of nothing.
fn pulled(table: &str, mask: Option<&[u32]>, start: &Start) -> (Vec<f32>, StepInfo) {
    let apart: [f32; 4] = [1.0, -1.0, 0.0, 5.0];
    let chosen = |all: &[f32]| match mask {
        None => all.to_vec(),
        Some(mask) => mask.iter().map(|i| all[*i as usize]).collect(),
    };
    let mut params = [param("w", &[1.0, 2.0, 3.0, 4.0], &[4])];
    params[0].mask = mask.map(super::mask);
    let mut stepper = stepper(&format!("{PLAIN}{table}"), &params, start);
    let away: Vec<f32> = apart.iter().map(|x| -x).collect();
    step(&mut stepper, &[("w", row(&chosen(&away)))]);
    let info = step(&mut stepper, &[("w", row(&chosen(&[0.0; 4])))]);
    (values(&params[0]), info)
}

#[test]
fn the_pull_of_l1_does_not_depend_on_the_distance() {
    // Paper 07: λ = 0.1 of 4 parameters is 0.025 each, 0 at the beginning.
    let start = Start { model_params: 4, ..Start::steps(5) };
    let (after, info) = pulled("[l1]\nlambda = 0.1", None, &start);
    close(&after, &[1.975, 1.025, 3.0, 8.975]);
    assert!((info.grad_norm - 3f64.sqrt() * 0.025).abs() < 1e-8, "before the norm is taken");
    let (after, _) = pulled("[l1]\nlambda = 0.1", Some(&[1, 3]), &start);
    close(&after, &[1.0, 1.025, 3.0, 8.975]);
}

#[test]
fn a_spring_pulls_with_the_distance() {
    let (after, _) = pulled("[l2_sp]\nalpha = 0.5", None, &Start::steps(5));
    close(&after, &[1.5, 1.5, 3.0, 6.5]);
    let fisher: StateDict = [("w".to_string(), row(&[1.0, 0.25, 7.0, 0.1]))].into_iter().collect();
    let start = Start { fisher: Some(&fisher), ..Start::steps(5) };
    let table = "[ewc]\nlambda = 2\nfisher = \"f.safetensors\"";
    close(&pulled(table, None, &start).0, &[0.0, 1.5, 3.0, 8.0]);
    close(&pulled(table, Some(&[1, 3]), &start).0, &[1.0, 1.5, 3.0, 8.0]);
    // All at once.
    let both = format!("[l2_sp]\nalpha = 0.5\n{table}");
    close(&pulled(&both, None, &start).0, &[-0.5, 2.0 - 1.0 + 1.0, 3.0, 5.5]);
}

#[test]
fn fisher_values_must_be_there_and_fit() {
    for (name, values, want) in [
        ("v", [1.0, 1.0, 1.0, 1.0].as_slice(), "has no values for w"),
        ("w", &[1.0, 1.0], "w: gradient has shape"),
        ("w", &[1.0, 1.0, -1.0, 1.0], "w has a value below 0"),
        ("w", &[1.0, 1.0, f32::NAN, 1.0], "w has a value below 0 or not finite"),
    ] {
        let fisher: StateDict = [(name.to_string(), row(values))].into_iter().collect();
        let start = Start { fisher: Some(&fisher), ..Start::steps(5) };
        let params = [param("w", &[1.0; 4], &[4])];
        let made = Stepper::new(&update("[ewc]\nfisher = \"f\""), &params, &start);
        let err = made.map(|_| ()).unwrap_err().to_string();
        let want = if values.len() == 2 { "train.update.ewc.fisher: w" } else { want };
        assert!(err.contains(want), "{err}");
    }
}

/// One step with a gradient of nothing.
fn lowered(values_: &[f32], dims: &[usize], mask: Option<&[u32]>) -> Vec<f32> {
    let mut params = [param("w", values_, dims)];
    params[0].mask = mask.map(super::mask);
    let learned = params[0].count();
    let text = format!("{PLAIN}[nuclear]\nlambda = 0.5\nmin_dim_rank = 1\nmin_entries = 1");
    let mut stepper = stepper(&text, &params, &Start::steps(5));
    let zero = match mask {
        None => row(&vec![0.0; learned]).reshape(dims).unwrap(),
        Some(_) => row(&vec![0.0; learned]),
    };
    step(&mut stepper, &[("w", zero)]);
    values(&params[0])
}

#[test]
fn the_nuclear_norm_pulls_every_direction_alike() {
    // Paper 29: of diag(3, 4) the gradient is the identity; what has rank 1 is pulled along it.
    close(&lowered(&[3.0, 0.0, 0.0, 4.0], &[2, 2], None), &[2.5, 0.0, 0.0, 3.5]);
    close(&lowered(&[3.0, 0.0, 0.0, 0.0], &[2, 2], None), &[2.5, 0.0, 0.0, 0.0]);
    // What is not chosen counts as 0 and stays.
    close(&lowered(&[3.0, 7.0, 0.0, 4.0], &[2, 2], Some(&[0, 3])), &[2.5, 7.0, 0.0, 3.5]);
    // Rank 1, with both its numbers in different directions: their ratio stays.
    let wide = lowered(&[3.0, 0.0, 0.0, 4.0, 0.0, 0.0], &[2, 3], None);
    close(&wide, &[3.0 - 0.3, 0.0, 0.0, 4.0 - 0.4, 0.0, 0.0]);
}

#[test]
fn the_nuclear_norm_falls_by_the_rank_times_the_step() {
    // A small step along the gradient lowers Σσ by step · ‖U Vᵀ‖² = step · rank.
    let mut rng = Seed(3).rng();
    let before: Vec<f32> = (0..12).map(|_| rng.normal() as f32).collect();
    let gram = |x: &[f32]| -> f64 {
        // Σσ of a 2-row matrix: √(tr + 2 √det) of its Gram matrix.
        let dot = |a: usize, b: usize| -> f64 {
            (0..6).map(|i| f64::from(x[a * 6 + i]) * f64::from(x[b * 6 + i])).sum()
        };
        let det = dot(0, 0) * dot(1, 1) - dot(0, 1) * dot(0, 1);
        (dot(0, 0) + dot(1, 1) + 2.0 * det.sqrt()).sqrt()
    };
    let after = lowered(&before, &[2, 6], None);
    assert!((gram(&before) - gram(&after) - 2.0 * 0.5).abs() < 1e-5);
}

/// `X (Xᵀ X)^(−½)` for two columns, by the closed form of a root.
fn polar(x: &[f32]) -> Vec<f64> {
    let of = |a: usize, b: usize| -> f64 {
        x.chunks(2).map(|row| f64::from(row[a]) * f64::from(row[b])).sum()
    };
    let (a, b, d) = (of(0, 0), of(0, 1), of(1, 1));
    let s = (a * d - b * b).sqrt();
    let t = (a + d + 2.0 * s).sqrt();
    let root = [(a + s) / t, b / t, (d + s) / t];
    let det = root[0] * root[2] - root[1] * root[1];
    let inverse = [root[2] / det, -root[1] / det, root[0] / det];
    let row = |row: &[f32]| {
        let [x, y] = [0, 1].map(|c| f64::from(row[c]));
        [x * inverse[0] + y * inverse[1], x * inverse[1] + y * inverse[2]]
    };
    x.chunks(2).flat_map(row).collect()
}

#[test]
fn a_matrix_is_pulled_in_pieces_and_like_its_transpose() {
    let mut rng = Seed(6).rng();
    let n = 2500;
    let before: Vec<f32> = (0..2 * n).map(|_| rng.normal() as f32).collect();
    let moved = |x: &[f32], by: Vec<f64>| -> Vec<f64> {
        x.iter().zip(by).map(|(x, by)| f64::from(*x) - 0.5 * by).collect()
    };
    close(&lowered(&before, &[n, 2], None), &moved(&before, polar(&before)));
    let transposed = |x: &[f32], rows: usize| -> Vec<f32> {
        let columns = x.len() / rows;
        (0..x.len()).map(|p| x[p % rows * columns + p / rows]).collect()
    };
    let after = lowered(&transposed(&before, n), &[2, n], None);
    close(&transposed(&after, 2), &moved(&before, polar(&before)));
    // Every third entry, and none at all for more rows than a piece has.
    let chosen = |p: &usize| p.is_multiple_of(3) && (p / 2 < 200 || p / 2 > 1300);
    let positions: Vec<u32> = (0..2 * n).filter(chosen).map(|p| p as u32).collect();
    let kept = |x: &[f32]| -> Vec<f32> {
        x.iter().enumerate().map(|(p, x)| if chosen(&p) { *x } else { 0.0 }).collect()
    };
    let by = polar(&kept(&before));
    let by = by.into_iter().enumerate().map(|(p, by)| if chosen(&p) { by } else { 0.0 }).collect();
    close(&lowered(&before, &[n, 2], Some(&positions)), &moved(&before, by));
}

#[test]
fn one_matrix_a_step_is_drawn_and_every_one_is_drawn_some_time() {
    let params: Vec<Param> = ["a", "b", "c"]
        .map(|name| param(name, &[3.0, 0.0, 0.0, 4.0], &[2, 2]))
        .into_iter()
        .chain([param("vector", &[1.0, 2.0], &[2])])
        .collect();
    let text = format!("{PLAIN}[nuclear]\nlambda = 0.01\nmin_dim_rank = 1\nmin_entries = 1");
    let mut stepper = stepper(&text, &params, &Start::steps(50));
    let zero = || row(&[0.0; 4]).reshape((2, 2)).unwrap();
    let mut drawn = [0; 3];
    for _ in 0..30 {
        let before: Vec<Vec<f32>> = params.iter().map(values).collect();
        let grads = [("a", zero()), ("b", zero()), ("c", zero()), ("vector", row(&[0.0; 2]))];
        step(&mut stepper, &grads);
        let moved: Vec<usize> = (0..4).filter(|i| values(&params[*i]) != before[*i]).collect();
        assert_eq!(moved.len(), 1);
        drawn[moved[0]] += 1;
    }
    assert!(drawn.iter().all(|n| *n > 2), "{drawn:?}");
}

#[test]
fn noise_fades_as_it_should() {
    let n = 40_000;
    let text = format!("{PLAIN}[noise]\neta = 0.04\ngamma = 0.55");
    let spread = |seed: u64| {
        let params = [param("a", &vec![0.0; n], &[n]), param("b", &vec![0.0; n], &[n])];
        let start = Start { seed: Seed(seed), ..Start::steps(9) };
        let mut stepper = stepper(&text, &params, &start);
        let mut seen = vec![params.each_ref().map(values)];
        for _ in 0..8 {
            step(&mut stepper, &[("a", row(&vec![0.0; n])), ("b", row(&vec![0.0; n]))]);
            seen.push(params.each_ref().map(values));
        }
        seen
    };
    let seen = spread(1);
    for t in [1usize, 2, 8] {
        let want = 0.04 / (t as f64).powf(0.55);
        let by: Vec<f64> = (0..n).map(|i| f64::from(seen[t][0][i] - seen[t - 1][0][i])).collect();
        let mean = by.iter().sum::<f64>() / n as f64;
        let variance = by.iter().map(|x| x * x).sum::<f64>() / n as f64;
        assert!((variance / want - 1.0).abs() < 0.03 && mean.abs() < 0.005, "{t}: {variance}");
    }
    // Pieces, variables and steps have noise of their own; the seed decides all of it.
    let (first, second) = (&seen[1][0], &seen[1][1]);
    assert!(first != second && first[..64] != first[1 << 14..(1 << 14) + 64]);
    let again: Vec<f32> = (0..n).map(|i| seen[2][0][i] - seen[1][0][i]).collect();
    assert!(again[..64] != first[..64]);
    assert!(spread(1) == seen && spread(2) != seen);
}

/// What a step with limit 1 (or 5 for numbers) leaves of three gradients.
fn clipped(clip: &str) -> (Vec<f32>, StepInfo) {
    let params = [
        param("model.layers.0.w", &[0.0; 2], &[2]),
        param("model.layers.1.w", &[0.0; 2], &[2]),
        param("lm_head.w", &[0.0; 2], &[2]),
    ];
    let text = format!("{clip}\n[schedule.constant]\n[sgd]\nlearning_rate = 1");
    let text = match clip.contains("group") {
        true => format!("{text}\n[[groups]]\nat = \"model.layers.*.w\"\nweight_decay = 0"),
        false => text,
    };
    let mut stepper = stepper(&text, &params, &Start::steps(5));
    let grads = [
        ("model.layers.0.w", row(&[-3.0, -4.0])),
        ("model.layers.1.w", row(&[0.0, -12.0])),
        ("lm_head.w", row(&[-8.0, -6.0])),
    ];
    let info = step(&mut stepper, &grads);
    (params.iter().flat_map(values).collect(), info)
}

#[test]
fn clipping_holds_what_it_is_told_to_hold() {
    let norm = (25f64 + 144.0 + 100.0).sqrt();
    let (all, info) = clipped("");
    close(&all, &[3.0, 4.0, 0.0, 12.0, 8.0, 6.0].map(|x| x / norm));
    assert!(info.clipped && (info.grad_norm - norm).abs() < 1e-12);
    close(&clipped("clip = \"layer\"").0, &[0.6, 0.8, 0.0, 1.0, 0.8, 0.6]);
    let by_group = [3.0 / 13.0, 4.0 / 13.0, 0.0, 12.0 / 13.0, 0.8, 0.6];
    close(&clipped("clip = \"group\"").0, &by_group);
    let (numbers, info) = clipped("clip = \"value\"\nmax_grad_value = 5");
    assert_eq!(numbers, [3.0, 4.0, 0.0, 5.0, 5.0, 5.0]);
    assert!(info.clipped && (info.grad_norm - norm).abs() < 1e-12);
    // A cluster within its limit is left alone, whatever the others do.
    let (some, info) = clipped("clip = \"layer\"\nmax_grad_norm = 11");
    close(&some, &[3.0, 4.0, 0.0, 11.0, 8.0, 6.0]);
    assert!(info.clipped);
    let (none, info) = clipped("clip = \"layer\"\nmax_grad_norm = 12.5");
    close(&none, &[3.0, 4.0, 0.0, 12.0, 8.0, 6.0]);
    assert!(!info.clipped);
}
