//! Files as people write them: mergekit's YAML, right and wrong.

use luthier_weights::{Config, Format, Layout, Model, Outside, RowOf, TokenRow, TokenSource};

fn read(text: &str) -> Config {
    Config::from_yaml(text, "m.yml").unwrap_or_else(|e| panic!("{e}"))
}

#[track_caller]
fn refused(text: &str, words: &[&str]) {
    let error = match Config::from_yaml(text, "m.yml") {
        Err(error) => error.to_string(),
        Ok(_) => panic!("accepted"),
    };
    assert!(error.starts_with("m.yml"), "{error}");
    for word in words {
        assert!(error.contains(word), "no `{word}` in: {error}");
    }
}

const GRADIENTS: &str = "
# two models and a gradient
slices:
  - sources:
      - model: org/one
        layer_range: [0, 32]
      - model: ./two+adapter
        layer_range: [0, 32]
merge_method: slerp
base_model: org/one
parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 0.3, 0.7, 1]
    - filter: mlp
      value: [1, 0.5, 0.7, 0.3, 0]
    - value: 0.5
dtype: bfloat16
";

const DARE: &str = "
models:
  - model: base   # no parameters for the base
  - model: {model: {path: one}, lora: two}
    parameters:
      density: 0.53
      weight: 4e-1
base_model: base
merge_method: dare_ties
parameters: {int8_mask: true, normalize: yes}
out_dtype: float16
tokenizer: {source: union}
chat_template: auto
";

const MODULE: &str = "
modules:
  text_decoder:
    slices:
      - sources: [{model: a, layer_range: [0, 24]}]
      - sources: [{model: b, layer_range: [8, 32], parameters: {scale: [{filter: o_proj, value: 0.5}, {value: 1}]}}]
merge_method: passthrough
tokenizer_source: b
";

#[test]
fn files_of_every_layout_are_read() {
    let config = read(GRADIENTS);
    assert_eq!((config.spec.name, config.dtype), ("slerp", Some(Format::Bfloat16)));
    let Layout::Slices(slices) = &config.layout else { panic!() };
    assert_eq!(slices[0].sources[1].layers, Some((0, 32)));
    let two = Model { name: "./two".into(), adapter: Some("adapter".into()) };
    assert_eq!(config.models(), [&Model { name: "org/one".into(), adapter: None }, &two]);
    let t = &config.settings["t"];
    let at = |tensor: &str, t_: f64| {
        t.value(luthier_weights::Kind::Number, tensor, t_, "").unwrap().unwrap()
    };
    assert_eq!((at("x.mlp.y", 0.0), at("norm", 0.3), at("self_attn", 0.25)), (1.0, 0.5, 0.5));

    let config = read(DARE);
    assert_eq!(config.tokens.as_ref().unwrap().source, TokenSource::Union);
    assert_eq!((config.dtype, config.out_dtype), (None, Some(Format::Float16)));
    assert_eq!(config.chat_template.as_deref(), Some("auto"));
    assert_eq!(config.models()[1].to_string(), "one+two");
    assert!(config.notes.is_empty(), "{:?}", config.notes);

    let config = read(MODULE);
    let Layout::Slices(slices) = &config.layout else { panic!() };
    assert_eq!((slices.len(), slices[1].sources[0].layers), (2, Some((8, 32))));
    let b = Model { name: "b".into(), adapter: None };
    assert_eq!(config.tokens.as_ref().unwrap().source, TokenSource::Of(b));
}

/// Every key and shape that mergekit's own examples and pages use, in files of our own.
const SHAPES: [&str; 7] = [
    "models:\n  - model: one\n  - model: two\nmerge_method: arcee_fusion\nbase_model: one\n\
     dtype: bfloat16\n",
    "models:\n  - model: one\n    parameters:\n      density: [1, 0.6, 0.2]   # over depth\n      \
     weight: 1.0\n  - model: two\n    parameters:\n      density: 0.4\n      weight: [0, 0.4, 1]\n  \
     - model: three\n    parameters:\n      density: 0.3\n      weight:\n        - filter: mlp\n          \
     value: 0.5\n        - value: 0\nmerge_method: ties\nbase_model: base\nparameters:\n  \
     normalize: true\n  int8_mask: true\ndtype: float16\n",
    "slices:\n  - sources:\n    - model: one\n      layer_range: [0, 6]\n  - sources:\n    \
     - model: two\n      layer_range: [4, 8]\nmerge_method: passthrough\ndtype: float16\n",
    "name: halfway\nmerge_method: slerp\nbase_model: one\nmodels:\n  - model: two\nparameters:\n  \
     t: 0.5\n",
    "merge_method: linear\nmodels: [{model: one}, {model: two}]\nparameters: {weight: 0.5}\n\
     tokenizer:\n  source: \"union\"  # or another\n  tokens:\n    <|start|>:\n      \
     source: \"one\"\n    <|other|>:\n      source: \"two\"\n      force: true\n    <|renamed|>:\n      \
     source:\n        kind: \"model_token\"\n        model: \"two\"\n        \
     token: \"<|original|>\"\n    <|numbered|>:\n      source: {kind: model_token, model: two, \
     token_id: 12}\n    <|unused|>:\n      source:\n        kind: \"zero\"\n  \
     pad_to_multiple_of: null\nchat_template: \"auto\"\n",
    "merge_method: linear\nmodels: [{model: one}]\nparameters: {weight: 1}\n\
     tokenizer_source: \"union\"\nchat_template: llama3\n",
    "merge_method: dare_ties\nbase_model: base\nmodels:\n  - model: one\n    parameters:\n      \
     density: 0.6\n      weight: 0.5\n  - model: org/two+org/adapter\n    parameters:\n      \
     density: 0.8\n      weight: 0.5\n",
];

#[test]
fn every_shape_that_mergekits_pages_use_is_read() {
    let read: Vec<Config> = SHAPES.iter().map(|text| read(text)).collect();
    assert_eq!(read[1].models().len(), 4);
    assert_eq!(read[3].base.as_ref().unwrap().name, "one");
    let tokens = read[4].tokens.as_ref().unwrap();
    let two = || Model { name: "two".into(), adapter: None };
    let row = |name: &str| tokens.rows.iter().find(|(token, _)| token == name).unwrap().1.clone();
    assert_eq!(row("<|other|>"), TokenRow { from: Some(RowOf::Same(two())), force: true });
    let original = RowOf::Token(two(), "<|original|>".into());
    assert_eq!(row("<|renamed|>"), TokenRow { from: Some(original), force: false });
    assert_eq!(row("<|numbered|>").from, Some(RowOf::Id(two(), 12)));
    assert_eq!(row("<|unused|>").from, Some(RowOf::Zero));
    assert_eq!(tokens.pad_to_multiple_of, None);
    assert_eq!(read[6].models()[1].to_string(), "org/two+org/adapter");
}

#[test]
fn files_of_mergekits_other_programs_are_told_apart() {
    let moe = "base_model: a\ngate_mode: hidden\nexperts:\n  - source_model: b\n";
    refused(moe, &["a file of mergekit-moe", "experts"]);
    refused("genome:\n  models: [a, b]\ntasks: []\n", &["mergekit-evolve", "search"]);
    let several = "name: one\nmerge_method: linear\n---\nmerge_method: slerp\n";
    refused(several, &["expected one document, got 2", "a file of its own"]);
}

#[test]
fn lines_and_files_beside_models_are_read() {
    let config = read(
        "merge_method: graft\nbase_model: a\nmodels:\n  - {model: b, mask: x.safetensors}\n  \
         - {model: c, mask: [y, z]}\n",
    );
    let Layout::Models(inputs) = &config.layout else { panic!() };
    assert_eq!(inputs[0].beside, ["x.safetensors"]);
    assert_eq!(inputs[1].beside, ["y", "z"]);
    let ties = "merge_method: ties\nbase_model: a\nmodels: [{model: b}]\n";
    let lines = read(&format!("{ties}lines: {{alpha: 0.2, outside: one}}\n")).lines.unwrap();
    assert_eq!((lines.alpha, lines.beta, lines.outside), (Some(0.2), None, Outside::One));
    refused(&format!("{ties}lines: {{beta: 1}}\n"), &["lines.alpha", "is missing"]);
    refused(&format!("{ties}lines: 0.2\n"), &["lines", "alpha and beta"]);
    refused(&format!("{ties}lines: {{alpha: 1, outside: in}}\n"), &["alpha, one or deep"]);
    refused(
        "merge_method: linear\nmodels: [{model: a}]\nlines: {alpha: 0.2}\n",
        &["lines", "linear has none"],
    );
    refused("merge_method: ties\nmodels: [{model: b, mask: x}]", &["models[0]", "`mask`"]);
    refused("merge_method: graft\nmodels: [{model: b, mask: 3}]", &["models[0].mask", "a file"]);
}

#[test]
fn settings_of_other_methods_are_told_of_and_left() {
    let config = read(
        "merge_method: linear\nmodels: [{model: a, parameters: {weight: 1, density: 0.5}}]\n\
         parameters: {int8_mask: true}\n",
    );
    assert_eq!(config.notes.len(), 2, "{:?}", config.notes);
    assert!(config.notes.iter().any(|n| n.contains("density: linear has no such setting")));
}

#[test]
fn mistakes_are_named_with_their_place() {
    let models = "models: [{model: a}, {model: b}]\n";
    refused(
        &format!("merge_method: tiez\n{models}"),
        &["unknown method \"tiez\"", "did you mean ties"],
    );
    refused(models, &["merge_method", "is missing"]);
    refused("merge_method: linear\n", &["says nothing of what goes in"]);
    refused(&format!("merge_method: linear\n{models}slices: []\n"), &["models and slices"]);
    refused(
        &format!("merge_method: linear\nbase_modle: x\n{models}"),
        &["`base_modle`", "base_model?"],
    );
    refused(
        &format!("merge_method: linear\ndtype: int4\n{models}"),
        &["dtype", "int4", "bfloat16"],
    );
    refused(
        "merge_method: ties\nmodels: [{model: a, parameters: {wieght: 1}}]",
        &["models[0].parameters", "`wieght`", "weight"],
    );
    refused("merge_method: linear\nmodels: [{model: a, layer_range: [0, 1]}]", &["`layer_range`"]);
    refused("merge_method: linear\nmodels: [{modell: a}]", &["models[0]", "did you mean model?"]);
    refused(
        "merge_method: passthrough\nslices: [{sources: [{model: a, layer_range: [3, 3]}]}]",
        &["slices[0].sources[0].layer_range", "[3,3]"],
    );
    refused(
        "merge_method: linear\nslices: [{sources: [{model: a, layer_range: [0, 2]}, {model: b, \
         layer_range: [0, 3]}]}]",
        &["slices[0]", "a has 2, b has 3"],
    );
    refused("merge_method: linear\nmodels: [", &["not readable as YAML"]);
    refused("a: 1\n---\nb: 2\n", &["one document, got 2"]);
    refused("", &["m.yml"]);
    refused(
        &format!(
            "merge_method: linear\n{models}tokenizer: {{source: base}}\ntokenizer_source: base\n"
        ),
        &["tokenizer_source and tokenizer"],
    );
}
