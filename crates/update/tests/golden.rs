//! Schedules and optimizers against the implementations they follow: values in `tests/golden`.

use std::path::PathBuf;

use candle_core::{Tensor, Var};
use luthier_core::{Param, Result, Seed, StateDict, io};
use luthier_update::{
    METHODS, Memory, Move, Now, Schedules, Start, Stepper, Update, optimizer::Data,
};
use serde_json::{Map, Value, json};

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

#[test]
fn schedules_follow_transformers() {
    let entries: Vec<Value> = io::read_json(&golden("schedules.json")).unwrap();
    let mut seen = Vec::new();
    for entry in &entries {
        let name = entry["name"].as_str().unwrap();
        let mut table = entry["kwargs"].as_object().unwrap().clone();
        let metrics: Option<Vec<f64>> =
            entry.get("metrics").map(|m| serde_json::from_value(m.clone()).unwrap());
        if metrics.is_none() && name != "constant" {
            table.insert("warmup_steps".into(), entry["warmup_steps"].clone());
        }
        let schedules: Schedules =
            serde_json::from_value(json!({ name: Value::Object(table) })).unwrap();
        let (chosen, schedule) = schedules.chosen().unwrap();
        assert_eq!(chosen, name);
        let learning_rate = entry["learning_rate"].as_f64().unwrap();
        schedule.check(name, learning_rate).unwrap();
        let total = entry["steps"].as_u64().unwrap();
        let mut memory = Memory::default();
        for (step, want) in entry["values"].as_array().unwrap().iter().enumerate() {
            let now = Now { step: step as u64, total, learning_rate, memory: &memory };
            let (got, want) = (learning_rate * schedule.scale(&now), want.as_f64().unwrap());
            assert!((got - want).abs() < 1e-12, "{name} {entry} at {step}: {got}, not {want}");
            if let Some(metrics) = &metrics {
                schedule.observe(&mut memory, metrics[step], learning_rate);
            }
        }
        seen.push(format!("schedule.{name}"));
    }
    for method in METHODS.iter().filter(|m| m.name.starts_with("schedule.")) {
        assert!(seen.iter().any(|s| s == method.name), "{} has no golden value", method.name);
    }
}

const OPTIMIZERS: [&str; 8] =
    ["adafactor", "adam", "adamw", "adamw_8bit", "lion", "muon", "schedule_free_adamw", "sgd"];

struct Case {
    name: String,
    key: String,
    update: Update,
}

impl Case {
    fn all() -> Vec<Case> {
        let specs: Map<String, Value> = io::read_json(&golden("optimizers.json")).unwrap();
        let case = |(name, spec): (String, Value)| {
            let key = spec["key"].as_str().unwrap().to_string();
            let update = json!({
                key.as_str(): spec["settings"], "max_grad_norm": 0.0, "schedule": { "constant": {} },
            });
            Case { name, key, update: serde_json::from_value(update).unwrap() }
        };
        specs.into_iter().map(case).collect()
    }

    /// The names of its variables.
    fn variables(&self, tensors: &StateDict) -> Vec<String> {
        let prefix = format!("{}.", self.name);
        let own =
            |name: &str| name.strip_prefix(&prefix)?.strip_suffix(".params").map(String::from);
        tensors.iter().filter_map(|(name, _)| own(name)).collect()
    }

    fn tensor<'a>(&self, tensors: &'a StateDict, variable: &str, what: &str) -> &'a Tensor {
        tensors.get(&format!("{}.{variable}.{what}", self.name)).unwrap()
    }
}

fn row(tensor: &Tensor, t: usize) -> Tensor {
    tensor.get(t).unwrap().contiguous().unwrap()
}

/// The largest difference, in units of the number where that is above 1.
fn apart(a: &Tensor, b: &Tensor) -> f32 {
    let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let one = |(a, b): (f32, f32)| (a - b).abs() / b.abs().max(1.0);
    flat(a).into_iter().zip(flat(b)).map(one).fold(0.0, f32::max)
}

#[test]
fn optimizers_follow_their_references() -> Result<()> {
    let tensors = StateDict::load(&golden("optimizers.safetensors"))?;
    let mut seen = Vec::new();
    for case in Case::all() {
        let variables = case.variables(&tensors);
        assert!(variables.len() >= 2, "{}", case.name);
        let params: Vec<Param> = variables
            .iter()
            .map(|v| {
                let begin = row(case.tensor(&tensors, v, "params"), 0);
                Param::whole(v, Var::from_tensor(&begin).unwrap())
            })
            .collect();
        let mut stepper = Stepper::new(&case.update, &params, &Start::steps(20))?;
        for t in 0..20 {
            stepper.step(&|v, _| Some(row(case.tensor(&tensors, v, "grads"), t)))?;
            for param in &params {
                let want = row(case.tensor(&tensors, &param.name, "params"), t + 1);
                let apart = apart(&param.var, &want);
                assert!(apart < 1e-6, "{} {} step {t}: {apart}", case.name, param.name);
            }
        }
        if case.key == "schedule_free_adamw" {
            stepper.exchange()?;
            for param in &params {
                let apart = apart(&param.var, case.tensor(&tensors, &param.name, "used"));
                assert!(apart < 1e-6, "{} {} used: {apart}", case.name, param.name);
            }
        }
        seen.push(case.key);
    }
    seen.dedup();
    seen.sort();
    assert_eq!(seen, OPTIMIZERS);
    Ok(())
}

#[test]
fn a_rate_of_0_leaves_every_bit() {
    for case in Case::all() {
        let (at, optimizer) = case.update.optimizer().unwrap();
        let plan = optimizer.plan(at).unwrap();
        for dims in [&[3, 4][..], &[4, 3], &[300]] {
            let n: usize = dims.iter().product();
            let mut rng = Seed(4).split(&case.name).rng();
            let mut param: Vec<f32> = (0..n).map(|_| rng.normal() as f32).collect();
            (param[0], param[1]) = (-0.0, 0.0);
            let mut state: Vec<Data> =
                plan.state.iter().map(|(_, of)| of.begin(dims, &param)).collect();
            let bits = |param: &[f32]| param.iter().map(|p| p.to_bits()).collect::<Vec<_>>();
            let mut before = bits(&param);
            // At the beginning, and when the buffers are no longer what they were.
            for (t, learning_rate) in [(1, 0.0), (2, 0.0), (3, 0.1), (4, 0.0), (5, 0.1), (6, 0.0)] {
                let now = Move { t, learning_rate, weight_decay: 0.1, grad_scale: 0.7 };
                let grad: Vec<f32> = (0..n).map(|_| rng.normal() as f32).collect();
                optimizer.apply(&now, dims, &mut param, &grad, &mut state);
                let after = bits(&param);
                assert_eq!(before == after, learning_rate == 0.0, "{} step {t}", case.name);
                before = after;
            }
        }
    }
}

#[test]
fn threads_do_not_show_in_any_optimizer() {
    for case in Case::all() {
        let (at, optimizer) = case.update.optimizer().unwrap();
        let plan = optimizer.plan(at).unwrap();
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mut rng = Seed(4).rng();
            let dims = [150, 301];
            let mut draw = || (0..150 * 301).map(|_| rng.normal() as f32).collect::<Vec<_>>();
            let mut param = draw();
            let mut state: Vec<Data> =
                plan.state.iter().map(|(_, of)| of.begin(&dims, &param)).collect();
            for t in 1..=3 {
                let now = Move { t, learning_rate: 0.1, weight_decay: 0.1, grad_scale: 1.0 };
                let grad = draw();
                pool.install(|| optimizer.apply(&now, &dims, &mut param, &grad, &mut state));
            }
            (param.iter().map(|p| p.to_bits()).collect::<Vec<_>>(), state)
        };
        assert_eq!(run(1), run(3), "{}", case.name);
    }
}
