//! Parts of tensors, read and written: the same numbers as the whole.

use luthier_core::Seed;
use luthier_model::{
    Source,
    save::{Announced, SaveDtype, Stream},
};

mod tiny;
use tiny::tiny_llama;

#[test]
fn any_part_of_a_tensor_is_that_part_of_the_whole() {
    let mut file = tiny_llama();
    // Rows in another order and blocks at once.
    let q = file.tensors.iter_mut().find(|t| t.name == "blk.0.attn_q.weight").unwrap();
    (q.ty, q.data) = (2, (0..32 * 18).map(|i| (i * 5 % 59) as u8).collect());
    let dir = tempfile::tempdir().unwrap();
    let source = Source::open(&file.write(dir.path())).unwrap();
    let mut rng = Seed(1).rng();
    for name in source.tensor_names() {
        let whole = source.load_f32(name).unwrap();
        for _ in 0..50 {
            let from = rng.below(whole.len());
            let mut part = vec![f32::NAN; rng.below(whole.len() - from + 1)];
            source.read_f32(name, from, &mut part).unwrap();
            assert_eq!(part, whole[from..from + part.len()], "{name} from {from}");
        }
        let mut beyond = vec![0f32; 2];
        let error = source.read_f32(name, whole.len() - 1, &mut beyond).unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[test]
fn pieces_in_any_order_make_the_whole() {
    let dir = tempfile::tempdir().unwrap();
    let list = [("a", vec![7, 11], SaveDtype::F32), ("b", vec![50], SaveDtype::BF16)];
    let list = list.map(|(name, shape, dtype)| Announced { name: name.into(), shape, dtype });
    let stream = Stream::create(dir.path(), &list, 200).unwrap();
    let numbers: Vec<f32> = (0..77).map(|i| i as f32 / 8.0 - 3.0).collect();
    for from in [64, 0, 32] {
        stream.put("a", from, &numbers[from..(from + 32).min(77)]).unwrap();
    }
    stream.put("b", 0, &numbers[..50]).unwrap();
    assert!(stream.put("b", 40, &numbers[..11]).is_err());
    assert!(stream.put("c", 0, &numbers[..1]).is_err());
    let files = stream.finish().unwrap();
    assert_eq!(files.len(), 3, "two shards and their index: {files:?}");
    for (file, tensor) in files.iter().zip(&list) {
        let bytes = std::fs::read(file).unwrap();
        let read = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let view = read.tensor(&tensor.name).unwrap();
        assert_eq!(view.shape(), tensor.shape);
        let got: Vec<f32> = match tensor.dtype {
            SaveDtype::F32 => {
                view.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
            }
            _ => view
                .data()
                .as_chunks()
                .0
                .iter()
                .map(|b| half::bf16::from_le_bytes(*b).to_f32())
                .collect(),
        };
        assert_eq!(got, numbers[..got.len()], "{}", tensor.name);
    }
}

#[test]
fn what_does_not_fit_into_16_bits_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let one = Announced { name: "a".into(), shape: vec![2], dtype: SaveDtype::F16 };
    let stream = Stream::create(dir.path(), &[one], 1000).unwrap();
    let error = stream.put("a", 0, &[1.0, 1e6]).unwrap_err().to_string();
    assert!(error.contains("1000000 is too large for float16"), "{error}");
}
