//! The report in one or two sentences of plain English.

use super::{
    data::{General, ReportData, Task},
    words::{
        THIN, capital, change, count, duration, large, number, percent, percent_digits, plural,
    },
};

/// What the tuning brought and what it cost, as plain text.
pub fn headline(data: &ReportData) -> String {
    sentences(data, &Dress { name: str::to_owned, number: |n| n })
}

/// How the two kinds of words in a sentence are written.
pub struct Dress {
    /// Names, which come from outside.
    pub name: fn(&str) -> String,
    /// The numbers that matter.
    pub number: fn(String) -> String,
}

/// The headline in the given dress.
pub fn sentences(data: &ReportData, dress: &Dress) -> String {
    let mut said: Vec<String> = Vec::new();
    said.extend(data.tasks.first().and_then(|t| task(t, dress)));
    said.extend(data.general.as_ref().and_then(|g| general(g, dress)));
    if said.is_empty() {
        said.extend(loss(data, dress.number));
    }
    said.join(" ")
}

fn task(task: &Task, dress: &Dress) -> Option<String> {
    let strong = dress.number;
    let show = |v: f64| if task.plain { number(v) } else { percent(v) };
    let bare = |v: f64| if task.plain { number(v) } else { percent_digits(v) };
    let mut out = (dress.name)(&capital(&task.metric));
    let items = if task.items.is_empty() { "items" } else { &task.items };
    if let Some(n) = task.n {
        out += &format!(" on {} {}", count(n), (dress.name)(items));
    }
    let last = match (task.before, task.after) {
        (Some(a), Some(b)) if show(a.value) == show(b.value) => {
            out += &format!(" stayed at {}", strong(show(b.value)));
            b
        }
        (Some(a), Some(b)) => {
            let verb = if b.value > a.value { "rose" } else { "fell" };
            let (from, to) = (strong(show(a.value)), strong(show(b.value)));
            out += &format!(" {verb} from {from} to {to}");
            b
        }
        (None, Some(one)) => {
            out += &format!(" is {} after tuning", strong(show(one.value)));
            one
        }
        (Some(one), None) => {
            out += &format!(" was {} before tuning", strong(show(one.value)));
            one
        }
        (None, None) => return None,
    };
    if let Some([lo, hi]) = last.interval() {
        out += &format!(" (95{THIN}% interval {}–{})", bare(lo), show(hi));
    }
    Some(out + ".")
}

fn general(general: &General, dress: &Dress) -> Option<String> {
    let strong = dress.number;
    let (a, b) = (general.before?.value, general.after?.value);
    let text = if general.text.is_empty() { "general text" } else { &general.text };
    let (from, to) = (strong(number(a)), strong(number(b)));
    let ratio = general.ratio.map_or(b / a, |r| r.value);
    let mut out = format!("Perplexity on {} went from {from} to {to}", (dress.name)(text));
    if ratio.is_finite() {
        out += &format!(" ({})", strong(change(ratio)));
    }
    if let Some([lo, hi]) = general.ratio.and_then(|r| r.interval()) {
        out += match (lo, hi) {
            (lo, _) if lo > 1.0 => ": a real cost, larger than chance explains",
            (_, hi) if hi < 1.0 => ": a real gain, larger than chance explains",
            _ => ", which chance alone could explain",
        };
    }
    Some(out + ".")
}

fn loss(data: &ReportData, strong: fn(String) -> String) -> Option<String> {
    let mut losses = data.curve.iter().filter_map(|p| p.loss);
    let (first, last) = (losses.next()?, losses.next_back()?);
    let steps = plural(data.curve.last()?.step, "step", "steps");
    let (first, last) = (strong(number(first)), strong(number(last)));
    Some(format!("Training loss went from {first} to {last} over {steps}."))
}

/// What was trained, how, on what and for how long: `M was tuned with LoRA on 960 rows in 2 min
/// 41 s on 2 cores, changing 4.9 million of its 135 million parameters (3.6 %).`
pub fn setting(data: &ReportData) -> Option<String> {
    let model = data.model.as_ref().filter(|m| !m.name.is_empty())?;
    let mut out = model.name.clone();
    let method = data.method.as_ref();
    match method.filter(|m| !m.form.is_empty()) {
        Some(m) => out += &format!(" was tuned with {}", m.form),
        None => out += " was tuned",
    }
    let rows: u64 = data.data.iter().filter(|f| f.role == "train").filter_map(|f| f.rows).sum();
    if rows > 0 {
        out += &format!(" on {}", plural(rows, "example", "examples"));
    }
    if let Some(resources) = &data.resources {
        if let Some(seconds) = resources.seconds {
            out += &format!(" in {}", duration(seconds));
        }
        if let Some(cores) = resources.cores {
            out += &format!(" on {}", plural(cores, "CPU core", "CPU cores"));
        }
    }
    if let Some(trainable) = method.and_then(|m| m.trainable) {
        out += &format!(", with {} trained parameters", large(trainable));
        if let Some(share) = method.and_then(|m| m.share) {
            out += &format!(" ({} of the model)", percent(share));
        }
    }
    Some(out + ".")
}

#[cfg(test)]
mod tests {
    use super::{super::data::Measured, *};

    fn measured(value: f64, lo: f64, hi: f64) -> Option<Measured> {
        Some(Measured { value, ci95: Some([lo, hi]) })
    }

    #[test]
    fn the_headline_is_a_sentence() {
        let mut data = ReportData::default();
        assert_eq!(headline(&data), "");
        data.tasks.push(Task {
            metric: "exact match".into(),
            items: "held-out requests".into(),
            n: Some(120),
            before: measured(0.0, 0.0, 0.03),
            after: measured(0.95, 0.9, 0.98),
            ..Task::default()
        });
        data.general = Some(General {
            before: measured(12.0, 11.0, 13.0),
            after: measured(12.6, 11.5, 13.6),
            ratio: measured(1.05, 1.03, 1.07),
            ..General::default()
        });
        let plain = headline(&data).replace(THIN, " ");
        assert_eq!(
            plain,
            "Exact match on 120 held-out requests rose from 0 % to 95 % (95 % interval 90–98 %). \
             Perplexity on general text went from 12 to 12.6 (+5 %): a real cost, larger than \
             chance explains."
        );
        data.tasks[0].after = data.tasks[0].before;
        data.general = None;
        assert!(headline(&data).contains("stayed at 0"));
    }
}
