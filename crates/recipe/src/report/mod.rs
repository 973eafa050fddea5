//! `report.html`: what a run did, for a person to read.
//!
//! One file without any outside reference: style, charts (SVG) and a few lines of script are
//! inline, and a content security policy forbids everything else. It works without script. A part
//! that was not measured is left out. The same facts go to `report.json`, from which the page can
//! be made again.

mod answers;
mod axis;
mod data;
mod figures;
mod heat;
mod intervals;
mod lines;
mod page;
mod sections;
mod summary;
mod words;

use std::path::{Path, PathBuf};

use luthier_core::{
    Error, Result,
    io::{read_json, write_bytes, write_json},
};

pub use data::{
    Answer, Artefact, CurvePoint, Cut, DataFile, EvalPoint, Fact, Field, General, Measured, Method,
    ModelFacts, Paired, ReportData, Resources, SiteChange, Stage, Task, from_metrics,
};

/// File name of the page inside a run directory.
pub const REPORT_HTML: &str = "report.html";
/// File name of the facts it is made from.
pub const REPORT_JSON: &str = "report.json";

/// The whole page.
pub fn render(data: &ReportData) -> String {
    page::page(data)
}

/// Writes `report.json` and `report.html` into `dir`; returns the path of the page.
pub fn write(dir: &Path, data: &ReportData) -> Result<PathBuf> {
    write_json(&dir.join(REPORT_JSON), data)?;
    let path = dir.join(REPORT_HTML);
    write_bytes(&path, render(data).as_bytes())?;
    Ok(path)
}

/// Reads `report.json` of a run directory.
pub fn read(dir: &Path) -> Result<ReportData> {
    let path = dir.join(REPORT_JSON);
    if !path.exists() {
        let what = format!("holds no {REPORT_JSON}");
        return Err(Error::input(dir.display().to_string(), what)
            .hint("give the output folder of a finished run"));
    }
    read_json(&path)
}

/// One sentence (or two) of plain English: what the tuning brought and what it cost.
pub fn headline(data: &ReportData) -> String {
    summary::headline(data)
}

#[cfg(test)]
mod fixture;
#[cfg(test)]
mod tests;
