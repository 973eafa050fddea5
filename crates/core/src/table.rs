//! Examples with their provenance.

use crate::Example;

/// A set of examples as read from one source.
#[derive(Clone, Debug)]
pub struct Table {
    /// What the user called it.
    pub name: String,
    /// The recognised layout, for saying so: `messages`, `prompt/completion`, `alpaca`, ….
    pub layout: String,
    /// SHA-256 over the source's bytes.
    pub sha256: String,
    /// The rows.
    pub examples: Vec<Example>,
}

impl Table {
    /// Other examples of the same source.
    pub fn with(&self, examples: Vec<Example>) -> Table {
        let Table { name, layout, sha256, .. } = self;
        Table { name: name.clone(), layout: layout.clone(), sha256: sha256.clone(), examples }
    }
}
