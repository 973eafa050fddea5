//! Files as people write them: mergekit's YAML, right and wrong.

use luthier_weights::{Config, Format, Layout, Model, Tokens};

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
    assert_eq!(config.tokens, Some(Tokens::Union));
    assert_eq!((config.dtype, config.out_dtype), (None, Some(Format::Float16)));
    assert_eq!(config.chat_template.as_deref(), Some("auto"));
    assert_eq!(config.models()[1].to_string(), "one+two");
    assert!(config.notes.is_empty(), "{:?}", config.notes);

    let config = read(MODULE);
    let Layout::Slices(slices) = &config.layout else { panic!() };
    assert_eq!((slices.len(), slices[1].sources[0].layers), (2, Some((8, 32))));
    assert_eq!(config.tokens, Some(Tokens::Of(Model { name: "b".into(), adapter: None })));
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
