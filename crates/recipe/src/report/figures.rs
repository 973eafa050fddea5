//! How training went: loss, and what went with it.

use super::{
    data::{CurvePoint, ReportData},
    lines::Chart,
    words::{count, number},
};

/// Where the largest loss is this many times the smallest, a logarithmic view is offered.
const LOG_WORTH: f64 = 8.0;

/// The loss curve with its evaluations, then the smaller curves. Nothing without a curve.
pub fn training(data: &ReportData) -> Option<String> {
    let pick = |get: fn(&CurvePoint) -> Option<f64>| -> Vec<(u64, f64)> {
        data.curve.iter().filter_map(|p| Some((p.step, get(p)?))).collect()
    };
    let loss = pick(|p| p.loss);
    let evals: Vec<(u64, f64)> = data.evals.iter().map(|e| (e.step, e.loss)).collect();
    let dots = (!evals.is_empty()).then_some(("evaluation loss", evals.as_slice()));
    let chart =
        Chart { name: "training loss", curve: &loss, dots, smooth: true, height: 280, log: false };
    let mut out = String::new();
    if let Some(straight) = chart.svg() {
        let finite = || loss.iter().chain(&evals).map(|p| p.1).filter(|v| v.is_finite());
        let (least, most) =
            (finite().fold(f64::INFINITY, f64::min), finite().fold(f64::NEG_INFINITY, f64::max));
        out += "<figure><figcaption><b>Loss</b> <span class=\"key\"><i class=\"k-raw\"></i>each \
                step <i class=\"k-line\"></i>smoothed";
        if dots.is_some() {
            out += " <i class=\"k-dot\"></i>evaluation";
        }
        out += "</span></figcaption>";
        if least > 0.0
            && most / least > LOG_WORTH
            && let Some(log) = (Chart { log: true, ..chart }).svg()
        {
            out += &format!(
                "<div class=\"switch\"><input type=\"radio\" name=\"loss\" id=\"loss-a\" \
                 checked><label for=\"loss-a\">linear</label><input type=\"radio\" name=\"loss\" \
                 id=\"loss-b\"><label for=\"loss-b\">logarithmic</label><div \
                 class=\"a\">{straight}</div><div class=\"b\">{log}</div></div>"
            );
        } else {
            out += &straight;
        }
        out += "</figure>";
    }
    let mut small = String::new();
    for (title, curve, smooth) in [
        ("Learning rate", pick(|p| p.learning_rate), false),
        ("Gradient norm", pick(|p| p.grad_norm), true),
        ("Tokens per second", pick(|p| p.tokens_per_second), true),
    ] {
        let chart =
            Chart { name: title, curve: &curve, dots: None, smooth, height: 120, log: false };
        if let Some(svg) = chart.svg() {
            small += &format!("<figure><figcaption><b>{title}</b></figcaption>{svg}</figure>");
        }
    }
    if !small.is_empty() {
        out += &format!("<div class=\"small-charts\">{small}</div>");
    }
    if out.is_empty() {
        return None;
    }
    Some(sentence(&loss, &evals) + &out)
}

fn sentence(loss: &[(u64, f64)], evals: &[(u64, f64)]) -> String {
    let mut out = String::new();
    if let (Some(first), Some(last)) = (loss.first(), loss.last()) {
        out += &format!(
            "The loss per trained token went from {} to {} in {} optimizer steps.",
            number(first.1),
            number(last.1),
            count(last.0)
        );
    }
    let best = evals.iter().filter(|e| e.1.is_finite()).min_by(|a, b| a.1.total_cmp(&b.1));
    if let (Some(best), Some(last)) = (best, evals.last()) {
        out += &format!(
            " The lowest evaluation loss was {} at step {}",
            number(best.1),
            count(best.0)
        );
        out += if best.0 == last.0 {
            ", the last one.".into()
        } else {
            format!("; the last one was {}.", number(last.1))
        }
        .as_str();
    }
    if out.is_empty() { out } else { format!("<p>{out}</p>") }
}
