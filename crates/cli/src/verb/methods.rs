//! `luthier methods`: what recipes can name.

use luthier_core::{Error, Result, nearest::suggest};
use luthier_recipe::methods::{self, MethodRow};

use crate::{
    out,
    verb::columns::{Side, aligned},
};

/// Arguments of `luthier methods`.
#[derive(clap::Args)]
pub struct Args {
    /// Show only this method, with its place in a recipe
    name: Option<String>,
    /// Print one JSON value: a list of {"paper", "name", "seam", "about", "recipe"}
    #[arg(long)]
    json: bool,
}

/// Lists the methods.
pub fn run(args: Args) -> Result<()> {
    let all = methods::all();
    let Some(name) = &args.name else {
        return if args.json { out::json(&all) } else { out::data(&table(&all)) };
    };
    let found: Vec<MethodRow> =
        all.iter().copied().filter(|m| full(m) == *name || m.name == name).collect();
    if found.is_empty() {
        return Err(Error::input(name, "no method has this name")
            .hint(suggest(name, all.iter().map(|m| m.name))));
    }
    if args.json {
        return out::json(&found);
    }
    let details: Vec<String> = found.iter().map(details).collect();
    out::data(&details.join("\n"))
}

fn full(method: &MethodRow) -> String {
    format!("{}.{}", method.seam, method.name)
}

fn paper(method: &MethodRow) -> String {
    method.paper.map_or_else(|| "–".to_string(), |n| format!("{n:02}"))
}

fn table(all: &[MethodRow]) -> String {
    let head = ["SEAM", "NAME", "PAPER", "WHAT IT DOES"].map(str::to_string).to_vec();
    let row = |m: &MethodRow| vec![m.seam.into(), m.name.into(), paper(m), m.about.into()];
    let rows: Vec<Vec<String>> = std::iter::once(head).chain(all.iter().map(row)).collect();
    aligned(&[Side::Left; 4], &rows)
}

fn details(method: &MethodRow) -> String {
    let mut rows = vec![
        vec!["does".to_string(), method.about.to_string()],
        vec!["seam".to_string(), method.seam.to_string()],
    ];
    if let Some(place) = methods::place(method.seam, method.name) {
        let key = match method.seam {
            "data" => format!("[[data.steps]] with the key {}", method.name),
            "weights" => methods::merge_key(method.name),
            "probe" => format!("{place} = \"{}\"", method.name),
            _ => format!("[{place}.{}]", method.name),
        };
        rows.push(vec!["in a recipe".to_string(), key]);
    }
    rows.push(vec!["paper".to_string(), paper(method)]);
    if let Some(recipe) = method.recipe {
        rows.push(vec!["used by".to_string(), recipe.to_string()]);
    }
    format!("{}\n{}", full(method), aligned(&[Side::Left; 2], &rows))
}
