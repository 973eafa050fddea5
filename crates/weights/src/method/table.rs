//! The table of merges, and the settings that several of them share.

use super::{Base, Fallback, Key, Of, Spec};
use crate::setting::Kind;

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
/// Beside mergekit's settings: what numbers are ranked among, and which cut is made first.
const PER: Key = Key {
    name: "per",
    of: Of::Merge,
    kind: Kind::Choice(&["tensor", "row"]),
    default: Fallback::Number(0.0),
};
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
const CRUMBS: &[Key] = arithmetic!(false, false, GAMMA, PER, switch("remove_first", true));
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
const ONE: Key = number("weight", Of::Input, Fallback::Number(1.0));
const WISE_FT: &[Key] = &[number("alpha", Of::Merge, Fallback::Number(0.5))];
const TRANSFER: &[Key] = &[
    LAMBDA,
    Key { name: "source", of: Of::Other, kind: Kind::Switch, default: Fallback::Number(0.0) },
];
const FISHER: &[Key] = &[ONE, number("floor", Of::Merge, Fallback::Number(0.0))];
const GRAFT: &[Key] = &[number("top", Of::Other, Fallback::Nothing), switch("include", true)];
const REGMEAN: &[Key] = &[ONE, number("scale", Of::Merge, Fallback::Number(0.9))];
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
    Spec { name, title, link, base, inputs: ANY, others: NONE_OR_MORE, keys, beside: None }
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
    Spec {
        inputs: PAIR,
        ..spec("wise_ft", "WiSE-FT", "https://arxiv.org/abs/2109.01903", Base::Needed, WISE_FT)
    },
    Spec {
        others: PAIR,
        ..spec(
            "transfer",
            "Fine-tuning transfer",
            "https://arxiv.org/abs/2503.20110",
            Base::Needed,
            TRANSFER,
        )
    },
    Spec {
        beside: Some("fisher"),
        ..spec(
            "fisher",
            "Fisher averaging",
            "https://arxiv.org/abs/2111.09832",
            Base::Ordinary,
            FISHER,
        )
    },
    Spec {
        others: ANY,
        beside: Some("mask"),
        ..spec("graft", "Skill grafting", "https://arxiv.org/abs/2302.06600", Base::Needed, GRAFT)
    },
    Spec {
        beside: Some("gram"),
        ..spec("regmean", "RegMean", "https://arxiv.org/abs/2212.09849", Base::Ordinary, REGMEAN)
    },
];
