//! Bottlenecks of width 4 in a small model, and what is shown to them.

use std::sync::Arc;

use luthier_core::{Model, Rows};
use luthier_params::{
    Bottleneck, Params, Phm,
    form::bottleneck::{NonLinearity, Scaling},
};

use crate::whole::{SMALL, Whole};

pub const IDS: [u32; 9] = [3, 1, 4, 1, 5, 9, 2, 6, 5];

pub fn rows() -> Arc<Rows> {
    Arc::new(Rows::new(&[5, 1, 3], |_| 0))
}

pub fn model() -> Arc<dyn Model> {
    Arc::new(Whole::random(SMALL))
}

/// Half the width, divisible by 2.
pub fn small() -> Bottleneck {
    Bottleneck {
        reduction_factor: 2.0,
        non_linearity: NonLinearity::Gelu,
        scaling: Scaling::By(0.7),
        ..Bottleneck::default()
    }
}

pub fn phm() -> Phm {
    Phm { division: 2, ..Phm::default() }
}

pub fn params(bottleneck: Bottleneck) -> Params {
    Params { bottleneck: Some(bottleneck), ..Params::default() }
}
