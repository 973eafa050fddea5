//! `luthier adapter convert`: what comes out, and what it is said to have lost.

use super::*;

fn decoder(dir: &Path) -> Arc<dyn Model> {
    Arc::new(Decoder::load(&Source::open(dir).unwrap(), Precision::F32, |_, _| ()).unwrap())
}

/// What an adapter adds to every weight, by site, in plain numbers.
fn deltas(model: &Path, adapter: &Path) -> BTreeMap<String, Vec<f32>> {
    let model = decoder(model);
    let bound = luthier_params::load(adapter, &model, None, None).unwrap();
    let (policy, mut all) = (&bound.policy, BTreeMap::new());
    for site in model.sites().iter().filter(|s| s.module.is_some()) {
        let now = policy.model.affine(site.id).unwrap();
        let now = policy.hooks.fold(model.sites(), site.id, now).unwrap().unwrap();
        let delta = (now.w_oi - model.affine(site.id).unwrap().w_oi).unwrap();
        let delta: Vec<f32> = delta.flatten_all().unwrap().to_vec1().unwrap();
        if delta.iter().any(|x| *x != 0.0) {
            all.insert(site.name.clone(), delta);
        }
    }
    all
}

fn norm(values: impl IntoIterator<Item = f64>) -> f64 {
    values.into_iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// Lost and whole norm, by subtraction.
fn lost(before: &[f32], after: Option<&Vec<f32>>) -> (f64, f64) {
    let zeros = vec![0.0; before.len()];
    let after = after.unwrap_or(&zeros);
    let apart = before.iter().zip(after).map(|(a, b)| f64::from(*a) - f64::from(*b));
    (norm(apart), norm(before.iter().map(|x| f64::from(*x))))
}

/// The errors a conversion told are those that subtraction finds; the total is given.
#[track_caller]
fn told_truly(
    value: &Value,
    before: &BTreeMap<String, Vec<f32>>,
    after: &BTreeMap<String, Vec<f32>>,
) -> f64 {
    let modules = value["modules"].as_array().unwrap();
    let (mut all_lost, mut all) = (Vec::new(), Vec::new());
    for module in modules {
        let site = module["site"].as_str().unwrap();
        let (lost, whole) = lost(&before[site], after.get(site));
        let told = module["relative_error"].as_f64().unwrap();
        assert!((told - lost / whole).abs() < 3e-6, "{site}: told {told}, is {}", lost / whole);
        assert!((module["norm"].as_f64().unwrap() / whole - 1.0).abs() < 1e-5);
        all_lost.push(lost);
        all.push(whole);
    }
    let (total, is) = (value["relative_error"].as_f64().unwrap(), norm(all_lost) / norm(all));
    assert!((total - is).abs() < 3e-6, "total: told {total}, is {is}");
    total
}

fn workplace() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    pico(&dir.path().join("m"), 1);
    dir
}

/// An adapter of this form with random numbers everywhere.
fn random(dir: &Path, form: Params, name: &str) -> Bound {
    let model = decoder(&dir.join("m"));
    let bound = form.bind(&model, Seed(3)).unwrap();
    for Param { name, var, .. } in &bound.params {
        let mut rng = Seed(5).split(name).rng();
        let old: Vec<f32> = var.flatten_all().unwrap().to_vec1().unwrap();
        let values: Vec<f32> = old.iter().map(|x| x + 0.2 * rng.normal() as f32).collect();
        var.set(&Tensor::from_vec(values, var.dims(), &Device::Cpu).unwrap()).unwrap();
    }
    let sha256 = Source::open(&dir.join("m")).unwrap().sha256().unwrap().to_string();
    let base = peft::Base { name: "m".into(), sha256: Some(sha256) };
    peft::save(&dir.join(name), &bound, model.sites(), &base).unwrap();
    bound
}

#[test]
fn a_lora_is_cut_to_a_smaller_rank_and_says_what_that_costs() {
    let dir = workplace();
    let (m, a) = (dir.path().join("m"), dir.path().join("a"));
    adapter(&m, &a);
    let before = deltas(&m, &a);
    let mut errors = Vec::new();
    for rank in [3, 2, 1] {
        let out = format!("cut{rank}");
        let value =
            run(dir.path(), &format!("adapter convert a --rank {rank} --out {out} --json")).json();
        assert_eq!(value["modules"].as_array().unwrap().len(), 14);
        assert_eq!(value["modules"][0]["rank_before"], 4);
        assert_eq!(value["left_out"], json!([]));
        let cut = dir.path().join(&out);
        errors.push(told_truly(&value, &before, &deltas(&m, &cut)));
        let config: Value = io::read_json(&cut.join(peft::CONFIG)).unwrap();
        // The scale stays: alpha / r is 8 / 4.
        assert_eq!((&config["r"], &config["lora_alpha"]), (&json!(rank), &json!(2 * rank)));
        accepted(dir.path(), &cut, [true; 3], ["", "", ""]);
        let left: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(left.iter().all(|name| !name.to_string_lossy().starts_with('.')), "{left:?}");
    }
    assert!(errors[0] < errors[1] && errors[1] < errors[2], "{errors:?}");
    let text = run(dir.path(), "adapter convert a --rank 2 --out text");
    let last = text.text().lines().last().unwrap();
    assert!(last.starts_with("total") && last.ends_with(&format!("{:.3e}", errors[1])), "{last}");
    assert!(text.text().contains("4 → 2") && text.stderr.contains("written: text"));
    // The smaller adapter runs where the larger one did.
    run(dir.path(), "generate --adapter cut3 --prompt hello --max-new-tokens 4").text();

    run(dir.path(), "adapter convert a --rank 4 --out x").refused(&["nothing to cut", "hint:"]);
    run(dir.path(), "adapter convert a --out x").refused(&["is a plain LoRA already"]);
    run(dir.path(), "adapter convert a --rank 0 --out x").refused(&["--rank", "above 0"]);
    run(dir.path(), "adapter convert a --rank 2 --out m").refused(&["m: the output folder is not"]);
    run(dir.path(), "adapter convert m --rank 2 --out x").refused(&["is no adapter"]);
    run(dir.path(), "adapter convert --rank 2 --out x").refused(&[]);
    run(dir.path(), "adapter convert a --extract m m --out x").refused(&["--extract"]);
    pico(&dir.path().join("other"), 2);
    run(dir.path(), "adapter convert a --model other --rank 2 --out x")
        .refused(&["another base model"]);
    assert!(!dir.path().join("x").exists());
}

#[test]
fn rslora_becomes_plain_without_touching_the_factors() {
    let dir = workplace();
    let rank_pattern = [("layers.1.mlp.down".to_string(), 9)].into();
    let at = ["embed", "layers.*.mlp.down", "logits"].map(str::to_string).to_vec();
    let lora = Lora {
        r: 4,
        alpha: 6.0,
        rslora: true,
        at: luthier_params::Globs(at),
        rank_pattern,
        ..Lora::default()
    };
    random(dir.path(), Params { lora: Some(lora), ..Params::default() }, "a");
    let value = run(dir.path(), "adapter convert a --out b --json").json();
    assert_eq!(value["relative_error"], 0.0);
    let load = |name: &str| StateDict::load(&dir.path().join(name).join(peft::WEIGHTS)).unwrap();
    let (old, new) = (load("a"), load("b"));
    assert_eq!(old.to_safetensors(&[]).unwrap(), new.to_safetensors(&[]).unwrap());
    let config: Value = io::read_json(&dir.path().join("b").join(peft::CONFIG)).unwrap();
    assert_eq!(config["use_rslora"], false);
    let (m, a, b) = (dir.path().join("m"), dir.path().join("a"), dir.path().join("b"));
    let (before, after) = (deltas(&m, &a), deltas(&m, &b));
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
    assert_eq!(before.len(), 4);
    for (site, delta) in &before {
        let (lost, whole) = lost(delta, after.get(site));
        assert!(lost < 1e-6 * whole, "{site}");
    }
    // The same, cut at once: the embedding and the head too.
    let value = run(dir.path(), "adapter convert a --rank 3 --out c --json").json();
    told_truly(&value, &before, &deltas(&m, &dir.path().join("c")));
}

#[test]
fn dora_and_other_forms_are_approximated_by_the_rank_that_is_asked_for() {
    let dir = workplace();
    let m = dir.path().join("m");
    let lora = Lora { r: 3, alpha: 6.0, dora: true, ..Lora::default() };
    random(dir.path(), Params { lora: Some(lora), ..Params::default() }, "dora");
    run(dir.path(), "adapter convert dora --out x").refused(&["--rank", "--rank 16"]);
    let before = deltas(&m, &dir.path().join("dora"));
    let mut errors = Vec::new();
    for rank in [2, 8, 32] {
        let line = format!("adapter convert dora --rank {rank} --out r{rank} --json");
        let value = run(dir.path(), &line).json();
        let after = deltas(&m, &dir.path().join(format!("r{rank}")));
        errors.push(told_truly(&value, &before, &after));
    }
    assert!(errors[0] > errors[1] && errors[1] > 1e-3 && errors[2] < 2e-6, "{errors:?}");
    accepted(dir.path(), &dir.path().join("r8"), [true; 3], ["", "", ""]);

    // Norms are not matrices, which is said.
    let norms = Params { ln_tuning: Some(Default::default()), ..Params::default() };
    random(dir.path(), norms, "norms");
    run(dir.path(), "adapter convert norms --rank 4 --out x").refused(&["nothing to put", "norm"]);
    assert!(!dir.path().join("x").exists());
}

/// The golden models with a tokenizer, which opening them takes, where their adapters look for them.
fn golden_models(dir: &Path) {
    for name in ["llama", "llama-bias", "qwen2"] {
        let (from, to) = (golden("../models").join(name), dir.join("models").join(name));
        Tokenizer::bytes().save(&to).unwrap();
        for file in ["config.json", "model.safetensors"] {
            fs::copy(from.join(file), to.join(file)).unwrap();
        }
    }
}

#[test]
fn whatever_peft_wrote_becomes_a_plain_lora_with_the_error_told() {
    let dir = tempfile::tempdir().unwrap();
    golden_models(dir.path());
    let mut exact = 0;
    for entry in golden("../peft").read_dir().unwrap() {
        let adapter = entry.unwrap().path();
        let name = adapter.file_name().unwrap().to_str().unwrap().to_string();
        let line = |rank: usize| {
            format!(
                "adapter convert {} --rank {rank} --out {name}-{rank} --json",
                adapter.display()
            )
        };
        if name == "ln_tuning" {
            run(dir.path(), &line(3)).refused(&["nothing to put", "norm"]);
            continue;
        }
        let config: Value = io::read_json(&adapter.join(peft::CONFIG)).unwrap();
        let base = dir.path().join(config["base_model_name_or_path"].as_str().unwrap());
        let before = deltas(&base, &adapter);
        let mut errors = Vec::new();
        for rank in [1, 3] {
            let value = run(dir.path(), &line(rank)).json();
            let out = dir.path().join(format!("{name}-{rank}"));
            errors.push(told_truly(&value, &before, &deltas(&base, &out)));
            assert!(
                value["modules"].as_array().unwrap().iter().all(|m| m["rank"] == rank),
                "{name}"
            );
            let (peft, said) = verdicts(dir.path(), &out).swap_remove(0);
            assert!(peft, "{name}: {said}");
        }
        assert!(errors[1] < errors[0], "{name}: {errors:?}");
        // Where everything is low-rank, the rank of everything leaves nothing out.
        if ["pissa", "olora"].contains(&name.as_str()) {
            let value = run(dir.path(), &line(16)).json();
            assert!(value["relative_error"].as_f64().unwrap() < 1e-6, "{name}");
            told_truly(&value, &before, &deltas(&base, &dir.path().join(format!("{name}-16"))));
            exact += 1;
        }
    }
    assert_eq!(exact, 2);
}

#[test]
fn files_of_our_own_become_a_lora_where_they_fold() {
    let dir = workplace();
    let m = dir.path().join("m");
    let model = decoder(&m);
    let lora = Lora { r: 2, alpha: 4.0, at: "layers.*.attn.q".into(), ..Lora::default() };
    let form =
        Params { lora: Some(lora), ln_tuning: Some(Default::default()), ..Params::default() };
    let bound = form.bind(&model, Seed(3)).unwrap();
    for Param { name, var, .. } in &bound.params {
        let mut rng = Seed(6).split(name).rng();
        let old: Vec<f32> = var.flatten_all().unwrap().to_vec1().unwrap();
        let values: Vec<f32> = old.iter().map(|x| x + 0.2 * rng.normal() as f32).collect();
        var.set(&Tensor::from_vec(values, var.dims(), &Device::Cpu).unwrap()).unwrap();
    }
    let base = peft::Base { name: "m".into(), sha256: None };
    let a = dir.path().join("a");
    fs::create_dir(&a).unwrap();
    let weights = StateDict::load(&m.join("model.safetensors")).unwrap();
    let exact = |name: &str| -> luthier_core::Result<Vec<f32>> {
        Ok(weights.get(name).unwrap().flatten_all()?.to_vec1()?)
    };
    own::save(&a, &bound, &base, &exact).unwrap();
    accepted(dir.path(), &a, [false; 3], ["luthier's own"; 3]);
    let value = run(dir.path(), "adapter convert a --rank 2 --out b --json").json();
    let left: Vec<&str> =
        value["left_out"].as_array().unwrap().iter().map(|l| l["site"].as_str().unwrap()).collect();
    assert!(left.contains(&"final_norm") && left.contains(&"layers.1.mlp_norm"), "{left:?}");
    let error = told_truly(&value, &deltas(&m, &a), &deltas(&m, &dir.path().join("b")));
    assert!(error < 1e-6);
    assert_eq!(value["modules"].as_array().unwrap().len(), 2);
}

#[test]
fn a_lora_is_found_again_in_the_difference_of_two_models() {
    let dir = workplace();
    let m = dir.path().join("m");
    adapter(&m, &dir.path().join("a"));
    run(dir.path(), "fold --model m --adapter a --out t").text();
    let line = "adapter convert --extract m t --out b";
    let value = run(dir.path(), &format!("{line} --rank 4 --json")).json();
    assert!(value["relative_error"].as_f64().unwrap() < 1e-5, "{value}");
    assert_eq!(value["left_out"], json!([]));
    let (before, after) = (deltas(&m, &dir.path().join("a")), deltas(&m, &dir.path().join("b")));
    for (site, delta) in &before {
        let (lost, whole) = lost(delta, after.get(site));
        assert!(lost < 1e-5 * whole, "{site}");
    }
    accepted(dir.path(), &dir.path().join("b"), [true; 3], ["", "", ""]);
    // A smaller rank, and a limit under which a part does not count.
    let value = run(dir.path(), &format!("{line}2 --rank 2 --json")).json();
    told_truly(&value, &before, &deltas(&m, &dir.path().join("b2")));
    let value = run(dir.path(), &format!("{line}3 --sv-epsilon 4 --json")).json();
    let ranks: Vec<u64> = value["modules"]
        .as_array()
        .unwrap()
        .iter()
        .map(|module| module["rank"].as_u64().unwrap())
        .collect();
    assert!(ranks.iter().any(|r| *r < 4) && ranks.iter().all(|r| *r <= 4), "{ranks:?}");
    let after = deltas(&m, &dir.path().join("b3"));
    let kept: BTreeMap<String, Vec<f32>> = before
        .iter()
        .filter(|(s, _)| after.contains_key(*s))
        .map(|(s, d)| (s.clone(), d.clone()))
        .collect();
    told_truly(&value, &kept, &after);
    let all =
        value["modules"].as_array().unwrap().len() + value["left_out"].as_array().unwrap().len();
    assert_eq!(all, 14);
    run(dir.path(), &format!("{line}4 --sv-epsilon -1")).refused(&["sv-epsilon"]);
}

#[test]
fn what_is_no_linear_map_is_named_as_not_represented() {
    let dir = workplace();
    let (m, t) = (dir.path().join("m"), dir.path().join("t"));
    pico(&t, 1);
    let changed = |names: &[&str]| {
        let mut state = StateDict::load(&m.join("model.safetensors")).unwrap();
        for name in names {
            let moved = (state.get(name).unwrap() * 1.5).unwrap();
            state.insert(*name, moved);
        }
        state.save(&t.join("model.safetensors"), &[("format", "pt")]).unwrap();
    };
    changed(&[]);
    run(dir.path(), "adapter convert --extract m t --out b")
        .refused(&["nothing", "no weight differs"]);
    changed(&["model.norm.weight", "model.embed_tokens.weight"]);
    run(dir.path(), "adapter convert --extract m t --out b").refused(&["nothing", "only embed"]);
    let o = "model.layers.1.self_attn.o_proj.weight";
    changed(&["model.norm.weight", "model.embed_tokens.weight", o]);
    let ran = run(dir.path(), "adapter convert --extract m t --rank 32 --out b");
    assert!(ran.stderr.contains("not represented: embed: the embedding"), "{}", ran.stderr);
    assert!(ran.stderr.contains("not represented: final_norm: the scale of a norm"));
    let rows: Vec<&str> = ran.text().lines().collect();
    assert_eq!((rows.len(), rows[1].starts_with("layers.1.attn.o")), (3, true), "{rows:?}");

    // Another architecture is not subtracted.
    let path = t.join("config.json");
    let mut config: Value = io::read_json(&path).unwrap();
    config["num_hidden_layers"] = json!(1);
    io::write_json(&path, &config).unwrap();
    let mut state = StateDict::load(&m.join("model.safetensors")).unwrap();
    let second: Vec<String> =
        state.iter().map(|(n, _)| n.to_string()).filter(|n| n.contains("layers.1.")).collect();
    second.iter().for_each(|name| drop(state.remove(name)));
    state.save(&t.join("model.safetensors"), &[("format", "pt")]).unwrap();
    run(dir.path(), "adapter convert --extract m t --out c").refused(&["t: has", "architecture"]);
}
