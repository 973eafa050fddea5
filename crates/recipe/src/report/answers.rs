//! Sample answers side by side, with a filter that needs no script.

use super::{data::Answer, words::escape};

/// What became of one question.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Fixed,
    Kept,
    Wrong,
    Broken,
    Unjudged,
}

const FATES: [(Fate, &str, &str); 4] = [
    (Fate::Fixed, "fixed", "wrong → right"),
    (Fate::Kept, "kept", "right → right"),
    (Fate::Wrong, "wrong", "still wrong"),
    (Fate::Broken, "broken", "right → wrong"),
];

fn fate(answer: &Answer) -> Fate {
    match (answer.before_right, answer.after_right) {
        (Some(false), Some(true)) => Fate::Fixed,
        (_, Some(true)) => Fate::Kept,
        (Some(true), Some(false)) => Fate::Broken,
        (_, Some(false)) => Fate::Wrong,
        _ => Fate::Unjudged,
    }
}

/// How many answers are shown before the reader asks for all.
const FEW: usize = 6;

/// The list; the filter appears when there is something to choose.
pub fn answers(all: &[Answer]) -> String {
    let counted: Vec<(&str, &str, usize)> = FATES
        .iter()
        .map(|(f, class, name)| (*class, *name, all.iter().filter(|a| fate(a) == *f).count()))
        .filter(|c| c.2 > 0)
        .collect();
    let mut out = String::from("<div class=\"answers\">");
    let long = all.len() > FEW + 2;
    if long {
        out += &choice("few", "a few", true);
    }
    if long || counted.len() > 1 {
        out += &choice("all", &format!("all {}", all.len()), !long);
    }
    if counted.len() > 1 {
        for (class, name, n) in &counted {
            out += &choice(class, &format!("{name} {n}"), false);
        }
    }
    // The first failures are always among the few: they are what one learns from.
    let mut failures = 0;
    for (i, answer) in all.iter().enumerate() {
        let failed = matches!(fate(answer), Fate::Wrong | Fate::Broken);
        failures += usize::from(failed);
        let later = long && i >= FEW && !(failed && failures <= 2);
        out += &card(i + 1, answer, later);
    }
    out + "</div>"
}

fn choice(class: &str, name: &str, checked: bool) -> String {
    let checked = if checked { " checked" } else { "" };
    format!(
        "<input type=\"radio\" name=\"answers\" id=\"only-{class}\"{checked}><label \
         for=\"only-{class}\">{name}</label>"
    )
}

fn card(number: usize, a: &Answer, later: bool) -> String {
    let class = FATES.iter().find(|f| f.0 == fate(a)).map_or("", |f| f.1);
    let later = if later { " later" } else { "" };
    let mut out = format!(
        "<article class=\"card {class}{later}\"><header><b>{number}</b><p dir=\"auto\">{}</p></header><div \
         class=\"columns\">",
        escape(&a.prompt)
    );
    let expected = a.expected.as_deref();
    if let Some(text) = expected {
        out += &column("expected", None, &escape(text));
    }
    for (name, text, right) in
        [("before", &a.before, a.before_right), ("after", &a.after, a.after_right)]
    {
        let Some(text) = text else { continue };
        let marked = match (expected, right) {
            (Some(wanted), Some(false)) => marked(text, wanted),
            _ => escape(text),
        };
        out += &column(name, right, &marked);
    }
    out + "</div></article>"
}

fn column(name: &str, right: Option<bool>, text: &str) -> String {
    let verdict = match right {
        Some(true) => " <span class=\"right\">✓ right</span>",
        Some(false) => " <span class=\"off\">✗ wrong</span>",
        None => "",
    };
    let text = if text.trim().is_empty() { "<i>(nothing)</i>" } else { text };
    format!("<div class=\"{name}\"><h4>{name}{verdict}</h4><pre dir=\"auto\">{text}</pre></div>")
}

/// A wrong answer with the stretch that differs from the wanted one marked. An answer that shares
/// little with it is left plain: marking all of it would say nothing.
fn marked(text: &str, wanted: &str) -> String {
    let (t, w): (Vec<char>, Vec<char>) = (text.chars().collect(), wanted.chars().collect());
    let mut head = t.iter().zip(&w).take_while(|(a, b)| a == b).count();
    let room = t.len().min(w.len()) - head;
    let mut tail =
        t.iter().rev().zip(w.iter().rev()).take(room).take_while(|(a, b)| a == b).count();
    if t == w || 2 * (head + tail) < w.len().max(t.len()) {
        return escape(text);
    }
    // Whole words are marked: half of one would only puzzle.
    let word = |i: usize| t.get(i).is_some_and(|c| c.is_alphanumeric());
    while head > 0 && word(head - 1) {
        head -= 1;
    }
    while tail > 0 && word(t.len() - tail) {
        tail -= 1;
    }
    let part = |range: std::ops::Range<usize>| escape(&t[range].iter().collect::<String>());
    let middle = part(head..t.len() - tail);
    // Something missing leaves nothing to mark but its place.
    let middle = if middle.is_empty() { "▁".into() } else { middle };
    format!("{}<mark>{middle}</mark>{}", part(0..head), part(t.len() - tail..t.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stretch_that_differs_is_marked() {
        assert_eq!(marked("{\"a\": 12}", "{\"a\": 13}"), "{&quot;a&quot;: <mark>12</mark>}");
        assert_eq!(marked("[1, 2]", "[1, X, 2]"), "[1, <mark>2</mark>]");
        assert_eq!(marked("(a)()", "(a)(-)"), "(a)(<mark>▁</mark>)");
        assert_eq!(marked("Sure! Here is <b>", "{}"), "Sure! Here is &lt;b&gt;");
        assert_eq!(marked("same", "same"), "same");
        assert_eq!(marked("", ""), "");
    }
}
