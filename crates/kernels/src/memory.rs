//! The allocator's habits.

use libmimalloc_sys::{mi_option_set, mi_option_t};

/// Keeps freed memory for the next step instead of handing it back to the system and asking for it
/// again, page by page: a step needs what the step before it needed. Only programs whose global
/// allocator is mimalloc are changed by it. Call it first thing in `main`.
pub fn keep() {
    /// `mi_option_purge_delay`, which the bindings do not name.
    const PURGE_DELAY: mi_option_t = 15;
    // SAFETY: sets a number inside the allocator; every value of this option is valid, -1 is never.
    unsafe { mi_option_set(PURGE_DELAY, -1) };
}
