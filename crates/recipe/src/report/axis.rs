//! Axes: where the ticks stand and what they say.

/// A straight or logarithmic axis over a finite, non-empty range.
#[derive(Clone, Debug)]
pub struct Axis {
    lo: f64,
    hi: f64,
    log: bool,
    /// Where the ticks stand, in data units.
    pub ticks: Vec<f64>,
}

impl Axis {
    /// A straight axis that covers `lo..hi` and ends on ticks, about `target` of them.
    pub fn round(lo: f64, hi: f64, target: usize) -> Axis {
        let ticks = ticks(lo, hi, target);
        let (first, last) = (ticks[0], ticks[ticks.len() - 1]);
        Axis { lo: first, hi: last, log: false, ticks }
    }

    /// A straight axis that covers exactly `lo..hi`, with ticks inside.
    pub fn exact(lo: f64, hi: f64, target: usize) -> Axis {
        let (lo, hi) = widen(lo, hi);
        let slack = (hi - lo) * 1e-9;
        let mut ticks = ticks(lo, hi, target);
        ticks.retain(|t| (lo - slack..=hi + slack).contains(t));
        Axis { lo, hi, log: false, ticks }
    }

    /// A logarithmic axis over positive `lo..hi`, with ticks at 1, 2 and 5 times powers of ten.
    pub fn log(lo: f64, hi: f64) -> Axis {
        let lo = if lo.is_finite() && lo > 0.0 { lo } else { 1e-6 };
        let hi = if hi.is_finite() && hi > lo { hi } else { lo * 10.0 };
        let (lo, hi) = (lo / 1.1, hi * 1.1);
        let decades = lo.log10().floor() as i32..=hi.log10().ceil() as i32;
        let every: Vec<f64> =
            decades.flat_map(|d| [1.0, 2.0, 5.0].map(|m| m * 10f64.powi(d))).collect();
        let mut ticks: Vec<f64> = every.into_iter().filter(|t| (lo..=hi).contains(t)).collect();
        if ticks.len() > 7 {
            ticks.retain(|t| (t.log10() - t.log10().round()).abs() < 1e-9);
        }
        Axis { lo, hi, log: true, ticks }
    }

    /// Where `value` lies, 0 at the start of the axis and 1 at its end.
    pub fn at(&self, value: f64) -> f64 {
        let place = if self.log {
            (value.max(self.lo) / self.lo).ln() / (self.hi / self.lo).ln()
        } else {
            (value - self.lo) / (self.hi - self.lo)
        };
        if place.is_finite() { place.clamp(0.0, 1.0) } else { 0.0 }
    }

    /// What the ticks say. Small numbers are written as multiples of a power of ten.
    pub fn labels(&self) -> Vec<String> {
        let top = self.ticks.iter().fold(0.0f64, |a, t| a.max(t.abs()));
        if self.log || top == 0.0 || top >= 0.01 {
            return self.plain_labels();
        }
        let power = (top.log10() + 1e-9).floor();
        let unit = 10f64.powf(power);
        let ticks = self.ticks.iter().map(|t| t / unit).collect();
        let scaled = Axis { ticks, ..self.clone() };
        let raised = super::words::superscript(&format!("{power}"));
        let zip = scaled.plain_labels().into_iter().zip(&self.ticks);
        zip.map(|(l, t)| if *t == 0.0 { "0".into() } else { format!("{l}·10{raised}") }).collect()
    }

    /// All with the same number of digits after the point.
    fn plain_labels(&self) -> Vec<String> {
        if self.log {
            return self.ticks.iter().map(|t| super::words::number(*t)).collect();
        }
        let step = match self.ticks.as_slice() {
            [a, b, ..] => (b - a).abs(),
            _ => 1.0,
        };
        let digits = (-step.log10().floor()).clamp(0.0, 12.0) as usize;
        // A step of 2.5 needs one digit more than its size tells.
        let exact = (step * 10f64.powi(digits as i32)).fract().abs();
        let digits = digits + usize::from(exact > 1e-6 && exact < 1.0 - 1e-6);
        let say = |t: &f64| {
            if digits == 0 && t.abs() >= 1000.0 && t.abs() < 1e15 {
                let sign = if *t < 0.0 { "−" } else { "" };
                return format!("{sign}{}", super::words::count(t.abs().round() as u64));
            }
            format!("{t:.digits$}").replace('-', "−")
        };
        self.ticks.iter().map(say).collect()
    }
}

/// Round numbers that cover `lo..hi`: steps of 1, 2, 2.5 or 5 times a power of ten, near `target`
/// of them, at least two. Any input has an answer: not a number, infinite, reversed, empty.
pub fn ticks(lo: f64, hi: f64, target: usize) -> Vec<f64> {
    let (lo, hi) = widen(lo, hi);
    let raw = (hi - lo) / target.max(1) as f64;
    let power = 10f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0]
        .into_iter()
        .map(|m| m * power)
        .min_by(|a, b| (a / raw).ln().abs().total_cmp(&(b / raw).ln().abs()))
        .unwrap_or(raw);
    // A hair of tolerance keeps 0.30000000000000004 from asking for one more tick.
    let first = (lo / step + 1e-9).floor() as i64;
    let last = ((hi / step - 1e-9).ceil() as i64).max(first + 1);
    (first..=last).map(|i| i as f64 * step).collect()
}

/// A finite range with some extent around whatever was asked for.
fn widen(lo: f64, hi: f64) -> (f64, f64) {
    let sane = |x: f64| if x.is_finite() { x.clamp(-1e100, 1e100) } else { 0.0 };
    let (lo, hi) = (sane(lo).min(sane(hi)), sane(lo).max(sane(hi)));
    // Ticks are whole multiples of a step; a range far thinner than its offset has none.
    if hi - lo > 1e-9 * lo.abs().max(hi.abs()) && hi > lo {
        return (lo, hi);
    }
    let room = if lo == 0.0 { 1.0 } else { lo.abs() * 0.5 };
    (lo - room, hi + room)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: &[f64], b: &[f64]) {
        let same = a.len() == b.len() && a.iter().zip(b).all(|(x, y)| (x - y).abs() < 1e-9);
        assert!(same, "{a:?} {b:?}");
    }

    #[test]
    fn ticks_are_round_numbers_that_cover_the_data() {
        close(&ticks(0.0, 1.0, 5), &[0.0, 0.2, 0.4, 0.6, 0.8, 1.0]);
        close(&ticks(0.0, 10.0, 4), &[0.0, 2.5, 5.0, 7.5, 10.0]);
        close(&ticks(-3.0, 7.0, 5), &[-4.0, -2.0, 0.0, 2.0, 4.0, 6.0, 8.0]);
        close(&ticks(11.9, 12.6, 3), &[11.75, 12.0, 12.25, 12.5, 12.75]);
        for (lo, hi, n) in [(0.0, 3.17, 5), (1.2e-6, 9.1e-5, 6), (17.0, 4211.0, 4)] {
            let t = ticks(lo, hi, n);
            assert!(t[0] <= lo && t[t.len() - 1] >= hi && t.len() <= 2 * n + 2, "{t:?}");
        }
    }

    #[test]
    fn degenerate_ranges_still_have_an_axis() {
        for (lo, hi) in [
            (0.0, 0.0),
            (5.0, 5.0),
            (-2.0, -2.0),
            (f64::NAN, 1.0),
            (f64::INFINITY, f64::NEG_INFINITY),
            (1.0, 1.0 + 1e-16),
            (1e300, 1e300),
            (7.0, 3.0),
        ] {
            let t = ticks(lo, hi, 5);
            assert!(t.len() >= 2 && t.len() < 30, "{lo} {hi}: {t:?}");
            assert!(t.iter().all(|x| x.is_finite()) && t[0] < t[t.len() - 1], "{t:?}");
            let axis = Axis::exact(lo, hi, 5);
            assert!((0.0..=1.0).contains(&axis.at(lo)));
            assert_eq!(axis.labels().len(), axis.ticks.len());
        }
        assert!((0.0..=1.0).contains(&Axis::log(0.0, f64::NAN).at(-1.0)));
    }

    #[test]
    fn labels_have_the_digits_they_need() {
        assert_eq!(Axis::round(0.0, 10.0, 4).labels(), ["0.0", "2.5", "5.0", "7.5", "10.0"]);
        assert_eq!(Axis::round(0.0, 4000.0, 2).labels(), ["0", "2,000", "4,000"]);
        assert_eq!(Axis::round(-0.02, 0.0, 2).labels(), ["−0.02", "−0.01", "0.00"]);
        assert_eq!(Axis::round(0.0, 1e-3, 2).labels(), ["0", "0.5·10⁻³", "1.0·10⁻³"]);
        assert_eq!(Axis::log(0.01, 3.0).ticks.len(), 3);
    }
}
