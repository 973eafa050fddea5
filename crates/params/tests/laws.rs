//! The laws of learned parameters, over every row of `METHODS`.

use std::sync::Arc;

use candle_core::{Device, Tensor, Var};
use luthier_core::{
    Affine, Ctx, Model, Param, Policy, Result, Rows, Seed, SiteKind, StateDict, model::gather_logp,
};
use luthier_params::{Bound, Globs, Lora, LoraInit, METHODS, Params, Scope, own, peft};
use luthier_testkit::{Fake, Shape, assert_close, assert_gradients, assert_same_bits};

const IDS: [u32; 9] = [3, 1, 4, 1, 5, 9, 2, 6, 5];

fn rows() -> Arc<Rows> {
    Arc::new(Rows::new(&[5, 1, 3], |_| 0))
}

fn model() -> Arc<dyn Model> {
    Arc::new(Fake::new(Shape::default(), Seed(11)))
}

fn params(text: &str) -> Params {
    toml::from_str(text).unwrap_or_else(|e| panic!("{text}: {e}"))
}

fn lora(lora: Lora) -> Params {
    Params { lora: Some(lora), ..Params::default() }
}

/// How a form begins.
#[derive(Clone, Copy, PartialEq)]
enum Start {
    /// The base to the bit.
    Base,
    /// The base up to rounding.
    Near,
    /// Elsewhere.
    Away,
}
use Start::{Away, Base, Near};

/// Hooks, by the row of `METHODS` each belongs to. Alpha differs from the rank everywhere: a wrong
/// scale must show.
const ADAPTERS: &[(&str, Start, &str)] = &[
    ("lora", Base, "[lora]\nr = 3\nalpha = 7"),
    ("lora.rslora", Base, "[lora]\nr = 3\nalpha = 7\nrslora = true"),
    ("lora/bias", Base, "[lora]\nr = 3\nalpha = 7\nbias = true"),
    (
        "lora/gaussian everywhere",
        Base,
        "[lora]\nr = 3\nalpha = 7\ninit = \"gaussian\"\nat = [\"layers.**\", \"embed\", \"logits\"]",
    ),
    (
        "lora/patterns",
        Base,
        "[lora]\nr = 3\nalpha = 7\nexclude = \"layers.1.mlp.up\"\n\
         rank_pattern = { \"**.down\" = 5 }\nalpha_pattern = { \"layers.0.**\" = 2.5 }",
    ),
    ("lora.dora", Near, "[lora]\nr = 3\nalpha = 7\ndora = true"),
    ("lora.pissa", Near, "[lora]\nr = 3\nalpha = 7\ninit = \"pissa\""),
    ("lora.olora", Near, "[lora]\nr = 3\nalpha = 7\ninit = \"olora\""),
    ("ia3", Base, "[ia3]\nat = [\"**.attn.v\", \"**.mlp.down\"]\nfeedforward = \"**.mlp.down\""),
    ("tokens", Base, "[tokens]\ntoken_indices = [1, 5]"),
    ("ssf", Base, "[ssf]\nat = [\"layers.**\", \"embed\"]\ninit_std = 0.0"),
    ("ssf/away", Away, "[ssf]\nat = [\"layers.**\", \"embed\"]"),
];

/// Variables in place of weights.
const WEIGHTS: &[(&str, &str)] = &[
    ("full", "[full]"),
    ("half", "[half]"),
    ("green", "[green]"),
    ("sparse.random", "[sparse.random]\ndensity = 0.3"),
    ("sparse.lift", "[sparse.lift]\nbudget_rank = 1\nfilter_rank = 2"),
    ("sparse.sara", "[sparse.sara]\ndensity = 0.3"),
    ("sparse.lottery", "[sparse.lottery]"),
];

/// Forms that need sites which this model does not have, or measurements; they have tests of their
/// own.
const ELSEWHERE: &[&str] = &[
    "bottleneck",
    "bottleneck.phm",
    "prompt",
    "pool",
    "head",
    "lora.loftq",
    "lora.eva",
    "ln_tuning",
];

fn adapters() -> Vec<(&'static str, Params)> {
    ADAPTERS.iter().map(|(name, _, text)| (*name, params(text))).collect()
}

fn all() -> Vec<(&'static str, Params)> {
    let mut all = adapters();
    all.extend(WEIGHTS.iter().map(|(name, text)| (*name, params(text))));
    for method in METHODS.iter().filter(|m| !ELSEWHERE.contains(&m.name)) {
        assert!(all.iter().any(|(name, _)| name.starts_with(method.name)), "{}", method.name);
    }
    all
}

fn logits(policy: &Policy) -> Tensor {
    policy.logits(&IDS, rows()).unwrap()
}

/// With their graph, as a training step computes them.
fn noisy_logits(policy: &Policy, noise: Option<Seed>) -> Tensor {
    let mut ctx = Ctx::new(&policy.hooks, rows(), &IDS);
    ctx.noise = noise;
    let mut h_nd = policy.model.embed(&IDS, &mut ctx).unwrap();
    for layer in 0..policy.model.n_layers() {
        h_nd = policy.model.block(layer, h_nd, &mut ctx).unwrap();
    }
    policy.model.unembed(&h_nd, &mut ctx).unwrap()
}

/// Random values for every variable: at their own initial values half of a mistake is invisible.
fn shake(bound: &Bound) {
    for Param { name, var, .. } in &bound.params {
        let mut rng = Seed(5).split(name).rng();
        let data: Vec<f32> = (0..var.elem_count()).map(|_| (0.2 * rng.normal()) as f32).collect();
        var.set(&Tensor::from_vec(data, var.shape(), &Device::Cpu).unwrap()).unwrap();
    }
}

#[test]
fn nothing_changes_at_the_start() {
    let base = logits(&Policy::plain(model()));
    for (name, params) in all() {
        let bound = params.bind(&model(), Seed(1)).unwrap();
        assert!(!bound.params.is_empty(), "{name}");
        let start = ADAPTERS.iter().find(|(known, ..)| *known == name).map_or(Base, |case| case.1);
        match start {
            Base => assert_same_bits(name, &logits(&bound.policy), &base),
            Near => assert_close(name, &logits(&bound.policy), &base, 1e-5, 1e-5),
            Away => {}
        }
    }
}

#[test]
fn unbound_is_the_base_also_after_training() {
    let model = model();
    let base = logits(&Policy::plain(model.clone()));
    for (name, params) in all() {
        let bound = params.bind(&model, Seed(1)).unwrap();
        shake(&bound);
        let apart = (logits(&bound.policy) - &base).unwrap().abs().unwrap().max_all().unwrap();
        assert!(apart.to_scalar::<f32>().unwrap() > 0.05, "{name} moves nothing");
        assert_same_bits(name, &logits(&Policy::plain(model.clone())), &base);
    }
}

#[test]
fn folded_is_hooked() {
    for (name, params) in adapters() {
        let bound = params.bind(&model(), Seed(1)).unwrap();
        shake(&bound);
        let sites = bound.policy.model.sites();
        for id in bound.policy.hooks.sites() {
            let (info, lin) = (sites.info(id), bound.policy.model.affine(id).unwrap());
            let folded = bound.policy.hooks.fold(sites, id, lin.clone()).unwrap().unwrap();
            let apply = |w_oi: &Tensor, b_o: &Option<Tensor>, x: &Tensor| {
                let y = x.matmul(&w_oi.t().unwrap()).unwrap();
                b_o.as_ref().map_or(y.clone(), |b| y.broadcast_add(b).unwrap())
            };
            let (_, width) = lin.w_oi.dims2().unwrap();
            let mut rng = Seed(3).split(&info.name).rng();
            let x: Vec<f32> = (0..IDS.len() * width).map(|_| rng.normal() as f32).collect();
            let x = Tensor::from_vec(x, (IDS.len(), width), &Device::Cpu).unwrap();
            let ids = Tensor::from_slice(&IDS, IDS.len(), &Device::Cpu).unwrap();
            let embeds = matches!(info.kind, SiteKind::Embed { .. });
            let look = |table: &Tensor| table.index_select(&ids, 0).unwrap();
            let x = match embeds {
                true => Tensor::zeros(0, candle_core::DType::F32, &Device::Cpu).unwrap(),
                false => x,
            };
            let run = |lin: &Affine, x: &Tensor| match embeds {
                true => look(&lin.w_oi),
                false => apply(&lin.w_oi, &lin.b_o, x),
            };
            let ctx = Ctx::new(&bound.policy.hooks, rows(), &IDS);
            let got = ctx.through(sites, id, &x, |x| Ok(run(&lin, x))).unwrap();
            let want = run(&folded, &x);
            assert_close(&format!("{name} at {}", info.name), &got, &want, 1e-5, 1e-6);
        }
    }
}

#[test]
fn the_scale_is_the_published_one() {
    for (rslora, want) in [(false, 7.0 / 3.0), (true, 7.0 / 3f64.sqrt())] {
        let lora = Lora { r: 3, alpha: 7.0, rslora, ..Lora::default() };
        for target in lora.targets(model().sites()).unwrap() {
            assert!((target.scale - want).abs() < 1e-12, "{}", target.scale);
        }
    }
}

#[test]
fn only_its_own_variables_get_gradients() {
    for (name, params) in all() {
        let bound = params.bind(&model(), Seed(1)).unwrap();
        shake(&bound);
        let loss = logits(&bound.policy).sqr().unwrap().sum_all().unwrap();
        let found: Vec<_> =
            loss.sorted_nodes().iter().filter(|t| t.is_variable()).map(|t| t.id()).collect();
        let grads = loss.backward().unwrap();
        for Param { name: var_name, var, .. } in &bound.params {
            assert!(found.contains(&var.id()), "{name}: {var_name} is not in the graph");
            let grad = grads.get(var).unwrap_or_else(|| panic!("{name}: {var_name}"));
            let size = grad.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(size > 0.0, "{name}: the gradient of {var_name} is 0");
        }
        let own: Vec<_> = bound.params.iter().map(|p| p.var.id()).collect();
        assert!(found.iter().all(|id| own.contains(id)), "{name}: other variables in the graph");
    }
}

#[test]
fn gradients_agree_with_finite_differences() {
    let dropped = lora(Lora { r: 3, alpha: 7.0, dropout: 0.3, ..Lora::default() });
    // DoRA's lengths are constants of the backward pass, as published.
    let smooth = all().into_iter().filter(|(name, _)| *name != "lora.dora");
    for (name, params) in smooth.chain([("lora/dropout", dropped)]) {
        let bound = params.bind(&model(), Seed(1)).unwrap();
        shake(&bound);
        let vars: Vec<Var> = bound.params.iter().map(|p| p.var.clone()).collect();
        let loss = |_: &[Var]| -> Result<Tensor> {
            let logits_nv = noisy_logits(&bound.policy, Some(Seed(8)));
            Ok(gather_logp(&logits_nv, &[1, 2, 3, 4, 5, 6, 7, 8, 9])?.mean_all()?)
        };
        assert_gradients(name, &vars, loss);
    }
}

#[test]
fn saved_and_loaded_is_bit_equal() {
    for (name, params) in adapters() {
        let bound = params.bind(&model(), Seed(1)).unwrap();
        shake(&bound);
        let (dir, base) = (tempfile::tempdir().unwrap(), peft::Base::default());
        if params.kept() == luthier_params::Kept::Peft {
            peft::save(dir.path(), &bound, model().sites(), &base).unwrap();
        } else {
            let exact = |name: &str| panic!("{name} is not a masked weight");
            own::save(dir.path(), &bound, &base, &exact).unwrap();
        }
        let back = luthier_params::load(dir.path(), &model(), None, None).unwrap();
        let moved = matches!(name, "lora.pissa" | "lora.olora");
        if !moved {
            assert_eq!(bound.params.len(), back.params.len());
            for (ours, theirs) in bound.params.iter().zip(&back.params) {
                assert_eq!(ours.name, theirs.name);
                assert_same_bits(&ours.name, &theirs.var, &ours.var);
            }
            assert_same_bits(name, &logits(&back.policy), &logits(&bound.policy));
        } else {
            // Saved as a plain low-rank addition of twice the rank.
            assert_close(name, &logits(&back.policy), &logits(&bound.policy), 1e-5, 1e-5);
        }
    }
}

#[test]
fn chosen_entries_are_saved_as_differences() {
    let fake = Arc::new(Fake::new(Shape::default(), Seed(11)));
    let exact = |name: &str| -> Result<Vec<f32>> {
        let (_, weight) = fake.weights().find(|(known, _)| *known == name).unwrap();
        Ok(weight.flatten_all()?.to_vec1()?)
    };
    let bound = params("[sparse.random]\ndensity = 0.3").bind(&model(), Seed(1)).unwrap();
    for param in &bound.params {
        let mask = param.mask.as_ref().unwrap();
        let mut values: Vec<f32> = param.var.flatten_all().unwrap().to_vec1().unwrap();
        let new: Vec<f32> = mask.gather(&values).iter().map(|x| x + 0.25).collect();
        mask.scatter(&new, &mut values);
        let values = Tensor::from_vec(values, param.var.shape(), &Device::Cpu).unwrap();
        param.var.set(&values).unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    own::save(dir.path(), &bound, &peft::Base::default(), &exact).unwrap();
    let back = luthier_params::load(dir.path(), &model(), None, None).unwrap();
    for (ours, theirs) in bound.params.iter().zip(&back.params) {
        assert_eq!((&ours.name, &ours.mask), (&theirs.name, &theirs.mask));
        assert_close(&ours.name, &theirs.var, &ours.var, 1e-6, 1e-6);
    }
    // A file of k entries holds k values and k distances.
    let chosen = bound.count() as usize;
    let file = std::fs::metadata(dir.path().join(own::WEIGHTS)).unwrap().len() as usize;
    assert!(file < 8 * chosen + 4096, "{file} bytes for {chosen} entries");
    let base = peft::Base { name: "b".into(), sha256: Some("1".into()) };
    own::save(dir.path(), &bound, &base, &exact).unwrap();
    let other =
        luthier_params::load(dir.path(), &model(), Some("2"), None).map(|_| ()).unwrap_err();
    assert!(other.to_string().contains("was trained on another base model"), "{other}");
}

/// EVA's ranks are measured; what is saved binds without that.
#[test]
fn ranks_that_were_measured_are_saved_in_files_of_our_own() {
    let params = params(
        "[ssf]\nat = \"layers.**\"\n[lora]\nr = 3\nalpha = 7\ninit = \"eva\"\neva = { rho = 1.5 }\n\
         at = \"layers.*.{attn.v,mlp.*}\"\nexclude = \"layers.0.mlp.down\"",
    );
    assert_eq!(params.kept(), luthier_params::Kept::Own);
    let mut found = StateDict::default();
    for site in model().sites().iter() {
        let Some((i, _)) = site.linear() else { continue };
        let mut rng = Seed(3).split(&site.name).rng();
        let rows: Vec<f32> = (0..4 * i).map(|_| rng.normal() as f32).collect();
        let by = match site.name.as_str() {
            "layers.1.mlp.up" => 1e-4,
            name if name.ends_with(".v") => 1.0,
            _ => 0.1,
        };
        let ratio = Tensor::new(&[by, 0.9 * by, 0.8 * by, 0.7f32 * by], &Device::Cpu).unwrap();
        let rows = Tensor::from_vec(rows, (4, i), &Device::Cpu).unwrap();
        found.insert(format!("{}.components", site.name), rows);
        found.insert(format!("{}.ratio", site.name), ratio);
    }
    let bound = params.bind_in(&model(), Scope::new(Seed(1)).with_measured(found)).unwrap();
    let rank = |bound: &Bound, site: &str| {
        bound.var(&format!("layers.{site}.lora_A")).map_or(0, |a| a.dims()[0])
    };
    let sites = ["0.attn.v", "0.mlp.up", "0.mlp.down", "1.attn.v", "1.mlp.up", "1.mlp.down"];
    assert_eq!(sites.map(|site| rank(&bound, site)), [4, 4, 0, 4, 0, 3]);
    shake(&bound);
    let (dir, again) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let base = peft::Base { name: "b".into(), sha256: Some("1".into()) };
    let exact = |name: &str| panic!("{name} is not a masked weight");
    own::save(dir.path(), &bound, &base, &exact).unwrap();
    let back = luthier_params::load(dir.path(), &model(), Some("1"), None).unwrap();
    let names = |bound: &Bound| -> Vec<String> {
        bound.params.iter().map(|p| format!("{} {:?}", p.name, p.var.dims())).collect()
    };
    assert_eq!(names(&back), names(&bound));
    assert_same_bits("loaded", &logits(&back.policy), &logits(&bound.policy));
    own::save(again.path(), &back, &base, &exact).unwrap();
    for file in [own::CONFIG, own::WEIGHTS] {
        let bytes = |dir: &tempfile::TempDir| std::fs::read(dir.path().join(file)).unwrap();
        assert!(bytes(&dir) == bytes(&again), "{file}");
    }
}

#[test]
fn initial_values_follow_the_seed_and_the_published_distribution() {
    let start = |init, seed| {
        let at = Globs(vec!["embed".into(), "layers.0.mlp.up".into()]);
        let big = Shape { vocab: 500, width: 64, inner: 80, ..Shape::default() };
        let model: Arc<dyn Model> = Arc::new(Fake::new(big, Seed(11)));
        lora(Lora { r: 16, init, at, ..Lora::default() }).bind(&model, Seed(seed)).unwrap().params
    };
    let values = |vars: &[Param], i: usize| -> Vec<f32> {
        vars[i].var.flatten_all().unwrap().to_vec1().unwrap()
    };
    let deviation =
        |x: &[f32]| (x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / x.len() as f64).sqrt();
    let vars = start(LoraInit::Kaiming, 1);
    let names: Vec<&str> = vars.iter().map(|p| p.name.as_str()).collect();
    let parts = [
        "embed.lora_embedding_A",
        "embed.lora_embedding_B",
        "layers.0.mlp.up.lora_A",
        "layers.0.mlp.up.lora_B",
    ];
    assert_eq!(names, parts);
    assert!(values(&vars, 0).iter().chain(&values(&vars, 3)).all(|x| *x == 0.0));
    assert!((deviation(&values(&vars, 1)) - 1.0).abs() < 0.08);
    // Uniform within 1/√64, so its deviation is that over √3.
    let a = values(&vars, 2);
    assert!(a.iter().all(|x| x.abs() <= 0.125) && a.iter().any(|x| x.abs() > 0.12));
    assert!((deviation(&a) - 0.125 / 3f64.sqrt()).abs() < 0.004);
    let gaussian = values(&start(LoraInit::Gaussian, 1), 2);
    assert!((deviation(&gaussian) - 1.0 / 16.0).abs() < 0.004);
    assert_eq!(a, values(&start(LoraInit::Kaiming, 1), 2));
    assert_ne!(a, values(&start(LoraInit::Kaiming, 2), 2));
}

#[test]
fn dropout_is_for_training_only() {
    let params = lora(Lora { r: 3, alpha: 7.0, dropout: 0.5, ..Lora::default() });
    let bound = params.bind(&model(), Seed(1)).unwrap();
    shake(&bound);
    let run = |noise| noisy_logits(&bound.policy, noise).to_vec2::<f32>().unwrap();
    let plain = lora(Lora { r: 3, alpha: 7.0, ..Lora::default() }).bind(&model(), Seed(1)).unwrap();
    shake(&plain);
    assert_eq!(run(None), logits(&plain.policy).to_vec2::<f32>().unwrap());
    assert_eq!(run(Some(Seed(4))), run(Some(Seed(4))));
    assert_ne!(run(Some(Seed(4))), run(None));
    assert_ne!(run(Some(Seed(4))), run(Some(Seed(5))));
}
