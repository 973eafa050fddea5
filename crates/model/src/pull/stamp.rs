//! Remembering that a file's hash was checked, so that later starts need not read it again.

use std::{
    fs,
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use luthier_core::{Error, Result, io};

fn stamp_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".sha256");
    PathBuf::from(name)
}

/// Hash, size and time of change: if the latter two are unchanged, so is the former.
fn line(path: &Path, sha256: &str) -> Result<String> {
    let meta = fs::metadata(path).map_err(|e| Error::io(path, e))?;
    let changed = meta.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok());
    Ok(format!("{sha256} {} {}\n", meta.len(), changed.map_or(0, |d| d.as_nanos())))
}

/// Records that `path` was just found to have this hash.
pub fn set(path: &Path, sha256: &str) -> Result<()> {
    io::write_bytes(&stamp_path(path), line(path, sha256)?.as_bytes())
}

/// Whether `path` has this hash; read in full only when there is no valid stamp.
pub fn holds(path: &Path, sha256: &str) -> Result<bool> {
    if fs::read_to_string(stamp_path(path))
        .is_ok_and(|old| line(path, sha256).is_ok_and(|new| old == new))
    {
        return Ok(true);
    }
    let intact = io::sha256_file(path)? == sha256;
    if intact {
        // A folder that cannot be written to only costs the next start a moment.
        set(path, sha256).unwrap_or_else(|e| tracing::debug!("{e}"));
    }
    Ok(intact)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_file_loses_its_stamp() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.gguf");
        fs::write(&path, b"abc").unwrap();
        let hash = io::sha256(b"abc");
        assert!(holds(&path, &hash).unwrap());
        assert!(stamp_path(&path).exists());
        assert!(!holds(&path, &io::sha256(b"abd")).unwrap());
        fs::write(&path, b"abcd").unwrap();
        assert!(!holds(&path, &hash).unwrap());
    }
}
