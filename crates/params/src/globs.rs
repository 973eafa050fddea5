//! One glob or several, and the sites they name.

use std::fmt;

use luthier_core::{Error, Result, SiteInfo, SiteMap, nearest::suggest, site::Pattern};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{SeqAccess, Visitor},
};

/// Globs over site names; a recipe may write one as a string.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Globs(pub Vec<String>);

impl From<&str> for Globs {
    fn from(glob: &str) -> Self {
        Globs(vec![glob.to_string()])
    }
}

impl Serialize for Globs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.as_slice() {
            [one] => serializer.serialize_str(one),
            several => several.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Globs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMore;
        impl<'de> Visitor<'de> for OneOrMore {
            type Value = Globs;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a glob or a list of globs")
            }

            fn visit_str<E>(self, glob: &str) -> Result<Globs, E> {
                Ok(glob.into())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut globs: A) -> Result<Globs, A::Error> {
                let mut all = Vec::new();
                while let Some(glob) = globs.next_element()? {
                    all.push(glob);
                }
                Ok(Globs(all))
            }
        }
        deserializer.deserialize_any(OneOrMore)
    }
}

impl Globs {
    /// The sites that these globs name, `exclude` does not and `keep` accepts, in forward order.
    /// Every glob of either list must name something; `key` is the table both belong to.
    pub fn sites<'s>(
        &self,
        sites: &'s SiteMap,
        key: &str,
        exclude: &Globs,
        keep: impl Fn(&SiteInfo) -> bool,
    ) -> Result<Vec<&'s SiteInfo>> {
        let named = |key: String, globs: &Globs| -> Result<Vec<bool>> {
            let mut named = vec![false; sites.len()];
            for glob in &globs.0 {
                for site in sites.find(&key, glob, &keep).map_err(|e| weightless(sites, glob, e))? {
                    named[site.id.0 as usize] = true;
                }
            }
            Ok(named)
        };
        let wanted = named(format!("{key}.at"), self)?;
        let refused = named(format!("{key}.exclude"), exclude)?;
        let left = |s: &&SiteInfo| wanted[s.id.0 as usize] && !refused[s.id.0 as usize];
        let found: Vec<&SiteInfo> = sites.iter().filter(left).collect();
        if found.is_empty() {
            return Err(Error::input(format!("{key}.at"), "names no site that is not excluded"));
        }
        Ok(found)
    }
}

/// A glob that names only sites without a fitting weight deserves to hear that.
fn weightless(sites: &SiteMap, glob: &str, error: Error) -> Error {
    match (error, sites.find("", glob, |_| true)) {
        (Error::Input { at, hint, .. }, Ok(found)) => {
            let what =
                format!("`{glob}` names {}, which has no weight to learn here", found[0].name);
            Error::Input { at, what, hint }
        }
        (error, _) => error,
    }
}

/// A value for some of the chosen sites. Two globs that give one site different values, and a glob
/// that names none of them, are errors.
pub(crate) fn overrides<'a, T: Copy + PartialEq + fmt::Display + 'a>(
    key: &str,
    patterns: impl IntoIterator<Item = (&'a String, &'a T)>,
    sites: &[&SiteInfo],
) -> Result<Vec<Option<T>>> {
    let mut values: Vec<Option<(&str, T)>> = vec![None; sites.len()];
    for (glob, value) in patterns {
        let pattern = Pattern::new(key, glob)?;
        let mut used = false;
        for (site, slot) in sites.iter().zip(&mut values).filter(|(s, _)| pattern.matches(&s.name))
        {
            used = true;
            match *slot {
                Some((other, earlier)) if earlier != *value => {
                    let what = format!(
                        "gives {} both {earlier} (`{other}`) and {value} (`{glob}`)",
                        site.name
                    );
                    return Err(Error::input(key, what).hint("let one glob name it"));
                }
                _ => *slot = Some((glob, *value)),
            }
        }
        if !used {
            let what = format!("`{glob}` matches no site that is learned");
            let near = suggest(glob, sites.iter().take(8).map(|s| s.name.as_str()));
            return Err(Error::input(key, what).hint(near));
        }
    }
    Ok(values.into_iter().map(|v| v.map(|(_, value)| value)).collect())
}
