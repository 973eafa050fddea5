//! The sections of the page. Each gives its content, or nothing where nothing was measured.

use super::{
    data::{Fact, Paired, ReportData, Task},
    intervals::{Row, dumbbells, intervals, said},
    words::{bytes, capital, count, duration, escape, large, number, p_value, percent, plural},
};

/// The task, before and after.
pub fn task(data: &ReportData) -> Option<String> {
    let mut out: String = data.tasks.iter().filter_map(one_task).collect();
    let fields: Vec<_> =
        data.fields.iter().filter(|f| f.before.is_some() || f.after.is_some()).cloned().collect();
    if !fields.is_empty() {
        out += &format!(
            "<figure><figcaption><b>Field by field</b> <span class=\"key\"><i \
             class=\"k-before\"></i>before <i class=\"k-after\"></i>after</span></figcaption>{}\
             </figure>",
            dumbbells(&fields)
        );
    }
    (!out.is_empty()).then_some(out)
}

fn one_task(task: &Task) -> Option<String> {
    let rows = rows(task.before, task.after)?;
    let mut note = String::new();
    if let Some(n) = task.n {
        let items = if task.items.is_empty() { "items" } else { &task.items };
        note += &format!("{} {}", count(n), escape(items));
    }
    if task.lower_is_better {
        note += if note.is_empty() { "less is better" } else { "; less is better" };
    }
    let plot = intervals(&rows, task.plain, &task.metric);
    let test = task.paired.as_ref().map(difference).unwrap_or_default();
    Some(format!(
        "<figure><figcaption><b>{}</b> <span class=\"soft\">{note}</span></figcaption>{plot}{test}\
         </figure>",
        escape(&capital(&task.metric))
    ))
}

fn rows<'a>(
    before: Option<super::Measured>,
    after: Option<super::Measured>,
) -> Option<Vec<Row<'a>>> {
    let row = |class: &'a str, m: Option<super::Measured>| {
        m.map(|measured| Row { class, name: capital(class), measured })
    };
    let rows: Vec<Row> =
        [row("before", before), row("after", after)].into_iter().flatten().collect();
    (!rows.is_empty()).then_some(rows)
}

fn difference(paired: &Paired) -> String {
    let verdict = if paired.p < 0.05 {
        "The difference is larger than chance explains"
    } else {
        "Chance alone could explain the difference"
    };
    let test = escape(&paired.test);
    format!("<p class=\"soft\">{verdict} ({test}, {}).</p>", p_value(paired.p).replace('<', "&lt;"))
}

/// General text, before and after.
pub fn general(data: &ReportData) -> Option<String> {
    let g = data.general.as_ref()?;
    let rows = rows(g.before, g.after)?;
    let text = if g.text.is_empty() { "general text" } else { &g.text };
    let mut out = String::from(
        "<p>Perplexity on text that has nothing to do with the task. It rises when tuning makes a \
         model forget; less is better.</p>",
    );
    let tokens = g.tokens.map(|n| plural(n, "token", "tokens")).unwrap_or_default();
    out += &format!(
        "<figure><figcaption><b>{}</b> <span class=\"soft\">{tokens}</span></figcaption>{}",
        escape(&capital(text)),
        intervals(&rows, true, "perplexity")
    );
    if let Some(ratio) = &g.ratio {
        out += &format!(
            "<p class=\"soft\">After ÷ before, measured on the same tokens: {}.</p>",
            said(ratio, true)
        );
    }
    out += &g.paired.as_ref().map(difference).unwrap_or_default();
    Some(out + "</figure>")
}

/// Model, data and method.
pub fn setup(data: &ReportData) -> Option<String> {
    let mut out = String::new();
    if let Some(m) = &data.model {
        let mut facts = vec![fact("name", &m.name), fact("read from", &m.source)];
        facts.extend(m.parameters.map(|n| fact("parameters", &large(n))));
        facts.push(fact("licence", &m.license));
        facts.extend(m.more.iter().cloned());
        facts.push(fact("SHA-256", &m.sha256));
        out += &block("Model", &list(&facts));
    }
    if let Some(m) = &data.method {
        let mut facts = vec![fact("recipe", &m.recipe), fact("learned", &m.form)];
        if let Some(n) = m.trainable {
            let share = m.share.map(|s| format!(", {} of the model", percent(s)));
            facts.push(fact("trained parameters", &(count(n) + &share.unwrap_or_default())));
        }
        facts.extend(m.sites.map(|n| fact("sites", &count(n))));
        facts.extend(m.r.map(|n| fact("r", &count(n))));
        facts.extend(m.alpha.map(|x| fact("alpha", &number(x))));
        facts.extend(m.settings.iter().cloned());
        out += &block("Method", &list(&facts));
    }
    out += &block("Data", &files(data));
    out += &block("Cut by the length limit", &cuts(data));
    (!out.is_empty()).then_some(out)
}

fn fact(name: &str, value: &str) -> Fact {
    Fact { name: name.into(), value: value.into() }
}

fn block(title: &str, inner: &str) -> String {
    if inner.is_empty() { String::new() } else { format!("<h3>{title}</h3>{inner}") }
}

fn list(facts: &[Fact]) -> String {
    let line = |f: &Fact| {
        let class = if f.name == "SHA-256" { " class=\"hash\"" } else { "" };
        format!("<div><dt>{}</dt><dd{class}>{}</dd></div>", escape(&f.name), escape(&f.value))
    };
    let lines: String = facts.iter().filter(|f| !f.value.is_empty()).map(line).collect();
    if lines.is_empty() { lines } else { format!("<dl>{lines}</dl>") }
}

fn files(data: &ReportData) -> String {
    if data.data.is_empty() {
        return String::new();
    }
    let number = |n: Option<u64>| n.map_or_else(|| "–".into(), count);
    let rows: String = data
        .data
        .iter()
        .map(|f| {
            let share = match (f.trained_tokens, f.tokens) {
                (Some(a), Some(b)) if b > 0 => {
                    format!(" <small>{}</small>", percent(a as f64 / b as f64))
                }
                _ => String::new(),
            };
            let hash = match f.sha256.as_str() {
                "" => String::new(),
                hash => format!(
                    "<tr class=\"under\"><td colspan=\"6\" class=\"hash\">{}</td></tr>",
                    escape(hash)
                ),
            };
            format!(
                "<tr class=\"pair\"><th scope=\"row\">{}</th><td class=\"left code\">{}</td><td \
                 class=\"left\">{}</td><td>{}</td><td>{}</td><td>{}{share}</td></tr>{hash}",
                escape(&f.role),
                escape(&f.path),
                escape(&f.layout),
                number(f.rows),
                number(f.tokens),
                number(f.trained_tokens),
            )
        })
        .collect();
    format!(
        "<div class=\"wide\"><table><thead><tr><th scope=\"col\">for</th><th scope=\"col\" \
         class=\"left\">file, SHA-256</th><th scope=\"col\" class=\"left\">layout</th><th \
         scope=\"col\">rows</th><th scope=\"col\">tokens</th><th scope=\"col\">trained \
         tokens</th></tr></thead><tbody>{rows}</tbody></table></div>"
    )
}

fn cuts(data: &ReportData) -> String {
    if data.cuts.is_empty() {
        return String::new();
    }
    let rows: String = data
        .cuts
        .iter()
        .map(|c| {
            format!(
                "<tr><th scope=\"row\" class=\"code\">{}</th><td class=\"left\">{}</td><td>{}</td>\
                 <td>{}</td><td>{}</td><td>{}</td></tr>",
                escape(&c.file),
                escape(&c.policy),
                count(c.rows),
                count(c.tokens),
                count(c.answers),
                count(c.ends),
            )
        })
        .collect();
    format!(
        "<div class=\"wide\"><table><thead><tr><th scope=\"col\">file</th><th scope=\"col\" \
         class=\"left\">policy</th><th scope=\"col\">rows too long</th><th scope=\"col\">tokens \
         lost</th><th scope=\"col\">answers cut</th><th scope=\"col\">ends lost</th></tr></thead>\
         <tbody>{rows}</tbody></table></div>"
    )
}

/// Time and memory.
pub fn resources(data: &ReportData) -> Option<String> {
    let r = data.resources.as_ref()?;
    let mut facts = Vec::new();
    facts.extend(r.seconds.map(|s| fact("training", &duration(s))));
    facts.extend(r.tokens_per_second.map(|t| fact("tokens per second", &number(t))));
    facts.extend(r.peak_rss_bytes.map(|b| fact("peak memory", &bytes(b))));
    facts.extend(r.cores.map(|c| fact("cores", &count(c))));
    facts.push(fact("processor", &r.processor));
    facts.push(fact("precision", &r.precision));
    let mut out = list(&facts);
    let total: f64 = r.stages.iter().map(|s| s.seconds).filter(|s| s.is_finite()).sum();
    if total > 0.0 {
        let rows: String = r
            .stages
            .iter()
            .map(|s| {
                let share = (s.seconds / total).clamp(0.0, 1.0) * 100.0;
                format!(
                    "<tr><th scope=\"row\">{}</th><td class=\"share\"><i \
                     style=\"width:{share:.1}%\"></i></td><td>{}</td></tr>",
                    escape(&s.name),
                    duration(s.seconds)
                )
            })
            .collect();
        out += &format!(
            "<h3>Where the time went</h3><table class=\"stages\"><tbody>{rows}<tr class=\"total\"><th \
             scope=\"row\">together</th><td></td><td>{}</td></tr></tbody></table>",
            duration(total)
        );
    }
    (!out.is_empty()).then_some(out)
}

/// The command and the files it makes.
pub fn reproduce(data: &ReportData) -> Option<String> {
    let mut out = String::new();
    if !data.command.is_empty() {
        out += &format!(
            "<p>The same command, inputs and version give the same bytes.</p><pre \
             class=\"command\"><code>{}</code></pre>",
            escape(&data.command)
        );
    }
    if !data.artefacts.is_empty() {
        let rows: String = data
            .artefacts
            .iter()
            .map(|a| {
                let size = a.bytes.map(bytes).unwrap_or_default();
                format!(
                    "<tr><td class=\"left\"><span class=\"code\">{}</span><span \
                     class=\"hash\">{}</span></td><td>{size}</td></tr>",
                    escape(&a.path),
                    escape(&a.sha256)
                )
            })
            .collect();
        out += &format!(
            "<h3>Files of this run</h3><table><thead><tr><th scope=\"col\" class=\"left\">file and \
             SHA-256</th><th scope=\"col\">size</th></tr></thead><tbody>{rows}</tbody></table>"
        );
    }
    (!out.is_empty()).then_some(out)
}
