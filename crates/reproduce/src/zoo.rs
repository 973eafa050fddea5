//! Small worlds of images and the nets that learn them, for checks of what is done to weights.
//!
//! Images are made by procedure, nets are residual MLPs, what moves them are the optimizers of
//! `luthier_update`, and what combines them are the merges of `luthier_weights`.

pub mod digits;
pub mod domains;
pub mod edit;
pub mod labels;
pub mod net;
pub mod pairs;
pub mod soup;
pub mod sums;
pub mod train;
