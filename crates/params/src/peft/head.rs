//! A head of labels among the modules that an adapter saves as a whole.

use luthier_core::Result;
use serde_json::{Value, json};

use super::{
    load::{Reader, path},
    save::Out,
};
use crate::{Head, Labels, form::head::WEIGHT};

/// The module, as transformers calls it.
const MODULE: &str = "score";

/// Adds the head to an adapter; PEFT then takes the base for a model that scores labels.
pub(super) fn write(head: &Head, out: &mut Out, config: &mut Value) -> Result<()> {
    let weight = out.need(WEIGHT)?;
    out.put(MODULE, ".weight", weight);
    let mut modules = match config["modules_to_save"].take() {
        Value::Array(modules) => modules,
        _ => Vec::new(),
    };
    modules.push(json!(MODULE));
    config["modules_to_save"] = Value::Array(modules);
    config["task_type"] = json!("SEQ_CLS");
    if let Labels::Names(names) = &head.labels {
        config["luthier"]["labels"] = json!(names);
    }
    Ok(())
}

/// Takes the head out of an adapter, if it has one.
pub(super) fn read(reader: &mut Reader) -> Result<Option<Head>> {
    let Some(key) = reader.keys().into_iter().find(|key| path(key) == WEIGHT) else {
        return Ok(None);
    };
    let weight = reader.take(&key)?;
    let (labels, _) = weight.dims2()?;
    reader.state.insert(WEIGHT, weight);
    // PEFT names the modules of two families of models, of which a model has one.
    [MODULE, "classifier"].into_iter().for_each(|module| reader.save_no_more(module));
    let names = reader.get("luthier").get("labels").and_then(Value::as_array);
    let text = |name: &Value| name.as_str().map(str::to_string);
    let names = names.and_then(|names| names.iter().map(text).collect::<Option<Vec<String>>>());
    let names = names.filter(|names| names.len() == labels);
    Ok(Some(Head { labels: names.map_or(Labels::Count(labels), Labels::Names) }))
}
