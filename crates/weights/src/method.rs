//! The merges by name: what each needs, which settings it knows, and how it is made from them.

use luthier_core::{Error, Result};

use crate::{
    combine::{
        ArceeFusion, Arithmetic, Combine, Fisher, Graft, Karcher, Linear, ModelStock, MultiSlerp,
        NearSwap, NuSlerp, Passthrough, Ram, RegMean, Sce, Slerp, TABLE, Transfer, WiseFt,
    },
    setting::Kind,
};

mod given;
mod table;

pub use given::Given;
pub use table::SPECS;

/// What a merge does with `base_model`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// Works from it.
    Needed,
    /// Works from it if there is one.
    Welcome,
    /// Treats it as any other input.
    Ordinary,
}

/// Whom a setting belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// The merge.
    Merge,
    /// Every input.
    Input,
    /// Every input but the base.
    Other,
}

/// A setting that a merge knows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Key {
    /// Its name.
    pub name: &'static str,
    /// Whom it belongs to.
    pub of: Of,
    /// What it may be.
    pub kind: Kind,
    /// What it is where nothing is said.
    pub default: Fallback,
}

/// What a setting is where nothing is said.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fallback {
    /// It must be said.
    Needed,
    /// Nothing.
    Nothing,
    /// A number; 1 and 0 for switches.
    Number(f64),
}

/// A merge that a file can name.
pub struct Spec {
    /// Its name.
    pub name: &'static str,
    /// Its name for people.
    pub title: &'static str,
    /// Where it is described.
    pub link: &'static str,
    /// What it does with the base.
    pub base: Base,
    /// Fewest and most inputs, the base among them.
    pub inputs: (usize, usize),
    /// Fewest and most inputs besides the base.
    pub others: (usize, usize),
    /// Its settings.
    pub keys: &'static [Key],
    /// The key under which an input names files that belong beside it.
    pub beside: Option<&'static str>,
}

impl Spec {
    /// The merge of this name.
    pub fn find(name: &str) -> Option<&'static Spec> {
        SPECS.iter().find(|spec| spec.name == name)
    }

    /// The merge with its settings for one tensor.
    pub fn combine(&self, given: &Given) -> Result<Box<dyn Combine>> {
        if let Some(point) = TABLE.iter().find(|point| point.name == self.name) {
            return Arithmetic::of(point, given);
        }
        match self.name {
            "linear" => Linear::of(given),
            "slerp" => Slerp::of(given),
            "nuslerp" => NuSlerp::of(given),
            "multislerp" => MultiSlerp::of(given),
            "karcher" => Karcher::of(given),
            "sce" => Sce::of(given),
            "model_stock" => ModelStock::of(given),
            "nearswap" => NearSwap::of(given),
            "arcee_fusion" => ArceeFusion::of(given),
            "passthrough" => Passthrough::of(given),
            "ram" | "ramplus_tl" => Ram::of(given),
            "wise_ft" => WiseFt::of(given),
            "transfer" => Transfer::of(given),
            "fisher" => Fisher::of(given),
            "graft" => Graft::of(given),
            "regmean" => RegMean::of(given),
            name => Err(Error::failed(name, "has settings but nothing that combines")),
        }
    }

    /// Refuses a wrong number of inputs; `base` says whether one of `names` is the base, `at` where
    /// they are listed.
    pub fn check_inputs(&self, at: &str, names: &[String], base: Option<&str>) -> Result<()> {
        let has_base = base.is_some_and(|base| names.iter().any(|name| name == base));
        if self.base == Base::Needed && !has_base {
            let what = format!("merge_method {} works from a base, and there is none", self.name);
            return Err(Error::input(at, what).hint("add `base_model: …`"));
        }
        for (i, name) in names.iter().enumerate() {
            if names[..i].contains(name) {
                return Err(Error::input(at, format!("model {name} is listed twice")));
            }
        }
        let others = names.len() - usize::from(has_base && self.base != Base::Ordinary);
        let counts = [
            ("models", names.len(), self.inputs),
            ("models besides the base", others, self.others),
        ];
        for (what, got, (least, most)) in counts {
            if got < least || got > most {
                let wanted = match (least, most) {
                    (least, most) if least == most => format!("{least}"),
                    (least, usize::MAX) => format!("at least {least}"),
                    (least, most) => format!("{least} to {most}"),
                };
                let what = format!("{} takes {wanted} {what}, got {got}", self.name);
                return Err(Error::input(at, what));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_of_the_table_of_points_are_those_of_the_settings() {
        for point in TABLE {
            let spec = Spec::find(point.name).unwrap();
            for (key, want) in [("normalize", point.normalize), ("rescale", point.rescale)] {
                let key = spec.keys.iter().find(|k| k.name == key).unwrap();
                assert_eq!(
                    key.default,
                    Fallback::Number(f64::from(u8::from(want))),
                    "{}",
                    point.name
                );
            }
        }
    }

    #[test]
    fn wrong_numbers_of_inputs_are_named() {
        let names: Vec<String> = ["a", "b", "c"].map(String::from).to_vec();
        let refused = |method: &str, names: &[String], base: Option<&str>| {
            let spec = Spec::find(method).unwrap();
            spec.check_inputs("m.yml: models", names, base).unwrap_err().to_string()
        };
        assert!(refused("slerp", &names, Some("a")).contains("takes 2 models, got 3"));
        assert!(refused("ties", &names, None).contains("works from a base"));
        assert!(refused("nuslerp", &names[..2], Some("a")).contains("besides the base, got 1"));
        assert!(refused("model_stock", &names[..2], Some("a")).contains("at least 3"));
        let twice = [names[0].clone(), names[0].clone()];
        assert!(refused("linear", &twice, None).contains("twice"));
        Spec::find("linear").unwrap().check_inputs("", &names, Some("a")).unwrap();
    }
}
