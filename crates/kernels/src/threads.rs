//! One pool of threads: rayon's.

/// Keeps candle from starting worker threads of its own, which wait by spinning and take the cores
/// from rayon's. Call it first thing in `main`; a value the user has set is left alone.
pub fn only_rayon() {
    const KEY: &str = "CANDLE_NUM_THREADS";
    if std::env::var_os(KEY).is_none() {
        // SAFETY: the environment may not change while another thread reads it; this runs at the
        // start of `main`, before any thread exists.
        unsafe { std::env::set_var(KEY, "1") };
    }
}
