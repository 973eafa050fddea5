//! The reliability diagram: accuracy over confidence, and how many answers stand behind it.

use std::fmt::Write;

use super::Calibration;

/// Width and height of the drawing, and of its margins.
const SIZE: f64 = 360.0;
const MARGIN: f64 = 44.0;

/// The diagram as an SVG of its own. Bars are accuracies, the darker the more answers; the line is what
/// they should be. Values show under the pointer.
pub fn svg(title: &str, found: &Calibration) -> String {
    let side = SIZE - 2.0 * MARGIN;
    let (x, y) = (|v: f64| MARGIN + v * side, |v: f64| SIZE - MARGIN - v * side);
    let most = found.bins.iter().map(|bin| bin.n).max().unwrap_or(1).max(1) as f64;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {SIZE} {SIZE}\" role=\"img\" \
         font-family=\"sans-serif\" font-size=\"11\" fill=\"#555\">\n<title>{}</title>\n",
        escaped(title)
    );
    let mut say = |text: std::fmt::Arguments| {
        // Writing into a string cannot fail.
        let _ = out.write_fmt(text);
        out.push('\n');
    };
    for bin in found.bins.iter().filter(|bin| bin.n > 0) {
        let (left, width) = (x(bin.from), x(bin.to) - x(bin.from) - 1.0);
        let (top, height) = (y(bin.accuracy), (y(0.0) - y(bin.accuracy)).max(0.5));
        let depth = 0.25 + 0.75 * bin.n as f64 / most;
        say(format_args!(
            "<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" \
             fill=\"#3b6ea8\" fill-opacity=\"{depth:.2}\"><title>confidence {:.3}, accuracy {:.3}, \
             {} answers</title></rect>",
            bin.confidence, bin.accuracy, bin.n
        ));
    }
    let (zero, one) = ((x(0.0), y(0.0)), (x(1.0), y(1.0)));
    say(format_args!(
        "<path d=\"M{:.1} {:.1}V{:.1}H{:.1}\" fill=\"none\" stroke=\"#999\"/>",
        zero.0, one.1, zero.1, one.0
    ));
    say(format_args!(
        "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"#b5482f\" \
         stroke-dasharray=\"4 3\"/>",
        zero.0, zero.1, one.0, one.1
    ));
    for tick in [0.0, 0.5, 1.0] {
        let (at, below) = (x(tick), zero.1 + 16.0);
        say(format_args!(
            "<text x=\"{at:.1}\" y=\"{below:.1}\" text-anchor=\"middle\">{tick}</text>"
        ));
        let (before, at) = (zero.0 - 6.0, y(tick) + 4.0);
        say(format_args!(
            "<text x=\"{before:.1}\" y=\"{at:.1}\" text-anchor=\"end\">{tick}</text>"
        ));
    }
    let middle = SIZE / 2.0;
    say(format_args!(
        "<text x=\"{middle}\" y=\"{:.1}\" text-anchor=\"middle\">confidence</text>",
        SIZE - 8.0
    ));
    say(format_args!(
        "<text x=\"14\" y=\"{middle}\" text-anchor=\"middle\" transform=\"rotate(-90 14 {middle})\">\
         accuracy</text>"
    ));
    say(format_args!(
        "<text x=\"{middle}\" y=\"20\" text-anchor=\"middle\" font-size=\"13\">{} (ECE {:.3}, n = {})\
         </text>",
        escaped(title),
        found.ece,
        found.n
    ));
    out + "</svg>\n"
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bin_with_answers_is_a_bar() {
        let answers = [(0.95, true), (0.85, true), (0.85, false), (0.65, true)];
        let text = svg("a < b", &Calibration::of(&answers).unwrap());
        assert_eq!(text.matches("<rect").count(), 3);
        assert!(text.contains("a &lt; b (ECE 0.275, n = 4)"), "{text}");
        assert!(text.contains("accuracy 0.500, 2 answers"), "{text}");
        assert!(text.starts_with("<svg") && text.ends_with("</svg>\n"));
    }
}
