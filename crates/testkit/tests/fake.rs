//! The fake model keeps every promise of `core::Model`, so that laws tested on it mean something.

use std::sync::Arc;

use candle_core::{D, Tensor};
use luthier_core::{
    Affine, At, Batch, Cache, Ctx, Head, Hook, Hooks, Logits, Model, Policy, Result, Row, Rows,
    Seed, SiteInfo,
};
use luthier_testkit::{
    Fake, Shape, assert_close, assert_gradients, assert_same_bits, check_gradients,
};

fn policy() -> Policy {
    Policy::plain(Arc::new(Fake::new(Shape::default(), Seed(5))))
}

fn rows(lengths: &[usize]) -> Arc<Rows> {
    Arc::new(Rows::new(lengths, |_| 0))
}

/// `y + delta·x`, foldable: a stand-in for any adapter.
struct Add {
    delta_oi: Tensor,
}

impl Hook for Add {
    fn after(&self, _at: &At, x: &Tensor, y: Tensor) -> Result<Tensor> {
        Ok((y + x.matmul(&self.delta_oi.t()?)?)?)
    }

    fn fold(&self, _site: &SiteInfo, lin: &Affine) -> Result<Option<Affine>> {
        Ok(Some(Affine { w_oi: (&lin.w_oi + &self.delta_oi)?, b_o: lin.b_o.clone() }))
    }
}

#[test]
fn rows_of_a_batch_do_not_see_each_other() {
    let policy = policy();
    let (a, b) = ([1, 2, 3, 4], [5, 6, 7]);
    let both = policy.logits(&[1, 2, 3, 4, 5, 6, 7], rows(&[4, 3])).unwrap();
    let alone = policy.logits(&a, rows(&[4])).unwrap();
    assert_close("first", &both.narrow(0, 0, 4).unwrap(), &alone, 1e-6, 0.0);
    let alone = policy.logits(&b, rows(&[3])).unwrap();
    assert_close("second", &both.narrow(0, 4, 3).unwrap(), &alone, 1e-6, 0.0);
    // As one row they do: a test against leaks could not fail otherwise.
    let leaked = policy.logits(&[1, 2, 3, 4, 5, 6, 7], rows(&[7])).unwrap();
    let seen = luthier_testkit::difference("leak", &leaked, &both);
    assert!(seen.abs > 1e-2 && seen.at[0] >= 4, "{seen}");
}

#[test]
fn positions_matter() {
    let policy = policy();
    let plain = policy.logits(&[1, 2, 3], rows(&[3])).unwrap();
    let later = policy.logits(&[1, 2, 3], Arc::new(Rows::new(&[3], |_| 4))).unwrap();
    assert!(luthier_testkit::difference("positions", &later, &plain).abs > 1e-2);
}

#[test]
fn decoding_with_a_cache_equals_the_whole_pass() {
    let policy = policy();
    let (a, b) = ([1u32, 2, 3, 4, 9], [5u32, 6, 7]);
    let mut cache = Cache::new(2, 2);
    let mut run = |ids: &[u32], lengths: &[usize], slots: &[usize]| {
        cache.select(slots.to_vec());
        let start: Vec<usize> = (0..slots.len()).map(|row| cache.len(row)).collect();
        let rows = Arc::new(Rows::new(lengths, |row| start[row]));
        let mut ctx = Ctx::new(&policy.hooks, rows, ids);
        ctx.cache = Some(&mut cache);
        let h_nd = policy.hidden(&mut ctx).unwrap();
        policy.model.unembed(&h_nd, &mut ctx).unwrap()
    };
    let first = run(&[1, 2, 5], &[2, 1], &[0, 1]);
    let second = run(&[6, 7, 3], &[2, 1], &[1, 0]);
    let third = run(&[4, 9], &[2], &[0]);
    let whole_a = policy.logits(&a, rows(&[5])).unwrap();
    let whole_b = policy.logits(&b, rows(&[3])).unwrap();
    let part = |t: &Tensor, start, len| t.narrow(0, start, len).unwrap();
    let got_a = Tensor::cat(&[part(&first, 0, 2), part(&second, 2, 1), third], 0).unwrap();
    let got_b = Tensor::cat(&[part(&first, 2, 1), part(&second, 0, 2)], 0).unwrap();
    assert_close("a", &got_a, &whole_a, 1e-6, 0.0);
    assert_close("b", &got_b, &whole_b, 1e-6, 0.0);
}

#[test]
fn a_folded_hook_equals_a_bound_one() {
    let fake = Arc::new(Fake::new(Shape::default(), Seed(5)));
    let site = fake.sites().get("layers.1.mlp.up").unwrap().clone();
    let delta_oi = Fake::new(Shape::default(), Seed(6)).affine(site.id).unwrap().w_oi;
    let mut hooks = Hooks::none();
    hooks.bind(site.id, Arc::new(Add { delta_oi }));
    let plain = fake.affine(site.id).unwrap();
    let folded = hooks.fold(fake.sites(), site.id, plain).unwrap().unwrap();
    let bound = Policy { model: fake.clone(), hooks };
    let (model, vars) = fake.learn(&[site.id]).unwrap();
    assert_eq!(vars[0].0, "model.layers.1.mlp.up_proj.weight");
    vars[0].1.set(&folded.w_oi).unwrap();
    let ids = [3, 1, 4, 1, 5];
    let want = bound.logits(&ids, rows(&[5])).unwrap();
    assert_close("fold", &Policy::plain(model).logits(&ids, rows(&[5])).unwrap(), &want, 1e-6, 0.0);
    let base = Policy::plain(fake).logits(&ids, rows(&[5])).unwrap();
    assert!(luthier_testkit::difference("bound", &want, &base).abs > 1e-2);
}

/// Counts its calls and changes nothing.
struct Watch(std::sync::Mutex<Vec<String>>);

impl Hook for Watch {
    fn after(&self, at: &At, x: &Tensor, y: Tensor) -> Result<Tensor> {
        let line = format!("{} {:?} {:?}", at.site.name, x.dims(), y.dims());
        self.0.lock().unwrap().push(line);
        Ok(y)
    }
}

#[test]
fn every_site_is_passed_once_in_order_and_watching_changes_nothing() {
    let plain = policy();
    let watch = Arc::new(Watch(Default::default()));
    let mut hooks = Hooks::none();
    for site in plain.model.sites().iter() {
        hooks.bind(site.id, watch.clone());
    }
    let watched = Policy { model: plain.model.clone(), hooks };
    let ids = [1, 2, 3];
    let got = watched.logits(&ids, rows(&[2, 1])).unwrap();
    assert_same_bits("watched", &got, &plain.logits(&ids, rows(&[2, 1])).unwrap());
    let seen = watch.0.lock().unwrap().clone();
    let names: Vec<&str> = seen.iter().filter_map(|l| l.split(' ').next()).collect();
    let all: Vec<&str> = plain.model.sites().iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, all);
    assert_eq!(seen[0], "embed [0] [3, 6]");
    assert!(seen.contains(&"layers.0.mlp.up [3, 6] [3, 10]".to_string()), "{seen:?}");
}

#[test]
fn all_weights_learn_and_their_gradients_are_right() {
    for tied in [false, true] {
        let fake = Fake::new(Shape { tied, ..Shape::default() }, Seed(8));
        let sites = fake.sites();
        let with_weights = |s: &&SiteInfo| s.module.is_some();
        let ids: Vec<_> = sites.iter().filter(with_weights).map(|s| s.id).collect();
        let (model, named) = fake.learn(&ids).unwrap();
        let mut names: Vec<&str> = named.iter().map(|(n, _)| n.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, fake.weights().map(|(n, _)| n).collect::<Vec<_>>());
        assert_eq!(names.contains(&"lm_head.weight"), !tied);
        let vars: Vec<_> = named.into_iter().map(|(_, v)| v).collect();
        let a = Row::from_tokens(&[1, 5, 2, 7, 7], &[1.0, 0.0, 1.0, 0.5, 2.0], 0);
        let b = Row::from_tokens(&[3, 12, 0], &[1.0; 3], 1);
        let batch = Batch::from_rows([&a, &b]);
        let loss = |_: &[candle_core::Var]| -> Result<Tensor> {
            let policy = Policy::plain(model.clone());
            let mut ctx = Ctx::new(&policy.hooks, batch.rows.clone(), &batch.ids_n);
            // Not `Policy::hidden`, which leaves no graph.
            let mut h_nd = model.embed(&batch.ids_n, &mut ctx)?;
            for layer in 0..model.n_layers() {
                h_nd = model.block(layer, h_nd, &mut ctx)?;
            }
            let mut head = Head { model: &*policy.model, h_nd: &h_nd, ctx: &mut ctx };
            let index_m = batch.trained_m();
            let pick = |i: &u32| batch.targets_n[*i as usize];
            let targets_m: Vec<u32> = index_m.iter().map(pick).collect();
            let weights: Vec<f32> = index_m.iter().map(|i| batch.weights_n[*i as usize]).collect();
            let weights_m = Tensor::new(weights, &candle_core::Device::Cpu)?;
            Ok((head.logp(&index_m, &targets_m)? * weights_m)?.sum_all()?.neg()?)
        };
        assert_gradients("fake", &vars, loss);
    }
}

#[test]
fn only_learned_sites_get_gradients_and_the_rest_is_shared() {
    let fake = Fake::new(Shape::default(), Seed(8));
    let site = fake.sites().get("layers.0.mlp.down").unwrap().id;
    let (model, named) = fake.learn(&[site]).unwrap();
    assert_eq!(named.len(), 1);
    let policy = Policy::plain(model.clone());
    let want = Policy::plain(Arc::new(Fake::new(Shape::default(), Seed(8))));
    let ids = [1, 2, 3];
    let got = policy.logits(&ids, rows(&[3])).unwrap();
    assert_same_bits("learn", &got, &want.logits(&ids, rows(&[3])).unwrap());
    let loss = got.max(D::Minus1).unwrap().sum_all().unwrap();
    let grads = loss.backward().unwrap();
    assert!(grads.get(named[0].1.as_tensor()).is_some());
    assert!(fake.weights().all(|(_, t)| grads.get(t).is_none()));
    // A variable that plays no part is reported as agreeing: both slopes are 0.
    let other = candle_core::Var::zeros(3, candle_core::DType::F32, &candle_core::Device::Cpu);
    let same =
        |_: &[candle_core::Var]| policy.logits(&ids, rows(&[3]))?.sum_all().map_err(Into::into);
    check_gradients("absent", &[other.unwrap()], same).unwrap();
    let err = fake.learn(&[fake.sites().get("layers.0.resid_post").unwrap().id]).err().unwrap();
    assert!(err.to_string().contains("layers.0.resid_post"), "{err}");
}
