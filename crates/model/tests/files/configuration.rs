//! Both generations of `config.json`, and configurations that cannot be.

use serde_json::{Map, Value, json};

use super::*;

#[test]
fn both_generations_mean_the_same() {
    let base = json!({
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
        "num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 100,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": 2,
    });
    let with = |more: Value| {
        let mut map = base.as_object().unwrap().clone();
        map.extend(more.as_object().unwrap().clone());
        let mut config = ModelConfig::from_hf(&Value::Object(map), "c").unwrap();
        config.raw = Map::new();
        config
    };
    let scaling = json!({"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 2048});
    let merged = |extra: Value| {
        let mut map = scaling.as_object().unwrap().clone();
        map.extend(extra.as_object().unwrap().clone());
        map
    };
    let old = with(json!({"torch_dtype": "bfloat16", "rope_theta": 5e5,
        "rope_scaling": merged(json!({"rope_type": "llama3"}))}));
    let new = with(json!({"dtype": "bfloat16", "head_dim": 8,
        "rope_parameters": merged(json!({"rope_type": "llama3", "rope_theta": 5e5}))}));
    assert_eq!(old, new);
    assert!(matches!(old.rope.scaling, Scaling::Llama3 { original_max_positions: 2048, .. }));
    let old = with(json!({"rope_theta": 1e6, "rope_scaling": null}));
    let new = with(json!({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}));
    assert_eq!(old, new);
    let old = with(json!({"rope_scaling": {"type": "linear", "factor": 2.0}}));
    let new = with(json!({"rope_parameters": {"rope_type": "linear", "factor": 2.0}}));
    assert_eq!(old, new);
    assert_eq!(old.rope.theta, 1e4);
}

/// Composed for a GGUF source and read again, every architecture is what it was.
#[test]
fn a_composed_configuration_reads_back_equal() {
    let more = |arch: Arch| match arch {
        Arch::Mistral => json!({"sliding_window": 16}),
        Arch::Qwen2 => json!({"rope_parameters": {"rope_type": "yarn", "factor": 4.0,
            "original_max_position_embeddings": 16, "rope_theta": 1e6, "truncate": false}}),
        Arch::Qwen3 => json!({"use_sliding_window": true, "sliding_window": 8,
            "max_window_layers": 1, "attention_bias": true, "head_dim": 6}),
        Arch::SmolLM3 => json!({"no_rope_layers": [1, 0, 1], "eos_token_id": [2, 5]}),
        Arch::Llama => json!({"rope_scaling": {"rope_type": "linear", "factor": 2},
            "mlp_bias": true, "head_dim": 6}),
    };
    for arch in Arch::ALL {
        let mut map = json!({
            "model_type": arch.model_type(), "hidden_size": 32, "intermediate_size": 24,
            "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
            "vocab_size": 50, "max_position_embeddings": 64, "tie_word_embeddings": true,
        });
        if arch == Arch::Qwen3 {
            map["head_dim"] = json!(8);
        }
        map.as_object_mut().unwrap().extend(more(arch).as_object().unwrap().clone());
        let mut config = ModelConfig::from_hf(&map, arch.model_type()).unwrap();
        config.raw = Map::new();
        let composed = Value::Object(config.to_hf_json("float32").unwrap());
        let mut back = ModelConfig::from_hf(&composed, "composed").unwrap();
        back.raw = Map::new();
        assert_eq!(back, config);
    }
}

#[test]
fn smollm3_and_sliding_layers_are_read_as_transformers_means_them() {
    let base = |model_type: &str, more: Value| {
        let mut map = pico();
        map["model_type"] = json!(model_type);
        map["num_hidden_layers"] = json!(4);
        map.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        ModelConfig::from_hf(&map, "c").unwrap()
    };
    assert_eq!(base("smollm3", json!({})).no_rope_layers, [false, false, false, true]);
    let c = base("smollm3", json!({"no_rope_layers": [0, 1, 1, 1]}));
    assert_eq!(c.no_rope_layers, [true, false, false, false]);
    let c = base(
        "qwen2",
        json!({"use_sliding_window": true, "max_window_layers": 3,
        "sliding_window": 9}),
    );
    assert_eq!((c.window(2), c.window(3)), (None, Some(9)));
    assert_eq!(base("qwen2", json!({"sliding_window": 9})).window(3), None);
    assert_eq!(base("mistral", json!({})).window(0), Some(4096));
    assert_eq!(base("mistral", json!({"sliding_window": null})).window(0), None);
    let c = base("qwen2", json!({}));
    assert!(c.qkv_bias && !c.o_bias && !c.qk_norm);
}

#[test]
fn bad_configurations_are_named() {
    let with = |key: &str, value: Value| {
        let mut map = pico();
        map[key] = value;
        ModelConfig::from_hf(&map, "c.json").unwrap_err().to_string()
    };
    let text = with("model_type", json!("gpt_neox"));
    assert!(text.contains("gpt_neox") && text.contains("llama, mistral, qwen2, qwen3, smollm3"));
    assert!(with("hidden_size", json!("8")).contains("c.json: key hidden_size: expected a whole"));
    assert!(with("hidden_size", json!(-8)).contains("hidden_size"));
    assert!(with("hidden_size", json!(null)).contains("hidden_size is missing"));
    assert!(with("num_hidden_layers", json!(u64::MAX)).contains("at most 1000"));
    assert!(with("vocab_size", json!(1u64 << 60)).contains("vocabulary size"));
    assert!(with("head_dim", json!(u64::MAX)).contains("head width"));
    assert!(with("num_key_value_heads", json!(3)).contains("evenly"));
    assert!(with("num_attention_heads", json!(0)).contains("attention heads"));
    assert!(with("hidden_act", json!("gelu")).contains("gelu"));
    assert!(with("quantization_config", json!({"quant_method": "gptq"})).contains("gptq"));
    let rope = with("rope_parameters", json!({"rope_type": "longrope"}));
    assert!(rope.contains("longrope") && rope.contains("default, linear, llama3, yarn"), "{rope}");
    let rope = with("rope_scaling", json!({"rope_type": "llama3", "factor": 8}));
    assert!(rope.contains("low_freq_factor is missing"), "{rope}");
    assert!(with("rope_parameters", json!({"rope_theta": 0.0})).contains("rope_theta"));
    assert!(with("partial_rotary_factor", json!(0.5)).contains("partial_rotary_factor 0.5"));
}
