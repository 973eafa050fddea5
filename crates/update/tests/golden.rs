//! Schedules against transformers, optimizers against torch: values recorded in `tests/golden`.

use std::path::PathBuf;

use candle_core::{Tensor, Var};
use luthier_core::{Result, StateDict, io};
use luthier_update::{METHODS, Memory, Now, Schedules, Stepper, Update};
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

fn update(spec: &Map<String, Value>) -> Update {
    let mut table = spec.clone();
    let kind = table.remove("optimizer").unwrap();
    let rate = table.remove("lr").unwrap();
    table.insert("learning_rate".into(), rate);
    let key = kind.as_str().unwrap().to_lowercase();
    serde_json::from_value(json!({
        key: Value::Object(table), "max_grad_norm": 0.0, "schedule": { "constant": {} },
    }))
    .unwrap()
}

fn row(tensor: &Tensor, t: usize) -> Tensor {
    tensor.get(t).unwrap().contiguous().unwrap()
}

#[test]
fn optimizers_follow_torch() -> Result<()> {
    let specs: Map<String, Value> = io::read_json(&golden("optimizers.json"))?;
    let tensors = StateDict::load(&golden("optimizers.safetensors"))?;
    assert!(specs.len() >= 8);
    for (name, spec) in &specs {
        let params = tensors.get(&format!("{name}.params")).unwrap();
        let grads = tensors.get(&format!("{name}.grads")).unwrap();
        let var = Var::from_tensor(&row(params, 0))?;
        let vars = [("p".to_string(), var.clone())];
        let mut stepper = Stepper::new(&update(spec.as_object().unwrap()), &vars, 20)?;
        for t in 0..grads.dims()[0] {
            stepper.step(&|_, _| Some(row(grads, t)))?;
            let apart = (var.as_tensor() - row(params, t + 1))?.abs()?.flatten_all()?;
            let apart = apart.max(0)?.to_scalar::<f32>()?;
            assert!(apart < 1e-6, "{name} step {t}: {apart}");
        }
    }
    Ok(())
}
