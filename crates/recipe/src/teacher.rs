//! Teachers: models whose distributions a student learns, in the same pass or beforehand.

mod cache;
mod fit;
mod spans;
mod speak;
mod teach;

use std::path::Path;

use luthier_core::{Error, Policy, Result, io};
use luthier_loss::{Objective, Teacher};
use luthier_model::Source;
use luthier_params::is_adapter;

pub use cache::{Cache, attach, key};
pub use fit::{Fitted, fit};
pub use luthier_loss::term::distil::Calib;
pub use spans::{Aligned, aligned};
pub use speak::{Spoken, likeliest, speak};
pub use teach::{Counts, Lesson, teach};

use crate::{
    decode::compare,
    open::{Opened, find, open},
    schema::Models,
};

/// Whom the objective compares with, if with anybody: the model without what is tuned, or
/// `models.teacher`, whose tokens must be the policy's. `tuned` says whether weights of `opened` learn.
/// Besides, the bytes of weights that are held for that alone.
pub fn of(
    objective: &dyn Objective,
    models: &Models,
    opened: &Opened,
    tuned: bool,
) -> Result<Option<(Policy, u64)>> {
    match objective.teacher() {
        Teacher::Nobody => Ok(None),
        Teacher::Base if !tuned => Ok(Some((Policy::plain(opened.model.clone()), 0))),
        // What learns is the model itself: as it was, it has to be held a second time.
        Teacher::Base => {
            let again = open(&opened.name, opened.precision.into())?;
            Ok(Some((again.policy(None)?, again.bytes)))
        }
        Teacher::Model => {
            if models.teacher.is_empty() {
                return Err(Error::input(
                    "models.teacher",
                    "missing: whom does the policy learn from?",
                )
                .hint(
                    "models.teacher = a built-in name, a hub id, a folder, a GGUF file or an \
                        adapter; or train.loss.distil.cache",
                ));
            }
            let at = |e| Error::within("models.teacher", e);
            let (teacher, policy) = whole(&models.teacher, opened, tuned).map_err(at)?;
            if let Some(teacher) = &teacher {
                same_tokens(&models.teacher, teacher, opened)?;
            }
            Ok(Some((policy, teacher.map_or(0, |teacher| teacher.bytes))))
        }
    }
}

/// The named model, which shares the policy's weights where it is an adapter of the same base.
fn whole(name: &str, policy: &Opened, tuned: bool) -> Result<(Option<Opened>, Policy)> {
    let dir = Path::new(name);
    if !is_adapter(dir) {
        let teacher = open(name, policy.precision.into())?;
        let plain = Policy::plain(teacher.model.clone());
        return Ok((Some(teacher), plain));
    }
    let base = luthier_params::base_of(dir)?.1.unwrap_or_else(|| policy.name.clone());
    if base == policy.name && !tuned {
        return Ok((None, policy.with_adapter(dir)?.policy));
    }
    let teacher = open(&base, policy.precision.into())?;
    let tuned = teacher.with_adapter(dir)?.policy;
    Ok((Some(teacher), tuned))
}

/// Identifies the model or adapter called `name` by what is in it.
pub fn sha256(name: &str) -> Result<String> {
    let dir = Path::new(name);
    match is_adapter(dir) {
        true => {
            let mut hashes = String::new();
            let files = std::fs::read_dir(dir).map_err(|e| Error::io(dir, e))?;
            let mut paths: Vec<_> = files.flatten().map(|entry| entry.path()).collect();
            paths.sort();
            for path in paths.iter().filter(|p| p.extension().is_some_and(|e| e == "safetensors")) {
                hashes += &io::sha256_file(path)?;
            }
            Ok(io::sha256(hashes.as_bytes()))
        }
        false => Ok(Source::open(&find(name)?)?.sha256()?.to_string()),
    }
}

fn same_tokens(name: &str, teacher: &Opened, policy: &Opened) -> Result<()> {
    compare(name, &teacher.tokenizer, &policy.tokenizer).map_err(|e| match e {
        Error::Input { what, .. } => Error::input("models.teacher", what).hint(
            "a teacher with other tokens speaks beforehand: `luthier teach --for POLICY`, and \
             train.loss.distil.cache",
        ),
        other => other,
    })
}
