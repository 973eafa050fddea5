//! Checkpoints, tokenizers, chat templates and the decoder itself.
//!
//! `source` opens a folder or a GGUF file, `load` turns it into a [`Decoder`], `render` turns an
//! example into tokens through the model's own chat template.

pub mod config;
pub mod decoder;
mod file;
pub mod gguf;
pub mod load;
pub mod names;
pub mod pull;
pub use luthier_kernels::quant;
pub mod render;
pub mod save;
mod shard;
pub mod show;
pub mod source;
pub mod template;
pub mod tokenizer;
pub mod weight;

pub use config::ModelConfig;
pub use decoder::Decoder;
pub use load::{Holding, Quantize};
pub use luthier_kernels::num::Precision;
pub use render::{RenderOptions, Rendered, render};
pub use source::Source;
pub use template::ChatTemplate;
pub use tokenizer::Tokenizer;
