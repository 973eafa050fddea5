//! SSF: the published facts, the fold, and what a table may not say.

#[allow(dead_code, reason = "every test file uses a part of it")]
mod whole;

use std::sync::Arc;

use candle_core::{Device, Tensor};
use luthier_core::{
    Affine, Ctx, Hooks, Model, Policy, Rows, Seed, SiteKind, SiteMap, StateDict, model::gather_logp,
};
use luthier_params::{Bound, Lora, Params, Scope, Ssf};
use luthier_testkit::{Fake, Shape, assert_close, assert_gradients, assert_same_bits};
use whole::{Bare, SMALL, Sizes, Whole, logits, shake, vars};

const IDS: [u32; 9] = [3, 1, 4, 1, 5, 9, 2, 6, 5];

fn rows() -> Arc<Rows> {
    Arc::new(Rows::new(&[5, 1, 3], |_| 0))
}

fn model() -> Arc<dyn Model> {
    Arc::new(Whole::random(SMALL))
}

fn ssf(ssf: Ssf) -> Params {
    Params { ssf: Some(ssf), ..Params::default() }
}

fn t(values: &[f32]) -> Tensor {
    Tensor::new(values, &Device::Cpu).unwrap()
}

/// One linear map 2 → 2.
fn one_map() -> Arc<dyn Model> {
    let mut sites = SiteMap::default();
    sites.add("map", SiteKind::Linear { i: 2, o: 2, bias: true }, None, Some("map".into()));
    Arc::new(Bare { sites, layers: 0, width: 2 })
}

fn given(gamma: &[f32], beta: &[f32]) -> Hooks {
    let values = [("map.ssf_scale", t(gamma)), ("map.ssf_shift", t(beta))];
    let values: StateDict = values.map(|(name, t)| (name.to_string(), t)).into_iter().collect();
    let form = ssf(Ssf { at: "map".into(), ..Ssf::default() });
    form.bind_in(&one_map(), Scope::given(values)).unwrap().policy.hooks
}

fn fold(hooks: &Hooks) -> (Vec<Vec<f32>>, Vec<f32>) {
    let w_oi = Tensor::new(&[[1f32, 2.0], [3.0, 4.0]], &Device::Cpu).unwrap();
    let model = one_map();
    let site = model.sites().get("map").unwrap().id;
    let lin = Affine { w_oi, b_o: Some(t(&[1.0, -1.0])) };
    let folded = hooks.fold(model.sites(), site, lin).unwrap().unwrap();
    (folded.w_oi.to_vec2().unwrap(), folded.b_o.unwrap().to_vec1().unwrap())
}

#[test]
fn the_published_example_merges_to_the_published_numbers() {
    let hooks = given(&[2.0, 0.5], &[0.0, 3.0]);
    assert_eq!(fold(&hooks), (vec![vec![2.0, 4.0], vec![1.5, 2.0]], vec![2.0, 2.5]));
    let model = one_map();
    let (rows, site) = (Arc::new(Rows::single(1)), model.sites().get("map").unwrap().id);
    let ctx = Ctx::new(&hooks, rows, &[]);
    let before = Tensor::new(&[[4f32, 6.0]], &Device::Cpu).unwrap();
    let x = Tensor::new(&[[1f32, 1.0]], &Device::Cpu).unwrap();
    let after = ctx.through(model.sites(), site, &x, |_| Ok(before)).unwrap();
    assert_eq!(after.to_vec2::<f32>().unwrap(), [[8.0, 6.0]]);
}

#[test]
fn two_in_a_row_are_one() {
    let both = given(&[2.0, 0.5], &[0.25, 3.0]).and(&given(&[3.0, -1.0], &[1.0, 2.0]));
    // γ = γ₂γ₁, β = γ₂β₁ + β₂.
    assert_eq!(fold(&both), fold(&given(&[6.0, -0.5], &[1.75, -1.0])));
}

#[test]
fn the_numbers_of_a_vision_transformer_and_of_a_llama() {
    let (d, mut sites) = (768, SiteMap::default());
    let linear = |i, o| SiteKind::Linear { i, o, bias: true };
    let norm = |sites: &mut SiteMap, name: String| {
        sites.add(name.clone(), SiteKind::Norm { d }, None, Some(name));
    };
    for l in 0..12 {
        let at = |part: &str| format!("layers.{l}.{part}");
        norm(&mut sites, at("attn_norm"));
        for (part, i, o) in [("q", d, d), ("k", d, d), ("v", d, d), ("o", d, d)] {
            sites.add(at(&format!("attn.{part}")), linear(i, o), Some(l), None);
        }
        norm(&mut sites, at("mlp_norm"));
        sites.add(at("mlp.up"), linear(d, 4 * d), Some(l), None);
        sites.add(at("mlp.down"), linear(4 * d, d), Some(l), None);
    }
    let count = |sites: SiteMap, form: Ssf| {
        let model: Arc<dyn Model> = Arc::new(Bare { sites, layers: 12, width: d });
        ssf(form).bind(&model, Seed(1)).unwrap().count()
    };
    assert_eq!(count(sites.clone(), Ssf { at: "layers.0.**".into(), ..Ssf::default() }), 16_896);
    assert_eq!(count(sites, Ssf { at: "layers.**".into(), ..Ssf::default() }), 12 * 16_896);
    // Both norms, q, k, v, o, gate, up, down twice; the final norm's scale alone.
    let (width, inner) = (SMALL.width as u64, SMALL.inner as u64);
    let (q, kv) = (8, 4);
    let block = 2 * (2 * width + q + 2 * kv + width + 2 * inner + width);
    let all = ssf(Ssf::default()).bind(&model(), Seed(1)).unwrap();
    assert_eq!(all.count(), 2 * block + width);
}

#[test]
fn without_deviation_the_start_changes_nothing() {
    let plain = logits(&Policy::plain(model()), &IDS, &rows());
    let at = "{embed,layers.*.{attn_norm,mlp_norm,attn.{q,k,v,o},mlp.{gate,up,down}},final_norm}";
    let exact = ssf(Ssf { at: at.into(), init_std: 0.0, ..Ssf::default() });
    let bound = exact.bind(&model(), Seed(1)).unwrap();
    assert_same_bits("identity", &logits(&bound.policy, &IDS, &rows()), &plain);
    let usual = ssf(Ssf::default()).bind(&model(), Seed(1)).unwrap();
    let apart = (logits(&usual.policy, &IDS, &rows()) - plain).unwrap().abs().unwrap();
    assert!(apart.max_all().unwrap().to_scalar::<f32>().unwrap() > 1e-3);
}

#[test]
fn variables_begin_near_one_and_zero() {
    let wide = Sizes { width: 256, inner: 300, ..SMALL };
    let model: Arc<dyn Model> = Arc::new(Whole::random(wide));
    let bound = ssf(Ssf::default()).bind(&model, Seed(1)).unwrap();
    for (part, near) in [("ssf_scale", 1.0), ("ssf_shift", 0.0)] {
        let all: Vec<f64> = bound
            .params
            .iter()
            .filter(|p| p.name.ends_with(part))
            .flat_map(|p| p.var.to_vec1::<f32>().unwrap())
            .map(f64::from)
            .collect();
        let mean = all.iter().sum::<f64>() / all.len() as f64;
        let std = (all.iter().map(|x| (x - near).powi(2)).sum::<f64>() / all.len() as f64).sqrt();
        assert!((mean - near).abs() < 2e-3 && (std - 0.02).abs() < 1e-3, "{part} {mean} {std}");
    }
}

/// Folding moves a norm's shift through what all other hooks make of the map that reads it.
#[test]
fn a_merged_model_computes_the_same() {
    let lora = || Some(Lora { r: 3, alpha: 7.0, bias: true, ..Lora::default() });
    let everywhere = "{embed,layers.*.{attn_norm,mlp_norm,attn.*,mlp.*},final_norm}";
    let everywhere = ssf(Ssf { at: everywhere.into(), ..Ssf::default() });
    let with_qk = Sizes { qk_norm: true, ..SMALL };
    let cases = [
        ("default", SMALL, ssf(Ssf::default())),
        ("scale", SMALL, ssf(Ssf { scale: true, shift: false, ..Ssf::default() })),
        ("shift", SMALL, ssf(Ssf { scale: false, ..Ssf::default() })),
        ("with lora", SMALL, Params { lora: lora(), ..ssf(Ssf::default()) }),
        ("everywhere", with_qk, everywhere),
    ];
    for (name, sizes, params) in cases {
        let whole = Whole::random(sizes);
        let model: Arc<dyn Model> = Arc::new(whole.clone());
        let bound = params.bind(&model, Seed(1)).unwrap();
        shake(&bound);
        let want = logits(&bound.policy, &IDS, &rows());
        let plain = logits(&Policy::plain(model), &IDS, &rows());
        let apart = (&want - plain).unwrap().abs().unwrap().max_all().unwrap();
        assert!(apart.to_scalar::<f32>().unwrap() > 0.1, "{name} moves nothing");
        let merged: Arc<dyn Model> = Arc::new(whole.folded(&bound.policy.hooks));
        let got = logits(&Policy::plain(merged), &IDS, &rows());
        assert_close(name, &got, &want, 2e-5, 1e-6);
    }
}

/// What is added to a map later reads the shifted input too, so the shift must be folded last.
#[test]
fn the_order_of_binding_does_not_matter_to_a_shifted_input() {
    let whole = Whole::random(SMALL);
    let model: Arc<dyn Model> = Arc::new(whole.clone());
    let lora = Lora { r: 3, alpha: 7.0, ..Lora::default() };
    let lora = Params { lora: Some(lora), ..Params::default() }.bind(&model, Seed(1)).unwrap();
    let first = ssf(Ssf::default()).bind(&model, Seed(1)).unwrap();
    shake(&lora);
    shake(&first);
    let hooks = first.policy.hooks.and(&lora.policy.hooks);
    let want = logits(&Policy { model, hooks: hooks.clone() }, &IDS, &rows());
    let merged: Arc<dyn Model> = Arc::new(whole.folded(&hooks));
    assert_close("merged", &logits(&Policy::plain(merged), &IDS, &rows()), &want, 2e-5, 1e-6);
}

#[test]
fn a_shift_of_keys_matters_with_rotation_alone() {
    for (rotated, moves) in [(false, false), (true, true)] {
        let mut whole = Whole::random(SMALL);
        if !rotated {
            whole.turn.0.clear();
        }
        let model: Arc<dyn Model> = Arc::new(whole);
        let keys = Ssf { at: "layers.0.attn.k".into(), scale: false, ..Ssf::default() };
        let bound = ssf(keys).bind(&model, Seed(1)).unwrap();
        shake(&bound);
        let loss = logits(&bound.policy, &IDS, &rows()).sqr().unwrap().sum_all().unwrap();
        let grads = loss.backward().unwrap();
        let grad = grads.get(&bound.params[0].var).unwrap().abs().unwrap();
        let size = grad.max_all().unwrap().to_scalar::<f32>().unwrap();
        assert_eq!(size > 1e-2, moves, "{size}");
        assert!(moves || size < 1e-3, "{size}");
    }
}

fn gradients(name: &str, bound: &Bound) {
    shake(bound);
    assert_gradients(name, &vars(bound), |_| {
        let logits_nv = bound.policy.logits(&IDS, rows())?;
        Ok(gather_logp(&logits_nv, &[1, 2, 3, 4, 5, 6, 7, 8, 9])?.mean_all()?)
    });
}

#[test]
fn gradients_agree_with_finite_differences() {
    let one: Arc<dyn Model> = Arc::new(Whole::random(Sizes { layers: 1, ..SMALL }));
    gradients("default", &ssf(Ssf::default()).bind(&one, Seed(1)).unwrap());
    let everywhere = Ssf { at: "**".into(), ..Ssf::default() };
    let fake: Arc<dyn Model> = Arc::new(Fake::new(Shape::default(), Seed(11)));
    gradients("everywhere", &ssf(everywhere).bind(&fake, Seed(1)).unwrap());
}

#[test]
fn values_from_a_file_bind_the_same() {
    let bound = ssf(Ssf::default()).bind(&model(), Seed(1)).unwrap();
    shake(&bound);
    let values = bound.params.iter().map(|p| (p.name.clone(), p.var.copy().unwrap())).collect();
    let again = bound.form.bind_in(&model(), Scope::given(values)).unwrap();
    let names = |b: &Bound| b.params.iter().map(|p| p.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&again), names(&bound));
    assert_eq!(
        names(&bound)[..2],
        ["layers.0.attn_norm.ssf_scale", "layers.0.attn_norm.ssf_shift"]
    );
    let of = |bound: &Bound| logits(&bound.policy, &IDS, &rows());
    assert_same_bits("again", &of(&again), &of(&bound));
}

#[test]
fn bias_only_tuning_is_a_choice_of_settings() {
    let text =
        "[ssf]\nat = \"layers.*.{attn,mlp}.{q,k,v,o,gate,up,down}\"\nscale = false\ninit_std = 0";
    let params: Params = toml::from_str(text).unwrap();
    let bound = params.bind(&model(), Seed(1)).unwrap();
    assert!(bound.params.iter().all(|p| p.name.ends_with("ssf_shift")));
    assert_eq!(bound.count(), 2 * (8 + 4 + 4 + 8 + 12 + 12 + 8));
    let again: Params = toml::from_str(&toml::to_string(&params).unwrap()).unwrap();
    assert_eq!(again, params);
}

#[test]
fn bad_settings_are_refused_by_their_key() {
    for (text, want) in [
        ("scale = false\nshift = false", "train.params.ssf: neither"),
        ("init_std = -0.1", "train.params.ssf.init_std: expected a number from 0 up, got -0.1"),
        ("at = \"**.resid_post\"", "train.params.ssf.at: `**.resid_post` names"),
        ("at = \"final_norm\"\nscale = false", "train.params.ssf.at: names norms that can have no"),
        ("at = \"layers.*.atn_norm\"", "matches no site"),
    ] {
        let params: Params = toml::from_str(&format!("[ssf]\n{text}")).unwrap();
        let error = params.bind(&model(), Seed(1)).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains(want), "{text}: {error}");
        assert_eq!(error.exit_code(), 2);
    }
}
