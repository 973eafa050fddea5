//! One file per verb: its arguments and what it does with them.

pub mod adapter;
mod bar;
pub mod chat;
mod columns;
mod decode_args;
pub mod edit;
pub mod eval;
pub mod explore;
pub mod fold;
pub mod generate;
pub mod interrupt;
pub mod merge;
pub mod methods;
mod model_args;
pub mod plan;
pub mod probe;
pub mod prune;
pub mod pull;
pub mod quickstart;
mod ranking;
pub mod report;
pub mod reproduce;
pub mod run;
mod sampling_args;
pub mod show;
pub mod teach;
pub mod train;
