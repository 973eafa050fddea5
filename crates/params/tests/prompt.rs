//! Virtual tokens: what they begin as, where they stand, and PEFT's files of them.

#[allow(dead_code, reason = "every test file uses a part of it")]
mod whole;

use std::{path::Path, sync::Arc};

use candle_core::{Device, Tensor};
use luthier_core::{
    Batch, Cache, Ctx, Model, Policy, Rotary, Rows, Seed, SiteKind, SiteMap, StateDict,
    model::gather_logp,
};
use luthier_params::{
    Bound, Params, Prompt, PromptInit, PromptKind, Scope,
    form::prompt::{
        peft::{PROMPT, TENSOR, prefix_from_peft, prefix_to_peft},
        prefix_sites,
    },
    peft,
};
use luthier_testkit::{
    Fake, Shape, assert_close, assert_gradients, assert_same_bits, batch, golden, load_tensors,
};
use whole::{Bare, PICO, SMALL, Sizes, Whole, logits, shake, vars};

const VIRTUAL: usize = 3;

fn prompt(kind: PromptKind, init: PromptInit) -> Params {
    Params { prompt: Some(Prompt { n_virtual: VIRTUAL, kind, init }), ..Params::default() }
}

fn learned() -> Params {
    prompt(PromptKind::Prompt, PromptInit::Vocab)
}

fn prefix() -> Params {
    prompt(PromptKind::Prefix, PromptInit::Vocab)
}

fn models() -> [(&'static str, Arc<dyn Model>); 2] {
    [
        ("llama", Arc::new(Whole::random(SMALL))),
        ("norms of heads", Arc::new(Whole::random(Sizes { qk_norm: true, e: 6, ..SMALL }))),
    ]
}

/// Texts behind placeholders.
fn behind(placeholders: &[u32], texts: &[&[u32]]) -> (Vec<u32>, Arc<Rows>) {
    let lengths: Vec<usize> = texts.iter().map(|t| placeholders.len() + t.len()).collect();
    let ids = texts.iter().flat_map(|t| placeholders.iter().chain(*t).copied()).collect();
    (ids, Arc::new(Rows::new(&lengths, |_| 0)))
}

const TEXTS: [&[u32]; 3] = [&[3, 1, 4, 1, 5], &[9], &[2, 6, 5]];

/// Logits at the tokens that stand for themselves.
fn real(policy: &Policy, placeholders: &[u32]) -> Tensor {
    let (ids, rows) = behind(placeholders, &TEXTS);
    let all = logits(policy, &ids, &rows);
    let kept: Vec<u32> =
        (0..ids.len() as u32).filter(|t| rows.positions_n[*t as usize] >= VIRTUAL as u32).collect();
    all.index_select(&Tensor::new(kept, &Device::Cpu).unwrap(), 0).unwrap()
}

/// The tokens that virtual ones began as: where the prompt's rows stand in the table.
fn drawn(model: &Arc<dyn Model>) -> Vec<u32> {
    let bound = learned().bind(model, Seed(1)).unwrap();
    let table = model.affine(model.sites().get("embed").unwrap().id).unwrap().w_oi;
    let (table, rows) = (table.to_vec2::<f32>().unwrap(), bound.params[0].var.to_vec2::<f32>());
    let find = |row: &Vec<f32>| table.iter().position(|r| r == row).unwrap() as u32;
    rows.unwrap().iter().map(find).collect()
}

#[test]
fn virtual_tokens_begin_as_a_text_of_the_vocabulary() {
    for (name, model) in models() {
        let tokens = drawn(&model);
        let want = real(&Policy::plain(model.clone()), &tokens);
        for params in [learned(), prefix()] {
            let bound = params.bind(&model, Seed(1)).unwrap();
            assert_eq!(params.virtual_tokens(), VIRTUAL);
            // Any placeholder will do.
            for placeholders in [[0; VIRTUAL], [7; VIRTUAL]] {
                assert_close(name, &real(&bound.policy, &placeholders), &want, 1e-6, 1e-6);
            }
        }
        let other = learned().bind(&model, Seed(2)).unwrap();
        assert!(
            real(&other.policy, &[0; VIRTUAL]).to_vec2::<f32>().unwrap()
                != want.to_vec2::<f32>().unwrap()
        );
    }
}

#[test]
fn a_random_start_is_normal() {
    let wide: Arc<dyn Model> = Arc::new(Whole::random(Sizes { width: 64, e: 16, ..SMALL }));
    for kind in [PromptKind::Prompt, PromptKind::Prefix] {
        let form = Prompt { n_virtual: 40, kind, init: PromptInit::Random };
        let params = Params { prompt: Some(form), ..Params::default() };
        let bound = params.bind(&wide, Seed(1)).unwrap();
        let all: Vec<f32> = vars(&bound)
            .iter()
            .flat_map(|v| v.flatten_all().unwrap().to_vec1::<f32>().unwrap())
            .collect();
        let square = all.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / all.len() as f64;
        assert!((square - 1.0).abs() < 0.06, "{square}");
    }
}

#[test]
fn the_numbers_of_smollm2() {
    let mut sites = SiteMap::default();
    sites.add("embed", SiteKind::Embed { v: 49_152, d: 576 }, None, None);
    for l in 0..30 {
        for part in ["k", "v"] {
            let kind = SiteKind::Linear { i: 576, o: 192, bias: false };
            sites.add(format!("layers.{l}.attn.{part}"), kind, Some(l), None);
        }
    }
    let model: Arc<dyn Model> = Arc::new(Bare { sites, layers: 30, width: 576 });
    let count = |kind| {
        let form = Prompt { kind, init: PromptInit::Random, ..Prompt::default() };
        Params { prompt: Some(form), ..Params::default() }.bind(&model, Seed(1)).unwrap().count()
    };
    assert_eq!((count(PromptKind::Prompt), count(PromptKind::Prefix)), (5_760, 10 * 2 * 30 * 192));
}

#[test]
fn gradients_agree_with_finite_differences() {
    let (ids, rows) = behind(&[0; VIRTUAL], &TEXTS);
    let targets: Vec<u32> = (0..ids.len() as u32).map(|t| t % 17).collect();
    for (name, model) in models() {
        for params in [learned(), prefix()] {
            let bound = params.bind(&model, Seed(1)).unwrap();
            assert_gradients(name, &vars(&bound), |_| {
                let logp_n = gather_logp(&bound.policy.logits(&ids, rows.clone())?, &targets)?;
                Ok(logp_n.mean_all()?)
            });
        }
    }
}

/// Prompts enter a cache with their placeholders; later tokens come without.
#[test]
fn decoding_from_a_cache_is_reading_it_all() {
    let model: Arc<dyn Model> = Arc::new(Fake::new(Shape::default(), Seed(11)));
    let bound = learned().bind(&model, Seed(1)).unwrap();
    shake(&bound);
    let (ids, _) = behind(&[0; VIRTUAL], &[&[3, 1, 4, 1, 5, 9]]);
    let whole = logits(&bound.policy, &ids, &Arc::new(Rows::single(ids.len())));
    let mut cache = Cache::new(1, model.n_layers());
    let mut from = 0;
    for to in [VIRTUAL + 2, VIRTUAL + 3, VIRTUAL + 5, ids.len()] {
        let rows = Arc::new(Rows::new(&[to - from], |_| from));
        let mut ctx = Ctx::new(&bound.policy.hooks, rows.clone(), &ids[from..to]);
        ctx.cache = Some(&mut cache);
        let h_nd = bound.policy.hidden(&mut ctx).unwrap();
        let mut ctx = Ctx::new(&bound.policy.hooks, rows, &ids[from..to]);
        let got = model.unembed(&h_nd, &mut ctx).unwrap();
        assert_close("cached", &got, &whole.narrow(0, from, to - from).unwrap(), 1e-6, 1e-6);
        from = to;
    }
}

#[test]
fn values_from_a_file_bind_the_same() {
    for (name, model) in models() {
        for params in [learned(), prefix()] {
            let bound = params.bind(&model, Seed(1)).unwrap();
            shake(&bound);
            let values = bound.params.iter().map(|p| (p.name.clone(), p.var.copy().unwrap()));
            let again = bound.form.bind_in(&model, Scope::given(values.collect())).unwrap();
            let of = |bound: &Bound| real(&bound.policy, &[0; VIRTUAL]);
            assert_same_bits(name, &of(&again), &of(&bound));
        }
    }
}

/// A pico model with the rotation that transformers used.
fn recorded(name: &str) -> (Whole, StateDict) {
    let want = load_tensors(format!("prompts/{name}/golden.safetensors"));
    let (folder, sizes) = match name {
        "prefix-qwen3" => ("models/qwen3", Sizes { e: 16, qk_norm: true, ..PICO }),
        "prefix-yarn" => ("models/llama-yarn", PICO),
        _ => ("models/llama", PICO),
    };
    let mut whole = Whole::golden(folder, sizes);
    let numbers = |key: &str| want.get(key).unwrap().to_vec1::<f32>().unwrap();
    whole.turn = (numbers("inv_freq"), numbers("attention_factor")[0]);
    (whole, want)
}

fn with_placeholders(batch: &Batch, virtuals: usize) -> (Vec<u32>, Arc<Rows>, Tensor) {
    let (mut ids, mut lengths, mut real) = (Vec::new(), Vec::new(), Vec::new());
    for row in 0..batch.rows.b() {
        let range = batch.rows.range(row);
        ids.extend(vec![0; virtuals]);
        real.extend((0..range.len()).map(|t| (ids.len() + t) as u32));
        ids.extend(&batch.ids_n[range.clone()]);
        lengths.push(virtuals + range.len());
    }
    (ids, Arc::new(Rows::new(&lengths, |_| 0)), Tensor::new(real, &Device::Cpu).unwrap())
}

/// Logits and gradients of PEFT, through its file and our variables, and back to its tensor.
#[test]
fn prompts_and_prefixes_of_peft_compute_what_they_computed_there() {
    for name in ["prompt", "prefix", "prefix-qwen3", "prefix-yarn"] {
        let (whole, want) = recorded(name);
        let file = load_tensors(format!("prompts/{name}/adapter_model.safetensors"));
        let theirs = file.get(TENSOR).unwrap();
        let (inv_freq, factor) = whole.turn.clone();
        let turn = |_| Some(Rotary { inv_freq: &inv_freq, factor });
        let model: Arc<dyn Model> = Arc::new(whole);
        let sites = model.sites();
        let (virtuals, _) = theirs.dims2().unwrap();
        let kind = if name == "prompt" { PromptKind::Prompt } else { PromptKind::Prefix };
        let values = match kind {
            PromptKind::Prompt => [(PROMPT.to_string(), theirs.clone())].into_iter().collect(),
            PromptKind::Prefix => {
                prefix_from_peft(theirs, &prefix_sites(sites, 2).unwrap(), turn).unwrap()
            }
        };
        let form = Prompt { n_virtual: virtuals, kind, ..Prompt::default() };
        let params = Params { prompt: Some(form), ..Params::default() };
        let bound = params.bind_in(&model, Scope::given(values)).unwrap();
        let batch = batch(&want, "");
        let (ids, rows, real) = with_placeholders(&batch, virtuals);
        let got = logits(&bound.policy, &ids, &rows).index_select(&real, 0).unwrap();
        assert_close(name, &got, want.get("logits_nv").unwrap(), 1e-5, 1e-5);

        let logp_n = gather_logp(&got, &batch.targets_n).unwrap();
        let share: Vec<f32> = batch.weights_n.iter().map(|w| -w / batch.weight() as f32).collect();
        let share = Tensor::new(share, &Device::Cpu).unwrap();
        let grads = (logp_n * share).unwrap().sum_all().unwrap().backward().unwrap();
        let of = |name: &str| grads.get(bound.var(name)?.as_tensor()).cloned();
        let grad = match kind {
            PromptKind::Prompt => of(PROMPT).unwrap(),
            // Rotation is its own transpose's inverse, so gradients turn like keys, but that a factor
            // divides where it multiplied.
            PromptKind::Prefix => {
                let turn = |_| Some(Rotary { inv_freq: &inv_freq, factor: 1.0 / factor });
                prefix_to_peft(of, &prefix_sites(sites, 2).unwrap(), turn).unwrap()
            }
        };
        assert_close(name, &grad, want.get("grad.prompt_embeddings").unwrap(), 1e-4, 1e-6);

        if kind == PromptKind::Prefix {
            let of = |name: &str| Some(bound.var(name)?.as_detached_tensor());
            let back = prefix_to_peft(of, &prefix_sites(sites, 2).unwrap(), turn).unwrap();
            assert_close(name, &back, theirs, 1e-6, 1e-6);
        }
    }
}

#[test]
fn folders_of_peft_are_read_and_written_as_peft_writes_them() {
    for name in ["prompt", "prefix", "prefix-qwen3", "prefix-yarn"] {
        let (whole, want) = recorded(name);
        let (model, theirs): (Arc<dyn Model>, _) =
            (Arc::new(whole), golden(format!("prompts/{name}")));
        let bound = peft::load(&theirs, &model, None).unwrap_or_else(|e| panic!("{name}: {e}"));
        let config = |dir: &Path| -> serde_json::Value {
            luthier_core::io::read_json(&dir.join(peft::CONFIG)).unwrap()
        };
        let virtuals = bound.policy.hooks.virtual_tokens;
        assert_eq!(config(&theirs)["num_virtual_tokens"], virtuals);
        let batch = batch(&want, "");
        let (ids, rows, real) = with_placeholders(&batch, virtuals);
        let got = logits(&bound.policy, &ids, &rows).index_select(&real, 0).unwrap();
        assert_close(name, &got, want.get("logits_nv").unwrap(), 1e-5, 1e-5);

        let ours = tempfile::tempdir().unwrap();
        let base = config(&theirs)["base_model_name_or_path"].as_str().unwrap().to_string();
        let base = peft::Base { name: base, sha256: None };
        peft::save(ours.path(), &bound, model.sites(), &base).unwrap();
        let file = |dir: &Path| StateDict::load(&dir.join(peft::WEIGHTS)).unwrap();
        let (written, read) = (file(ours.path()), file(&theirs));
        assert_eq!((written.len(), read.len()), (1, 1));
        assert_close(name, written.get(TENSOR).unwrap(), read.get(TENSOR).unwrap(), 1e-6, 1e-6);
        let mut written = config(ours.path());
        written.as_object_mut().unwrap().remove("luthier").unwrap();
        assert_eq!(written, config(&theirs));
    }
    let (whole, _) = recorded("prompt");
    let model: Arc<dyn Model> = Arc::new(whole);
    let dir = tempfile::tempdir().unwrap();
    for file in [peft::CONFIG, peft::WEIGHTS] {
        std::fs::copy(golden("prompts/prompt").join(file), dir.path().join(file)).unwrap();
    }
    let text = std::fs::read_to_string(dir.path().join(peft::CONFIG)).unwrap();
    let text = text.replace("\"num_virtual_tokens\": 5", "\"num_virtual_tokens\": 4");
    std::fs::write(dir.path().join(peft::CONFIG), text).unwrap();
    let error = peft::load(dir.path(), &model, None).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("num_virtual_tokens: is 4, but the file has 5"), "{error}");
}

#[test]
fn bad_settings_are_refused_by_their_key() {
    let fake: Arc<dyn Model> = Arc::new(Fake::new(Shape::default(), Seed(11)));
    for (text, want) in [
        ("n_virtual = 0", "train.params.prompt.n_virtual: expected a number from 1 up"),
        ("kind = \"prefix\"", "train.params.prompt.kind: this model has no keys and values"),
    ] {
        let params: Params = toml::from_str(&format!("[prompt]\n{text}")).unwrap();
        let error = params.bind(&fake, Seed(1)).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains(want), "{text}: {error}");
        assert_eq!(error.exit_code(), 2);
    }
    let (whole, _) = recorded("prefix");
    let theirs = Tensor::zeros((5, 60), candle_core::DType::F32, &Device::Cpu).unwrap();
    let error = prefix_from_peft(&theirs, &prefix_sites(whole.sites(), 2).unwrap(), |_| None);
    assert!(
        error.unwrap_err().to_string().contains("has 60 numbers per virtual token, this model")
    );
    let text = "[prompt]\nn_virtual = 4\nkind = \"prefix\"\ninit = \"random\"";
    let params: Params = toml::from_str(text).unwrap();
    let again: Params = toml::from_str(&toml::to_string(&params).unwrap()).unwrap();
    assert_eq!(again, params);
}
