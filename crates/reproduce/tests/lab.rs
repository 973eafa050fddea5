//! The lab's decoder is a real one: shapes, a finite loss, and it learns.

use std::{cell::RefCell, sync::Arc};

use luthier_core::{Row, Rows, Seed};
use luthier_reproduce::{Lab, Pretraining, Sizes, Small, measure, recipe};

const SIZES: Sizes =
    Sizes { layers: 2, width: 32, heads: 4, kv_heads: 2, ffn: 48, vocab: 11, tied: false };

/// Three tokens, an arrow, the same three tokens.
fn copies(n: usize, seed: Seed) -> Vec<Row> {
    let mut rng = seed.rng();
    let mut one = |example| {
        let text: Vec<u32> = (0..3).map(|_| rng.below(10) as u32).collect();
        measure::row(&[&text[..], &[10]].concat(), &text, example)
    };
    (0..n).map(&mut one).collect()
}

#[test]
fn shapes_follow_from_the_sizes_and_the_loss_begins_at_that_of_guessing() {
    let small = Small::random(SIZES, Seed(1)).unwrap();
    let block = 2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 48 + 2 * 32;
    assert_eq!(small.parameters(), 2 * block + 2 * 11 * 32 + 32);
    let tied = Small::random(Sizes { tied: true, ..SIZES }, Seed(1)).unwrap();
    assert_eq!(tied.parameters(), small.parameters() - 11 * 32);
    let policy = small.policy().unwrap();
    assert_eq!((policy.model.n_layers(), policy.model.vocab(), policy.model.width()), (2, 11, 32));
    let logits = policy.logits(&[1, 2, 3, 4, 5], Arc::new(Rows::new(&[2, 3], |_| 0))).unwrap();
    assert_eq!(logits.dims(), [5, 11]);
    let loss = measure::loss(&policy, &copies(20, Seed(2))).unwrap();
    assert!((loss - 11f64.ln()).abs() < 0.1, "{loss}");
    assert!(
        (measure::perplexity(&policy, &copies(20, Seed(2))).unwrap() - loss.exp()).abs() < 1e-9
    );
}

#[test]
fn weights_in_memory_are_the_model_that_they_say() {
    let small = Small::random(SIZES, Seed(1)).unwrap();
    let model = small.model().unwrap();
    for (name, tensor) in small.weights.iter() {
        let site = model.sites().by_module(name.rsplit_once('.').unwrap().0).unwrap();
        let held = model.affine(site.id).unwrap().w_oi;
        let flat = |t: &candle_core::Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(flat(&held), flat(tensor), "{name}");
    }
    let wrong = Small::of(Sizes { ffn: 40, ..SIZES }, small.weights.clone()).unwrap_err();
    assert!(wrong.to_string().contains("mlp."), "{wrong}");
    let new = small.with_new_rows("lm_head.weight", &[3], Seed(5)).unwrap();
    let rows = |s: &Small| s.weights.get("lm_head.weight").unwrap().to_vec2::<f32>().unwrap();
    let (old, new) = (rows(&small), rows(&new));
    let changed: Vec<usize> = (0..11).filter(|i| old[*i] != new[*i]).collect();
    assert_eq!(changed, [3]);
}

#[test]
fn exact_match_wants_every_trained_token_right() {
    let small = Small::random(SIZES, Seed(1)).unwrap();
    let policy = small.policy().unwrap();
    // What the model itself says, in rows of unequal length.
    let likeliest = |prompt: &[u32]| -> u32 {
        let logits = policy.logits(prompt, Arc::new(Rows::single(prompt.len()))).unwrap();
        let last = logits.to_vec2::<f32>().unwrap().pop().unwrap();
        (0..last.len()).max_by(|a, b| last[*a].total_cmp(&last[*b])).unwrap() as u32
    };
    let first = likeliest(&[4, 5]);
    let second = likeliest(&[4, 5, first]);
    let other = (second + 1) % 11;
    let rows = [
        measure::row(&[4, 5], &[first, second], 0),
        measure::row(&[4, 5], &[first, other], 1),
        measure::row(&[4, 5], &[first], 2),
        measure::row(&[4, 5, first], &[other], 3),
    ];
    assert_eq!(measure::right(&policy, &rows).unwrap(), [true, false, true, false]);
    assert_eq!(measure::exact(&policy, &rows).unwrap(), 0.5);
    let unasked = measure::row(&[4, 5], &[], 7);
    let error = measure::right(&policy, &[rows[0].clone(), unasked]).unwrap_err().to_string();
    assert!(error.starts_with("row 7"), "{error}");
}

#[test]
fn it_learns_to_copy_is_kept_and_is_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let said = RefCell::new(Vec::new());
    let say = |text: &str| said.borrow_mut().push(text.to_string());
    let rows = copies(400, Seed(3));
    let set = ["train.seed=1", "batch_size=50", "epochs=40", "learning_rate=5e-3"];
    let config = recipe("recipes/full/sft.toml", &set).unwrap();
    let how = Pretraining { name: "copies", sizes: SIZES, rows: &rows, config: &config };
    let test = copies(100, Seed(4));
    let lab = Lab::at(dir.path().join("lab"), 1, false, &say).unwrap();
    let small = lab.pretrained(&how).unwrap();
    let exact = measure::exact(&small.policy().unwrap(), &test).unwrap();
    assert!(exact > 0.9, "{exact}");

    let bits = |s: &Small| s.weights.to_safetensors(&[]).unwrap();
    let again = lab.pretrained(&how).unwrap();
    assert_eq!(bits(&again), bits(&small));
    assert!(said.borrow().last().unwrap().starts_with("copies: pretrained just now"));
    let files = || std::fs::read_dir(dir.path().join("lab")).unwrap().count();
    assert_eq!(files(), 1);
    // Other rows are another model; and the same settings give the same bits.
    lab.pretrained(&Pretraining { rows: &rows[1..], ..how }).unwrap();
    assert_eq!(files(), 2);
    let anew = Lab::at(dir.path().join("lab"), 1, true, &say).unwrap();
    assert_eq!(bits(&anew.pretrained(&how).unwrap()), bits(&small));
    assert_eq!(files(), 2);
}

#[test]
fn tuning_leaves_the_start_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let lab = Lab::at(dir.path().into(), 1, false, &|_| ()).unwrap();
    let small = Small::random(SIZES, Seed(1)).unwrap();
    let before = small.weights.to_safetensors(&[]).unwrap();
    let set = ["batch_size=10", "max_steps=3", "train.params.full.freeze_layers=1"];
    let config = recipe("recipes/full/freeze.toml", &set).unwrap();
    let bound = small.bind(&config).unwrap();
    let outcome = lab.train(&bound, &copies(40, Seed(3)), &config).unwrap();
    assert_eq!(outcome.steps, 3);
    assert_eq!(small.weights.to_safetensors(&[]).unwrap(), before);
    let tuned = small.tuned(&bound).unwrap();
    for (name, tensor) in tuned.weights.iter() {
        let flat = |t: &candle_core::Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let same = flat(tensor) == flat(small.weights.get(name).unwrap());
        assert_eq!(same, name.contains("layers.0.") || name.contains("embed"), "{name}");
    }
}
