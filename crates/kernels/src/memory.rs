//! The allocator's habits.

use libmimalloc_sys::{mi_option_set, mi_option_t};

/// Keeps freed memory for the next step instead of handing it back to the system and asking for it
/// again, since a step needs what the step before it needed, and asks for large pages, since the
/// first touch of a page is dear and weights are read from end to end. Only programs whose global
/// allocator is mimalloc are changed by it. Call it first thing in `main`; the allocator's own
/// variables win.
pub fn keep() {
    /// `mi_option_allow_large_os_pages` and `mi_option_purge_delay`, which the bindings do not
    /// name; -1 is never.
    const OPTIONS: [(&str, mi_option_t, std::ffi::c_long); 2] =
        [("MIMALLOC_ALLOW_LARGE_OS_PAGES", 6, 1), ("MIMALLOC_PURGE_DELAY", 15, -1)];
    for (variable, option, value) in OPTIONS {
        if std::env::var_os(variable).is_none() {
            // SAFETY: sets a number inside the allocator; these options take any number.
            unsafe { mi_option_set(option, value) };
        }
    }
}
