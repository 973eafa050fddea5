//! Before and after on one scale: a dot with its 95 % interval, or two dots and the way between.

use super::{
    axis::Axis,
    data::{Field, Measured},
    words::{THIN, escape, number_like, percent, percent_digits_even, percent_even, plural},
};

/// A row's height and where its scale runs inside it, in pixels.
const ROW: f64 = 46.0;
const TRACK: f64 = 32.0;

/// What one row shows.
pub struct Row<'a> {
    /// `before` or `after`, also the class it is drawn in.
    pub class: &'a str,
    /// Its name.
    pub name: String,
    /// The number.
    pub measured: Measured,
}

/// Rows on a common scale: a share of one from 0 to 100 %, a plain number around its values.
pub fn intervals(rows: &[Row], plain: bool, what: &str) -> String {
    let ends = rows.iter().flat_map(|r| {
        let [lo, hi] = r.measured.interval().unwrap_or([r.measured.value; 2]);
        [lo, hi, r.measured.value]
    });
    let ends: Vec<f64> = ends.filter(|v| v.is_finite()).collect();
    let axis = if plain {
        let lo = ends.iter().copied().fold(f64::INFINITY, f64::min);
        let hi = ends.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        Axis::round(lo, hi, 5)
    } else {
        Axis::round(0.0, 1.0, 4)
    };
    let mut svg = scale(&axis, plain, rows.len());
    for (i, row) in rows.iter().enumerate() {
        let (top, m) = (i as f64 * ROW, row.measured);
        let (y, at) = (top + TRACK, 100.0 * axis.at(m.value));
        let said = said(&m, plain);
        svg += &format!(
            "<text class=\"label\" x=\"0\" y=\"{:.0}\">{}</text><text class=\"value\" x=\"100%\" \
             y=\"{:.0}\" text-anchor=\"end\">{said}</text>",
            top + 16.0,
            escape(&row.name),
            top + 16.0,
        );
        if let Some([lo, hi]) = m.interval() {
            svg += &format!(
                "<line class=\"span {}\" x1=\"{:.2}%\" x2=\"{:.2}%\" y1=\"{y}\" y2=\"{y}\"/>",
                row.class,
                100.0 * axis.at(lo),
                100.0 * axis.at(hi),
            );
        }
        svg += &format!(
            "<circle class=\"mark {}\" cx=\"{at:.2}%\" cy=\"{y}\" r=\"6\"><title>{}: \
             {said}</title></circle>",
            row.class,
            escape(&row.name),
        );
    }
    frame(&svg, rows.len(), &format!("{what}, before and after, with 95 % intervals"))
}

/// A number with its interval: `95.0 % (90.0 – 98.0)`.
pub fn said(m: &Measured, plain: bool) -> String {
    let show = |v: f64| if plain { number_like(v, m.value) } else { percent_even(v) };
    let bare = |v: f64| if plain { number_like(v, m.value) } else { percent_digits_even(v) };
    match m.interval() {
        Some([lo, hi]) => format!("{} ({}{THIN}–{THIN}{})", show(m.value), bare(lo), bare(hi)),
        None => show(m.value),
    }
}

/// Accuracy per field: a light dot before, a full dot after, joined by the way it went.
pub fn dumbbells(fields: &[Field]) -> String {
    let axis = Axis::round(0.0, 1.0, 4);
    let mut svg = scale(&axis, false, fields.len());
    for (i, field) in fields.iter().enumerate() {
        let top = i as f64 * ROW;
        let y = top + TRACK;
        let both: Vec<String> =
            [field.before, field.after].into_iter().flatten().map(percent_even).collect();
        let n = field
            .n
            .map(|n| format!(" <tspan class=\"soft\">{}</tspan>", plural(n, "item", "items")));
        svg += &format!(
            "<text class=\"label code\" x=\"0\" y=\"{:.0}\">{}{}</text><text class=\"value\" \
             x=\"100%\" y=\"{:.0}\" text-anchor=\"end\">{}</text>",
            top + 16.0,
            escape(&field.name),
            n.unwrap_or_default(),
            top + 16.0,
            both.join(" → "),
        );
        if let (Some(a), Some(b)) = (field.before, field.after) {
            svg += &format!(
                "<line class=\"way\" x1=\"{:.2}%\" x2=\"{:.2}%\" y1=\"{y}\" y2=\"{y}\"/>",
                100.0 * axis.at(a),
                100.0 * axis.at(b),
            );
        }
        for (class, value) in [("before", field.before), ("after", field.after)] {
            if let Some(v) = value {
                svg += &format!(
                    "<circle class=\"mark {class}\" cx=\"{:.2}%\" cy=\"{y}\" r=\"5.5\"><title>{}, \
                     {class}: {}</title></circle>",
                    100.0 * axis.at(v),
                    escape(&field.name),
                    percent_even(v),
                );
            }
        }
    }
    frame(&svg, fields.len(), "accuracy per field, before and after")
}

fn scale(axis: &Axis, plain: bool, rows: usize) -> String {
    let bottom = rows as f64 * ROW;
    let mut svg = String::new();
    let labels =
        if plain { axis.labels() } else { axis.ticks.iter().map(|t| percent(*t)).collect() };
    let last = axis.ticks.len() - 1;
    for (i, (tick, label)) in axis.ticks.iter().zip(labels).enumerate() {
        let at = 100.0 * axis.at(*tick);
        let anchor = match i {
            0 => "start",
            i if i == last => "end",
            _ => "middle",
        };
        for row in 0..rows {
            let y = row as f64 * ROW + TRACK;
            svg += &format!(
                "<line class=\"grid\" x1=\"{at:.2}%\" x2=\"{at:.2}%\" y1=\"{}\" y2=\"{}\"/>",
                y - 5.0,
                y + 5.0,
            );
        }
        svg += &format!(
            "<text class=\"tick\" x=\"{at:.2}%\" y=\"{:.0}\" text-anchor=\"{anchor}\">{label}</text>",
            bottom + 14.0,
        );
    }
    for row in 0..rows {
        let y = row as f64 * ROW + TRACK;
        svg += &format!("<line class=\"track\" x1=\"0\" x2=\"100%\" y1=\"{y}\" y2=\"{y}\"/>");
    }
    svg
}

fn frame(inner: &str, rows: usize, label: &str) -> String {
    format!(
        "<svg class=\"rows\" role=\"img\" aria-label=\"{}\" width=\"100%\" height=\"{:.0}\">{inner}\
         </svg>",
        escape(label),
        rows as f64 * ROW + 20.0,
    )
}
