//! A GGUF writer for tests, as naive as can be, and a tiny llama made with it.

use std::path::{Path, PathBuf};

use luthier_model::gguf::{Array, Value};

/// A tensor to be written; dimensions in ordinary order.
pub struct TinyTensor {
    pub name: String,
    pub dims: Vec<u64>,
    pub ty: u32,
    pub offset: Option<u64>,
    pub data: Vec<u8>,
}

/// A GGUF file to be written.
#[derive(Default)]
pub struct TinyGguf {
    pub keys: Vec<(String, Value)>,
    pub tensors: Vec<TinyTensor>,
}

impl TinyGguf {
    pub fn key(&mut self, key: &str, value: Value) {
        self.keys.retain(|(k, _)| k != key);
        self.keys.push((key.into(), value));
    }

    pub fn floats(&mut self, name: &str, dims: &[u64], values: Vec<f32>) {
        let data = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.tensors.push(TinyTensor {
            name: name.into(),
            dims: dims.into(),
            ty: 0,
            offset: None,
            data,
        });
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF\x03\0\0\0".to_vec();
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.keys.len() as u64).to_le_bytes());
        for (key, value) in &self.keys {
            text(&mut out, key);
            put(&mut out, value);
        }
        let mut offset = 0u64;
        let mut data = Vec::new();
        for tensor in &self.tensors {
            text(&mut out, &tensor.name);
            out.extend((tensor.dims.len() as u32).to_le_bytes());
            tensor.dims.iter().rev().for_each(|d| out.extend(d.to_le_bytes()));
            out.extend(tensor.ty.to_le_bytes());
            out.extend(tensor.offset.unwrap_or(offset).to_le_bytes());
            data.extend(&tensor.data);
            data.resize(data.len().next_multiple_of(32), 0);
            offset = data.len() as u64;
        }
        // The last tensor's padding is not part of the file, so that any cut loses something.
        data.truncate(
            data.len() - self.tensors.last().map_or(0, |t| (32 - t.data.len() % 32) % 32),
        );
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(data);
        out
    }

    pub fn write(&self, dir: &Path) -> PathBuf {
        let path = dir.join("tiny.gguf");
        std::fs::write(&path, self.bytes()).unwrap();
        path
    }
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put(out: &mut Vec<u8>, value: &Value) {
    let mut tagged = |ty: u32, bytes: &[u8]| {
        out.extend(ty.to_le_bytes());
        out.extend(bytes);
    };
    match value {
        Value::U8(x) => tagged(0, &x.to_le_bytes()),
        Value::U16(x) => tagged(2, &x.to_le_bytes()),
        Value::I16(x) => tagged(3, &x.to_le_bytes()),
        Value::U32(x) => tagged(4, &x.to_le_bytes()),
        Value::F32(x) => tagged(6, &x.to_le_bytes()),
        Value::Bool(x) => tagged(7, &[u8::from(*x)]),
        Value::String(x) => {
            out.extend(8u32.to_le_bytes());
            text(out, x);
        }
        Value::Array(x) => {
            out.extend(9u32.to_le_bytes());
            array(out, x);
        }
        Value::U64(x) => tagged(10, &x.to_le_bytes()),
        other => panic!("{other:?} is not needed here"),
    }
}

fn array(out: &mut Vec<u8>, array_of: &Array) {
    let mut head = |ty: u32, n: usize| {
        out.extend(ty.to_le_bytes());
        out.extend((n as u64).to_le_bytes());
    };
    match array_of {
        Array::U8(v) => {
            head(0, v.len());
            out.extend(v);
        }
        Array::I32(v) => {
            head(5, v.len());
            v.iter().for_each(|x| out.extend(x.to_le_bytes()));
        }
        Array::String(v) => {
            head(8, v.len());
            v.iter().for_each(|x| text(out, x));
        }
        Array::Array(v) => {
            head(9, v.len());
            v.iter().for_each(|x| array(out, x));
        }
        other => panic!("{other:?} is not needed here"),
    }
}

/// One layer, width 32, 4 heads over 2, tied; k and v hold their row number in every row.
pub fn tiny_llama() -> TinyGguf {
    let mut file = TinyGguf::default();
    file.key("general.architecture", Value::String("llama".into()));
    for (key, n) in [
        ("block_count", 1),
        ("context_length", 64),
        ("embedding_length", 32),
        ("feed_forward_length", 64),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
        ("rope.dimension_count", 8),
    ] {
        file.key(&format!("llama.{key}"), Value::U32(n));
    }
    file.key("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5));
    file.key("tokenizer.ggml.bos_token_id", Value::U32(1));
    file.key("tokenizer.ggml.eos_token_id", Value::U32(2));
    file.key("tokenizer.ggml.eot_token_id", Value::U32(4));
    file.key("tokenizer.ggml.padding_token_id", Value::U32(1_000_000));
    let wave = |n: u64| (0..n).map(|i| (i as f32 * 0.7).sin()).collect::<Vec<f32>>();
    let numbered = |rows: u64| (0..rows * 32).map(|i| (i / 32) as f32).collect::<Vec<f32>>();
    file.floats("token_embd.weight", &[6, 32], wave(192));
    file.floats("blk.0.attn_norm.weight", &[32], wave(32));
    file.floats("blk.0.attn_q.weight", &[32, 32], wave(1024));
    file.floats("blk.0.attn_k.weight", &[16, 32], numbered(16));
    file.floats("blk.0.attn_v.weight", &[16, 32], numbered(16));
    file.floats("blk.0.attn_output.weight", &[32, 32], wave(1024));
    file.floats("blk.0.ffn_norm.weight", &[32], wave(32));
    file.floats("blk.0.ffn_gate.weight", &[64, 32], wave(2048));
    let blocks = (0..64 * 18).map(|i| (i * 7 % 61) as u8).collect();
    file.tensors.push(TinyTensor {
        name: "blk.0.ffn_up.weight".into(),
        dims: vec![64, 32],
        ty: 2,
        offset: None,
        data: blocks,
    });
    file.floats("blk.0.ffn_down.weight", &[32, 64], wave(2048));
    file.floats("output_norm.weight", &[32], wave(32));
    file
}
