//! A training step beside a quantised base against the same step beside its expanded numbers.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use candle_core::{Device, Tensor, TensorId, Var};
use luthier_core::{At, Ctx, Gradient, Hook, Hooks, LowRank, Model, Result, Rows, Seed};
use luthier_model::{
    Decoder, Holding, Precision, Quantize, Source,
    gguf::Value,
    names::tensors,
    quant::GgmlType,
    save::{Save, save_hf},
};
use luthier_testkit::{assert_same_bits, golden};

mod tiny;
use tiny::{TinyGguf, TinyTensor, tiny_llama};

/// `y += s · x Aᵀ Bᵀ`.
struct Low(LowRank);

impl Hook for Low {
    fn after(&self, _at: &At, x: &Tensor, y: Tensor) -> Result<Tensor> {
        let LowRank { a_ri, b_or, scale, .. } = &self.0;
        let z_nr = (x.matmul(&a_ri.t()?)? * f64::from(*scale))?;
        Ok((y + z_nr.matmul(&b_or.t()?)?)?)
    }

    fn low_rank(&self) -> Option<LowRank> {
        Some(self.0.clone())
    }
}

/// More tokens than products multiply in another order, some of them alone in their row.
const LENGTHS: &[usize] = &[7, 1, 41, 1, 30];

/// Log-probabilities and the gradients of low-rank factors at every linear site of the blocks.
struct Step {
    logp: Tensor,
    grads: BTreeMap<String, Tensor>,
}

/// One step without a graph, as training takes it.
fn step(model: &dyn Model) -> Step {
    let (mut hooks, mut names, mut vars) = (Hooks::none(), BTreeMap::new(), Vec::new());
    for site in model.sites().iter().filter(|s| s.layer.is_some()) {
        let Some((i, o)) = site.linear() else { continue };
        let mut var = |part: &str, dims: [usize; 2]| {
            let name = format!("{}.{part}", site.name);
            let mut rng = Seed(2).split(&name).rng();
            let numbers = (0..dims[0] * dims[1]).map(|_| 0.1 * rng.normal() as f32);
            let tensor = Tensor::from_vec(numbers.collect(), &dims, &Device::Cpu).unwrap();
            let var = Var::from_tensor(&tensor).unwrap();
            names.insert(id(&var), name);
            vars.push(var.clone());
            var.as_tensor().clone()
        };
        let (a_ri, b_or) = (var("A", [3, i]), var("B", [o, 3]));
        hooks.bind(site.id, Arc::new(Low(LowRank { a_ri, b_or, scale: 0.7, dropout: 0.0 })));
    }
    let rows = Arc::new(Rows::new(LENGTHS, |_| 0));
    let ids: Vec<u32> = (0..rows.n()).map(|i| ((i * i * 7 + 3) % model.vocab()) as u32).collect();
    let targets: Vec<u32> = ids.iter().map(|id| (id + 5) % model.vocab() as u32).collect();
    let mut ctx = Ctx::new(&hooks, rows.clone(), &ids);
    let mut h = model.embed(&ids, &mut ctx).unwrap().detach();
    let mut tapes = Vec::new();
    for layer in 0..model.n_layers() {
        let (y, tape) = model.tape(layer, &h, layer > 0, &mut ctx).unwrap().unwrap();
        h = y;
        tapes.push(tape.unwrap());
    }
    let (logp, head) = model.logp_tape(&h, &targets, true, &mut ctx).unwrap().unwrap();
    let mut grads = BTreeMap::new();
    let mut found = |var: &Tensor, gradient| {
        let Gradient::Dense(gradient) = gradient else { panic!("no table learns here") };
        assert!(grads.insert(names[&key(var.id())].clone(), gradient).is_none());
        Ok(())
    };
    let d = Tensor::full(-1.0f32 / rows.n() as f32, rows.n(), &Device::Cpu).unwrap();
    let mut d = head.unwrap().backward(&d, true, &mut found).unwrap();
    for (layer, tape) in tapes.into_iter().enumerate().rev() {
        d = tape.backward(&d.unwrap(), layer > 0, &mut found).unwrap();
    }
    assert_eq!(grads.len(), vars.len());
    Step { logp, grads }
}

fn id(var: &Var) -> String {
    key(var.as_tensor().id())
}

fn key(id: TensorId) -> String {
    format!("{id:?}")
}

#[track_caller]
fn same(what: &str, got: &Step, want: &Step) {
    assert_same_bits(&format!("{what}: logp"), &got.logp, &want.logp);
    assert_eq!(got.grads.len(), want.grads.len());
    for (name, grad) in &got.grads {
        assert_same_bits(&format!("{what}: {name}"), grad, &want.grads[name]);
        let largest = grad.abs().unwrap().flatten_all().unwrap().max(0).unwrap();
        assert!(largest.to_scalar::<f32>().unwrap() > 1e-6, "{what}: {name} learns nothing");
    }
}

const NF4: [Quantize; 2] =
    [Quantize::Nf4 { double_quant: false }, Quantize::Nf4 { double_quant: true }];

fn nf4(precision: Precision, to: Quantize) -> Holding {
    Holding { quantize: Some(to), ..precision.into() }
}

fn load(source: &Source, holding: impl Into<Holding>) -> Decoder {
    Decoder::load(source, holding, |_, _| ()).unwrap()
}

/// Writes the numbers that `model` computes with as a plain folder.
fn write_expanded(model: &Decoder, dir: &Path) {
    let number = |name: &str| {
        let module = name.strip_suffix(".weight").unwrap();
        let site = model.sites().by_module(module).unwrap();
        Ok(model.affine(site.id)?.w_oi.flatten_all()?.to_vec1::<f32>()?)
    };
    save_hf(dir, model.config(), &tensors(model.config()), number, &Save::default()).unwrap();
}

#[test]
fn a_step_beside_an_nf4_base_is_that_beside_its_expanded_numbers() {
    for name in ["llama", "qwen3"] {
        let source = Source::open(&golden::golden(format!("models/{name}"))).unwrap();
        for to in NF4 {
            let dir = tempfile::tempdir().unwrap();
            write_expanded(&load(&source, nf4(Precision::F32, to)), dir.path());
            let expanded = Source::open(dir.path()).unwrap();
            for precision in [Precision::F32, Precision::Bf16] {
                let got = step(&load(&source, nf4(precision, to)));
                same(&format!("{name} {to:?}"), &got, &step(&load(&expanded, precision)));
            }
        }
        // The weights are not those of the file, so a step that ignored the quantisation shows.
        let quantised = step(&load(&source, nf4(Precision::F32, NF4[1])));
        let plain = step(&load(&source, Precision::F32));
        let apart = (&quantised.logp - &plain.logp).unwrap().abs().unwrap().max(0).unwrap();
        assert!(apart.to_scalar::<f32>().unwrap() > 1e-2);
    }
}

#[test]
fn only_linear_weights_in_blocks_are_quantised_and_take_as_many_bytes_as_computed() {
    let source = Source::open(&golden::golden("models/llama")).unwrap();
    let linears = [1024usize, 512, 512, 1024, 2048, 2048, 2048];
    let ends = 2 * 96 * 32;
    let norms = 5 * 32 * 4;
    let of = |holding: Holding| load(&source, holding).held_bytes() as usize;
    let all = linears.iter().sum::<usize>() * 2;
    assert_eq!(of(Precision::F32.into()), 4 * (ends + all) + norms);
    assert_eq!(of(Precision::Bf16.into()), 2 * (ends + all) + norms);
    for (to, scales) in NF4.into_iter().zip([|n: usize| 4 * n, |n: usize| n + 4 + 4]) {
        let bytes: usize = linears.iter().map(|n| n / 2 + scales(n / 64)).sum::<usize>() * 2;
        assert_eq!(of(nf4(Precision::Bf16, to)), 2 * ends + norms + bytes, "{to:?}");
        let model = load(&source, nf4(Precision::F32, to));
        for site in model.sites().iter().filter(|s| s.module.is_some()) {
            let name = format!("{}.weight", site.module.as_ref().unwrap());
            let held = model.affine(site.id).unwrap().w_oi.flatten_all().unwrap();
            let exact = held.to_vec1::<f32>().unwrap() == source.load_f32(&name).unwrap();
            let in_block = site.layer.is_some() && site.linear().is_some();
            assert_eq!(exact, !in_block, "{name}");
        }
    }
}

/// Random blocks whose scales give weights of some tenths.
fn blocks(ty: GgmlType, name: &str, dims: [u64; 2]) -> TinyTensor {
    let scales: &[f32] = match ty {
        GgmlType::Q8_0 => &[0.002],
        GgmlType::Q4_0 => &[0.03],
        GgmlType::Q4_1 => &[0.03, -0.24],
        GgmlType::Q4_K => &[0.0005, 0.004],
        other => panic!("{other:?} is not needed here"),
    };
    let mut rng = Seed(8).split(name).rng();
    let bytes = ty.bytes_for((dims[0] * dims[1]) as usize).unwrap();
    let mut data: Vec<u8> = (0..bytes).map(|_| rng.below(256) as u8).collect();
    for block in data.chunks_mut(ty.block_bytes()) {
        for (to, scale) in block.as_chunks_mut::<2>().0.iter_mut().zip(scales) {
            let scale = scale * (0.75 + 0.5 * rng.below(100) as f32 / 100.0);
            *to = half::f16::from_f32(scale).to_le_bytes();
        }
    }
    TinyTensor { name: name.into(), dims: dims.into(), ty: ty.id(), offset: None, data }
}

/// A llama of one layer whose matrices are of these formats in turn, but for a plain table.
fn quantised_llama(d: u64, formats: &[GgmlType], plain: bool) -> TinyGguf {
    let mut file = tiny_llama();
    let f = 2 * d;
    file.key("llama.embedding_length", Value::U32(d as u32));
    file.key("llama.feed_forward_length", Value::U32(f as u32));
    file.key("llama.rope.dimension_count", Value::U32(d as u32 / 4));
    file.tensors.clear();
    let wave = |n: u64| (0..n).map(|i| 1.0 + 0.3 * (i as f32 * 0.7).sin()).collect::<Vec<f32>>();
    for norm in ["blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"] {
        file.floats(&format!("{norm}.weight"), &[d], wave(d));
    }
    if plain {
        file.floats("token_embd.weight", &[40, d], wave(40 * d));
    } else {
        file.tensors.push(blocks(formats[0], "token_embd.weight", [40, d]));
    }
    let matrices = [
        ("blk.0.attn_q", [d, d]),
        ("blk.0.attn_k", [d / 2, d]),
        ("blk.0.attn_v", [d / 2, d]),
        ("blk.0.attn_output", [d, d]),
        ("blk.0.ffn_gate", [f, d]),
        ("blk.0.ffn_up", [f, d]),
        ("blk.0.ffn_down", [d, f]),
    ];
    for ((name, dims), ty) in matrices.into_iter().zip(formats.iter().cycle()) {
        file.tensors.push(blocks(*ty, &format!("{name}.weight"), dims));
    }
    file
}

#[test]
fn a_step_beside_the_blocks_of_a_file_is_that_beside_their_expanded_numbers() {
    use GgmlType::*;
    for (d, formats) in [(32, &[Q4_0, Q8_0, Q4_1][..]), (256, &[Q4_K]), (64, &[Q8_0, Q4_0])] {
        let dir = tempfile::tempdir().unwrap();
        // A quantised table is looked up exactly, its expanded twin holds it rounded in bf16.
        for (precision, plain) in [(Precision::F32, false), (Precision::Bf16, true)] {
            let source = quantised_llama(d, formats, plain).write(dir.path());
            let source = Source::open(&source).unwrap();
            let kept = load(&source, Holding { stored: true, ..precision.into() });
            same(&format!("{formats:?}"), &step(&kept), &step(&load(&source, precision)));
            let bytes = |name: &str| {
                let n: usize = source.shape(name).unwrap().iter().product();
                let dtype = source.dtype_name(name).unwrap();
                let ty = GgmlType::all().find(|ty| ty.name() == dtype).unwrap();
                if name.contains("embed") && plain { 2 * n } else { ty.bytes_for(n).unwrap() }
            };
            let file: usize = source.tensor_names().map(bytes).sum();
            assert_eq!(kept.held_bytes() as usize, file);
        }
        let source = Source::open(&dir.path().join("tiny.gguf")).unwrap();
        // What is quantised once is not quantised again.
        let twice = Decoder::load(&source, nf4(Precision::F32, NF4[0]), |_, _| ());
        let error = twice.err().unwrap();
        assert_eq!(error.exit_code(), 2);
        let error = error.to_string();
        assert!(error.contains("tiny.gguf") && error.contains("quantised already"), "{error}");
        assert!(error.contains("stored"), "{error}");
    }
}
