//! The merges by name: what each needs, which settings it knows, and how it is made from them.

use luthier_core::{Error, Result};

use crate::{
    combine::{
        ArceeFusion, Arithmetic, Combine, Karcher, Linear, ModelStock, MultiSlerp, NearSwap,
        NuSlerp, Passthrough, Ram, Sce, Slerp, TABLE,
    },
    setting::Kind,
};

mod given;

pub use given::Given;

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
}

const fn number(name: &'static str, of: Of, default: Fallback) -> Key {
    Key { name, of, kind: Kind::Number, default }
}

const fn switch(name: &'static str, default: bool) -> Key {
    let default = Fallback::Number(if default { 1.0 } else { 0.0 });
    Key { name, of: Of::Merge, kind: Kind::Switch, default }
}

const WEIGHT: Key = number("weight", Of::Other, Fallback::Needed);
const DENSITY: Key = number("density", Of::Other, Fallback::Number(1.0));
const LAMBDA: Key = number("lambda", Of::Merge, Fallback::Number(1.0));
const T: Key = number("t", Of::Merge, Fallback::Needed);
const EPSILON: Key = number("epsilon", Of::Merge, Fallback::Number(1e-5));
/// Asks mergekit for masks of a byte; there are no stored masks here, so it changes nothing.
const INT8_MASK: Key = switch("int8_mask", false);

const GAMMA: Key = number("gamma", Of::Other, Fallback::Number(0.01));
const SPREAD: Key = number("epsilon", Of::Other, Fallback::Number(0.15));

/// The settings of an arithmetic merge, by its defaults for `normalize` and `rescale`.
macro_rules! arithmetic {
    ($normalize:literal, $rescale:literal $(, $more:expr)*) => {
        &[
            WEIGHT,
            DENSITY,
            LAMBDA,
            INT8_MASK,
            switch("normalize", $normalize),
            switch("rescale", $rescale)
            $(, $more)*
        ]
    };
}

const PLAIN: &[Key] = arithmetic!(false, false);
const TIES: &[Key] = arithmetic!(true, false);
const DARE: &[Key] = arithmetic!(false, true);
const CRUMBS: &[Key] = arithmetic!(false, false, GAMMA);
const DELLA: &[Key] = arithmetic!(true, true, SPREAD);
const DELLA_LINEAR: &[Key] = arithmetic!(false, true, SPREAD);
const LINEAR: &[Key] = &[number("weight", Of::Input, Fallback::Needed), switch("normalize", true)];
const INTERPOLATION: &[Key] = &[T];
const NUSLERP: &[Key] =
    &[WEIGHT, switch("nuslerp_row_wise", false), switch("nuslerp_flatten", true)];
const MULTISLERP: &[Key] =
    &[WEIGHT, switch("normalize_weights", true), number("eps", Of::Merge, Fallback::Number(1e-8))];
const KARCHER: &[Key] = &[
    Key { name: "max_iter", of: Of::Merge, kind: Kind::Count, default: Fallback::Number(10.0) },
    number("tol", Of::Merge, Fallback::Number(1e-5)),
];
const SCE: &[Key] = &[INT8_MASK, number("select_topk", Of::Merge, Fallback::Number(1.0))];
const MODEL_STOCK: &[Key] = &[switch("filter_wise", false)];
const PASSTHROUGH: &[Key] = &[number("scale", Of::Input, Fallback::Nothing)];
const RAM: &[Key] = &[EPSILON];
const RAM_PLUS: &[Key] = &[
    number("r", Of::Merge, Fallback::Number(0.1)),
    number("alpha", Of::Merge, Fallback::Number(0.2)),
    EPSILON,
];

const ANY: (usize, usize) = (1, usize::MAX);
const NONE_OR_MORE: (usize, usize) = (0, usize::MAX);

const fn spec(
    name: &'static str,
    title: &'static str,
    link: &'static str,
    base: Base,
    keys: &'static [Key],
) -> Spec {
    Spec { name, title, link, base, inputs: ANY, others: NONE_OR_MORE, keys }
}

const PAIR: (usize, usize) = (2, 2);

/// Every merge.
pub const SPECS: &[Spec] = &[
    spec("linear", "Linear", "https://arxiv.org/abs/2203.05482", Base::Ordinary, LINEAR),
    Spec {
        inputs: PAIR,
        ..spec("slerp", "SLERP", "https://en.wikipedia.org/wiki/Slerp", Base::Needed, INTERPOLATION)
    },
    Spec { others: PAIR, ..spec("nuslerp", "NuSLERP", "", Base::Welcome, NUSLERP) },
    Spec {
        others: ANY,
        ..spec(
            "multislerp",
            "Multi-SLERP",
            "https://goddard.blog/posts/multislerp-wow-what-a-cool-idea",
            Base::Welcome,
            MULTISLERP,
        )
    },
    spec("karcher", "Karcher Mean", "https://arxiv.org/abs/2603.04972", Base::Ordinary, KARCHER),
    spec(
        "task_arithmetic",
        "Task Arithmetic",
        "https://arxiv.org/abs/2212.04089",
        Base::Needed,
        PLAIN,
    ),
    spec("ties", "TIES", "https://arxiv.org/abs/2306.01708", Base::Needed, TIES),
    spec("dare_linear", "Linear DARE", "https://arxiv.org/abs/2311.03099", Base::Needed, DARE),
    spec("dare_ties", "DARE TIES", "https://arxiv.org/abs/2311.03099", Base::Needed, DARE),
    spec(
        "breadcrumbs",
        "Model Breadcrumbs",
        "https://arxiv.org/abs/2312.06795",
        Base::Needed,
        CRUMBS,
    ),
    spec(
        "breadcrumbs_ties",
        "Model Breadcrumbs with TIES",
        "https://arxiv.org/abs/2312.06795",
        Base::Needed,
        CRUMBS,
    ),
    spec("della", "DELLA", "https://arxiv.org/abs/2406.11617", Base::Needed, DELLA),
    spec(
        "della_linear",
        "Linear DELLA",
        "https://arxiv.org/abs/2406.11617",
        Base::Needed,
        DELLA_LINEAR,
    ),
    spec("sce", "SCE", "https://arxiv.org/abs/2408.07990", Base::Needed, SCE),
    Spec {
        inputs: (3, usize::MAX),
        ..spec(
            "model_stock",
            "Model Stock",
            "https://arxiv.org/abs/2403.19522",
            Base::Needed,
            MODEL_STOCK,
        )
    },
    Spec {
        inputs: PAIR,
        ..spec(
            "nearswap",
            "NearSwap",
            "https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001",
            Base::Needed,
            INTERPOLATION,
        )
    },
    Spec {
        inputs: PAIR,
        ..spec("arcee_fusion", "Arcee Fusion", "https://arcee.ai", Base::Needed, &[])
    },
    Spec { inputs: (1, 1), ..spec("passthrough", "Passthrough", "", Base::Ordinary, PASSTHROUGH) },
    spec("ram", "Reinforced Agent Merging", "https://arxiv.org/abs/2601.13572", Base::Needed, RAM),
    spec(
        "ramplus_tl",
        "Reinforced Agent Merging Plus (Tensor-Local)",
        "https://arxiv.org/abs/2601.13572",
        Base::Needed,
        RAM_PLUS,
    ),
];

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
