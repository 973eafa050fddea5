//! Curves over training steps.
//!
//! Everything in the drawing is placed in percent of its size and every line keeps its width, so
//! one drawing serves a phone, a desk and paper, with text that never shrinks.

use super::{
    axis::Axis,
    words::{capital, escape, number},
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
    /// Whether the curve is noisy: drawn lightly, with a smoothed line on top.
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
        let mean = if smooth { smoothed(&curve) } else { Vec::new() };
        let shown = spread(&curve);

        let all = || curve.iter().chain(&dots).copied();
        let most = all().map(|p| p.1).fold(f64::NEG_INFINITY, f64::max);
        let least = all().map(|p| p.1).fold(f64::INFINITY, f64::min);
        let y = if self.log {
            Axis::log(all().map(|p| p.1).filter(|v| *v > 0.0).fold(f64::INFINITY, f64::min), most)
        } else {
            let rows = if self.height > 180 { 5 } else { 2 };
            Axis::round(least.min(0.0), most, rows)
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
            let at = |i: &usize| (x.at(from[*i].0 as f64), y.at(from[*i].1));
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
                100.0 * (1.0 - y.at(*value)),
                escape(&capital(self.dots.map_or("", |d| d.0))),
                number(*value),
            );
        }
        svg += "</svg>";
        Some(format!(
            "<div class=\"plot\" data-plot=\"{}\"><svg role=\"img\" aria-label=\"{} over {} \
             steps, from {} to {}\" width=\"100%\" height=\"{}\">{svg}</div>",
            escape(&self.points(&curve, &mean, &shown, &x, &y)),
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
        y: &Axis,
    ) -> String {
        let each = shown.iter().map(|i| {
            let (step, value) = curve[*i];
            let top = mean.get(*i).map_or(value, |m| m.1);
            let mut say = format!("step {step} · {}", number(value));
            if !mean.is_empty() {
                say += &format!(" · smoothed {}", number(top));
            }
            let height = 1.0 - y.at(top);
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

/// At every step the height of a straight line fitted to the neighbouring steps, nearer ones
/// counting more. It looks both ways, so it does not lag, and it is not bent by the ends.
fn smoothed(curve: &[(u64, f64)]) -> Vec<(u64, f64)> {
    let reach = (curve.len() / 25).max(3);
    let fit = |i: usize| {
        let near = &curve[i.saturating_sub(reach)..curve.len().min(i + reach + 1)];
        let start = i.saturating_sub(reach);
        let (mut w, mut wx, mut wy, mut wxx, mut wxy) = (0.0, 0.0, 0.0, 0.0, 0.0);
        let (mut least, mut most) = (f64::INFINITY, f64::NEG_INFINITY);
        for (j, (_, y)) in near.iter().enumerate() {
            let x = (start + j) as f64 - i as f64;
            let weight = 1.0 - x.abs() / (reach + 1) as f64;
            w += weight;
            wx += weight * x;
            wy += weight * y;
            wxx += weight * x * x;
            wxy += weight * x * y;
            (least, most) = (least.min(*y), most.max(*y));
        }
        // Noise at an end must not send the line where no step was.
        ((wy * wxx - wx * wxy) / (w * wxx - wx * wx)).clamp(least, most)
    };
    (0..curve.len()).map(|i| (curve[i].0, fit(i))).collect()
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
    fn smoothing_keeps_lines_straight_to_their_ends() {
        let line: Vec<(u64, f64)> = (0..100).map(|i| (i, 3.0 * i as f64)).collect();
        for (a, b) in smoothed(&line).iter().zip(&line) {
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
