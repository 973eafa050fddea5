//! Values recorded from reference implementations; `tests/golden/README.md` says how.

use std::path::{Path, PathBuf};

use candle_core::Tensor;
use luthier_core::{Batch, Row, StateDict};

/// The file or folder `tests/golden/<path>` of this checkout.
///
/// # Panics
/// When there is none: a golden test must never pass by finding nothing.
pub fn golden(path: impl AsRef<Path>) -> PathBuf {
    let full = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(path.as_ref());
    assert!(full.exists(), "no golden file {}; see tests/golden/README.md", full.display());
    full
}

/// The tensors of `tests/golden/<path>`; floats as f32.
pub fn load_tensors(path: impl AsRef<Path>) -> StateDict {
    StateDict::load(&golden(path)).unwrap_or_else(|e| panic!("{e}"))
}

/// The batch in the columns `<prefix>{ids_n, targets_n, weights_n, offsets}`; `prefix` is empty
/// or such as `step.3.`.
pub fn batch(tensors: &StateDict, prefix: &str) -> Batch {
    let column = |name: &str| -> &Tensor {
        let key = format!("{prefix}{name}");
        tensors.get(&key).unwrap_or_else(|| panic!("the golden file has no `{key}`"))
    };
    let ints = |name: &str| column(name).to_vec1::<u32>().unwrap_or_else(|e| panic!("{name}: {e}"));
    let offsets: Vec<usize> = ints("offsets").into_iter().map(|o| o as usize).collect();
    let (ids, targets) = (ints("ids_n"), ints("targets_n"));
    let weights: Vec<f32> =
        column("weights_n").to_vec1().unwrap_or_else(|e| panic!("weights_n: {e}"));
    let row = |(example, bounds): (usize, &[usize])| Row {
        ids: ids[bounds[0]..bounds[1]].to_vec(),
        targets: targets[bounds[0]..bounds[1]].to_vec(),
        weights: weights[bounds[0]..bounds[1]].to_vec(),
        example,
        ..Row::default()
    };
    Batch::from_rows(&offsets.windows(2).enumerate().map(row).collect::<Vec<Row>>())
}

/// The recorded gradients, by parameter name.
pub fn gradients(tensors: &StateDict) -> impl Iterator<Item = (&str, &Tensor)> {
    tensors.iter().filter_map(|(name, t)| name.strip_prefix("grad.").map(|n| (n, t)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_golden_batch_is_flat_and_shifted() {
        let tensors = load_tensors("models/llama/golden.safetensors");
        let batch = batch(&tensors, "");
        assert_eq!(batch.rows.offsets, [0, 41, 50, 51]);
        assert_eq!((batch.rows.positions_n[40], batch.rows.positions_n[41]), (40, 0));
        assert_eq!(batch.ids_n[1..41], batch.targets_n[..40]);
        assert!(batch.weights_n.contains(&0.0) && batch.weights_n.contains(&0.25));
        assert_eq!(tensors.get("logits_nv").unwrap().dims(), [51, 96]);
    }

    #[test]
    fn recorded_loss_follows_from_recorded_logits() {
        // Ties the three columns together: a wrong shift or normaliser could not agree.
        for name in ["models/llama", "models/qwen3", "lora", "lora/bias"] {
            let tensors = load_tensors(format!("{name}/golden.safetensors"));
            let batch = batch(&tensors, "");
            let logits = tensors.get("logits_nv").unwrap().to_vec2::<f32>().unwrap();
            let mut sum = 0f64;
            for ((row, target), w) in logits.iter().zip(&batch.targets_n).zip(&batch.weights_n) {
                let total: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
                sum += f64::from(*w) * (total.ln() - f64::from(row[*target as usize]));
            }
            let want = tensors.get("loss").unwrap().to_vec1::<f32>().unwrap()[0];
            let got = sum / batch.weight();
            assert!((got - f64::from(want)).abs() < 1e-5, "{name}: {got} {want}");
        }
    }

    #[test]
    fn every_parameter_of_a_model_has_a_gradient() {
        let weights = load_tensors("models/qwen2/model.safetensors");
        let tensors = load_tensors("models/qwen2/golden.safetensors");
        let named: Vec<_> = gradients(&tensors).map(|(n, t)| (n, t.dims())).collect();
        assert_eq!(named, weights.iter().map(|(n, t)| (n, t.dims())).collect::<Vec<_>>());
    }

    #[test]
    #[should_panic(expected = "no golden file")]
    fn a_missing_file_fails_the_test() {
        golden("models/of-nobody");
    }
}
