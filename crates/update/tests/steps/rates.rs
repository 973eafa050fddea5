//! Learning rates and weight decay by name.

use luthier_update::Rates;

use super::*;

fn rates(text: &str, names: &[&str], n_layers: usize) -> Vec<Rates> {
    let of = |name: &&str| match name.ends_with("vector") {
        true => param(name, &[1.0; 2], &[2]),
        false => param(name, &[1.0; 4], &[2, 2]),
    };
    let params: Vec<Param> = names.iter().map(of).collect();
    update(text).rates(&params, &Start { n_layers, ..Start::steps(1) }).unwrap()
}

fn learning_rates(text: &str, names: &[&str], n_layers: usize) -> Vec<f32> {
    rates(text, names, n_layers).iter().map(|r| r.learning_rate as f32).collect()
}

const DEPTHS: [&str; 6] = [
    "lm_head.weight",
    "model.norm.weight",
    "model.layers.11.mlp.up_proj.weight",
    "model.layers.10.mlp.up_proj.weight",
    "layers.0.attn.q.lora_A",
    "model.embed_tokens.weight",
];

#[test]
fn lower_layers_learn_more_slowly() {
    // Paper 22, L = 12.
    let of = |xi: f64, more: &str| {
        let text = format!("layer_decay = {xi}\n{more}\n[adamw]\nlearning_rate = 1");
        learning_rates(&text, &DEPTHS, 12)
    };
    let round = |rates: Vec<f32>| rates.iter().map(|r| (r * 1e4).round() / 1e4).collect::<Vec<_>>();
    assert_eq!(round(of(0.9, "")), [1.0, 1.0, 1.0, 0.9, 0.3138, 0.2824]);
    assert_eq!(round(of(0.8, ""))[4..], [0.0859, 0.0687]);
    assert_eq!(of(1.0, ""), [1.0; 6]);
    close(
        &of(0.9, "layer_decay_head_offset = 1"),
        &[1.0, 1.0, 0.9, 0.81, 0.9f64.powi(12), 0.9f64.powi(13)],
    );
}

#[test]
fn the_schedule_keeps_the_ratios_and_a_group_has_the_last_word() {
    let text = "layer_decay = 0.5\nmax_grad_norm = 0\n[sgd]\nlearning_rate = 1\n[schedule.linear]\n\
                [[groups]]\nat = \"model.layers.0.**\"\nlr_scale = 3\n\
                [[groups]]\nat = \"lm_head.*\"\nlearning_rate = 0.125";
    let names = ["model.layers.0.w", "model.layers.1.w", "model.layers.2.w", "lm_head.w"];
    let params = names.map(|name| param(name, &[0.0], &[1]));
    let start = Start { n_layers: 3, ..Start::steps(4) };
    let mut stepper = stepper(text, &params, &start);
    let mut last = vec![0.0; 4];
    for t in 0..4 {
        let grads = names.map(|name| (name, row(&[-1.0])));
        step(&mut stepper, &grads);
        let now: Vec<f32> = params.iter().flat_map(values).collect();
        let by: Vec<f32> = now.iter().zip(&last).map(|(a, b)| a - b).collect();
        close(&by, &[0.75, 0.5, 1.0, 0.125].map(|r| r * (1.0 - f64::from(t) / 4.0)));
        last = now;
    }
}

#[test]
fn the_second_factor_learns_faster() {
    let names = [
        "layers.0.attn.q.lora_A",
        "layers.0.attn.q.lora_B",
        "embed.lora_embedding_A",
        "embed.lora_embedding_B",
        "layers.0.attn.q.lora_magnitude_vector",
        "layers.0.attn.q.lora_B.bias",
    ];
    let text = "loraplus_lr_ratio = 16\n[adamw]\nlearning_rate = 0.01";
    let rates = learning_rates(text, &names, 0);
    close(&rates, &[0.01, 0.16, 1e-6, 1e-6, 0.16, 0.16]);
    assert_eq!(rates[2], 1e-6);
    let text = "loraplus_lr_ratio = 2\nloraplus_lr_embedding = 0.5\n[adamw]\nlearning_rate = 0.01";
    close(&learning_rates(text, &names, 0), &[0.01, 0.02, 0.5, 0.5, 0.02, 0.02]);
    let params = [param("layers.0.attn.q.lora_A", &[1.0], &[1, 1])];
    let err = update("loraplus_lr_ratio = 2").rates(&params, &Start::steps(1)).unwrap_err();
    assert!(err.to_string().contains("there is no lora_B"), "{err}");
}

fn decays(text: &str, names: &[&str]) -> Vec<f64> {
    let text = format!("{text}\n[adamw]\nweight_decay = 0.5");
    rates(&text, names, 0).iter().map(|r| r.weight_decay).collect()
}

#[test]
fn norms_and_biases_do_not_decay() {
    // The names on which transformers' get_decay_parameter_names says no, and some like them.
    let names = [
        "model.layers.0.input_layernorm.weight",
        "model.norm.weight",
        "model.layers.0.self_attn.q_norm.weight",
        "model.layers.0.self_attn.q_proj.bias",
        "layers.0.attn_norm.weight",
        "layers.0.attn.q.lora_B.bias",
        "model.layers.0.self_attn.q_proj.weight",
        "model.embed_tokens.weight",
        "layers.0.normal.lora_A",
    ];
    assert_eq!(decays("", &names), [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.5, 0.5, 0.5]);
    assert_eq!(decays("decay_norms_and_biases = true", &names), [0.5; 9]);
    let text = "[adamw]\nweight_decay = 0.5\n[[groups]]\nat = \"model.norm.weight\"\n\
                weight_decay = 0.25";
    assert_eq!(rates(text, &names, 0)[1].weight_decay, 0.25);
}

/// Papers 42 and 47: decay would end matrices of 1e-4 and pull scales from 1 to 0.
#[test]
fn small_matrices_scales_and_shifts_do_not_decay() {
    let names = [
        "bottleneck.phm_rule",
        "layers.0.mlp.out.adapter_down.phm_rule",
        "layers.0.mlp.out.adapter_up.b",
        "layers.0.mlp.out.adapter_down.bias",
        "layers.0.attn_norm.ssf_scale",
        "layers.0.attn.q.ssf_shift",
        "layers.0.mlp.out.adapter_up.weight",
        "layers.0.mlp.out.adapter_up.W_left",
        "layers.0.mlp.out.adapter_up.W",
        "layers.0.attn.q.lora_B",
    ];
    assert_eq!(decays("", &names), [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.5, 0.5, 0.5, 0.5]);
    assert_eq!(decays("decay_norms_and_biases = true", &names), [0.5; 10]);
}
