//! Chores of the workspace: `cargo run --release -p xtask -- <chore>`.

mod methods;
mod quickstart;
mod tidy;

use std::path::PathBuf;
use std::process::ExitCode;

const USAGE: &str = "usage: cargo run --release -p xtask -- <chore>

  quickstart-data    write recipes/quickstart/{train,test}.jsonl from their grammar
  tidy               check the rules that compiler and clippy do not know
  methods            write METHODS.md from `luthier methods --json` on standard input
  methods --check    say whether METHODS.md is up to date instead";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["quickstart-data"] => quickstart::write(),
        ["tidy"] => tidy::check(&root()),
        ["methods"] => methods::page(&root(), false),
        ["methods", "--check"] => methods::page(&root(), true),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(said) => {
            eprintln!("{said}");
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}

/// The repository.
fn root() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}
