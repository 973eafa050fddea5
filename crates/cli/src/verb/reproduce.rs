//! `luthier reproduce`: a paper's small-scale check.

use std::path::PathBuf;

use luthier_core::Result;
use luthier_reproduce::{Lab, PAPERS, Paper, Report, results};
use serde_json::{Value, json};

use crate::{
    out,
    verb::columns::{Side, aligned},
};

/// Arguments of `luthier reproduce`.
#[derive(clap::Args)]
pub struct Args {
    /// Number of the paper; without it, the papers that have a check are listed
    paper: Option<u32>,
    /// Seeds to run over, in place of the check's own number
    #[arg(long, requires = "paper")]
    seeds: Option<usize>,
    /// Print one JSON value: {"paper", "claim", "measured", "holds", "seeds", "seconds"}
    #[arg(long)]
    json: bool,
    /// Run as on a fresh machine, and put the figures into the file METHODS.md is made from
    #[arg(long, requires = "paper", value_name = "FILE", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = results::FILE)]
    record: Option<PathBuf>,
}

/// Runs the check, or lists those there are.
pub fn run(args: Args) -> Result<()> {
    let Some(number) = args.paper else { return list(args.json) };
    let paper = Paper::find(number)?;
    let say = |text: &str| out::say(text);
    let lab = Lab::new(args.seeds.unwrap_or(paper.seeds), args.record.is_some(), &say)?;
    out::say(&format!("paper {number:02}: {}, over {} seeds", paper.title, lab.count()));
    let report = paper.run(&lab)?;
    if let Some(path) = &args.record {
        results::record(path, paper, &report)?;
        out::say(&format!("recorded in {}; `.ci/run methods` takes it over", path.display()));
    }
    if args.json { out::json(&report) } else { out::data(&text(paper, &report)) }
}

fn list(machine_readable: bool) -> Result<()> {
    if machine_readable {
        let row = |p: &Paper| -> Value {
            json!({
                "paper": p.number, "title": p.title, "claim": p.claim, "recipes": p.recipes,
                "seeds": p.seeds,
            })
        };
        return out::json(&PAPERS.iter().map(row).collect::<Vec<Value>>());
    }
    let head = ["PAPER", "METHOD", "CLAIM"].map(str::to_string).to_vec();
    let row = |p: &Paper| vec![format!("{:02}", p.number), p.title.into(), p.claim.into()];
    let rows: Vec<Vec<String>> = std::iter::once(head).chain(PAPERS.iter().map(row)).collect();
    out::data(&aligned(&[Side::Left; 3], &rows))
}

/// What was claimed, what was measured, and whether it holds.
fn text(paper: &Paper, report: &Report) -> String {
    let measured = &report.measured;
    let table = measured.table();
    let sides: Vec<Side> = (0..table[0].len())
        .map(|column| if column == 0 { Side::Left } else { Side::Right })
        .collect();
    let mut text = format!(
        "paper {:02}  {}\nclaimed   {}\nmeasured  mean ± standard error over {} seeds, {:.0} s\n\n{}\n",
        paper.number,
        paper.title,
        paper.claim,
        report.seeds,
        report.seconds,
        aligned(&sides, &table)
    );
    for inequality in measured.inequalities() {
        text += &inequality.line();
        text.push('\n');
    }
    for note in measured.notes() {
        text += &format!("note {note}\n");
    }
    text + if report.holds { "\nholds\n" } else { "\ndoes not hold\n" }
}
