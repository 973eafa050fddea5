//! Chores of the workspace: `cargo run -p xtask -- <chore>`.

mod quickstart;

use std::process::ExitCode;

const USAGE: &str = "usage: cargo run -p xtask -- quickstart-data";

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let outcome = match (args.next().as_deref(), args.next()) {
        (Some("quickstart-data"), None) => quickstart::write(),
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
