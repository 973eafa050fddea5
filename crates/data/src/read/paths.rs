//! Files, directories and globs become a sorted list of files.

use std::{
    collections::HashSet,
    fs,
    path::{Component, Path, PathBuf},
};

use globset::GlobBuilder;
use luthier_core::{Error, Result, nearest};

use super::Format;

/// All files meant by `paths`, each group sorted by name, no file twice.
pub(super) fn expand<P: AsRef<Path>>(paths: &[P]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in paths {
        let path = path.as_ref();
        let at = path.display().to_string();
        if path.is_dir() {
            let mut found = entries(path)?;
            found.retain(|p| p.is_file() && Format::of(p).is_some() && !hidden(p));
            if found.is_empty() {
                return Err(Error::input(at, "the directory holds no file of a known format"));
            }
            files.extend(found);
        } else if path.exists() {
            files.push(path.to_path_buf());
        } else if at.contains(['*', '?', '[', '{']) {
            let found = glob(path)?;
            if found.is_empty() {
                return Err(Error::input(at, "the pattern matches no file"));
            }
            files.extend(found);
        } else {
            return Err(missing(path, at));
        }
    }
    if files.is_empty() {
        return Err(Error::input("data", "no file is named"));
    }
    let mut seen = HashSet::new();
    if let Some(twice) = files.iter().find(|f| !seen.insert(fs::canonicalize(f).ok())) {
        return Err(Error::input(twice.display().to_string(), "the file is named twice"));
    }
    Ok(files)
}

fn missing(path: &Path, at: String) -> Error {
    let error = Error::input(at, "no such file");
    let (Some(name), Some(dir)) = (path.file_name(), path.parent()) else { return error };
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    let names: Vec<String> = entries(dir)
        .unwrap_or_default()
        .iter()
        .filter_map(|p| Some(p.file_name()?.to_string_lossy().into_owned()))
        .collect();
    match nearest::nearest(&name.to_string_lossy(), names.iter().map(String::as_str), 1).first() {
        Some(near) => error.hint(format!("did you mean {near}?")),
        None => error,
    }
}

fn hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.'))
}

/// What a directory holds, sorted, as paths below `dir`.
fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = fs::read_dir(dir)
        .and_then(|all| all.map(|e| e.map(|e| e.path())).collect::<std::io::Result<Vec<_>>>())
        .map_err(|e| Error::io(dir, e))?;
    found.sort();
    Ok(found)
}

/// Walks only as far as the pattern can reach: from its fixed beginning, to its own depth unless
/// it holds `**`.
fn glob(pattern: &Path) -> Result<Vec<PathBuf>> {
    let text = pattern.to_string_lossy();
    let matcher = GlobBuilder::new(&text)
        .literal_separator(true)
        .build()
        .map_err(|e| Error::input(text.clone(), e.kind().to_string()))?
        .compile_matcher();
    let fixed: PathBuf = pattern
        .components()
        .take_while(|c| match c {
            Component::Normal(name) => !name.to_string_lossy().contains(['*', '?', '[', '{']),
            _ => true,
        })
        .collect();
    let depth = if text.contains("**") {
        usize::MAX
    } else {
        pattern.components().count() - fixed.components().count()
    };
    let mut found = Vec::new();
    let mut walk = vec![(fixed, 0)];
    while let Some((dir, level)) = walk.pop() {
        let at = if dir.as_os_str().is_empty() { Path::new(".") } else { dir.as_path() };
        if !at.is_dir() {
            continue;
        }
        for entry in entries(at)? {
            let entry = entry.strip_prefix("./").map(Path::to_path_buf).unwrap_or(entry);
            if entry.is_dir() {
                // A link to a directory could lead back up and never end.
                if level + 1 < depth && !entry.is_symlink() {
                    walk.push((entry, level + 1));
                }
            } else if matcher.is_match(&entry) {
                found.push(entry);
            }
        }
    }
    found.sort();
    Ok(found)
}
