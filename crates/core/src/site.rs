//! Named places in a forward pass, the same for every architecture.

use std::collections::HashMap;

use globset::{Glob, GlobBuilder, GlobMatcher};

use crate::{Error, Result, nearest::nearest};

/// Dense index of a site within one model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SiteId(pub u32);

/// What stands at a site, with its sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SiteKind {
    /// `y = W x + b`, weight stored `(out, in)`.
    Linear {
        /// Input width.
        i: usize,
        /// Output width.
        o: usize,
        /// Whether there is a bias.
        bias: bool,
    },
    /// A row of a `(v, d)` table per token.
    Embed {
        /// Vocabulary size.
        v: usize,
        /// Width.
        d: usize,
    },
    /// A normalisation with a learned scale of width `d`.
    Norm {
        /// Width of the normalised vectors.
        d: usize,
    },
    /// Values without weights: a residual stream, an activation, an attention pattern.
    Activation {
        /// Width of the values.
        d: usize,
    },
}

/// One site.
#[derive(Clone, Debug)]
pub struct SiteInfo {
    /// Dense index.
    pub id: SiteId,
    /// luthier's name: `layers.3.attn.q`.
    pub name: String,
    /// What stands there.
    pub kind: SiteKind,
    /// The layer it belongs to.
    pub layer: Option<usize>,
    /// The Hugging Face module path of its weights (`model.layers.3.self_attn.q_proj`).
    pub module: Option<String>,
}

impl SiteInfo {
    /// Input and output width of a linear site.
    pub fn linear(&self) -> Option<(usize, usize)> {
        match self.kind {
            SiteKind::Linear { i, o, .. } => Some((i, o)),
            _ => None,
        }
    }
}

/// All sites of a model.
#[derive(Clone, Debug, Default)]
pub struct SiteMap {
    sites: Vec<SiteInfo>,
    by_name: HashMap<String, SiteId>,
}

impl SiteMap {
    /// Adds a site and returns its index.
    pub fn add(
        &mut self,
        name: impl Into<String>,
        kind: SiteKind,
        layer: Option<usize>,
        module: Option<String>,
    ) -> SiteId {
        let (id, name) = (SiteId(self.sites.len() as u32), name.into());
        self.by_name.insert(name.clone(), id);
        self.sites.push(SiteInfo { id, name, kind, layer, module });
        id
    }

    /// Puts something else at a site; its name and index stay.
    pub fn put(&mut self, id: SiteId, kind: SiteKind, module: Option<String>) {
        let site = &mut self.sites[id.0 as usize];
        (site.kind, site.module) = (kind, module);
    }

    /// The site with this index.
    pub fn info(&self, id: SiteId) -> &SiteInfo {
        &self.sites[id.0 as usize]
    }

    /// The site with this exact name.
    pub fn get(&self, name: &str) -> Option<&SiteInfo> {
        self.by_name.get(name).map(|id| self.info(*id))
    }

    /// The site whose weights live in this Hugging Face module.
    pub fn by_module(&self, module: &str) -> Option<&SiteInfo> {
        self.sites.iter().find(|s| s.module.as_deref() == Some(module))
    }

    /// All sites in the order of the forward pass.
    pub fn iter(&self) -> impl Iterator<Item = &SiteInfo> {
        self.sites.iter()
    }

    /// Number of sites.
    pub fn len(&self) -> usize {
        self.sites.len()
    }

    /// Whether the model has no sites.
    pub fn is_empty(&self) -> bool {
        self.sites.is_empty()
    }

    /// The sites that `glob` names and `keep` accepts.
    ///
    /// `*` stays within one dotted part, `**` crosses dots, `{a,b}` are alternatives. A glob that
    /// names nothing acceptable is an error that lists the nearest sites; `key` is the recipe key
    /// it came from.
    pub fn find(
        &self,
        key: &str,
        glob: &str,
        keep: impl Fn(&SiteInfo) -> bool,
    ) -> Result<Vec<&SiteInfo>> {
        let pattern = Pattern::new(key, glob)?;
        let found: Vec<&SiteInfo> =
            self.sites.iter().filter(|s| keep(s) && pattern.matches(&s.name)).collect();
        if !found.is_empty() {
            return Ok(found);
        }
        let usable: Vec<&str> =
            self.sites.iter().filter(|s| keep(s)).map(|s| s.name.as_str()).collect();
        let near = nearest(glob, usable.iter().copied(), 4);
        let shown = if near.is_empty() { &usable[..usable.len().min(4)] } else { &near[..] };
        Err(Error::input(key, format!("`{glob}` matches no site of this model"))
            .hint(format!("nearest sites: {}", shown.join(", "))))
    }
}

/// A glob over dotted names.
#[derive(Clone, Debug)]
pub struct Pattern {
    text: String,
    matcher: GlobMatcher,
}

impl Pattern {
    /// Compiles `glob`; `key` names its place in the recipe for the error.
    pub fn new(key: &str, glob: &str) -> Result<Self> {
        let slashed = glob.replace('.', "/");
        let compiled: Glob = GlobBuilder::new(&slashed)
            .literal_separator(true)
            .build()
            .map_err(|e| Error::input(key, format!("`{glob}` is not a glob: {}", e.kind())))?;
        Ok(Pattern { text: glob.to_string(), matcher: compiled.compile_matcher() })
    }

    /// Whether the whole of `name` matches.
    pub fn matches(&self, name: &str) -> bool {
        self.text == name || self.matcher.is_match(name.replace('.', "/"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map() -> SiteMap {
        let mut map = SiteMap::default();
        for l in 0..2 {
            for s in ["q", "v"] {
                let kind = SiteKind::Linear { i: 4, o: 4, bias: false };
                map.add(format!("layers.{l}.attn.{s}"), kind, Some(l), None);
            }
            map.add(format!("layers.{l}.resid_post"), SiteKind::Activation { d: 4 }, Some(l), None);
        }
        map
    }

    #[test]
    fn globs_stay_within_parts_unless_doubled() {
        let map = map();
        let names = |g: &str| map.find("at", g, |_| true).map(|v| v.len()).unwrap_or(0);
        assert_eq!(names("layers.*.attn.{q,v}"), 4);
        assert_eq!(names("layers.1.**"), 3);
        assert_eq!(names("layers.*"), 0);
        assert_eq!(names("**"), 6);
    }

    #[test]
    fn an_empty_match_names_the_neighbours() {
        let err = map().find("train.params.lora.at", "layers.*.atn.q", |_| true).unwrap_err();
        let text = err.to_string();
        assert!(
            text.contains("train.params.lora.at") && text.contains("layers.0.attn.q"),
            "{text}"
        );
    }
}
