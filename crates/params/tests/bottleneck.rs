//! Bottleneck adapters and Compacter: the published facts, by hand, and passes side by side.

mod narrow;
#[allow(dead_code, reason = "every test file uses a part of it")]
mod whole;

use std::sync::Arc;

use candle_core::{Device, Tensor};
use luthier_core::{Ctx, Model, Policy, Rows, Seed, SiteKind, SiteMap, model::gather_logp};
use luthier_params::{
    Bottleneck, Bound, Params, Phm, Scope,
    form::bottleneck::{InitWeights, LearnedScaling, NonLinearity, Scaling, kronecker_sum},
};
use luthier_testkit::{Fake, Shape, assert_close, assert_gradients, assert_same_bits};
use narrow::{IDS, model, params, phm, rows, small};
use whole::{Bare, SMALL, Seen, Sizes, Whole, apart::assert_apart, logits, noise, shake, vars};

fn matrices<const N: usize>(values: &[[[f32; 2]; 2]; N]) -> Tensor {
    Tensor::new(values, &Device::Cpu).unwrap()
}

#[test]
fn the_small_matrix_comes_first_in_the_product() {
    let a = matrices(&[[[1.0, 2.0], [3.0, 4.0]]]);
    let b = matrices(&[[[0.0, 5.0], [6.0, 7.0]]]);
    let want = [
        [0.0, 5.0, 0.0, 10.0],
        [6.0, 7.0, 12.0, 14.0],
        [0.0, 15.0, 0.0, 20.0],
        [18.0, 21.0, 24.0, 28.0],
    ];
    assert_eq!(kronecker_sum(&a, &b).unwrap().to_vec2::<f32>().unwrap(), want);
}

#[test]
fn complex_multiplication_is_a_special_case() {
    let a = matrices(&[[[1.0, 0.0], [0.0, 1.0]], [[0.0, -1.0], [1.0, 0.0]]]);
    let b = matrices(&[[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]]);
    // [[B1, −B2], [B2, B1]]
    let want = [
        [1.0, 2.0, -5.0, -6.0],
        [3.0, 4.0, -7.0, -8.0],
        [5.0, 6.0, 1.0, 2.0],
        [7.0, 8.0, 3.0, 4.0],
    ];
    assert_eq!(kronecker_sum(&a, &b).unwrap().to_vec2::<f32>().unwrap(), want);
}

/// A model of `n` sub-layer outputs of this width.
fn outputs(n: usize, d: usize) -> Arc<dyn Model> {
    let mut sites = SiteMap::default();
    for l in 0..n {
        sites.add(format!("layers.{l}.mlp.out"), SiteKind::Activation { d }, Some(l), None);
    }
    Arc::new(Bare { sites, layers: n, width: d })
}

#[test]
fn the_published_numbers_of_parameters() {
    let at =
        || Bottleneck { at: "**.mlp.out".into(), reduction_factor: 32.0, ..Bottleneck::default() };
    let count = |n, form| params(form).bind(&outputs(n, 768), Seed(1)).unwrap().count();
    assert_eq!(count(1, at()), 37_656);
    let compacter = || Bottleneck { phm: Some(Phm::default()), ..at() };
    assert_eq!(count(1, compacter()), 2_376 + 64);
    // All of T5-base; with its 62 norms 161,728.
    assert_eq!(count(48, compacter()), 114_112);
    assert_eq!(count(48, compacter()) + 62 * 768, 161_728);
    let bound = params(compacter()).bind(&outputs(1, 768), Seed(1)).unwrap();
    let of = |part: &str| -> usize {
        bound.params.iter().filter(|p| p.name.contains(part)).map(|p| p.count()).sum()
    };
    assert_eq!((of("adapter_down."), of("adapter_up.")), (816, 1_560));
    // The shared matrices are one variable, by adapter-hub's name.
    assert_eq!(bound.params.iter().filter(|p| p.name == "bottleneck.phm_rule").count(), 1);
    let own = Phm { shared: false, factorized: false, ..Phm::default() };
    // PHM adapter: whole matrices and its own small ones, twice.
    let phm_adapter = count(1, Bottleneck { phm: Some(own), ..at() });
    assert_eq!(phm_adapter, 2 * (64 + 4 * 192 * 6) + 24 + 768);
}

#[test]
fn narrow_widths_are_those_of_adapter_hub() {
    let narrow = |reduction_factor, phm, d| {
        Bottleneck { reduction_factor, phm, ..Bottleneck::default() }.narrow(d)
    };
    assert_eq!((narrow(16.0, None, 576), narrow(100.0, None, 64)), (36, 1));
    assert_eq!(narrow(0.5, None, 8), 16);
    // 18 is no multiple of 4.
    assert_eq!(
        (narrow(32.0, Some(Phm::default()), 576), narrow(24.0, Some(Phm::default()), 576)),
        (16, 24)
    );
    assert_eq!(narrow(999.0, Some(Phm::default()), 576), 4);
}

#[test]
fn the_start_changes_nothing_or_next_to_nothing() {
    let plain = logits(&Policy::plain(model()), &IDS, &rows());
    let at = |form: Bottleneck| {
        let bound = params(form).bind(&model(), Seed(1)).unwrap();
        logits(&bound.policy, &IDS, &rows())
    };
    assert_same_bits("serial", &at(small()), &plain);
    assert_same_bits("parallel", &at(Bottleneck { parallel: true, ..small() }), &plain);
    let bert = at(Bottleneck { init_weights: InitWeights::Bert, ..small() });
    assert!(bert.to_vec2::<f32>().unwrap() != plain.to_vec2::<f32>().unwrap());
    // Compacter's start is not the identity, but as near to it as its small matrices are to 0.
    let compacter = at(Bottleneck { phm: Some(phm()), ..small() });
    assert_close("compacter", &compacter, &plain, 1e-6, 1e-6);
}

/// Without small matrices an adapter is `x + b_U`.
#[test]
fn zero_rules_leave_the_bias_alone() {
    let form = Bottleneck { at: "layers.0.mlp.out".into(), phm: Some(phm()), ..small() };
    let bound = params(form).bind(&model(), Seed(1)).unwrap();
    shake(&bound);
    let rule = bound.var("bottleneck.phm_rule").unwrap();
    rule.set(&rule.zeros_like().unwrap()).unwrap();
    let sites = bound.policy.model.sites();
    let site = sites.get("layers.0.mlp.out").unwrap().id;
    let x = noise("x", &[9, 8], 0.0, 1.0);
    let ctx = Ctx::new(&bound.policy.hooks, rows(), &IDS);
    let got = ctx.watch(sites, site, x.clone()).unwrap();
    let bias = (bound.var("layers.0.mlp.out.adapter_up.b").unwrap().as_tensor() * 0.7).unwrap();
    assert_close("bias", &got, &x.broadcast_add(&bias).unwrap(), 1e-6, 1e-6);
}

/// `s · U(φ(D(x)))` by hand, from the variables of a site.
fn by_hand(bound: &Bound, site: &str, x: &Tensor) -> Tensor {
    let var = |part: &str| bound.var(&format!("{site}.{part}")).unwrap().as_detached_tensor();
    let map = |part: &str, x: &Tensor| {
        let h = match bound.var(&format!("{site}.{part}.weight")) {
            Some(w) => w.as_detached_tensor().t().unwrap(),
            None => {
                let left = var(&format!("{part}.W_left"));
                let b = left.matmul(&var(&format!("{part}.W_right"))).unwrap();
                let rule = bound.var("bottleneck.phm_rule").unwrap().as_detached_tensor();
                let (terms, ..) = rule.dims3().unwrap();
                // One Kronecker product after the other, entry by entry.
                let mut sum = vec![];
                for k in 0..terms {
                    let a = rule.get(k).unwrap().to_vec2::<f32>().unwrap();
                    let b = b.get(k).unwrap().to_vec2::<f32>().unwrap();
                    let (r, c) = (b.len(), b[0].len());
                    sum.resize(terms * r * terms * c, 0f32);
                    for (i, sum) in sum.iter_mut().enumerate() {
                        let (row, col) = (i / (terms * c), i % (terms * c));
                        *sum += a[row / r][col / c] * b[row % r][col % c];
                    }
                }
                let o = var(&format!("{part}.b")).elem_count();
                Tensor::from_vec(sum.clone(), (sum.len() / o, o), &Device::Cpu).unwrap()
            }
        };
        let bias = bound.var(&format!("{site}.{part}.bias")).map(|b| b.as_detached_tensor());
        let bias = bias.unwrap_or_else(|| var(&format!("{part}.b")));
        x.matmul(&h).unwrap().broadcast_add(&bias).unwrap()
    };
    let z = map("adapter_down", x).gelu_erf().unwrap();
    (map("adapter_up", &z) * 0.7).unwrap()
}

#[test]
fn serial_adapters_read_the_output_and_parallel_ones_the_stream_before_the_norm() {
    for (parallel, phm_layer) in
        [(false, None), (true, None), (false, Some(phm())), (true, Some(phm()))]
    {
        let form = Bottleneck { parallel, phm: phm_layer, ..small() };
        let bound = params(form).bind(&model(), Seed(1)).unwrap();
        shake(&bound);
        let sites = bound.policy.model.sites();
        for (site, norm) in
            [("layers.1.attn.out", "layers.1.attn_norm"), ("layers.0.mlp.out", "layers.0.mlp_norm")]
        {
            let (site, norm) = (sites.get(site).unwrap(), sites.get(norm).unwrap());
            let [stream, before, after]: [Arc<Seen>; 3] = Default::default();
            let mut first = luthier_core::Hooks::none();
            first.bind(site.id, before.clone());
            let mut policy =
                Policy { hooks: first.and(&bound.policy.hooks), ..bound.policy.clone() };
            policy.hooks.bind(site.id, after.clone());
            policy.hooks.bind(norm.id, stream.clone());
            logits(&policy, &IDS, &rows());
            let took = |seen: &Seen| seen.0.lock().unwrap()[0].clone();
            let (stream, before, after) = (took(&stream).0, took(&before).1, took(&after).1);
            let x = if parallel { &stream } else { &before };
            let want = (&before + by_hand(&bound, &site.name, x)).unwrap();
            assert_close(&site.name, &after, &want, 1e-5, 1e-5);
        }
    }
}

/// Passes side by side, as evaluation runs them, do not see each other's streams.
#[test]
fn parallel_adapters_keep_passes_apart() {
    let bound = params(Bottleneck { parallel: true, ..small() }).bind(&model(), Seed(1)).unwrap();
    shake(&bound);
    assert_apart(|i| {
        let n = 7 + i % 3;
        let text: Vec<u32> = (0..n).map(|t| ((i * 5 + t * 3) % 17) as u32).collect();
        logits(&bound.policy, &text, &Arc::new(Rows::single(n)))
    });
}

#[test]
fn gradients_agree_with_finite_differences() {
    let one: Arc<dyn Model> = Arc::new(Whole::random(Sizes { layers: 1, ..SMALL }));
    let fake: Arc<dyn Model> = Arc::new(Fake::new(Shape::default(), Seed(11)));
    let learned = Scaling::Learned(LearnedScaling::Channel);
    let rank = |rank| Some(Phm { rank, ..phm() });
    let own = Phm { shared: false, factorized: false, ..phm() };
    let streams = "layers.*.{resid_mid,resid_post}";
    for (name, model, form) in [
        ("serial", &one, small()),
        ("tanh", &one, Bottleneck { non_linearity: NonLinearity::GeluNew, ..small() }),
        ("swish", &one, Bottleneck { non_linearity: NonLinearity::Swish, ..small() }),
        ("parallel", &one, Bottleneck { parallel: true, scaling: learned, ..small() }),
        ("compacter", &one, Bottleneck { phm: rank(1), ..small() }),
        ("rank 2, parallel", &one, Bottleneck { phm: rank(2), parallel: true, ..small() }),
        ("phm", &one, Bottleneck { phm: Some(own), ..small() }),
        ("streams", &fake, Bottleneck { at: streams.into(), phm: rank(1), ..small() }),
    ] {
        let bound = params(form).bind(model, Seed(1)).unwrap();
        shake(&bound);
        assert_gradients(name, &vars(&bound), |_| {
            let logits_nv = bound.policy.logits(&IDS[..5], Arc::new(Rows::new(&[4, 1], |_| 0)))?;
            Ok(gather_logp(&logits_nv, &[1, 2, 3, 4, 5])?.mean_all()?)
        });
    }
}

#[test]
fn dropout_is_for_training_only() {
    let bound = params(Bottleneck { dropout: 0.5, ..small() }).bind(&model(), Seed(1)).unwrap();
    let plain = params(small()).bind(&model(), Seed(1)).unwrap();
    shake(&bound);
    shake(&plain);
    let run = |noise| {
        let mut ctx = Ctx::new(&bound.policy.hooks, rows(), &IDS);
        ctx.noise = noise;
        bound.policy.hidden(&mut ctx).unwrap().to_vec2::<f32>().unwrap()
    };
    let mut ctx = Ctx::new(&plain.policy.hooks, rows(), &IDS);
    assert_eq!(run(None), plain.policy.hidden(&mut ctx).unwrap().to_vec2::<f32>().unwrap());
    assert_eq!(run(Some(Seed(4))), run(Some(Seed(4))));
    assert_ne!(run(Some(Seed(4))), run(None));
    assert_ne!(run(Some(Seed(4))), run(Some(Seed(5))));
}

#[test]
fn values_from_a_file_bind_the_same() {
    for form in [small(), Bottleneck { phm: Some(phm()), parallel: true, ..small() }] {
        let bound = params(form).bind(&model(), Seed(1)).unwrap();
        shake(&bound);
        let values = bound.params.iter().map(|p| (p.name.clone(), p.var.copy().unwrap())).collect();
        let again = bound.form.bind_in(&model(), Scope::given(values)).unwrap();
        let of = |bound: &Bound| logits(&bound.policy, &IDS, &rows());
        assert_same_bits("again", &of(&again), &of(&bound));
    }
}

#[test]
fn bad_settings_are_refused_by_their_key() {
    for (text, want) in [
        (
            "reduction_factor = 0",
            "train.params.bottleneck.reduction_factor: expected a number above",
        ),
        ("dropout = 1.0", "train.params.bottleneck.dropout"),
        ("scaling = 0", "train.params.bottleneck.scaling"),
        (
            "parallel = true\nat = \"**.resid_post\"",
            "train.params.bottleneck.parallel: layers.0.resid",
        ),
        ("at = \"**.pattern\"", "train.params.bottleneck.at"),
        ("phm.division = 3", "train.params.bottleneck.phm.division: layers.0.attn.out: 8 values"),
        ("phm.rank = 0", "train.params.bottleneck.phm.rank"),
    ] {
        let params: Params = toml::from_str(&format!("[bottleneck]\n{text}")).unwrap();
        let error = params.bind(&model(), Seed(1)).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains(want), "{text}: {error}");
        assert_eq!(error.exit_code(), 2);
    }
    let error =
        toml::from_str::<Params>("[bottleneck]\nscaling = \"big\"").unwrap_err().to_string();
    assert!(error.contains("expected a number, \"learned\" or \"channel\""), "{error}");
    let text =
        "[bottleneck]\nscaling = 4\nnon_linearity = \"gelu_new\"\n[bottleneck.phm]\ndivision = 2";
    let params: Params = toml::from_str(text).unwrap();
    assert_eq!(params.bottleneck.as_ref().unwrap().scaling, Scaling::By(4.0));
    let again: Params = toml::from_str(&toml::to_string(&params).unwrap()).unwrap();
    assert_eq!(again, params);
}
