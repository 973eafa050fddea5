//! The adapter's `README.md`: the header hubs read, and how to use it.

use super::Base;

/// What a card says of an adapter.
pub(super) struct Card {
    /// `LoRA`.
    pub title: &'static str,
    /// Hubs' word for the method.
    pub tag: &'static str,
    /// How many modules it changes.
    pub modules: usize,
    /// Rows of the table of settings.
    pub settings: Vec<(&'static str, String)>,
}

/// A YAML string in double quotes, safe for any name.
fn quoted(text: &str) -> String {
    serde_json::Value::String(text.to_string()).to_string()
}

/// Whether a name looks like `organisation/model` on a hub.
fn is_hub_id(name: &str) -> bool {
    let ordinary = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let parts: Vec<&str> = name.split('/').collect();
    parts.len() == 2
        && parts.iter().all(|p| !p.is_empty() && p.chars().all(ordinary))
        && !name.starts_with('.')
}

impl Card {
    /// The card's text; the file holds this many `parameters`.
    pub fn text(&self, parameters: usize, base: &Base) -> String {
        let name = &base.name;
        let mut tags = vec![self.tag.to_string(), "transformers".into(), "luthier".into()];
        let mut header = vec!["---".to_string()];
        if is_hub_id(name) {
            tags.insert(0, format!("base_model:adapter:{name}"));
        }
        header.push(format!("base_model: {}", quoted(name)));
        header.push("base_model_relation: adapter".into());
        header.push("library_name: peft".into());
        header.push("pipeline_tag: text-generation".into());
        header.push("tags:".into());
        header.extend(tags.iter().map(|tag| format!("- {}", quoted(tag))));
        header.push("---".into());
        let setting = |(key, value): &(&str, String)| format!("| {key} | {value} |\n");
        let settings: String = self.settings.iter().map(setting).collect();
        format!(
            "{header}\n\n# {title} adapter for {name}\n\n\
             Trained with luthier. It changes {modules} modules through {parameters} parameters; \
             the base model stays as it is.\n\n\
             | setting | value |\n|---|---|\n\
             {settings}| base SHA-256 | {hash} |\n\n\
             ## Use\n\n\
             ```python\n\
             from peft import PeftModel\n\
             from transformers import AutoModelForCausalLM\n\n\
             model = AutoModelForCausalLM.from_pretrained({base_name})\n\
             model = PeftModel.from_pretrained(model, \"path/to/this/folder\")\n\
             ```\n",
            header = header.join("\n"),
            title = self.title,
            modules = self.modules,
            hash = base.sha256.as_deref().unwrap_or("not recorded"),
            base_name = quoted(name),
        )
    }
}
