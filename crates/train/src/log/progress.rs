//! The progress line: where the run is, how it goes, what it takes and how long it still needs.
//!
//! On a terminal it is a bar on stderr; elsewhere a plain line every few seconds, so that a log
//! file stays readable.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Seconds between two plain lines when stderr is not a terminal.
const PLAIN_EVERY: Duration = Duration::from_secs(15);
/// How often the process's memory is looked up.
const MEMORY_EVERY: Duration = Duration::from_millis(500);
/// Weight of the newest step in the smoothed loss and speed.
const NEWEST: f64 = 0.1;

/// Resident memory of this process in bytes, now and at its peak; `None` where the system does not
/// tell (anything but Linux).
pub fn rss() -> Option<(u64, u64)> {
    parse_status(&std::fs::read_to_string("/proc/self/status").ok()?)
}

fn parse_status(status: &str) -> Option<(u64, u64)> {
    let kib = |key: &str| -> Option<u64> {
        let rest = status.lines().find_map(|l| l.strip_prefix(key))?;
        rest.trim().strip_suffix("kB")?.trim().parse().ok()
    };
    Some((kib("VmRSS:")? * 1024, kib("VmHWM:")? * 1024))
}

/// An exponential mean without the usual pull towards its start.
#[derive(Clone, Copy, Debug, Default)]
struct Mean {
    sum: f64,
    weight: f64,
}

impl Mean {
    fn add(&mut self, value: f64) {
        self.sum += NEWEST * (value - self.sum);
        self.weight += NEWEST * (1.0 - self.weight);
    }

    fn get(&self) -> Option<f64> {
        (self.weight > 0.0).then(|| self.sum / self.weight)
    }
}

#[derive(Debug)]
enum Out {
    Bar(ProgressBar),
    Plain { last: Option<Instant> },
    Silent,
}

/// Progress of a training run.
#[derive(Debug)]
pub struct Progress {
    total: u64,
    step: u64,
    loss: Mean,
    seconds_per_step: Mean,
    tokens_per_step: Mean,
    last_step: Instant,
    memory: Option<(Instant, u64)>,
    out: Out,
}

impl Progress {
    /// Shows a run of `total` steps of which `done` are already done (a resumed run).
    pub fn new(total: u64, done: u64) -> Progress {
        let target = ProgressDrawTarget::stderr();
        let out = if target.is_hidden() {
            Out::Plain { last: None }
        } else {
            let bar = ProgressBar::with_draw_target(Some(total), target);
            let style = ProgressStyle::with_template("{bar:16.yellow/dim} {wide_msg}");
            bar.set_style(
                style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("━━─"),
            );
            bar.set_position(done);
            Out::Bar(bar)
        };
        Progress::with(total, done, out)
    }

    /// Shows nothing.
    pub fn silent() -> Progress {
        Progress::with(0, 0, Out::Silent)
    }

    fn with(total: u64, done: u64, out: Out) -> Progress {
        Progress {
            total,
            step: done,
            loss: Mean::default(),
            seconds_per_step: Mean::default(),
            tokens_per_step: Mean::default(),
            last_step: Instant::now(),
            memory: None,
            out,
        }
    }

    /// A step is done: its number, its loss and how many tokens it processed.
    pub fn step(&mut self, step: u64, loss: f64, tokens: u64) {
        let now = Instant::now();
        self.count(step, loss, tokens, now.duration_since(self.last_step));
        self.last_step = now;
        match &self.out {
            Out::Silent => {}
            Out::Bar(bar) => {
                let bar = bar.clone();
                if self.memory.is_none_or(|(at, _)| now.duration_since(at) >= MEMORY_EVERY) {
                    self.memory = rss().map(|(_, peak)| (now, peak));
                }
                bar.set_position(step);
                bar.set_message(self.line());
            }
            Out::Plain { last } => {
                let due = last.is_none_or(|at| now.duration_since(at) >= PLAIN_EVERY);
                if due || step == self.total {
                    self.memory = rss().map(|(_, peak)| (now, peak));
                    eprintln!("{}", self.line());
                    self.out = Out::Plain { last: Some(now) };
                }
            }
        }
    }

    /// Work that is no step ends here (an evaluation, a checkpoint): its time is not counted as the
    /// next step's, so that speed and time left stay those of training.
    pub fn restart_clock(&mut self) {
        self.last_step = Instant::now();
    }

    /// Says something without tearing the bar, and restarts the clock.
    pub fn say(&mut self, text: &str) {
        match &self.out {
            Out::Bar(bar) => bar.suspend(|| eprintln!("{text}")),
            Out::Plain { .. } => eprintln!("{text}"),
            Out::Silent => {}
        }
        self.restart_clock();
    }

    /// Removes the bar; call before the run's summary is printed.
    pub fn finish(self) {
        if let Out::Bar(bar) = self.out {
            bar.finish_and_clear();
        }
    }

    fn count(&mut self, step: u64, loss: f64, tokens: u64, took: Duration) {
        self.step = step;
        self.loss.add(loss);
        self.tokens_per_step.add(tokens as f64);
        self.seconds_per_step.add(took.as_secs_f64());
    }

    fn line(&self) -> String {
        let mut parts = vec![format!("step {}/{}", self.step, self.total)];
        parts.extend(self.loss.get().map(|l| format!("loss {l:.4}")));
        if let (Some(tokens), Some(seconds)) =
            (self.tokens_per_step.get(), self.seconds_per_step.get())
            && seconds > 0.0
        {
            parts.push(format!("{:.0} tok/s", tokens / seconds));
        }
        if let Some(seconds) = self.seconds_per_step.get() {
            let left = seconds * self.total.saturating_sub(self.step) as f64;
            parts.push(format!("{} left", clock(left)));
        }
        parts.extend(self.memory.map(|(_, peak)| format!("peak {}", bytes(peak))));
        parts.join(" · ")
    }
}

/// `1.5 GB`, `340 MB`.
fn bytes(n: u64) -> String {
    if n >= 1_000_000_000 {
        format!("{:.1} GB", n as f64 / 1e9)
    } else {
        format!("{:.0} MB", n as f64 / 1e6)
    }
}

/// `1:02:03`, `4:05`, `0:09`.
fn clock(seconds: f64) -> String {
    let s = seconds.round().clamp(0.0, 1e9) as u64;
    let (h, m, s) = (s / 3600, s / 60 % 60, s % 60);
    if h > 0 { format!("{h}:{m:02}:{s:02}") } else { format!("{m}:{s:02}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_it_all() {
        let mut progress = Progress::with(100, 0, Out::Silent);
        for step in 1..=40 {
            progress.count(step, 2.0, 4096, Duration::from_secs(2));
        }
        progress.memory = Some((Instant::now(), 1_500_000_000));
        let line = progress.line();
        assert_eq!(line, "step 40/100 · loss 2.0000 · 2048 tok/s · 2:00 left · peak 1.5 GB");
    }

    #[test]
    fn the_smoothed_loss_starts_at_the_first_value_and_follows() {
        let mut mean = Mean::default();
        assert!(mean.get().is_none());
        mean.add(5.0);
        assert!((mean.get().unwrap() - 5.0).abs() < 1e-12);
        (0..200).for_each(|_| mean.add(1.0));
        assert!((mean.get().unwrap() - 1.0).abs() < 1e-6);
    }

    #[test]
    fn memory_is_read_in_bytes() {
        let status = "Name:\tx\nVmHWM:\t  2048 kB\nVmRSS:\t  1024 kB\n";
        assert_eq!(parse_status(status), Some((1 << 20, 2 << 20)));
        assert_eq!(parse_status("Name:\tx\n"), None);
        if cfg!(target_os = "linux") {
            let (now, peak) = rss().expect("linux tells");
            assert!(now > 100_000 && peak >= now);
        }
    }

    #[test]
    fn clocks() {
        assert_eq!(clock(9.4), "0:09");
        assert_eq!(clock(245.0), "4:05");
        assert_eq!(clock(3723.0), "1:02:03");
        assert_eq!(clock(f64::NAN), "0:00");
    }
}
