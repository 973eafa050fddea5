//! Adapter folders as files: who will run them, and how to make a plain LoRA of anything foldable.

mod check;
mod convert;
mod extract;
mod folder;
mod lora;
mod peft;
mod write;

pub use check::{Checked, Runtime, check};
pub use convert::convert;
pub use extract::{Extract, extract};
pub use write::{Converted, LeftOut, Module};
