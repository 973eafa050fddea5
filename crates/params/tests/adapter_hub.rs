//! Folders of adapter-hub: read to the same logits, or refused by the key that says otherwise.

mod narrow;
#[allow(dead_code, reason = "every test file uses a part of it")]
mod whole;

use std::{path::Path, sync::Arc};

use luthier_core::{Model, Seed, StateDict};
use luthier_params::{
    Bottleneck, Bound,
    form::bottleneck::{LearnedScaling, Scaling, hub},
};
use luthier_testkit::{assert_close, assert_same_bits, golden, load_tensors};
use narrow::{IDS, model, params, phm, rows, small};
use serde_json::json;
use whole::{Whole, logits, shake};

/// The tensors of an adapter-hub folder for two layers of width 8.
fn hub_folder(
    dir: &Path,
    config: serde_json::Value,
    rename: impl Fn(&str) -> String,
    bound: &Bound,
) {
    let file: StateDict =
        bound.params.iter().map(|p| (rename(&p.name), p.var.as_detached_tensor())).collect();
    file.save(&dir.join(hub::WEIGHTS), &[("format", "pt")]).unwrap();
    let all =
        json!({"config": config, "hidden_size": 8, "name": "mine", "version": "adapters.1.3.0"});
    std::fs::write(dir.join(hub::CONFIG), all.to_string()).unwrap();
}

fn double() -> serde_json::Value {
    json!({
        "mh_adapter": true, "output_adapter": true, "reduction_factor": 2, "non_linearity": "gelu",
        "original_ln_before": false, "original_ln_after": true, "ln_before": false, "ln_after": false,
        "init_weights": "bert", "is_parallel": false, "scaling": 0.7, "use_gating": false,
        "residual_before_ln": true, "adapter_residual_before_ln": false, "inv_adapter": null,
        "inv_adapter_reduction_factor": null, "cross_adapter": false, "leave_out": [],
        "dropout": 0.0, "phm_layer": false, "phm_dim": 2, "factorized_phm_W": true,
        "shared_W_phm": false, "shared_phm_rule": true, "factorized_phm_rule": false,
        "phm_c_init": "normal", "phm_init_range": 0.0001, "learn_phm": true,
        "hypercomplex_nonlinearity": "glorot-uniform", "phm_rank": 1, "phm_bias": true,
        "stochastic_depth": 0.0
    })
}

fn with(mut config: serde_json::Value, key: &str, value: serde_json::Value) -> serde_json::Value {
    config[key] = value;
    config
}

fn theirs(name: &str) -> String {
    if name == "bottleneck.phm_rule" {
        return "model.shared_parameters.mine.phm_rule".into();
    }
    let name =
        name.replace("adapter_down.", "adapter_down.0.").replace("adapter_scaling", "scaling");
    ["attn.out", "resid_mid", "mlp.out", "resid_post"].iter().fold(
        format!("model.{name}"),
        |name, site| {
            let list =
                if ["attn.out", "resid_mid"].contains(site) { "attention" } else { "output" };
            name.replace(site, &format!("{list}_adapters.adapters.mine"))
        },
    )
}

#[test]
fn folders_of_adapter_hub_are_read() {
    let learned = Scaling::Learned(LearnedScaling::Learned);
    let stream = Bottleneck { at: "layers.*.resid_post".into(), ..small() };
    let one = Bottleneck { exclude: "layers.0.**".into(), ..small() };
    let without_mh = |config| with(config, "mh_adapter", json!(false));
    let cases = [
        ("double", small(), double()),
        ("stream", stream, without_mh(with(double(), "original_ln_before", json!(true)))),
        (
            "parallel",
            Bottleneck { at: "**.mlp.out".into(), parallel: true, scaling: learned, ..small() },
            without_mh(with(
                with(double(), "is_parallel", json!(true)),
                "scaling",
                json!("learned"),
            )),
        ),
        (
            "compacter",
            Bottleneck { phm: Some(phm()), ..small() },
            with(double(), "phm_layer", json!(true)),
        ),
        ("left out", one, with(double(), "leave_out", json!([0]))),
    ];
    for (name, form, config) in cases {
        let bound = params(form).bind(&model(), Seed(1)).unwrap();
        shake(&bound);
        let dir = tempfile::tempdir().unwrap();
        hub_folder(dir.path(), config, theirs, &bound);
        let read = hub::load(dir.path(), &model()).unwrap_or_else(|e| panic!("{name}: {e}"));
        let of = |bound: &Bound| logits(&bound.policy, &IDS, &rows());
        assert_same_bits(name, &of(&read), &of(&bound));
    }
}

#[test]
fn what_adapter_hub_would_compute_otherwise_is_refused() {
    let bound = params(small()).bind(&model(), Seed(1)).unwrap();
    let refused = |config, rename: &dyn Fn(&str) -> String| {
        let dir = tempfile::tempdir().unwrap();
        hub_folder(dir.path(), config, rename, &bound);
        let error = hub::load(dir.path(), &model()).map(|_| ()).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{error}");
        error.to_string()
    };
    for (key, value, want) in [
        ("ln_before", json!(true), "config.ln_before: expected false, got true"),
        ("original_ln_after", json!(false), "config.original_ln_after"),
        ("use_gating", json!(true), "config.use_gating"),
        ("inv_adapter", json!("nice"), "config.inv_adapter"),
        ("non_linearity", json!("tanh"), "config.non_linearity: expected relu, gelu"),
        ("reduction_factor", json!({"default": 16}), "config.reduction_factor: expected a number"),
        ("leave_out", json!([7]), "config.leave_out: no layer 7"),
        ("scaling", json!("often"), "config.scaling"),
        ("reduction_factor", json!(4), "has shape [4, 8], expected [2, 8]"),
        ("mh_adapter", json!(false), "nothing of that name is learned"),
    ] {
        let error = refused(with(double(), key, value), &theirs);
        assert!(error.contains(want), "{key}: {error}");
    }
    let other = |name: &str| theirs(name).replace("_adapters", "_adaptors");
    assert!(refused(double(), &other).contains("is not part of a bottleneck adapter"));
    let two = |name: &str| match name.contains("layers.1") {
        true => theirs(name).replace("mine", "yours"),
        false => theirs(name),
    };
    assert!(refused(double(), &two).contains("belongs to adapter `yours`"));
}

/// Against what `adapters` 1.3.0 computed; `tests/golden/adapter_hub.py` says how.
#[test]
fn adapters_of_adapter_hub_compute_what_they_computed_there() {
    for name in ["seq_bn", "double_seq_bn", "par_bn", "compacter", "compacter++"] {
        let model: Arc<dyn Model> = Arc::new(Whole::golden("models/llama", whole::PICO));
        let dir = golden(Path::new("hub").join(name));
        let bound = hub::load(&dir, &model).unwrap_or_else(|e| panic!("{name}: {e}"));
        let want = load_tensors(Path::new("hub").join(name).join("golden.safetensors"));
        let batch = luthier_testkit::batch(&want, "");
        let got = logits(&bound.policy, &batch.ids_n, &batch.rows);
        assert_close(name, &got, want.get("logits_nv").unwrap(), 1e-5, 1e-5);
    }
}
