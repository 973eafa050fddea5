//! `luthier fold`: an adapter into its base.

use std::path::PathBuf;

use luthier_core::Result;
use luthier_model::save::SaveDtype;
use luthier_recipe::Precision;

use crate::out;

/// Arguments of `luthier fold`.
#[derive(clap::Args)]
pub struct Args {
    /// Base model
    #[arg(long, short)]
    model: String,
    /// Adapter folder
    #[arg(long, short)]
    adapter: PathBuf,
    /// Output folder
    #[arg(long)]
    out: PathBuf,
    /// Number format of the written weights
    #[arg(long, default_value = "f32")]
    dtype: Dtype,
    /// Print one JSON value
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Dtype {
    F32,
    Bf16,
    F16,
}

/// Runs the verb.
pub fn run(args: Args) -> Result<()> {
    let dtype = match args.dtype {
        Dtype::F32 => SaveDtype::F32,
        Dtype::Bf16 => SaveDtype::BF16,
        Dtype::F16 => SaveDtype::F16,
    };
    // Weights that will be written must not be rounded.
    let opened = luthier_recipe::open(&args.model, Precision::F32)?;
    let folded = luthier_recipe::fold::fold(&opened, &args.adapter, dtype, &args.out)?;
    if args.json {
        return out::json(&folded);
    }
    out::say(&format!(
        "largest logit difference against base + adapter: {:.3e} (largest logit {:.2}, {} tokens)",
        folded.max_logit_difference, folded.max_logit, folded.tokens
    ));
    out::data(&format!("{}\n", folded.model.display()))
}
