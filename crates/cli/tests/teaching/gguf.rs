//! A teacher in a GGUF file: as it is asked, and as it speaks beforehand.

use std::{fs, path::Path};

use luthier_core::StateDict;
use luthier_model::{
    Source, Tokenizer,
    gguf::{Array, Value},
    names::{gguf_tensor, tensors},
    save::{Save, save_hf},
};

use super::{recipe, run, steps, workplace};

#[allow(dead_code, reason = "the model's own tests use the rest of it")]
#[path = "../../../model/tests/tiny/mod.rs"]
mod tiny;
use tiny::{TinyGguf, TinyTensor};

/// The order in which a GGUF file has the rows of q and k: the two halves of a head, row by row in turns.
fn turned(rows: &[f32], width: usize, head: usize) -> Vec<f32> {
    let place = |row: usize| {
        let (of, at) = (row / head * head, row % head);
        of + at / 2 + at % 2 * (head / 2)
    };
    (0..rows.len() / width).flat_map(|row| rows[place(row) * width..][..width].to_vec()).collect()
}

/// The power of two of a block's scale, by which all of its numbers are codes of eight bits.
fn power(block: &[f32]) -> f32 {
    let most = block.iter().fold(f32::MIN_POSITIVE, |most, x| most.max(x.abs()));
    (most / 127.0).log2().ceil()
}

/// Q8_0: blocks of 32 numbers with one scale.
fn q8(numbers: &[f32]) -> Vec<u8> {
    let block = |block: &[f32]| {
        let power = power(block);
        let half = ((power as i32 + 15) as u16) << 10;
        let codes = block.iter().map(|x| (x / power.exp2()).round() as i8 as u8);
        half.to_le_bytes().into_iter().chain(codes).collect::<Vec<u8>>()
    };
    numbers.chunks(32).flat_map(block).collect()
}

/// The numbers that such blocks hold.
fn rounded(numbers: &[f32]) -> Vec<f32> {
    let block = |block: &[f32]| {
        let scale = power(block).exp2();
        block.iter().map(|x| (x / scale).round() * scale).collect::<Vec<f32>>()
    };
    numbers.chunks(32).flat_map(block).collect()
}

/// The model in `dir` with the matrices that its quantised GGUF file has.
fn coarse(dir: &Path, out: &Path) {
    let source = Source::open(dir).unwrap();
    let list = tensors(source.config());
    let load = |name: &str| {
        let numbers = source.load_f32(name)?;
        let matrix = list.iter().any(|(known, dims)| known == name && dims.len() == 2);
        Ok(if matrix { rounded(&numbers) } else { numbers })
    };
    save_hf(out, source.config(), &list, load, &Save::default()).unwrap();
    Tokenizer::bytes().save(out).unwrap();
}

/// The model in `dir` as a GGUF file, its matrices quantised or not.
fn written(dir: &Path, out: &Path, quantised: bool) {
    let source = Source::open(dir).unwrap();
    let config = source.config();
    let mut file = TinyGguf::default();
    file.key("general.architecture", Value::String("llama".into()));
    for (key, n) in [
        ("block_count", config.layers),
        ("context_length", config.max_positions),
        ("embedding_length", config.hidden),
        ("feed_forward_length", config.ffn),
        ("attention.head_count", config.heads),
        ("attention.head_count_kv", config.kv_heads),
        ("rope.dimension_count", config.head_dim),
    ] {
        file.key(&format!("llama.{key}"), Value::U32(n as u32));
    }
    file.key("llama.attention.layer_norm_rms_epsilon", Value::F32(config.rms_eps as f32));
    let bytes = Tokenizer::bytes();
    let tokens = (0..259).map(|id| bytes.token(id).unwrap()).collect();
    file.key("tokenizer.ggml.model", Value::String("gpt2".into()));
    file.key("tokenizer.ggml.tokens", Value::Array(Array::String(tokens)));
    let types = [vec![1; 256], vec![3; 3]].concat();
    file.key("tokenizer.ggml.token_type", Value::Array(Array::I32(types)));
    file.key("tokenizer.ggml.merges", Value::Array(Array::String(Vec::new())));
    file.key("tokenizer.ggml.eos_token_id", Value::U32(257));
    file.key("tokenizer.ggml.add_bos_token", Value::Bool(false));
    let template = bytes.template().unwrap().source().to_string();
    file.key("tokenizer.chat_template", Value::String(template));
    for (name, dims) in tensors(config) {
        let mut numbers = source.load_f32(&name).unwrap();
        if name.contains("q_proj") || name.contains("k_proj") {
            numbers = turned(&numbers, config.hidden, config.head_dim);
        }
        let (name, dims) =
            (gguf_tensor(&name).unwrap(), dims.iter().map(|n| *n as u64).collect::<Vec<u64>>());
        match quantised && dims.len() == 2 {
            true => {
                let data = q8(&numbers);
                file.tensors.push(TinyTensor { name, dims, ty: 8, offset: None, data });
            }
            false => file.floats(&name, &dims, numbers),
        }
    }
    fs::write(out, file.bytes()).unwrap();
}

#[test]
fn a_gguf_file_teaches_what_the_same_weights_in_a_folder_do() {
    let work = workplace();
    let dir = work.path();
    run(dir, "fold --model model --adapter tuned --out whole").text();
    written(&dir.join("whole"), &dir.join("exact.gguf"), false);
    written(&dir.join("whole"), &dir.join("small.gguf"), true);
    coarse(&dir.join("whole"), &dir.join("coarse"));
    let losses = |teacher: &str| -> Vec<f64> {
        recipe(dir, "r.toml", &format!("teacher = \"{teacher}\""), "");
        run(dir, &format!("train r.toml --out from-{teacher}")).text();
        let all = steps(dir, &format!("from-{teacher}"));
        all.iter().map(|line| line["loss"].as_f64().unwrap()).collect()
    };
    let [folder, exact] = ["whole", "exact.gguf"].map(losses);
    assert_eq!(folder, exact);
    // Weights of eight bits are other weights, the same whoever holds them.
    let [coarse, small] = ["coarse", "small.gguf"].map(losses);
    assert_eq!(coarse, small);
    assert_ne!(coarse, folder);
    let teach = |teacher: &str, out: &str| {
        let line = format!("teach -m {teacher} --for model --precision f32 --data train.jsonl");
        let told = run(dir, &format!("{line} --top-k 5 --out {out} --json")).json();
        assert_eq!((&told["rows"], &told["across"]), (&24.into(), &false.into()));
        let state = StateDict::load(&dir.join(out)).unwrap();
        let numbers = |tensor: &candle_core::Tensor| -> Vec<f64> {
            let tensor = tensor.to_dtype(candle_core::DType::F64).unwrap();
            tensor.flatten_all().unwrap().to_vec1().unwrap()
        };
        let all = state.iter().map(|(name, tensor)| (name.to_string(), numbers(tensor)));
        all.collect::<Vec<(String, Vec<f64>)>>()
    };
    let folder = teach("whole", "folder.safetensors");
    assert_eq!(folder, teach("exact.gguf", "exact.safetensors"));
    let small = teach("small.gguf", "small.safetensors");
    assert_eq!(teach("coarse", "coarse.safetensors"), small);
    assert_ne!(small, folder);
    // What a file said beforehand is learned like what another said.
    recipe(dir, "stored.toml", "", "cache = \"small.safetensors\"\ncalib = \"temp_prob\"");
    run(dir, "train stored.toml --out stored").text();
    let all = steps(dir, "stored");
    let [first, last] = [0, 15].map(|at| all[at]["divergence"].as_f64().unwrap());
    assert!(last < first, "{first} {last}");
    // A file that another file has taken the place of is another teacher: the run is another run.
    run(dir, "train r.toml --out from-small.gguf --resume models.teacher=exact.gguf")
        .refused(&["another recipe"]);
}
