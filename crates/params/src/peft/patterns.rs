//! `rank_pattern` and `alpha_pattern`: values for some modules.

use regex::Regex;

/// Values by patterns for the ends of module paths, at a dot. The first that fits decides.
#[derive(Clone, Debug)]
pub struct Patterns<T>(Vec<(Regex, T)>);

impl<T> Default for Patterns<T> {
    fn default() -> Self {
        Patterns(Vec::new())
    }
}

impl<T: Copy> Patterns<T> {
    /// Adds a pattern after the others.
    pub fn add(&mut self, pattern: &str, value: T) -> Result<(), regex::Error> {
        self.0.push((Regex::new(&format!(r"^(?:.*\.)?(?:{pattern})$"))?, value));
        Ok(())
    }

    /// The value of a module, if a pattern fits it.
    pub fn of(&self, module: &str) -> Option<T> {
        self.0.iter().find(|(regex, _)| regex.is_match(module)).map(|(_, value)| *value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_end_that_fits_decides() {
        let mut patterns = Patterns::default();
        patterns.add(r"layers\.[01]\..*q_proj", 4).unwrap();
        patterns.add("q_proj", 8).unwrap();
        assert_eq!(patterns.of("model.layers.1.self_attn.q_proj"), Some(4));
        assert_eq!(patterns.of("model.layers.2.self_attn.q_proj"), Some(8));
        assert_eq!(patterns.of("model.layers.2.self_attn.my_q_proj"), None);
        assert!(patterns.add("(", 1).is_err());
    }
}
