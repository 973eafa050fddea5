//! Training beside a base that is quantised in memory.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

use luthier_core::Seed;
use luthier_model::{
    ModelConfig, Quantize as To, Tokenizer,
    names::tensors,
    save::{Save, save_hf},
};
use luthier_recipe::{
    Recipe,
    open::{self, open_base},
    precision::Quantize,
    training::{Circumstances, Stage},
};
use serde_json::json;

/// A llama of two layers and width 64 with random weights and the byte tokenizer.
fn pico(dir: &Path) -> PathBuf {
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 259,
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 16,
        "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 512, "eos_token_id": 257, "tie_word_embeddings": false,
    });
    let config = ModelConfig::from_hf(&config, "config.json").unwrap();
    let list = tensors(&config);
    let load = |name: &str| {
        let (_, shape) = list.iter().find(|(n, _)| n == name).unwrap();
        let mut rng = Seed(1).split(name).rng();
        let n: usize = shape.iter().product();
        Ok((0..n).map(|_| shape.len() as f32 % 2.0 + 0.2 * rng.normal() as f32).collect())
    };
    save_hf(dir, &config, &list, load, &Save::default()).unwrap();
    Tokenizer::bytes().save(dir).unwrap();
    dir.to_path_buf()
}

fn recipe(dir: &Path, models: &str) -> Recipe {
    let row =
        |i: usize| format!("{{\"prompt\": \"{i} and {i}\", \"completion\": \"{}\"}}\n", 2 * i);
    fs::write(dir.join("train.jsonl"), (0..12).map(row).collect::<String>()).unwrap();
    let text = format!(
        "[models]\npolicy = \"model\"\nprecision = \"f32\"\n{models}\n[data]\ntrain = \
         \"train.jsonl\"\n[train]\nbatch_tokens = 100\n[train.params.lora]\nr = 2\n\
         [train.update.adamw]\nlearning_rate = 0.01\n"
    );
    fs::write(dir.join("recipe.toml"), text).unwrap();
    pico(&dir.join("model"));
    Recipe::load(&dir.join("recipe.toml"), &[]).unwrap()
}

fn stage(recipe: &Recipe) -> Stage {
    let recipe = recipe.clone().resolved();
    let opened = open_base(&recipe.models, true).unwrap();
    let config = recipe.train.clone().unwrap();
    Stage::with(recipe, config, opened).unwrap()
}

/// Linear weights in the blocks; table and head; norms.
const LINEAR: u64 = 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 128 * 64);
const ENDS: u64 = 2 * 259 * 64;
const NORMS: u64 = 5 * 64;

#[test]
fn the_estimate_counts_weights_at_their_quantised_size() {
    let dir = tempfile::tempdir().unwrap();
    let plain = recipe(dir.path(), "");
    let nf4 = |double: bool| {
        let set = ["quantize=nf4".to_string(), format!("double_quant={double}")];
        stage(&plain.clone().with(&set).unwrap())
    };
    let rest = 4 * (ENDS + NORMS);
    let weights = |stage: &Stage| stage.memory.weights;
    assert_eq!(weights(&stage(&plain)), rest + 4 * LINEAR);
    assert_eq!(weights(&nf4(false)), rest + LINEAR / 2 + LINEAR / 64 * 4);
    // Fourteen matrices, none with more than 256 scales.
    assert_eq!(weights(&nf4(true)), rest + LINEAR / 2 + LINEAR / 64 + 14 * (4 + 4));
    // AdamW: numbers, gradients and two buffers.
    let learned = stage(&plain).bound.count();
    assert_eq!(stage(&plain).memory.learned, 4 * 4 * learned);
}

#[test]
fn a_base_in_nf4_is_trained_beside_and_its_adapter_belongs_to_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = recipe(dir.path(), "quantize = \"nf4\"");
    let stage = stage(&recipe);
    assert_eq!(stage.opened.held(), "nf4, double");
    let how = Circumstances {
        resume: false,
        progress: false,
        stop: &AtomicBool::new(false),
        command: String::new(),
    };
    let out = dir.path().join("out");
    fs::create_dir(&out).unwrap();
    let trained = stage.run(&out, &how).unwrap();
    assert!(trained.outcome.train_loss.is_finite() && trained.outcome.steps > 2);
    let run = Recipe::load(&out.join("recipe.toml"), &[]).unwrap();
    assert_eq!((run.models.quantize, run.models.double_quant), (Quantize::Nf4, true));
    // The hash is the file's: the adapter is bound to the model as its file has it, too.
    let name = dir.path().join("model").display().to_string();
    let opened = open::open(&name, recipe.models.precision).unwrap();
    assert_eq!((opened.holding.quantize, &opened.sha256), (None, &stage.opened.sha256));
    assert_eq!(opened.with_adapter(&out).unwrap().count(), stage.bound.count());
}

#[test]
fn what_cannot_be_quantised_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut models = recipe(dir.path(), "").models;
    models.quantize = Quantize::Stored;
    let error = open_base(&models, true).err().unwrap();
    assert_eq!(error.exit_code(), 2);
    let error = error.to_string();
    assert!(error.contains("models.quantize: `stored`") && error.contains("nf4"), "{error}");
    models.quantize = Quantize::Nf4;
    let error = open_base(&models, false).err().unwrap().to_string();
    assert!(error.contains("models.quantize: nf4 is for a base that rests"), "{error}");
    models.quantize = Quantize::Auto;
    assert_eq!(open_base(&models, true).unwrap().held(), "f32");
    models.quantize = Quantize::Nf4;
    models.double_quant = false;
    let opened = open_base(&models, true).unwrap();
    assert_eq!(opened.holding.quantize, Some(To::Nf4 { double_quant: false }));
    let text = "[models]\nquantize = \"nf5\"\n";
    let error = Recipe::parse(text, "r.toml").unwrap_err().to_string();
    assert!(error.contains("line 2") && error.contains("did you mean nf4"), "{error}");
}
