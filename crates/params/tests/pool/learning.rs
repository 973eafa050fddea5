//! Who learns, what is pulled and what is counted.

use std::sync::Arc;

use candle_core::Tensor;
use luthier_core::{Batch, Ctx, Model, Row, Seed, model::gather_logp};
use luthier_params::{Bound, Pool, Scope, form::pool::switch};
use luthier_testkit::{assert_gradients, assert_same_bits};

use super::{TEXTS, aimed, all, ia3, model, pool, query, small};
use crate::whole::{SMALL, Sizes, Whole, logits};

/// One training pass: the chosen entries' variables with their gradients, of the loss and the pull.
fn trained(bound: &Bound) -> Vec<String> {
    let rows: Vec<Row> = TEXTS
        .iter()
        .enumerate()
        .map(|(i, t)| Row {
            ids: t.to_vec(),
            targets: t.to_vec(),
            weights: vec![1.0; t.len()],
            example: i,
            ..Row::default()
        })
        .collect();
    let batch = Batch::from_rows(&rows);
    let mut ctx = Ctx::new(&bound.policy.hooks, batch.rows.clone(), &batch.ids_n);
    ctx.noise = Some(Seed(3));
    let mut h_nd = bound.policy.model.embed(&batch.ids_n, &mut ctx).unwrap();
    for layer in 0..bound.policy.model.n_layers() {
        h_nd = bound.policy.model.block(layer, h_nd, &mut ctx).unwrap();
    }
    let logits_nv = bound.policy.model.unembed(&h_nd, &mut ctx).unwrap();
    let mut loss = gather_logp(&logits_nv, &batch.targets_n).unwrap().mean_all().unwrap();
    let hooks = &bound.policy.hooks;
    for hook in hooks.sites().flat_map(|site| hooks.get(site)) {
        if let Some(penalty) = hook.penalty(&batch).unwrap() {
            loss = (loss + penalty).unwrap();
        }
    }
    let grads = loss.backward().unwrap();
    let found = bound.params.iter().filter(|p| grads.get(p.var.as_tensor()).is_some());
    found.map(|p| p.name.clone()).collect()
}

#[test]
fn gradients_reach_the_chosen_entries_alone() {
    for (form, pulled) in
        [(small(), true), (Pool { pull_coef: 0.0, ..small() }, false), (ia3(), true)]
    {
        let bound = aimed(form, &model());
        let found = trained(&bound);
        let chosen = |name: &str| {
            let parts = ["pool_0.", "pool_2.", "pool_3.", "pool.0.", "pool.2.", "pool.3."];
            parts.iter().any(|part| name.contains(part))
        };
        for param in &bound.params {
            let is_key = param.name.ends_with(".key");
            let want = param.count() > 0 && chosen(&param.name) && (pulled || !is_key);
            assert_eq!(found.contains(&param.name), want, "{}", param.name);
        }
    }
}

#[test]
fn the_pull_is_the_cosine_of_the_published_loss() {
    let bound = aimed(small(), &model());
    let (ids, rows) = all();
    let batch = Batch {
        targets_n: ids.clone(),
        weights_n: vec![1.0; ids.len()],
        tags_n: vec![0; ids.len()],
        examples_b: vec![0; 4],
        references_b: vec![0.0; 4],
        tasks_b: vec![0; 4],
        labels_b: vec![0.0; 4],
        teachers_b: vec![None; 4],
        ids_n: ids,
        rows,
    };
    logits(&bound.policy, &batch.ids_n, &batch.rows);
    let site = bound.policy.model.sites().get("embed").unwrap().id;
    let [chooser] = bound.policy.hooks.get(site) else { panic!("one hook") };
    let got = chooser.penalty(&batch).unwrap().unwrap().to_scalar::<f32>().unwrap();
    let cosine = |row: usize, entry: usize| {
        let numbers = |t: &Tensor| t.to_vec1::<f32>().unwrap();
        let q = numbers(&query(&bound.policy.model, TEXTS[row]));
        let k = numbers(bound.var(&format!("pool.{entry}.key")).unwrap());
        let dot =
            |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
        dot(&q, &k) / (dot(&q, &q) * dot(&k, &k)).sqrt()
    };
    let want: f64 = [(0, 2), (1, 0), (2, 3), (3, 2)].map(|(r, e)| -0.5 * cosine(r, e)).iter().sum();
    assert!((f64::from(got) - want).abs() < 1e-5, "{got} {want}");
    let keys: Vec<_> =
        [0, 2, 3].map(|e| bound.var(&format!("pool.{e}.key")).unwrap().clone()).into();
    assert_gradients("pull", &keys, |_| Ok(chooser.penalty(&batch)?.unwrap()));
    let of_another_pass = Batch { rows: Arc::new((*batch.rows).clone()), ..batch };
    assert!(chooser.penalty(&of_another_pass).unwrap().is_none());
}

#[test]
fn gradients_agree_with_finite_differences() {
    let (ids, rows) = all();
    let targets: Vec<u32> = (0..ids.len() as u32).collect();
    let one: Arc<dyn Model> = Arc::new(Whole::random(Sizes { layers: 1, ..SMALL }));
    for (name, form) in [("lora", small()), ("ia3", ia3())] {
        let bound = aimed(form, &one);
        let entries = ["pool_0.", "pool_2."];
        let chosen = |name: &str| entries.iter().any(|entry| name.contains(entry));
        let own = bound.params.iter().filter(|p| chosen(&p.name)).map(|p| p.var.clone());
        assert_gradients(name, &own.collect::<Vec<_>>(), |_| {
            let logits_nv = bound.policy.logits(&ids, rows.clone())?;
            Ok(gather_logp(&logits_nv, &targets)?.mean_all()?)
        });
    }
}

#[test]
fn after_a_switch_training_leaves_used_entries() {
    let bound = aimed(small(), &model());
    let counts = || bound.var("pool.counts").unwrap().to_vec1::<f32>().unwrap();
    let (ids, rows) = all();
    logits(&bound.policy, &ids, &rows);
    assert_eq!(counts(), [0.0; 4], "only training counts");
    trained(&bound);
    trained(&bound);
    assert_eq!(counts(), [2.0, 0.0, 4.0, 2.0]);
    switch(&bound.params).unwrap();
    // All rows to the only entry that was never used; outside of training nothing has changed.
    let want = logits(&aimed(small(), &model()).policy, &ids, &rows);
    let found = trained(&bound);
    assert!(found.iter().all(|name| name.contains("pool_1.") || name == "pool.1.key"), "{found:?}");
    assert_eq!(counts(), [2.0, 4.0, 4.0, 2.0]);
    assert_same_bits("test time", &logits(&bound.policy, &ids, &rows), &want);
    // The same variables with counts that do not matter.
    let free = Pool { count_penalty: false, ..small() };
    let values = bound.params.iter().map(|p| (p.name.clone(), p.var.copy().unwrap()));
    let free = pool(free).bind_in(&model(), Scope::given(values.collect())).unwrap();
    assert!(trained(&free).iter().any(|name| name.contains("pool_2.")));
}

#[test]
fn values_from_a_file_bind_the_same() {
    let bound = aimed(small(), &model());
    trained(&bound);
    switch(&bound.params).unwrap();
    let values = || bound.params.iter().map(|p| (p.name.clone(), p.var.copy().unwrap())).collect();
    let again = bound.form.bind_in(&model(), Scope::given(values())).unwrap();
    for (ours, theirs) in bound.params.iter().zip(&again.params) {
        assert_eq!((&ours.name, ours.count()), (&theirs.name, theirs.count()));
        assert_same_bits(&ours.name, &theirs.var, &ours.var);
    }
    assert_eq!(trained(&again), trained(&bound));
}
