//! The `luthier` command. stdout is data, stderr is talk; 0 is success, 1 failure, 2 bad input.

mod out;
mod verb;

use clap::{CommandFactory, Parser, Subcommand};
use luthier_core::Result;

/// Fine-tune, merge, decode and measure language models, on a laptop CPU first.
#[derive(Parser)]
#[command(name = "luthier", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Fine-tune the default chat model on bundled data and write the report
    Quickstart(verb::quickstart::Args),
    /// Bring a model: built-in name, hub id, or local path
    Pull(verb::pull::Args),
    /// Fine-tune a model on a data file (LoRA by default)
    Train(verb::train::Args),
    /// Resolve a recipe: settings, tokens, parameters, memory and time
    Plan(verb::plan::Args),
    /// Execute all stages of a recipe
    Run(verb::run::Args),
    /// Write down what a teacher finds likely, for a student to learn from; or fit its calibration
    Teach(verb::teach::Args),
    /// Show rendered rows with their token weights
    Show(verb::show::Args),
    /// Generate text from prompts
    Generate(verb::generate::Args),
    /// Talk with a model
    Chat(verb::chat::Args),
    /// Score a model on a data file, with confidence intervals
    Eval(verb::eval::Args),
    /// Say what a head of labels finds in rows: classes, numbers, rewards; one JSON object per line
    Score(verb::score::Args),
    /// Merge an adapter into its base, verified against the unmerged logits
    Fold(verb::fold::Args),
    /// Merge models as mergekit's YAML says
    Merge(verb::merge::Args),
    /// Check or convert adapter folders
    Adapter(verb::adapter::Args),
    /// Change facts in a model with an editor trained for it
    Edit(verb::edit::Args),
    /// Set the weights that matter most on given data to 0
    Prune(verb::prune::Args),
    /// Show what was new in a model's tuning data, without the data
    Explore(verb::explore::Args),
    /// Measure a model: one probe, one file
    Probe(verb::probe::Args),
    /// Write the HTML report of a finished run again
    Report(verb::report::Args),
    /// List the methods that recipes can name
    Methods(verb::methods::Args),
    /// Run a paper's small-scale check: what was claimed, what is measured, whether it holds
    Reproduce(verb::reproduce::Args),
    /// Print a completion script for a shell
    Completions {
        /// bash, zsh, fish, elvish or powershell
        shell: clap_complete::Shell,
    },
}

fn run(cli: Cli) -> Result<()> {
    match cli.verb {
        Verb::Quickstart(args) => verb::quickstart::run(args),
        Verb::Pull(args) => verb::pull::run(args),
        Verb::Train(args) => verb::train::run(args),
        Verb::Plan(args) => verb::plan::run(args),
        Verb::Run(args) => verb::run::run(args),
        Verb::Teach(args) => verb::teach::run(args),
        Verb::Show(args) => verb::show::run(args),
        Verb::Generate(args) => verb::generate::run(args),
        Verb::Chat(args) => verb::chat::run(args),
        Verb::Eval(args) => verb::eval::run(args),
        Verb::Score(args) => verb::score::run(args),
        Verb::Fold(args) => verb::fold::run(args),
        Verb::Merge(args) => verb::merge::run(args),
        Verb::Adapter(args) => verb::adapter::run(args),
        Verb::Edit(args) => verb::edit::run(args),
        Verb::Prune(args) => verb::prune::run(args),
        Verb::Explore(args) => verb::explore::run(args),
        Verb::Probe(args) => verb::probe::run(args),
        Verb::Report(args) => verb::report::run(args),
        Verb::Methods(args) => verb::methods::run(args),
        Verb::Reproduce(args) => verb::reproduce::run(args),
        Verb::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "luthier", &mut script);
            out::data(&String::from_utf8_lossy(&script))
        }
    }
}

fn main() -> std::process::ExitCode {
    luthier_kernels::threads::only_rayon();
    out::start_log();
    match run(Cli::parse()) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            out::error(&error);
            std::process::ExitCode::from(error.exit_code() as u8)
        }
    }
}
