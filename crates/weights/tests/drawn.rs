//! Merges that draw, with mergekit's numbers under the same draws (tests/golden/make_merges.py).

use std::{fs, path::Path, sync::Mutex};

use luthier_core::{Result, Seed, StateDict};
use luthier_weights::{
    Config, Given, Kind, Layout, Operands, Settings, Work, merge,
    method::{Fallback, Of},
};

/// A base and two models, in memory.
struct Held {
    dims: Vec<usize>,
    inputs: Vec<Vec<f32>>,
}

impl Operands for Held {
    fn dims(&self) -> &[usize] {
        &self.dims
    }

    fn inputs(&self) -> (usize, Option<usize>) {
        (self.inputs.len(), Some(0))
    }

    fn read(&self, input: usize, from: usize, out: &mut [f32]) -> Result<()> {
        out.copy_from_slice(&self.inputs[input][from..from + out.len()]);
        Ok(())
    }
}

/// The draws of the golden values: for every place of a tensor of one model, a number from 0 up to 1.
fn draw(model: usize, place: usize) -> f64 {
    let mixed = place as u64 * 2_654_435_761 + model as u64 * 1_640_531_527 + 97_531;
    (mixed % (1 << 32)) as f64 / (1u64 << 32) as f64
}

/// The settings of a file without gradients.
fn settings(config: &Config) -> Given {
    let Layout::Models(inputs) = &config.layout else { panic!("models") };
    let number = |of: &Settings, key: &str| -> Option<f64> {
        let kind =
            if ["normalize", "rescale"].contains(&key) { Kind::Switch } else { Kind::Number };
        of.get(key).map(|setting| setting.value(kind, "", 0.0, "").unwrap().unwrap())
    };
    let (mut merge, mut each) = (Vec::new(), Vec::new());
    for key in config.spec.keys {
        let usual = match key.default {
            Fallback::Number(value) => Some(value),
            Fallback::Nothing | Fallback::Needed => None,
        };
        match key.of {
            Of::Merge => merge.push((key.name, number(&config.settings, key.name).or(usual))),
            _ => {
                let of =
                    |input: &luthier_weights::Input| number(&input.settings, key.name).or(usual);
                each.push((key.name, inputs.iter().map(of).collect()));
            }
        }
    }
    let names = inputs.iter().map(|input| input.model.to_string()).collect();
    Given { file: "m.yml".into(), inputs: names, merge, each, beside: vec![false; inputs.len()] }
}

fn run(config: &Config, held: &Held, piece: usize) -> Vec<f32> {
    let combine = config.spec.combine(&settings(config)).unwrap();
    let out = Mutex::new(vec![f32::NAN; held.inputs[0].len()]);
    let put = |from: usize, values: &[f32]| {
        out.lock().unwrap()[from..from + values.len()].copy_from_slice(values);
        Ok(())
    };
    let work = Work::new(held, Seed(1)).in_pieces_of(piece).with_draws(&draw);
    merge(combine.as_ref(), &work, &put).unwrap();
    out.into_inner().unwrap()
}

#[test]
fn under_the_same_draws_the_numbers_are_those_of_mergekit() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/merges");
    let expected = StateDict::load(&golden.join("drawn/expected.safetensors")).unwrap();
    let load = |name: &str| StateDict::load(&golden.join(name).join("model.safetensors")).unwrap();
    let models = [load("base"), load("a"), load("b")];
    let mut files: Vec<_> = fs::read_dir(golden.join("drawn")).unwrap().collect();
    files.retain(|file| file.as_ref().unwrap().path().extension().is_some_and(|end| end == "yml"));
    assert_eq!(files.len(), 6);
    for file in files {
        let path = file.unwrap().path();
        let config = Config::from_yaml(&fs::read_to_string(&path).unwrap(), "m.yml").unwrap();
        let case = path.file_stem().unwrap().to_str().unwrap();
        let prefix = format!("{case}/");
        let (mut compared, mut moved) = (0, 0);
        for (name, want) in expected.iter().filter(|(name, _)| name.starts_with(&prefix)) {
            let tensor = &name[prefix.len()..];
            if tensor.contains('/') {
                continue;
            }
            let of = |model: &StateDict| -> Vec<f32> {
                model.get(tensor).unwrap().flatten_all().unwrap().to_vec1().unwrap()
            };
            let inputs: Vec<Vec<f32>> = models.iter().map(of).collect();
            let held = Held { dims: want.dims().to_vec(), inputs };
            let want: Vec<f32> = want.flatten_all().unwrap().to_vec1().unwrap();
            for piece in [1 << 18, 50] {
                let got = run(&config, &held, piece);
                for (i, (x, y)) in got.iter().zip(&want).enumerate() {
                    assert!((x - y).abs() <= 1e-5, "{name}: number {i}: {x}, expected {y}");
                }
            }
            compared += want.len();
            moved += want.iter().zip(&held.inputs[0]).filter(|(x, y)| x != y).count();
        }
        // The masks leave some numbers and not others.
        assert!(compared > 1000 && moved > compared / 2 && moved < compared, "{case}: {moved}");
    }
}
