//! stdout is data, stderr is talk.

use std::io::{IsTerminal, Write};

use luthier_core::{Error, Result};
use serde::Serialize;

/// Sends log lines to stderr; `LUTHIER_LOG=debug` shows more.
pub fn start_log() {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_env("LUTHIER_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .without_time()
        .with_target(false)
        .with_level(false)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
}

/// Writes text to stdout as it is. A closed pipe (`| head`) ends the output, not the program.
pub fn data(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::io("standard output", e))
        }
        _ => Ok(()),
    }
}

/// Writes one JSON value and a newline to stdout.
pub fn json(value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string(value)
        .map_err(|e| Error::failed("standard output", format!("cannot be written as JSON: {e}")))?;
    data(&(text + "\n"))
}

/// Says something to the person at the terminal.
pub fn say(text: &str) {
    // Nobody listens when stderr is closed; that is no reason to stop.
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Reports the error that ends the program.
pub fn error(error: &Error) {
    let text = error.to_string();
    let (what, hint) = match text.rsplit_once("\nhint: ") {
        Some((what, hint)) => (what, Some(hint)),
        None => (text.as_str(), None),
    };
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let paint = |code: &str, word: &str| match colour {
        true => format!("\x1b[{code}m{word}\x1b[0m"),
        false => word.to_string(),
    };
    say(&format!("{} {what}", paint("1;31", "error:")));
    if let Some(hint) = hint {
        say(&format!("{} {hint}", paint("1;36", "hint:")));
    }
}
