//! One error type: a sentence for the user, and which exit code it deserves.

use std::path::{Path, PathBuf};

/// `Result` with luthier's [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, said so that a user can act on it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The user's recipe, file or arguments cannot be used as they are (exit code 2).
    #[error("{at}: {what}{}", hint_line(.hint))]
    Input {
        /// The user's own name for the place: recipe key, site, `file.jsonl:17`.
        at: String,
        /// What was expected and what was found.
        what: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// Work that was well asked for could not be finished (exit code 1).
    #[error("{at}: {what}{}", hint_line(.hint))]
    Failed {
        /// Where: step, site, tensor, path.
        at: String,
        /// What happened.
        what: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// The operating system refused a file operation.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The path it was about.
        path: PathBuf,
        /// The system's own word.
        source: std::io::Error,
    },
    /// The tensor library refused an operation; a defect of luthier unless a shape was the user's.
    #[error("tensor operation failed: {0}")]
    Tensor(#[from] candle_core::Error),
}

fn hint_line(hint: &Option<String>) -> String {
    hint.as_ref().map(|h| format!("\nhint: {h}")).unwrap_or_default()
}

impl Error {
    /// The user's input at `at` is wrong.
    pub fn input(at: impl Into<String>, what: impl Into<String>) -> Self {
        Error::Input { at: at.into(), what: what.into(), hint: None }
    }

    /// The work at `at` could not be finished.
    pub fn failed(at: impl Into<String>, what: impl Into<String>) -> Self {
        Error::Failed { at: at.into(), what: what.into(), hint: None }
    }

    /// A file operation on `path` failed.
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Error::Io { path: path.as_ref().to_path_buf(), source }
    }

    /// The same with the file or folder it happened in put before the place.
    pub fn within(place: impl std::fmt::Display, mut error: Self) -> Self {
        if let Error::Input { at, .. } | Error::Failed { at, .. } = &mut error {
            *at = format!("{place}: {at}");
        }
        error
    }

    /// Adds (or replaces) the hint.
    pub fn hint(mut self, text: impl Into<String>) -> Self {
        if let Error::Input { hint, .. } | Error::Failed { hint, .. } = &mut self {
            *hint = Some(text.into());
        }
        self
    }

    /// 2 for bad usage or input, 1 for everything else.
    pub fn exit_code(&self) -> i32 {
        match self {
            Error::Input { .. } => 2,
            Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => 2,
            _ => 1,
        }
    }
}
