//! Ways to begin and DoRA, over the pico models.

mod naive;

use std::{collections::BTreeMap, sync::Arc};

use candle_core::{DType, Device, Tensor};
use luthier_core::{Ctx, Hooks, Model, Policy, Rows, Seed, SiteKind, StateDict};
use luthier_params::{Bound, Eva, Globs, Kept, Lora, LoraInit, Params, Scope, Tokens, peft};
use luthier_testkit::{assert_close, assert_same_bits, difference};
use naive::{Naive, leave_for_peft};

const IDS: [u32; 9] = [3, 1, 41, 1, 59, 90, 2, 6, 5];

fn model(folder: &str) -> Arc<dyn Model> {
    Arc::new(Naive::golden(&format!("models/{folder}")))
}

const LENGTHS: [usize; 3] = [5, 1, 3];

fn rows() -> Arc<Rows> {
    Arc::new(Rows::new(&LENGTHS, |_| 0))
}

fn leave(name: &str, folder: &str, bound: &Bound) {
    leave_for_peft(name, &format!("models/{folder}"), bound, &IDS, &LENGTHS);
}

fn logits(policy: &Policy) -> Tensor {
    policy.logits(&IDS, rows()).unwrap()
}

fn lora(lora: Lora) -> Params {
    Params { lora: Some(lora), ..Params::default() }
}

/// Alpha differs from the rank: a wrong scale must show.
fn small(init: LoraInit) -> Lora {
    Lora { r: 4, alpha: 7.0, init, ..Lora::default() }
}

fn shake(bound: &Bound) {
    for param in &bound.params {
        let mut rng = Seed(5).split(&param.name).rng();
        let n = param.var.elem_count();
        let by: Vec<f32> = (0..n).map(|_| (0.1 * rng.normal()) as f32).collect();
        let by = Tensor::from_vec(by, param.var.shape(), &Device::Cpu).unwrap();
        let now = param.var.as_detached_tensor().copy().unwrap();
        param.var.set(&(now + by).unwrap()).unwrap();
    }
}

#[test]
fn every_way_to_begin_begins_as_the_base() {
    let base = logits(&Policy::plain(model("llama-bias")));
    for init in [LoraInit::Kaiming, LoraInit::Orthogonal, LoraInit::Pissa, LoraInit::Olora] {
        for (dora, rslora) in [(false, false), (true, false), (false, true)] {
            let params = lora(Lora { dora, rslora, ..small(init) });
            let bound = params.bind(&model("llama-bias"), Seed(1)).unwrap();
            let got = logits(&bound.policy);
            match init {
                LoraInit::Kaiming => assert_same_bits("kaiming", &got, &base),
                _ => assert_close(&format!("{init:?} {dora}"), &got, &base, 1e-5, 1e-6),
            }
            // What the weight gave up is in the variables.
            let b_or = bound.var("layers.0.attn.q.lora_B").unwrap();
            let size = b_or.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            assert_eq!(size > 0.0, init != LoraInit::Kaiming);
        }
    }
}

#[test]
fn a_constant_part_is_saved_along_and_bound_again() {
    for init in [LoraInit::Pissa, LoraInit::Olora] {
        for (dora, rslora) in [(false, true), (true, false)] {
            let at = Globs(vec!["layers.*.attn.{q,v}".into(), "embed".into(), "logits".into()]);
            let rank_pattern = BTreeMap::from([("**.v".to_string(), 2)]);
            let alpha_pattern = BTreeMap::from([("**.q".to_string(), 3.0)]);
            let form = Lora { dora, rslora, at, rank_pattern, alpha_pattern, ..small(init) };
            let bound = lora(form).bind(&model("llama"), Seed(1)).unwrap();
            shake(&bound);
            assert_eq!(bound.form.kept(), Kept::Peft);
            leave(&format!("own {init:?}{}", if dora { " dora" } else { "" }), "llama", &bound);
            let (dir, base) = (tempfile::tempdir().unwrap(), peft::Base::default());
            peft::save(dir.path(), &bound, model("llama").sites(), &base).unwrap();
            let again = peft::load(dir.path(), &model("llama"), None).unwrap();
            let ranks = |site: &str| again.var(&format!("{site}.lora_A")).unwrap().dims()[0];
            assert_eq!((ranks("layers.0.attn.q"), ranks("layers.1.attn.v")), (8, 4));
            assert_eq!(again.var("embed.lora_embedding_A").unwrap().dims()[0], 4);
            let (got, want) = (logits(&again.policy), logits(&bound.policy));
            assert_close(&format!("{init:?} {dora}"), &got, &want, 1e-5, 1e-6);
            // The same file read as what it says, over a base without the part: something else.
            assert!(difference("", &want, &logits(&Policy::plain(model("llama")))).rel > 0.01);
        }
    }
}

#[test]
fn dora_with_dropout_reads_two_inputs() {
    let at: Globs = "layers.0.mlp.up".into();
    let form = Lora { dora: true, dropout: 0.5, at, ..small(LoraInit::Pissa) };
    let model = model("llama-bias");
    let bound = lora(form).bind(&model, Seed(1)).unwrap();
    shake(&bound);
    let site = model.sites().get("layers.0.mlp.up").unwrap();
    let SiteKind::Linear { i, o, .. } = site.kind else { panic!("a linear map") };
    let mut rng = Seed(9).rng();
    let x: Vec<f32> = (0..IDS.len() * i).map(|_| rng.normal() as f32).collect();
    let x = Tensor::from_vec(x, (IDS.len(), i), &Device::Cpu).unwrap();
    let lin = model.affine(site.id).unwrap();
    let plain = |x: &Tensor| {
        let y = x.matmul(&lin.w_oi.t().unwrap()).unwrap();
        y.broadcast_add(lin.b_o.as_ref().unwrap()).unwrap()
    };
    let run = |hooks: &Hooks, noise: Option<Seed>| {
        let mut ctx = Ctx::new(hooks, rows(), &IDS);
        ctx.noise = noise;
        ctx.through(model.sites(), site.id, &x, |x| Ok(plain(x))).unwrap()
    };
    let hooks = &bound.policy.hooks;
    let folded = hooks.fold(model.sites(), site.id, lin.clone()).unwrap().unwrap();
    let want = x.matmul(&folded.w_oi.t().unwrap()).unwrap();
    let want = want.broadcast_add(folded.b_o.as_ref().unwrap()).unwrap();
    assert_close("folded", &run(hooks, None), &want, 1e-5, 1e-6);

    // In training: a few draws of x̃, found by probing with what the addition alone does to them.
    let (once, again) = (run(hooks, Some(Seed(4))), run(hooks, Some(Seed(4))));
    assert_same_bits("the same noise", &again, &once);
    // The mean over noise is the layer without it: both parts read an input of the right mean.
    let mut mean = Tensor::zeros((IDS.len(), o), DType::F32, &Device::Cpu).unwrap();
    let draws = 4000;
    for seed in 0..draws {
        mean = (mean + run(hooks, Some(Seed(seed))).detach()).unwrap();
    }
    let mean = (mean / draws as f64).unwrap();
    assert_close("mean", &mean, &want, 0.03, 0.0);
    // W x + b reads the whole input: only the small rest varies.
    let varied = difference("", &once, &want).rel;
    let size = difference("", &want, &plain(&x)).rel;
    assert!(varied > 0.05 && varied < 3.0 * size, "{varied} {size}");
}

/// Measurements as the probe gives them: random orthonormal rows and falling ratios.
fn measured(model: &dyn Model, ratio: impl Fn(&str, usize) -> f32) -> StateDict {
    let mut found = StateDict::default();
    for site in model.sites().iter().filter(|s| s.linear().is_some()) {
        let (i, _) = site.linear().unwrap();
        let mut rng = Seed(3).split(&site.name).rng();
        let v: Vec<f64> = (0..i).map(|_| rng.normal()).collect();
        let length: f64 = v.iter().map(|x| x * x).sum();
        let at =
            |a: usize, b: usize| (f64::from(u8::from(a == b)) - 2.0 * v[a] * v[b] / length) as f32;
        let rows: Vec<f32> = (0..8 * i).map(|k| at(k / i, k % i)).collect();
        let put = |part: &str| format!("{}.{part}", site.name);
        let rows = Tensor::from_vec(rows, (8, i), &Device::Cpu).unwrap();
        let ratios: Vec<f32> = (0..8).map(|k| ratio(&site.name, k)).collect();
        let sigma: Vec<f32> = ratios.iter().map(|r| 100.0 * r.sqrt()).collect();
        found.insert(put("components"), rows);
        found.insert(put("ratio"), Tensor::new(ratios, &Device::Cpu).unwrap());
        found.insert(put("singular_values"), Tensor::new(sigma, &Device::Cpu).unwrap());
    }
    found
}

#[test]
fn eva_gives_ranks_by_ratio_and_saves_them() {
    let model = model("llama");
    // q deserves all it may get, the first block's up nothing, the others about the same.
    let ratio = |site: &str, k: usize| {
        let by = match site {
            "layers.0.mlp.up" => 1e-4,
            s if s.ends_with(".q") => 1.0,
            _ => 0.3,
        };
        by * 0.8f32.powi(k as i32) / 4.0
    };
    let at: Globs = "layers.*.{attn.q,mlp.up,attn.v}".into();
    let eva = Eva { rho: 1.5, ..Eva::default() };
    let form = Lora { at, eva, ..small(LoraInit::Eva) };
    assert!(form.needs_activations() && !small(LoraInit::Pissa).needs_activations());
    let found = measured(&*model, ratio);
    let bind = |form: &Lora, found: StateDict| {
        lora(form.clone()).bind_in(&model, Scope::new(Seed(1)).with_measured(found)).unwrap()
    };
    let bound = bind(&form, found.clone());
    let rank = |bound: &Bound, site: &str| {
        bound.var(&format!("layers.{site}.lora_A")).map_or(0, |a| a.dims()[0])
    };
    let sites = ["0.attn.q", "0.attn.v", "0.mlp.up", "1.attn.q", "1.attn.v", "1.mlp.up"];
    let ranks = sites.map(|site| rank(&bound, site));
    // 6 · 4 ranks, at most 4 · 1.5 each: 12 for q; the other three share 12 as 4 each.
    assert_eq!(ranks, [6, 4, 0, 6, 4, 4]);
    assert_same_bits("start", &logits(&bound.policy), &logits(&Policy::plain(model.clone())));
    let a_ri = bound.var("layers.1.attn.v.lora_A").unwrap();
    let want = found.get("layers.1.attn.v.components").unwrap().narrow(0, 0, 4).unwrap();
    assert_same_bits("A", a_ri, &want.contiguous().unwrap());

    shake(&bound);
    let dir = tempfile::tempdir().unwrap();
    peft::save(dir.path(), &bound, model.sites(), &peft::Base::default()).unwrap();
    let config: serde_json::Value =
        luthier_core::io::read_json(&dir.path().join(peft::CONFIG)).unwrap();
    assert_eq!(config["rank_pattern"], serde_json::json!({ "q_proj": 6 }));
    assert_eq!(config["alpha_pattern"], serde_json::json!({ "q_proj": 10.5 }));
    assert_eq!(config["init_lora_weights"], "eva");
    assert_eq!(config["eva_config"]["rho"], 1.5);
    let again = peft::load(dir.path(), &model, None).unwrap();
    assert_eq!(sites.map(|site| rank(&again, site)), ranks);
    assert_same_bits("loaded", &logits(&again.policy), &logits(&bound.policy));
    leave("own Eva", "llama", &bound);

    // Rows of length 1 / √σ, and alpha / r that varies.
    let eva = Eva { whiten: true, adjust_scaling_factors: false, ..eva };
    let white = bind(&Lora { eva, ..form.clone() }, found);
    let rows = white.var("layers.1.attn.v.lora_A").unwrap().sqr().unwrap().sum(1).unwrap();
    let lengths = rows.to_vec1::<f32>().unwrap();
    for (k, length) in lengths.into_iter().enumerate() {
        let sigma = 100.0 * ratio("layers.1.attn.v", k).sqrt();
        assert!((length * sigma - 1.0).abs() < 1e-4, "{length} {sigma}");
    }
    peft::save(dir.path(), &white, model.sites(), &peft::Base::default()).unwrap();
    let config: serde_json::Value =
        luthier_core::io::read_json(&dir.path().join(peft::CONFIG)).unwrap();
    assert_eq!(config["alpha_pattern"], serde_json::json!({}));
}

#[test]
fn loftq_makes_up_for_a_coarser_base() {
    let exact = Naive::golden("models/llama");
    // Weights rounded to a sixteenth of a quarter.
    let (mut coarse, mut given) = (exact.clone(), StateDict::default());
    for site in exact.sites().iter().filter(|s| s.linear().is_some()) {
        let w_oi = exact.affine(site.id).unwrap().w_oi;
        let round = ((&w_oi * 8.0).unwrap().round().unwrap() / 8.0).unwrap();
        given.insert(format!("{}.weight", site.name), w_oi);
        coarse.set(&format!("{}.weight", site.module.as_deref().unwrap()), round);
    }
    let coarse: Arc<dyn Model> = Arc::new(coarse);
    let want = logits(&Policy::plain(Arc::new(exact)));
    let far = difference("", &logits(&Policy::plain(coarse.clone())), &want).rel;
    let near = |r: usize| {
        let form = Lora { r, ..small(LoraInit::Loftq) };
        assert!(form.needs_weights());
        let scope = Scope::new(Seed(1)).with_measured(given.clone());
        let bound = lora(form).bind_in(&coarse, scope).unwrap();
        difference("", &logits(&bound.policy), &want).rel
    };
    // All of the rank of the narrowest map, half of it.
    let (half, all) = (near(8), near(16));
    assert!(all < half && half < far && all < 0.7 * far, "{all} {half} {far}");
    let missing = lora(small(LoraInit::Loftq)).bind(&coarse, Seed(1)).map(|_| ()).unwrap_err();
    assert!(missing.to_string().contains("before quantisation is not known"), "{missing}");
}

#[test]
fn settings_without_a_meaning_are_refused_by_their_key() {
    let refused = |text: &str, want: &str| {
        let params: Params = toml::from_str(text).unwrap();
        let err = params.bind(&model("llama"), Seed(1)).map(|_| ()).unwrap_err();
        assert!(err.to_string().contains(want), "{text}\ngave: {err}");
    };
    refused(
        "[lora]\ndora = true\nbias = true\nr = 4",
        "train.params.lora.dora: cannot be combined",
    );
    refused("[lora]\ninit = \"orthogonal\"\nr = 3", "init = \"orthogonal\" needs an even rank");
    refused("[lora]\nr = 4\n[lora.eva]\nrho = 1.0", "train.params.lora.eva: is set, but");
    refused("[lora]\nr = 4\ninit = \"eva\"\n[lora.eva]\nrho = 0.5", "train.params.lora.eva.rho");
    refused("[lora]\nr = 4\ninit = \"eva\"\n[lora.eva]\ntau = 1.0", "train.params.lora.eva.tau");
    refused("[lora]\nr = 4\ninit = \"eva\"", "layers.0.attn.q.components: was not measured");
    refused("[lora]\nr = 4\n[full]\nat = \"**.q\"", "whose weight learns as a whole");
    refused("[ia3]\nat = \"embed\"", "train.params.ia3.at");
    refused("[ia3]\nfeedforward = \"**.dwn\"", "train.params.ia3.feedforward: `**.dwn` matches no");
    refused("[ln_tuning]\nat = \"**.q\"", "train.params.ln_tuning.at");
    refused("[ln_tuning]\n[full]\nat = \"final_norm\"", "model.norm.weight, which learns already");
    refused("[tokens]", "train.params.tokens.token_indices: names no token");
    refused("[tokens]\ntoken_indices = [96]", "expected ids below 96");
    refused("[tokens]\ntoken_indices = [1]\nat = \"**.q\"", "train.params.tokens.at");
    refused(
        "[tokens]\ntoken_indices = [1]\n[full]\nat = \"embed\"",
        "all rows of which are learned",
    );
    assert!(toml::from_str::<Params>("[lora]\ninit = \"pissa_niter_4\"").is_err());
    let text = "[lora]\ninit = \"eva\"\n[lora.eva]\nrho = 1.5\n[lora.rank_pattern]\n\"**.q\" = 2";
    let params: Params = toml::from_str(text).unwrap();
    let again: Params = toml::from_str(&toml::to_string(&params).unwrap()).unwrap();
    assert_eq!(again, params);
}

/// Combinations that the golden files lack; their other direction is PEFT's to check.
#[test]
fn everything_that_peft_can_hold_is_read_as_it_was_written() {
    let few = "at = \"layers.*.attn.q\"\nr = 2\nalpha = 3";
    let recipes = [
        (
            "qwen2",
            format!("[lora]\n{few}\n[full]\nat = [\"embed\", \"layers.0.mlp.up\"]\n[ln_tuning]"),
        ),
        ("qwen2", format!("[lora]\n{few}\n[full]\nat = \"logits\"")),
        ("llama", format!("[lora]\n{few}\ninit = \"pissa\"\n[tokens]\ntoken_indices = [2, 59]")),
        ("llama", format!("[lora]\n{few}\n[tokens]\ntoken_indices = [2, 59]\nat = \"logits\"")),
        ("llama-bias", format!("[lora]\n{few}\ninit = \"gaussian\"\nbias = true")),
        (
            "llama-bias",
            "[ia3]\nat = [\"layers.0.mlp.*\", \"layers.1.attn.*\"]\n\
          feedforward = \"layers.0.mlp.up\"\n[full]\nat = \"final_norm\""
                .to_string(),
        ),
        ("llama", "[ln_tuning]\nat = \"layers.*.mlp_norm\"\n[full]\nat = \"logits\"".to_string()),
        ("llama", "[tokens]\ntoken_indices = [90, 3]\nat = [\"embed\", \"logits\"]".to_string()),
    ];
    for (i, (folder, text)) in recipes.iter().enumerate() {
        let params: Params = toml::from_str(text).unwrap();
        assert_eq!(params.kept(), Kept::Peft, "{text}");
        let bound = params.bind(&model(folder), Seed(1)).unwrap();
        shake(&bound);
        leave(&format!("own {i}"), folder, &bound);
        let (dir, base) = (tempfile::tempdir().unwrap(), peft::Base::default());
        peft::save(dir.path(), &bound, bound.policy.model.sites(), &base).unwrap();
        let again = peft::load(dir.path(), &model(folder), None).unwrap();
        assert_close(text, &logits(&again.policy), &logits(&bound.policy), 1e-6, 1e-7);
        assert_eq!(again.count() > bound.count(), text.contains("pissa"), "{text}");
    }
}

#[test]
fn where_it_is_kept_follows_from_what_peft_can_hold() {
    let kept = |text: &str| toml::from_str::<Params>(text).unwrap().kept();
    for text in [
        "",
        "[lora]",
        "[lora]\n[full]\n[tokens]\n[ln_tuning]",
        "[ia3]\n[full]",
        "[ln_tuning]\n[full]",
        "[tokens]",
    ] {
        assert_eq!(kept(text), Kept::Peft, "{text}");
    }
    for text in
        ["[lora]\n[ia3]", "[ia3]\n[tokens]", "[tokens]\n[full]", "[lora]\n[full]\nparts = \"bias\""]
    {
        assert_eq!(kept(text), Kept::Own, "{text}");
    }
    assert_eq!(kept("[full]"), Kept::Model);
}

#[test]
fn a_tied_head_follows_chosen_tokens() {
    let tokens = Tokens { token_indices: vec![59, 2], ..Tokens::default() };
    let params = Params { tokens: Some(tokens), ..Params::default() };
    for (folder, moves) in [("qwen2", true), ("llama", false)] {
        let model = model(folder);
        let bound = params.bind(&model, Seed(1)).unwrap();
        let base = logits(&Policy::plain(model.clone()));
        assert_same_bits("start", &logits(&bound.policy), &base);
        shake(&bound);
        leave(&format!("own tokens {folder}"), folder, &bound);
        // The first row has read neither token: only a head that follows can tell.
        let first = |x: &Tensor| x.narrow(0, 0, 1).unwrap();
        let column = |x: &Tensor, v: usize| x.narrow(1, v, 1).unwrap().contiguous().unwrap();
        let (got, base) = (first(&logits(&bound.policy)), first(&base));
        assert_eq!(difference("", &column(&got, 59), &column(&base, 59)).abs > 1e-3, moves);
        assert_same_bits("others", &column(&got, 60), &column(&base, 60));
    }
}
