//! Recipes: reading them, planning them, running their stages. The only crate that sees every seam.

pub mod adapter;
pub mod antidote;
pub mod assemble;
pub mod begin;
mod change;
pub mod decode;
pub mod edit;
pub mod evaluate;
pub mod explore;
pub mod export;
pub mod fisher;
pub mod fold;
pub mod gram;
pub mod manifest;
pub mod memory;
pub mod merge;
pub mod methods;
pub mod open;
mod overrides;
mod pairs;
mod phrasings;
pub mod plan;
pub mod precision;
pub mod prepare;
pub mod quickstart;
pub mod report;
pub mod run;
pub mod schema;
mod sequence;
pub mod text;
pub mod training;

pub use open::{Opened, open, open_base, open_for};
pub use precision::Precision;
pub use schema::Recipe;
