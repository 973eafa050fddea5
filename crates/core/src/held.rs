//! Numbers that stay: activations between two passes, keys and values, the weights of a model.

use half::bf16;

/// Numbers at rest.
#[derive(Clone, Debug)]
pub enum Held {
    /// Exactly.
    F32(Vec<f32>),
    /// Rounded: half the memory.
    Bf16(Vec<bf16>),
}

impl Default for Held {
    fn default() -> Self {
        Held::F32(Vec::new())
    }
}

impl Held {
    /// How many.
    pub fn len(&self) -> usize {
        match self {
            Held::F32(x) => x.len(),
            Held::Bf16(x) => x.len(),
        }
    }

    /// Keeps the first `n`.
    pub fn truncate(&mut self, n: usize) {
        match self {
            Held::F32(x) => x.truncate(n),
            Held::Bf16(x) => x.truncate(n),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
