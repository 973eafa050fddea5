//! Curves over training steps.
//!
//! Everything in the drawing is placed in percent of its size and every line keeps its width, so
//! one drawing serves a phone, a desk and paper, with text that never shrinks.

use super::{
    axis::Axis,
    words::{capital, escape, number, superscript},
};

/// Points drawn at most; more would not be seen.
const MOST_POINTS: usize = 700;

/// What a chart shows.
pub struct Chart<'a> {
    /// What is plotted: `training loss`.
    pub name: &'a str,
    /// The curve, by step.
    pub curve: &'a [(u64, f64)],
    /// Single points with their name (`evaluation loss`).
    pub dots: Option<(&'a str, &'a [(u64, f64)])>,
    /// Whether the curve is noisy: drawn lightly, with its running mean on top.
    pub smooth: bool,
    /// Height in pixels.
    pub height: u32,
    /// Logarithmic height.
    pub log: bool,
}

impl Chart<'_> {
    /// The drawing; nothing where there are fewer than two finite points.
    pub fn svg(&self) -> Option<String> {
        let curve: Vec<(u64, f64)> =
            self.curve.iter().copied().filter(|p| p.1.is_finite()).collect();
        if curve.len() < 2 {
            return None;
        }
        let dots: Vec<(u64, f64)> = self.dots.map_or(Vec::new(), |d| d.1.to_vec());
        let dots: Vec<(u64, f64)> = dots.into_iter().filter(|p| p.1.is_finite()).collect();
        let smooth = self.smooth && curve.len() >= 12;
        let mean = if smooth { running_mean(&curve) } else { Vec::new() };
        let shown = spread(&curve);

        let all = || curve.iter().chain(&dots).copied();
        let most = all().map(|p| p.1).fold(f64::NEG_INFINITY, f64::max);
        let least = all().map(|p| p.1).fold(f64::INFINITY, f64::min);
        // Small numbers are written against a power of ten named at the axis.
        let power = if most > 0.0 && most < 0.01 && !self.log { most.log10().floor() } else { 0.0 };
        let unit = 10f64.powf(power);
        let y = if self.log {
            Axis::log(all().map(|p| p.1).filter(|v| *v > 0.0).fold(f64::INFINITY, f64::min), most)
        } else {
            let rows = if self.height > 180 { 5 } else { 3 };
            Axis::round(least.min(0.0) / unit, most / unit, rows)
        };
        let (first, last) = (
            all().map(|p| p.0).min().unwrap_or(0) as f64,
            all().map(|p| p.0).max().unwrap_or(1) as f64,
        );
        let wide = self.height > 180;
        let mut x = Axis::exact(if first <= last * 0.1 { 0.0 } else { first }, last, 5);
        // There is no half step.
        x.ticks.retain(|t| t.fract().abs() < 1e-6);

        let mut svg = grid(&x, &y, self.height, wide);
        svg += "<svg viewBox=\"0 0 1000 1000\" preserveAspectRatio=\"none\" width=\"100%\" \
                height=\"100%\" overflow=\"visible\">";
        let pick = |from: &[(u64, f64)]| -> String {
            let at = |i: &usize| (x.at(from[*i].0 as f64), y.at(from[*i].1 / unit));
            path(shown.iter().map(at))
        };
        let class = if smooth { "line raw" } else { "line" };
        svg += &format!("<path class=\"{class}\" d=\"{}\"/>", pick(&curve));
        if smooth {
            svg += &format!("<path class=\"line\" d=\"{}\"/>", pick(&mean));
        }
        svg += "</svg>";
        for (step, value) in &dots {
            svg += &format!(
                "<circle class=\"dot\" cx=\"{:.2}%\" cy=\"{:.2}%\" r=\"4\"><title>{} at step {step}: \
                 {}</title></circle>",
                100.0 * x.at(*step as f64),
                100.0 * (1.0 - y.at(value / unit)),
                escape(&capital(self.dots.map_or("", |d| d.0))),
                number(*value),
            );
        }
        svg += "</svg>";
        let mut key = String::new();
        if power != 0.0 {
            let raised = superscript(&format!("{power}"));
            key = format!("<span class=\"unit\">×10{raised}</span>");
        }
        Some(format!(
            "<div class=\"plot\" data-plot=\"{}\">{key}<svg role=\"img\" aria-label=\"{} over {} \
             steps, from {} to {}\" width=\"100%\" height=\"{}\">{svg}</div>",
            escape(&self.points(&curve, &mean, &shown, &x, (&y, unit))),
            escape(&capital(self.name)),
            super::words::count(last as u64),
            number(curve[0].1),
            number(curve[curve.len() - 1].1),
            self.height,
        ))
    }

    /// The points again, as data for the script that shows the one under the pointer: place along
    /// the axis, height of the marker, and what to say.
    fn points(
        &self,
        curve: &[(u64, f64)],
        mean: &[(u64, f64)],
        shown: &[usize],
        x: &Axis,
        (y, unit): (&Axis, f64),
    ) -> String {
        let each = shown.iter().map(|i| {
            let (step, value) = curve[*i];
            let top = mean.get(*i).map_or(value, |m| m.1);
            let mut say = format!("step {step} · {}", number(value));
            if !mean.is_empty() {
                say += &format!(" · mean {}", number(top));
            }
            let height = 1.0 - y.at(top / unit);
            format!("[{:.4},{height:.4},\"{say}\"]", x.at(step as f64))
        });
        format!("[{}]", each.collect::<Vec<_>>().join(","))
    }
}

/// Grid lines and tick labels; opens nothing that it does not close.
fn grid(x: &Axis, y: &Axis, height: u32, wide: bool) -> String {
    let mut svg = String::new();
    for (tick, label) in y.ticks.iter().zip(y.labels()) {
        let at = 100.0 * (1.0 - y.at(*tick));
        svg += &format!(
            "<line class=\"grid\" x1=\"0\" x2=\"100%\" y1=\"{at:.2}%\" y2=\"{at:.2}%\"/><text \
             class=\"tick\" x=\"-8\" y=\"{at:.2}%\" dy=\".32em\" text-anchor=\"end\">{label}</text>"
        );
    }
    for (tick, label) in x.ticks.iter().zip(x.labels()) {
        let at = 100.0 * x.at(*tick);
        svg += &format!(
            "<text class=\"tick\" x=\"{at:.2}%\" y=\"{height}\" dy=\"1.6em\" \
             text-anchor=\"middle\">{label}</text>"
        );
    }
    if wide {
        svg += &format!(
            "<text class=\"axis\" x=\"100%\" y=\"{height}\" dy=\"3.1em\" \
             text-anchor=\"end\">optimizer step</text>"
        );
    }
    svg
}

fn path(points: impl Iterator<Item = (f64, f64)>) -> String {
    let mut d = String::new();
    for (i, (x, y)) in points.enumerate() {
        let letter = if i == 0 { 'M' } else { 'L' };
        d += &format!("{letter}{:.1} {:.1}", 1000.0 * x, 1000.0 * (1.0 - y));
    }
    d
}

/// A mean over neighbouring steps, nearer ones counting more; it looks both ways, so the curve does
/// not lag behind what it smooths.
fn running_mean(curve: &[(u64, f64)]) -> Vec<(u64, f64)> {
    let reach = (curve.len() / 25).max(2);
    (0..curve.len())
        .map(|i| {
            let (mut sum, mut weight) = (0.0, 0.0);
            // The window shrinks towards the ends so that it stays even on both sides.
            let reach = reach.min(i).min(curve.len() - 1 - i);
            for (j, point) in curve.iter().enumerate().take(i + reach + 1).skip(i - reach) {
                let near = 1.0 - i.abs_diff(j) as f64 / (reach + 1) as f64;
                sum += near * point.1;
                weight += near;
            }
            (curve[i].0, sum / weight)
        })
        .collect()
}

/// Which points to draw: all, or from each stretch the lowest and the highest, so that no spike
/// is lost.
fn spread(curve: &[(u64, f64)]) -> Vec<usize> {
    let n = curve.len();
    if n <= MOST_POINTS {
        return (0..n).collect();
    }
    let stretches = MOST_POINTS / 2 - 1;
    let mut keep = vec![0, n - 1];
    for s in 0..stretches {
        let range = s * n / stretches..(s + 1) * n / stretches;
        let by = |a: &usize, b: &usize| curve[*a].1.total_cmp(&curve[*b].1);
        keep.extend(range.clone().min_by(by));
        keep.extend(range.max_by(by));
    }
    keep.sort_unstable();
    keep.dedup();
    keep
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_curves_are_thinned_without_losing_spikes() {
        let mut curve: Vec<(u64, f64)> = (0..10_000).map(|i| (i, 1.0)).collect();
        curve[4321].1 = 9.0;
        let kept = spread(&curve);
        assert!(kept.len() <= MOST_POINTS && kept.contains(&4321) && kept.contains(&9_999));
        assert!(kept.windows(2).all(|w| w[0] < w[1]));
    }

    #[test]
    fn the_mean_keeps_lines_straight_and_ends_in_place() {
        let line: Vec<(u64, f64)> = (0..100).map(|i| (i, 3.0 * i as f64)).collect();
        for (a, b) in running_mean(&line).iter().zip(&line) {
            assert!((a.1 - b.1).abs() < 1e-9, "{a:?} {b:?}");
        }
    }

    #[test]
    fn too_little_to_plot_is_no_chart() {
        let chart = |curve: &[(u64, f64)]| {
            Chart { name: "loss", curve, dots: None, smooth: true, height: 240, log: false }.svg()
        };
        assert!(chart(&[]).is_none());
        assert!(chart(&[(1, 1.0), (2, f64::NAN)]).is_none());
        assert!(chart(&[(1, 1.0), (2, 1.0)]).is_some());
    }
}
