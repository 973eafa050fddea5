//! The block without a graph against the block in tensor operations: outputs and every gradient.

use std::{collections::HashMap, sync::Arc};

use candle_core::{Device, Tensor, TensorId, Var};
use luthier_core::{
    At, Cache, Ctx, Gradient, Hook, Hooks, LowRank, Model, Policy, Result, Rows, Seed, SiteId,
    SiteInfo, SiteKind,
};
use luthier_model::{Decoder, Precision, Source};
use luthier_testkit::{self as testkit, assert_close, assert_same_bits, golden};

/// `y += s · x Aᵀ Bᵀ` in tensor operations.
struct Low(LowRank);

impl Hook for Low {
    fn after(&self, _at: &At, x: &Tensor, y: Tensor) -> Result<Tensor> {
        let LowRank { a_ri, b_or, scale, .. } = &self.0;
        let z_nr = (x.matmul(&a_ri.t()?)? * f64::from(*scale))?;
        Ok((y + z_nr.matmul(&b_or.t()?)?)?)
    }

    fn low_rank(&self) -> Option<LowRank> {
        Some(self.0.clone())
    }
}

/// A hook that does nothing but does not say so.
struct Opaque;
impl Hook for Opaque {}

fn random(name: &str, dims: &[usize], scale: f64) -> Tensor {
    testkit::random(dims, scale, Seed(11).split(name))
}

/// A model with whatever learns in it.
struct Case {
    model: Arc<dyn Model>,
    hooks: Hooks,
    vars: Vec<(String, Var)>,
    rows: Arc<Rows>,
}

/// Loads `name` with low-rank additions at linear sites that `low` accepts (of rank 1 to 3) and
/// learned weights at those that `learned` accepts.
fn case(
    name: &str,
    precision: Precision,
    lengths: &[usize],
    low: impl Fn(&SiteInfo) -> bool,
    learned: impl Fn(&SiteInfo) -> bool,
) -> Case {
    let source = Source::open(&golden::golden(format!("models/{name}"))).unwrap();
    let decoder = Decoder::load(&source, precision, |_, _| ()).unwrap();
    let in_block = |s: &&SiteInfo| s.layer.is_some();
    let weights = |s: &&SiteInfo| !matches!(s.kind, SiteKind::Activation { .. });
    let sites = || decoder.sites().iter().filter(in_block).filter(weights);
    let ids: Vec<SiteId> = sites().filter(|s| learned(s)).map(|s| s.id).collect();
    let (mut hooks, mut vars) = (Hooks::none(), Vec::new());
    for (j, site) in sites().filter(|s| s.linear().is_some() && low(s)).enumerate() {
        let (i, o) = site.linear().unwrap();
        let r = 1 + j % 3;
        let var = |part: &str, dims: &[usize]| {
            Var::from_tensor(&random(&format!("{}{part}", site.name), dims, 0.2)).unwrap()
        };
        let (a_ri, b_or) = (var("A", &[r, i]), var("B", &[o, r]));
        vars.push((format!("{}.A", site.name), a_ri.clone()));
        vars.push((format!("{}.B", site.name), b_or.clone()));
        let scale = 0.5 + j as f32 / 10.0;
        let (a_ri, b_or) = (a_ri.into_inner(), b_or.into_inner());
        hooks.bind(site.id, Arc::new(Low(LowRank { a_ri, b_or, scale, dropout: 0.0 })));
    }
    let (model, more) = decoder.learn(&ids).unwrap();
    vars.extend(more);
    Case { model, hooks, vars, rows: Arc::new(Rows::new(lengths, |_| 0)) }
}

/// A block's output, its input's gradient, and the gradients of variables by name.
struct Pulled {
    y: Tensor,
    dx: Option<Tensor>,
    grads: HashMap<String, Tensor>,
}

impl Case {
    fn input(&self, layer: usize) -> (Tensor, Tensor) {
        let dims = [self.rows.n(), self.model.width()];
        (random(&format!("h{layer}"), &dims, 1.0), random(&format!("dy{layer}"), &dims, 1.0))
    }

    fn ctx(&self) -> Ctx<'_> {
        Ctx::new(&self.hooks, self.rows.clone(), &[])
    }

    fn oracle(&self, layer: usize) -> Pulled {
        let (h, dy) = self.input(layer);
        let leaf = Var::from_tensor(&h).unwrap();
        let y = self.model.block(layer, leaf.as_tensor().clone(), &mut self.ctx()).unwrap();
        let store = (&y * dy).unwrap().sum_all().unwrap().backward().unwrap();
        let found = self.vars.iter().filter_map(|(n, v)| Some((n.clone(), store.get(v)?.clone())));
        Pulled { y: y.detach(), dx: store.get(&leaf).cloned(), grads: found.collect() }
    }

    fn fused(&self, layer: usize, need_dx: bool) -> Pulled {
        let (h, dy) = self.input(layer);
        let taped = self.model.tape(layer, &h, need_dx, &mut self.ctx()).unwrap();
        let (y, tape) = taped.expect("the block qualifies");
        let names: HashMap<TensorId, &String> =
            self.vars.iter().map(|(n, v)| (v.as_tensor().id(), n)).collect();
        let (mut grads, mut dx) = (HashMap::new(), None);
        if let Some(tape) = tape {
            let mut found = |var: &Tensor, new| {
                let new = match new {
                    Gradient::Dense(new) => new,
                    Gradient::Into(add) => {
                        let mut sum = vec![0f32; var.elem_count()];
                        add(&mut sum)?;
                        Tensor::from_vec(sum, var.shape().clone(), &Device::Cpu)?
                    }
                };
                let name = names[&var.id()].clone();
                assert!(grads.insert(name.clone(), new).is_none(), "{name}: found twice");
                Ok(())
            };
            dx = tape.backward(&dy, need_dx, &mut found).unwrap();
        }
        Pulled { y, dx, grads }
    }

    fn check(&self, what: &str) {
        for layer in 0..self.model.n_layers() {
            let (want, got) = (self.oracle(layer), self.fused(layer, true));
            let close = |part: &str, got: &Tensor, want: &Tensor| {
                assert_close(&format!("{what}, layer {layer}: {part}"), got, want, 2e-5, 1e-7);
            };
            close("output", &got.y, &want.y);
            close("dx", got.dx.as_ref().unwrap(), want.dx.as_ref().unwrap());
            assert_eq!(got.grads.len(), want.grads.len(), "{what}: variables found");
            for (name, grad) in &got.grads {
                close(name, grad, &want.grads[name]);
            }
            // The lowest learned block: the same gradients, and none for the input.
            let lowest = self.fused(layer, false);
            assert!(lowest.dx.is_none());
            assert_eq!(lowest.grads.len(), want.grads.len(), "{what}: variables without dx");
            for (name, grad) in &lowest.grads {
                assert_same_bits(name, grad, &got.grads[name]);
            }
            let (h, _) = self.input(layer);
            let plain = self.model.forward(layer, h, &mut self.ctx()).unwrap();
            assert_same_bits("without a tape", &plain, &got.y);
        }
    }
}

const RAGGED: &[usize] = &[7, 1, 20, 1, 66];
const MODELS: &[&str] = &[
    "llama",
    "llama-tied-llama3",
    "llama-bias",
    "llama-yarn",
    "mistral",
    "qwen2",
    "qwen3",
    "smollm3",
];

#[test]
fn low_rank_additions_at_every_linear_site() {
    for name in MODELS {
        case(name, Precision::F32, RAGGED, |_| true, |_| false).check(name);
    }
}

/// A second, constant addition beside every other learned one, and alone where there is none.
#[test]
fn several_additions_at_a_site_and_constant_ones_among_them() {
    for name in ["llama", "qwen3"] {
        let odd = |s: &SiteInfo| !s.id.0.is_multiple_of(2);
        let mut case = case(name, Precision::F32, RAGGED, odd, |_| false);
        let sites: Vec<SiteInfo> = case.model.sites().iter().cloned().collect();
        for site in sites.iter().filter(|s| s.layer.is_some() && s.id.0 % 4 < 2) {
            let Some((i, o)) = site.linear() else { continue };
            let a_ri = random(&format!("{}fixed A", site.name), &[2, i], 0.2);
            let b_or = random(&format!("{}fixed B", site.name), &[o, 2], 0.2);
            let fixed = LowRank { a_ri, b_or, scale: -0.7, dropout: 0.0 };
            case.hooks.bind(site.id, Arc::new(Low(fixed)));
        }
        let watched = |n: usize| sites.iter().any(|s| case.hooks.get(s.id).len() == n);
        assert!(watched(1) && watched(2));
        case.check(name);
    }
}

#[test]
fn every_weight_bias_and_norm_learned() {
    for name in MODELS {
        case(name, Precision::F32, RAGGED, |_| false, |_| true).check(name);
    }
}

#[test]
fn any_one_site_alone_low_rank_or_learned() {
    for name in ["qwen2", "qwen3"] {
        let parts = ["q", "k", "v", "o", "gate", "up", "down", "attn_norm", "mlp_norm"];
        for part in parts.into_iter().chain((name == "qwen3").then_some("k_norm")) {
            let here = |s: &SiteInfo| s.name.ends_with(&format!(".{part}"));
            let what = format!("{name}, only {part}");
            case(name, Precision::F32, &[5, 1], here, |_| false).check(&what);
            case(name, Precision::F32, &[5, 1], |_| false, here).check(&what);
        }
        let (even, odd) =
            (|s: &SiteInfo| s.id.0.is_multiple_of(2), |s: &SiteInfo| s.id.0.is_multiple_of(3));
        case(name, Precision::F32, &[3, 1], even, odd).check("a mixture");
    }
}

#[test]
fn nothing_learned_gives_no_tape_unless_something_below_does() {
    let case = case("llama", Precision::F32, &[4], |_| false, |_| false);
    let (h, _) = case.input(0);
    let taped = |below| case.model.tape(0, &h, below, &mut case.ctx()).unwrap().unwrap().1;
    assert!(taped(false).is_none() && taped(true).is_some());
}

#[test]
fn other_hooks_and_dropout_in_training_get_the_graph() {
    let mut case = case("llama", Precision::F32, &[4], |s| s.name.ends_with(".q"), |_| false);
    let (h, _) = case.input(0);
    let fused = |case: &Case, noise| {
        let mut ctx = case.ctx();
        ctx.noise = noise;
        case.model.tape(0, &h, true, &mut ctx).unwrap().is_some()
    };
    assert!(fused(&case, Some(Seed(1))));
    let site = |case: &Case, name: &str| case.model.sites().get(name).unwrap().id;
    let (v, act) = (site(&case, "layers.0.attn.v"), site(&case, "layers.0.mlp.act"));
    let [a_ri, b_or] = [0, 1].map(|i| case.vars[i].1.as_tensor().clone());
    let low = LowRank { a_ri, b_or, scale: 1.0, dropout: 0.5 };
    let plain = case.hooks.clone();
    case.hooks.bind(v, Arc::new(Low(low)));
    assert!(fused(&case, None) && !fused(&case, Some(Seed(1))));
    for site in [v, act] {
        case.hooks = plain.clone();
        case.hooks.bind(site, Arc::new(Opaque));
        assert!(!fused(&case, None));
    }
}

fn cosine(a: &Tensor, b: &Tensor) -> f64 {
    let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let (a, b) = (flat(a), flat(b));
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
    };
    dot(&a, &b) / (dot(&a, &a) * dot(&b, &b)).sqrt()
}

#[test]
fn bf16_products_give_nearly_the_same_gradients() {
    for name in ["llama", "mistral", "qwen3"] {
        let run = |precision| case(name, precision, RAGGED, |_| true, |s| s.linear().is_none());
        let (exact, rounded) = (run(Precision::F32), run(Precision::Bf16));
        for layer in 0..exact.model.n_layers() {
            let (want, got) = (exact.fused(layer, true), rounded.fused(layer, true));
            let near = |what: &str, got: &Tensor, want: &Tensor| {
                let cosine = cosine(got, want);
                assert!(cosine > 0.999, "{name}, layer {layer}: {what}: cosine {cosine}");
            };
            near("output", &got.y, &want.y);
            near("dx", got.dx.as_ref().unwrap(), want.dx.as_ref().unwrap());
            assert_eq!(got.grads.len(), want.grads.len());
            for (part, grad) in &got.grads {
                near(part, grad, &want.grads[part]);
            }
        }
    }
}

#[test]
fn the_number_of_threads_does_not_show() {
    for precision in [Precision::F32, Precision::Bf16] {
        let case = case("qwen3", precision, &[200, 3, 130, 1], |_| true, |s| s.id.0 % 2 == 0);
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| case.fused(0, true))
        };
        let want = run(1);
        // Buffers are reused with what earlier runs left in them: that must not show either.
        for threads in [1, 2, 3] {
            let got = run(threads);
            assert_same_bits("output", &got.y, &want.y);
            assert_same_bits("dx", got.dx.as_ref().unwrap(), want.dx.as_ref().unwrap());
            for (name, grad) in &got.grads {
                assert_same_bits(name, grad, &want.grads[name]);
            }
        }
    }
}

#[test]
fn a_cache_gives_the_numbers_of_one_pass() {
    for name in ["qwen3", "mistral"] {
        let case = case(name, Precision::F32, &[40], |_| true, |_| false);
        let policy = Policy { model: case.model.clone(), hooks: case.hooks.clone() };
        let ids: Vec<u32> = (0..40).map(|i| (i * 7 + 3) % 90).collect();
        let whole = policy.hidden(&mut Ctx::new(&case.hooks, case.rows.clone(), &ids)).unwrap();
        let (mut cache, mut parts) = (Cache::new(1, case.model.n_layers()), Vec::new());
        let cuts: Vec<usize> = [0].into_iter().chain(25..=40).collect();
        for cut in cuts.windows(2) {
            let rows = Arc::new(Rows::new(&[cut[1] - cut[0]], |_| cut[0]));
            let mut ctx = Ctx::new(&case.hooks, rows, &ids[cut[0]..cut[1]]);
            ctx.cache = Some(&mut cache);
            parts.push(policy.hidden(&mut ctx).unwrap());
        }
        assert_close(name, &Tensor::cat(&parts, 0).unwrap(), &whole, 2e-5, 1e-6);
    }
}
