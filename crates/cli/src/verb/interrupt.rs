//! Ctrl-C: the first asks for a checkpoint, the second ends the program.

use std::sync::atomic::{AtomicBool, Ordering};

use luthier_core::{Error, Result};

static STOP: AtomicBool = AtomicBool::new(false);

/// The flag that Ctrl-C sets.
pub fn flag() -> Result<&'static AtomicBool> {
    ctrlc::set_handler(|| {
        if STOP.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
        crate::out::say("\nstopping after this step (Ctrl-C again: at once)");
    })
    .map_err(|e| Error::failed("Ctrl-C", e.to_string()))?;
    Ok(&STOP)
}
