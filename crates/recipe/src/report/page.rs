//! The page around the sections.

use super::{
    answers::answers,
    data::ReportData,
    figures, heat, sections,
    summary::{Dress, sentences, setting},
    words::{bytes, capital, change, duration, escape, large, number, percent},
};

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("script.js");

/// The whole page.
pub fn page(data: &ReportData) -> String {
    let title = if data.title.is_empty() { "Training report" } else { &data.title };
    let all: Vec<(&str, &str, Option<String>)> = vec![
        ("task", "Did it learn the task?", sections::task(data)),
        ("general", "What did it cost elsewhere?", sections::general(data)),
        ("training", "How training went", figures::training(data)),
        ("answers", "Answers side by side", sample_answers(data)),
        ("inside", "What changed inside the model", inside(data)),
        ("setup", "What was trained on what", sections::setup(data)),
        ("resources", "Time and memory", sections::resources(data)),
        ("reproduce", "Make it again", sections::reproduce(data)),
    ];
    let (mut links, mut body) = (String::new(), String::new());
    for (id, heading, content) in all {
        let Some(content) = content else { continue };
        links += &format!("<a href=\"#{id}\">{heading}</a>");
        body += &format!("<section id=\"{id}\"><h2>{heading}</h2>{content}</section>\n");
    }
    let nav = if links.is_empty() { links } else { format!("<nav>{links}</nav>") };
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta \
         name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<meta \
         http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src \
         'unsafe-inline'; script-src 'unsafe-inline'\">\n<meta name=\"color-scheme\" \
         content=\"light dark\">\n<title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n\
         <body>\n{nav}\n<main>\n{head}\n{body}{foot}\n</main>\n<script>\n{SCRIPT}</script>\n\
         </body>\n</html>\n",
        title = escape(title),
        head = head(data, title),
        foot = foot(data),
    )
}

fn head(data: &ReportData, title: &str) -> String {
    let mut out = format!(
        "<header class=\"top\"><p class=\"brand\">luthier · run report</p><h1>{}</h1>",
        escape(title)
    );
    let lead = sentences(data, &Dress { name: escape, number: |n| format!("<b>{n}</b>") });
    // An interval stays on one line.
    let lead = lead.replace('–', "\u{2060}–\u{2060}");
    if !lead.is_empty() {
        out += &format!("<p class=\"lead\">{lead}</p>");
    }
    if let Some(setting) = setting(data) {
        out += &format!("<p class=\"setting\">{}</p>", escape(&setting));
    }
    out + &tiles(data) + "</header>"
}

/// The few numbers one looks for first.
fn tiles(data: &ReportData) -> String {
    let mut tiles: Vec<(String, String, String)> = Vec::new();
    if let Some(task) = data.tasks.first()
        && let Some(after) = task.after
    {
        let show = |v: f64| if task.plain { number(v) } else { percent(v) };
        let from = task.before.map(|b| format!("from {}", show(b.value))).unwrap_or_default();
        tiles.push((capital(&task.metric), show(after.value), from));
    }
    if let Some(g) = &data.general
        && let (Some(a), Some(b)) = (g.before, g.after)
    {
        let ratio = g.ratio.map_or(b.value / a.value, |r| r.value);
        let values = format!("{} → {}", number(a.value), number(b.value));
        tiles.push(("General perplexity".into(), change(ratio), values));
    }
    if let Some(n) = data.method.as_ref().and_then(|m| m.trainable) {
        let share = data.method.as_ref().and_then(|m| m.share);
        let share = share.map(|s| format!("{} of the model", percent(s))).unwrap_or_default();
        tiles.push(("Trained parameters".into(), large(n), share));
    }
    if let Some(r) = &data.resources {
        if let Some(seconds) = r.seconds {
            let speed = r.tokens_per_second.map(|t| format!("{} tokens/s", number(t)));
            tiles.push(("Training time".into(), duration(seconds), speed.unwrap_or_default()));
        }
        if let Some(peak) = r.peak_rss_bytes {
            let cores = r.cores.map(|c| super::words::plural(c, "core", "cores"));
            tiles.push(("Peak memory".into(), bytes(peak), cores.unwrap_or_default()));
        }
    }
    if tiles.is_empty() {
        return String::new();
    }
    let each = tiles.iter().map(|(name, value, note)| {
        format!("<li><span>{}</span><b>{value}</b><small>{note}</small></li>", escape(name))
    });
    format!("<ul class=\"tiles\">{}</ul>", each.collect::<String>())
}

fn sample_answers(data: &ReportData) -> Option<String> {
    (!data.answers.is_empty()).then(|| answers(&data.answers))
}

fn inside(data: &ReportData) -> Option<String> {
    if data.changes.is_empty() {
        return None;
    }
    Some(format!(
        "<p>How far each weight moved, against its own size. {}</p><figure>{}</figure>",
        heat::sentence(&data.changes),
        heat::maps(&data.changes)
    ))
}

fn foot(data: &ReportData) -> String {
    let mut parts = Vec::new();
    if !data.version.is_empty() {
        parts.push(format!("luthier {}", escape(&data.version)));
    }
    if !data.when.is_empty() {
        parts.push(escape(&data.when));
    }
    let intervals = data
        .tasks
        .iter()
        .any(|t| [t.before, t.after].into_iter().flatten().any(|m| m.ci95.is_some()));
    if intervals {
        parts.push("intervals are 95\u{202f}% confidence intervals".into());
    }
    if parts.is_empty() {
        String::new()
    } else {
        format!("<footer>{}</footer>", parts.join(" · "))
    }
}
