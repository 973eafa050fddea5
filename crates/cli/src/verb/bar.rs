//! Progress on stderr; nothing when stderr is no terminal.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// A bar over `total` pieces of work called `what`.
pub fn pieces(what: &'static str, total: usize) -> ProgressBar {
    styled(what, total as u64, "{msg} {bar:32} {pos}/{len}  {elapsed} of about {duration}")
}

/// A bar over bytes.
pub fn bytes(what: &str) -> ProgressBar {
    styled(what, 0, "{msg} {bar:32} {bytes}/{total_bytes}  {binary_bytes_per_sec}, {eta} left")
}

fn styled(what: &str, total: u64, template: &str) -> ProgressBar {
    let bar = ProgressBar::new(total).with_message(what.to_string());
    bar.set_style(
        ProgressStyle::with_template(template)
            .expect("the templates above name known fields")
            .progress_chars("━╸ "),
    );
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}
