//! The names under which the log tells tasks apart.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
};

/// Names given so far. A log's names live as long as the program; there are as many as tasks.
static KNOWN: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());

/// What stands before a task's name.
const NLL: &str = "nll/";

/// The task of a name in the log.
pub(super) fn task(name: &'static str) -> Option<&'static str> {
    name.strip_prefix(NLL)
}

/// `nll/NAME`.
pub(super) fn nll(task: &str) -> &'static str {
    let name = format!("{NLL}{task}");
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    match known.get(name.as_str()) {
        Some(name) => name,
        None => {
            let name: &'static str = Box::leak(name.into_boxed_str());
            known.insert(name);
            name
        }
    }
}
