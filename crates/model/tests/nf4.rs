//! NF4 against the numbers that bitsandbytes makes (`tests/golden/make_nf4.py`).

use luthier_kernels::nf4::{CODE, DYNAMIC, Nf4};
use luthier_testkit::golden;

#[test]
fn codes_scales_and_numbers_are_those_of_bitsandbytes() {
    let tensors = golden::load_tensors("nf4.safetensors");
    let numbers = |name: &str| tensors.get(name).unwrap().to_vec1::<f32>().unwrap();
    let bytes = |name: &str| tensors.get(name).unwrap().to_vec1::<u8>().unwrap();
    assert_eq!(numbers("code"), CODE);
    let close = |what: &str, got: f32, want: f32, size: f32| {
        assert!((got - want).abs() <= 4e-7 * size, "{what}: {got}, expected {want}");
    };
    for (got, want) in DYNAMIC.iter().zip(numbers("dynamic")) {
        close("dynamic", *got, want, want.abs());
    }
    let weights = numbers("weights");
    let (plain, double) = (Nf4::quantise(&weights, false), Nf4::quantise(&weights, true));
    assert_eq!(plain.codes(), bytes("packed"));
    assert_eq!(double.codes(), bytes("packed"));
    let (exact, quantised) = (numbers("scales"), numbers("double.scales"));
    for (block, (exact, quantised)) in exact.into_iter().zip(quantised).enumerate() {
        assert_eq!(plain.scale(block), exact, "scale {block}");
        // The mean is summed in another order there.
        close(&format!("scale {block}"), double.scale(block), quantised, 2.6);
    }
    let end = weights.len() - 2000;
    assert_eq!(plain.to_vec()[end..], numbers("plain"));
    for (got, want) in double.to_vec()[end..].iter().zip(numbers("double")) {
        close("numbers", *got, want, 2.6);
    }
    let scales = 301;
    assert_eq!(plain.size(), weights.len() / 2 + 4 * scales);
    assert_eq!(double.size(), weights.len() / 2 + scales + 2 * 4 + 4);
}
