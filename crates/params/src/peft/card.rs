//! The adapter's `README.md`: the header hubs read, and how to use it.

use super::Base;
use crate::{Lora, Target};

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

/// The card's text.
pub(super) fn card(lora: &Lora, targets: &[(&str, Target)], base: &Base) -> String {
    let name = &base.name;
    let mut tags = vec!["lora".to_string(), "transformers".to_string(), "luthier".to_string()];
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
    let size = |t: &Target| {
        let (i, o) = t.widths();
        t.r * (i + o) + if lora.bias { o } else { 0 }
    };
    let parameters: usize = targets.iter().map(|(_, t)| size(t)).sum();
    let hash = base.sha256.as_deref().unwrap_or("not recorded");
    let scale = if lora.rslora { "alpha / sqrt(r)" } else { "alpha / r" };
    format!(
        "{header}\n\n# LoRA adapter for {name}\n\n\
         Trained with luthier. It changes {modules} modules through {parameters} parameters; the base \
         model stays as it is.\n\n\
         | setting | value |\n|---|---|\n\
         | r | {r} |\n| alpha | {alpha} |\n| scale | {scale} |\n| dropout | {dropout} |\n\
         | base SHA-256 | {hash} |\n\n\
         ## Use\n\n\
         ```python\n\
         from peft import PeftModel\n\
         from transformers import AutoModelForCausalLM\n\n\
         model = AutoModelForCausalLM.from_pretrained({base_name})\n\
         model = PeftModel.from_pretrained(model, \"path/to/this/folder\")\n\
         ```\n",
        header = header.join("\n"),
        modules = targets.len(),
        r = lora.r,
        alpha = lora.alpha,
        dropout = lora.dropout,
        base_name = quoted(name),
    )
}
