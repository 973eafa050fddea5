//! `luthier adapter check`: who will accept a folder, and why not.

use super::*;

#[test]
fn what_peft_wrote_is_accepted_where_its_settings_are_followed() {
    let dir = tempfile::tempdir().unwrap();
    for (variant, by, words) in [
        ("", [true, true, true], ["", "", ""]),
        ("layers", [true, true, true], ["", "", ""]),
        ("regex", [true, true, true], ["", "", ""]),
        ("rslora", [true, true, false], ["", "", "does not follow use_rslora"]),
        ("patterns", [true, false, false], ["", "reads no rank_pattern", "reads no alpha_pattern"]),
        ("embeddings", [true, true, true], ["", "embedding and head", "where the base ties"]),
        ("bias", [true, false, false], ["", "tensors that it does not know", "factors and norms"]),
    ] {
        accepted(dir.path(), &golden(variant), by, words);
    }
    let value = run(dir.path(), &format!("adapter check {} --json", golden("patterns").display()));
    let value = value.json();
    assert_eq!((&value["kind"], &value["base"]), (&json!("LORA"), &json!("models/llama")));
    assert_eq!((&value["modules"], &value["ranks"]), (&json!(14), &json!([2, 6])));
    let text = run(dir.path(), &format!("adapter check {}", golden("rslora").display()));
    let lines: Vec<&str> = text.text().lines().collect();
    assert_eq!(lines[..3], ["type  LORA", "base  models/llama", "LoRA  14 modules, rank 4"]);
    assert!(lines[4].starts_with("PEFT       yes"), "{lines:?}");
    assert!(lines[6].starts_with("llama.cpp  no   does not follow use_rslora"), "{lines:?}");
}

#[test]
fn every_folder_that_peft_wrote_is_accepted_by_peft() {
    let dir = tempfile::tempdir().unwrap();
    let mut seen = 0;
    for parent in ["peft", "lora", "prompts"] {
        for entry in golden("..").join(parent).read_dir().unwrap() {
            let adapter = entry.unwrap().path();
            if adapter.join(peft::CONFIG).is_file() {
                let (accepts, said) = verdicts(dir.path(), &adapter).swap_remove(0);
                assert!(accepts, "{}: {said}", adapter.display());
                seen += 1;
            }
        }
    }
    assert!(seen >= 25, "{seen}");
    let hub = golden("../hub/compacter");
    accepted(dir.path(), &hub, [false; 3], ["adapters library"; 3]);
}

#[test]
fn every_rule_has_its_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let q = "base_model.model.model.layers.0.self_attn.q_proj";
    let one = |dims: &[usize]| Tensor::ones(dims, DType::F32, &Device::Cpu).unwrap();
    type Change<'a> = Box<dyn FnOnce(&mut StateDict) + 'a>;
    type Case<'a> = (Vec<(&'a str, Value)>, Change<'a>, [bool; 3], [&'a str; 3]);
    let cases: Vec<Case> = vec![
        (
            vec![("use_dora", json!(true))],
            Box::new(|_| ()),
            [false; 3],
            ["DoRA without lora_magnitude_vector", "does not run DoRA", "does not run DoRA"],
        ),
        (
            vec![("modules_to_save", json!(["lm_head"]))],
            Box::new(|state| state.insert("base_model.model.lm_head.weight", one(&[96, 32]))),
            [true, false, false],
            ["", "modules_to_save must be empty", "not base_model.model.lm_head.weight"],
        ),
        (
            vec![],
            Box::new(|state| state.insert(format!("{q}.weight"), one(&[32, 32]))),
            [false; 3],
            ["does not ask for", "does not know", "not base_model"],
        ),
        (
            vec![("target_modules", json!(["q_proj", "v_proj"]))],
            Box::new(|_| ()),
            [false, true, true],
            [
                "does not name: model.layers.0.mlp.down_proj, model.layers.0.mlp.gate_proj and 8 more",
                "",
                "",
            ],
        ),
        (
            vec![("exclude_modules", json!("model\\.layers\\.1.*"))],
            Box::new(|_| ()),
            [false, true, true],
            ["does not name: model.layers.1.mlp.down_proj", "", ""],
        ),
        (
            vec![],
            Box::new(|state| drop(state.remove(&format!("{q}.lora_B.weight")))),
            [false, true, true],
            ["one factor without the other: model.layers.0.self_attn.q_proj", "", ""],
        ),
        (
            vec![("r", json!(8))],
            Box::new(|_| ()),
            [false, false, true],
            ["another rank than the configuration gives", "would scale otherwise", ""],
        ),
        (
            vec![("init_lora_weights", json!("pissa_niter_4"))],
            Box::new(|_| ()),
            [true, false, false],
            ["repeats that", "pissa_niter_4 changed the base", "changed the base"],
        ),
        (
            vec![("bias", json!("lora_only"))],
            Box::new(|_| ()),
            [true, false, true],
            ["", "bias must be \"none\"", ""],
        ),
        (
            vec![("target_parameters", json!(["experts.w"]))],
            Box::new(|_| ()),
            [true, false, false],
            ["", "does not follow target_parameters", "does not follow target_parameters"],
        ),
        (
            vec![("peft_type", json!("IA3"))],
            Box::new(|_| ()),
            [false; 3],
            ["tensors that are not of type IA3", "runs LoRA alone, this is IA3", "adapter convert"],
        ),
        (
            vec![("peft_type", json!("VERA"))],
            Box::new(|_| ()),
            [true, false, false],
            ["VERA adapter were not looked at", "this is VERA", "this is VERA"],
        ),
        (
            vec![("peft_type", json!("VEGA"))],
            Box::new(|_| ()),
            [false; 3],
            ["knows no type \"VEGA\"", "LoRA alone", "LoRA alone"],
        ),
    ];
    for (config, tensors, by, words) in cases {
        let adapter = edited(dir.path(), "", &config, tensors);
        for (k, (accepts, said)) in verdicts(dir.path(), &adapter).into_iter().enumerate() {
            assert_eq!(accepts, by[k], "{config:?} {k}: {said}");
            assert!(said.contains(words[k]), "{config:?} {k}: no `{}` in: {said}", words[k]);
        }
    }
}

#[test]
fn ranks_are_held_against_vllms_limits() {
    let dir = tempfile::tempdir().unwrap();
    for (r, accepts, words) in [
        (16, true, ""),
        (17, true, "rank 17: start vLLM with --max-lora-rank 32"),
        (300, true, "--max-lora-rank 320"),
        (513, false, "its ranks end at 512, this adapter has 513"),
    ] {
        let adapter = edited(dir.path(), "", &[("r", json!(r))], |state| {
            for (name, old) in state.clone().iter() {
                let dims = old.dims();
                let dims = if name.contains("lora_A") { [r, dims[1]] } else { [dims[0], r] };
                let zeros = Tensor::zeros(&dims, DType::F32, &Device::Cpu).unwrap();
                state.insert(name, zeros);
            }
        });
        accepted(dir.path(), &adapter, [true, accepts, true], ["", words, ""]);
    }
}

#[test]
fn what_is_no_adapter_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    pico(&dir.path().join("m"), 1);
    run(dir.path(), "adapter check m").refused(&["is no adapter", "--model"]);
    run(dir.path(), "adapter check nowhere").refused(&["nowhere", "no such adapter"]);
    let cut = edited(dir.path(), "", &[], |_| ());
    let bytes = fs::read(cut.join(peft::WEIGHTS)).unwrap();
    for keep in [0, 7, 100, bytes.len() - 1] {
        fs::write(cut.join(peft::WEIGHTS), &bytes[..keep]).unwrap();
        run(dir.path(), "adapter check edited")
            .refused(&["adapter_model.safetensors", "cut short"]);
    }
    fs::remove_file(cut.join(peft::WEIGHTS)).unwrap();
    run(dir.path(), "adapter check edited").refused(&["holds neither"]);
    fs::write(cut.join("adapter_model.bin"), "pickle").unwrap();
    accepted(dir.path(), &cut, [true; 3], ["pickled", "pickled", "pickled"]);
    fs::write(cut.join(peft::CONFIG), "{\"peft_type\": ").unwrap();
    run(dir.path(), "adapter check edited").refused(&["adapter_config.json:1"]);
}
