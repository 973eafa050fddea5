//! The README of a merged model: what hubs and people look for.

use std::fmt::Write;

use luthier_weights::{Config, Model};

use super::on_hub;

/// The card: keys for hubs, then the method, the models and the file.
pub(super) fn card(config: &Config, text: &str) -> String {
    let mut card = String::from("---\n");
    let models = config.models();
    let hub: Vec<&Model> = models.iter().copied().filter(|model| on_hub(model)).collect();
    if !hub.is_empty() {
        card.push_str("base_model:\n");
        for model in hub {
            // Writing to a string cannot fail.
            let _ = writeln!(card, "- {}", model.name);
        }
    }
    card.push_str("library_name: transformers\ntags:\n- mergekit\n- merge\n- luthier\n---\n");
    let spec = config.spec;
    let method = match spec.link {
        "" => spec.title.to_string(),
        link => format!("[{}]({link})", spec.title),
    };
    let _ = write!(card, "# A merged model\n\nMade by `luthier merge`, method {method}");
    if let Some(base) = &config.base {
        let _ = write!(card, ", base {}", named(base));
    }
    card.push_str(".\n\n## Models\n\n");
    for model in models.iter().filter(|model| Some(**model) != config.base.as_ref()) {
        let _ = writeln!(card, "* {}", named(model));
    }
    let _ = writeln!(card, "\n## Configuration\n\n```yaml\n{}\n```", text.trim_end());
    card
}

fn named(model: &Model) -> String {
    match on_hub(model) {
        true => format!("[{model}](https://huggingface.co/{})", model.name),
        false => format!("`{model}`"),
    }
}
