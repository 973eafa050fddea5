//! A model small enough for a test, in a folder, and the built program to run on it.

#![allow(dead_code, reason = "every test file uses a part of it")]

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
};

use candle_core::{Device, Tensor};
use luthier_core::{Model, Param, Seed};
use luthier_model::{
    Decoder, ModelConfig, Precision, Source, Tokenizer,
    names::tensors,
    save::{Save, save_hf},
};
use luthier_params::{Lora, Params, peft};
use serde_json::{Value, json};

/// What a run of the program left.
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// The one JSON value on stdout.
    pub fn json(&self) -> Value {
        assert_eq!(self.code, 0, "{}", self.stderr);
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {}", self.stdout))
    }

    /// Standard output of a run that went well.
    pub fn text(&self) -> &str {
        assert_eq!(self.code, 0, "{}", self.stderr);
        &self.stdout
    }

    /// Asserts a refusal: exit code 2, nothing on stdout, a hint, and these words.
    #[track_caller]
    pub fn refused(&self, words: &[&str]) {
        assert_eq!((self.code, self.stdout.as_str()), (2, ""), "{}", self.stderr);
        for word in words {
            assert!(self.stderr.contains(word), "no `{word}` in: {}", self.stderr);
        }
    }
}

/// Runs the program in `dir` with the words of a line and nothing on its standard input.
pub fn run(dir: &Path, line: &str) -> Ran {
    luthier(dir, &line.split_whitespace().collect::<Vec<_>>(), "")
}

/// Runs the program in `dir` with `input` on its standard input.
pub fn luthier(dir: &Path, args: &[&str], input: &str) -> Ran {
    let mut child = Command::new(env!("CARGO_BIN_EXE_luthier"))
        .args(args)
        .current_dir(dir)
        .env("LUTHIER_HOME", dir.join("home"))
        .env("LUTHIER_OFFLINE", "1")
        .env("SOURCE_DATE_EPOCH", "0")
        .env_remove("LUTHIER_LOG")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // The program may refuse its arguments before it reads anything.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let done = child.wait_with_output().unwrap();
    Ran {
        code: done.status.code().unwrap(),
        stdout: String::from_utf8(done.stdout).unwrap(),
        stderr: String::from_utf8(done.stderr).unwrap(),
    }
}

/// A llama of two layers and width 32 with random weights and the byte tokenizer.
pub fn pico(dir: &Path, seed: u64) -> PathBuf {
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 259,
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8,
        "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 512, "eos_token_id": 257, "tie_word_embeddings": false,
    });
    let config = ModelConfig::from_hf(&config, "config.json").unwrap();
    let list = tensors(&config);
    let load = |name: &str| {
        let (_, shape) = list.iter().find(|(n, _)| n == name).unwrap();
        let mut rng = Seed(seed).split(name).rng();
        let n: usize = shape.iter().product();
        Ok(match shape.len() {
            1 => (0..n).map(|_| 1.0 + 0.1 * rng.normal() as f32).collect(),
            _ => (0..n).map(|_| 0.3 * rng.normal() as f32).collect(),
        })
    };
    save_hf(dir, &config, &list, load, &Save::default()).unwrap();
    Tokenizer::bytes().save(dir).unwrap();
    dir.to_path_buf()
}

/// An adapter for the model in `base` that changes what it says.
pub fn adapter(base: &Path, dir: &Path) -> PathBuf {
    let source = Source::open(base).unwrap();
    let model: Arc<dyn Model> =
        Arc::new(Decoder::load(&source, Precision::F32, |_, _| ()).unwrap());
    let lora = Lora { r: 4, alpha: 8.0, ..Lora::default() };
    let params = Params { lora: Some(lora), ..Params::default() };
    let bound = params.bind(&model, Seed(3)).unwrap();
    for Param { name, var, .. } in &bound.params {
        let mut rng = Seed(4).split(name).rng();
        let values: Vec<f32> = (0..var.elem_count()).map(|_| 0.3 * rng.normal() as f32).collect();
        var.set(&Tensor::from_vec(values, var.dims(), &Device::Cpu).unwrap()).unwrap();
    }
    let sha256 = Some(source.sha256().unwrap().to_string());
    let base = peft::Base { name: base.display().to_string(), sha256 };
    peft::save(dir, &bound, model.sites(), &base).unwrap();
    dir.to_path_buf()
}
