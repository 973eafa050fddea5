//! What changed inside: a map of layers and sites, and the same numbers as a table.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    axis::ticks,
    data::SiteChange,
    words::{escape, percent, percent_even},
};

const CELL: f64 = 24.0;
const PROFILE: f64 = 46.0;

/// One quantity per layer and site.
struct Grid<'a> {
    layers: Vec<usize>,
    sites: Vec<&'a str>,
    values: BTreeMap<(usize, &'a str), f64>,
}

impl<'a> Grid<'a> {
    fn new(changes: &'a [SiteChange], pick: impl Fn(&SiteChange) -> Option<f64>) -> Option<Self> {
        let layers: BTreeSet<usize> = changes.iter().filter_map(|c| c.layer).collect();
        let mut sites: Vec<&str> = Vec::new();
        let mut values = BTreeMap::new();
        for change in changes {
            let Some(layer) = change.layer else { continue };
            if !sites.contains(&change.site.as_str()) {
                sites.push(&change.site);
            }
            if let Some(v) = pick(change).filter(|v| v.is_finite()) {
                values.insert((layer, change.site.as_str()), v);
            }
        }
        let grid = Grid { layers: layers.into_iter().collect(), sites, values };
        (!grid.values.is_empty()).then_some(grid)
    }

    fn mean(&self, keep: impl Fn(usize, &str) -> bool) -> Option<f64> {
        let kept: Vec<f64> =
            self.values.iter().filter(|((l, s), _)| keep(*l, s)).map(|(_, v)| *v).collect();
        (!kept.is_empty()).then(|| kept.iter().sum::<f64>() / kept.len() as f64)
    }

    /// Columns are layers, rows are sites; above, the mean of every layer; right, of every site.
    fn svg(&self, what: &str, show: impl Fn(f64) -> String) -> String {
        let most = self.values.values().copied().fold(f64::MIN_POSITIVE, f64::max);
        let width = 100.0 / self.layers.len() as f64;
        let means: Vec<f64> =
            self.layers.iter().map(|l| self.mean(|k, _| k == *l).unwrap_or(0.0)).collect();
        let tallest = means.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
        let mut svg = format!(
            "<text class=\"tick\" x=\"-8\" y=\"{}\" text-anchor=\"end\">mean</text>",
            PROFILE - 12.0
        );
        for (column, (layer, mean)) in self.layers.iter().zip(&means).enumerate() {
            let tall = (PROFILE - 8.0) * mean / tallest;
            svg += &format!(
                "<rect class=\"bar\" x=\"{:.3}%\" width=\"{width:.3}%\" y=\"{:.1}\" \
                 height=\"{tall:.1}\"><title>layer {layer}, mean of its sites: {}</title></rect>",
                column as f64 * width,
                PROFILE - 8.0 - tall,
                show(*mean),
            );
        }
        for (row, site) in self.sites.iter().enumerate() {
            let y = PROFILE + row as f64 * CELL;
            let middle = y + CELL / 2.0;
            svg += &format!(
                "<text class=\"tick code\" x=\"-8\" y=\"{middle}\" dy=\".32em\" \
                 text-anchor=\"end\">{}</text>",
                escape(site)
            );
            if let Some(mean) = self.mean(|_, s| s == *site) {
                svg += &format!(
                    "<text class=\"tick\" x=\"100%\" dx=\"8\" y=\"{middle}\" \
                     dy=\".32em\">{}</text>",
                    show(mean)
                );
            }
            for (column, layer) in self.layers.iter().enumerate() {
                let Some(value) = self.values.get(&(*layer, *site)) else { continue };
                svg += &format!(
                    "<rect class=\"cell\" x=\"{:.3}%\" y=\"{y}\" width=\"{width:.3}%\" \
                     height=\"{CELL}\" fill-opacity=\"{:.3}\"><title>layers.{layer}.{}: \
                     {}</title></rect>",
                    column as f64 * width,
                    0.04 + 0.96 * (value / most).clamp(0.0, 1.0),
                    escape(site),
                    show(*value),
                );
            }
        }
        let bottom = PROFILE + self.sites.len() as f64 * CELL;
        let (first, last) = (self.layers[0] as f64, self.layers[self.layers.len() - 1] as f64);
        for tick in ticks(first, last, 8) {
            let Some(column) = self.layers.iter().position(|l| *l as f64 == tick) else { continue };
            svg += &format!(
                "<text class=\"tick\" x=\"{:.3}%\" y=\"{}\" text-anchor=\"middle\">{tick}</text>",
                (column as f64 + 0.5) * width,
                bottom + 16.0,
            );
        }
        format!(
            "<div class=\"heat\"><svg role=\"img\" aria-label=\"{what} by layer and site\" \
             width=\"100%\" height=\"{}\">{svg}</svg><p class=\"ramp\"><span>0</span><i></i><span>{}\
             </span><span class=\"axis\">layer →</span></p></div>",
            bottom + 20.0,
            show(most),
        )
    }
}

/// The maps (relative norm; effective rank where known) and the table.
pub fn maps(changes: &[SiteChange]) -> String {
    let norms = Grid::new(changes, |c| Some(c.relative_norm));
    let ranks = Grid::new(changes, |c| c.effective_rank);
    let norms = norms.map(|g| g.svg("relative change", percent_even));
    let ranks = ranks.map(|g| g.svg("effective rank of the change", |r| format!("{r:.1}")));
    let mut out = match (norms, ranks) {
        (Some(norms), Some(ranks)) => format!(
            "<div class=\"switch\"><input type=\"radio\" name=\"heat\" id=\"heat-a\" checked><label \
             for=\"heat-a\">size of the change, ‖Δ‖ / ‖W‖</label><input type=\"radio\" \
             name=\"heat\" id=\"heat-b\"><label for=\"heat-b\">effective rank</label><div \
             class=\"a\">{norms}</div><div class=\"b\">{ranks}</div></div>"
        ),
        (Some(one), None) | (None, Some(one)) => one,
        (None, None) => String::new(),
    };
    out += &table(changes);
    out
}

fn table(changes: &[SiteChange]) -> String {
    let mut sites: Vec<&str> = Vec::new();
    let mut cells: BTreeMap<(usize, &str), &SiteChange> = BTreeMap::new();
    for c in changes {
        if let Some(layer) = c.layer {
            if !sites.contains(&c.site.as_str()) {
                sites.push(&c.site);
            }
            cells.insert((layer, &c.site), c);
        }
    }
    let say = |c: &SiteChange| {
        let rank = c.effective_rank.map(|r| format!(" <small>{r:.1}</small>"));
        format!("{}{}", percent_even(c.relative_norm), rank.unwrap_or_default())
    };
    let ranked = changes.iter().any(|c| c.effective_rank.is_some());
    let mut rows = String::new();
    for c in changes.iter().filter(|c| c.layer.is_none()) {
        rows += &format!(
            "<tr><th scope=\"row\" class=\"code\">{}</th><td colspan=\"{}\">{}</td></tr>",
            escape(&c.site),
            sites.len().max(1),
            say(c)
        );
    }
    let layers: BTreeSet<usize> = cells.keys().map(|k| k.0).collect();
    for layer in layers {
        rows += &format!("<tr><th scope=\"row\">{layer}</th>");
        for site in &sites {
            let cell = cells.get(&(layer, *site)).map_or_else(|| "–".into(), |c| say(c));
            rows += &format!("<td>{cell}</td>");
        }
        rows += "</tr>";
    }
    let head: String = sites
        .iter()
        .map(|s| format!("<th scope=\"col\" class=\"code\">{}</th>", escape(s)))
        .collect();
    let note = if ranked { ", with the effective rank in small" } else { "" };
    format!(
        "<details><summary>All numbers as a table</summary><p class=\"soft\">‖Δ‖ / ‖W‖{note}.</p>\
         <div class=\"wide\"><table class=\"numbers\"><thead><tr><th scope=\"col\">layer</th>{head}\
         </tr></thead><tbody>{rows}</tbody></table></div></details>"
    )
}

/// Where the most and the least changed, in a sentence.
pub fn sentence(changes: &[SiteChange]) -> String {
    let moved = || changes.iter().filter(|c| c.relative_norm.is_finite() && c.relative_norm > 0.0);
    let by = |a: &&SiteChange, b: &&SiteChange| a.relative_norm.total_cmp(&b.relative_norm);
    let (Some(most), Some(least)) = (moved().max_by(by), moved().min_by(by)) else {
        return String::new();
    };
    let name = |c: &SiteChange| match c.layer {
        Some(layer) => format!("<code>layers.{layer}.{}</code>", escape(&c.site)),
        None => format!("<code>{}</code>", escape(&c.site)),
    };
    format!(
        "Most at {} ({} of the weight’s own norm), least at {} ({}).",
        name(most),
        percent(most.relative_norm),
        name(least),
        percent(least.relative_norm),
    )
}
