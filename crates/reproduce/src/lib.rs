//! Small-scale checks of published claims: what `luthier reproduce NN` runs.
//!
//! A check trains small models from the published recipe, arm against arm over several seeds, and
//! says which of the claimed inequalities hold. See `docs/reproduce.md`.

use std::time::Instant;

use luthier_core::{Error, Result};
use serde::Serialize;

pub mod claim;
pub mod lab;
pub mod measure;
pub mod measured;
mod rates;
pub mod results;
pub mod small;
pub mod stats;
pub mod zoo;
/// One file per paper.
pub mod papers {
    pub mod p04;
    pub mod p07;
    pub mod p10;
    pub mod p11;
    pub mod p16;
    pub mod p17;
    pub mod p20;
    pub mod p22;
    pub mod p24;
    pub mod p25;
    pub mod p26;
    pub mod p27;
    pub mod p28;
    pub mod p29;
    pub mod p30;
    pub mod p36;
    pub mod p37;
    pub mod p38;
    pub mod p40;
    pub mod p41;
    pub mod p42;
    pub mod p43;
    pub mod p45;
    pub mod p47;
    pub mod p48;
    pub mod p50;
    pub mod p52;
    pub mod p54;
    pub mod p55;
    pub mod p60;
    pub mod p66;
    pub mod p69;
    pub mod p70;
    pub mod p72;
    pub mod p74;
    pub mod p76;
    pub mod p77;
}

pub use claim::{Inequality, Limit};
pub use lab::{Lab, Pretraining, recipe};
pub use measured::Measured;
pub use small::{Sizes, Small};
pub use stats::Estimate;

/// The check of one paper.
#[derive(Clone, Copy)]
pub struct Paper {
    /// Its number.
    pub number: u32,
    /// What the method is called.
    pub title: &'static str,
    /// What is claimed, in one sentence.
    pub claim: &'static str,
    /// The recipes whose settings are run.
    pub recipes: &'static [&'static str],
    /// Over how many seeds, unless somebody says otherwise.
    pub seeds: usize,
    /// Runs it.
    pub run: fn(&Lab) -> Result<Measured>,
}

/// Every check, by the number of its paper.
pub const PAPERS: &[Paper] = &[
    papers::p04::PAPER,
    papers::p07::PAPER,
    papers::p10::PAPER,
    papers::p11::PAPER,
    papers::p16::PAPER,
    papers::p17::PAPER,
    papers::p20::PAPER,
    papers::p22::PAPER,
    papers::p24::PAPER,
    papers::p25::PAPER,
    papers::p26::PAPER,
    papers::p27::PAPER,
    papers::p28::PAPER,
    papers::p29::PAPER,
    papers::p30::PAPER,
    papers::p36::PAPER,
    papers::p37::PAPER,
    papers::p38::PAPER,
    papers::p40::PAPER,
    papers::p41::PAPER,
    papers::p42::PAPER,
    papers::p43::PAPER,
    papers::p45::PAPER,
    papers::p47::PAPER,
    papers::p48::PAPER,
    papers::p50::PAPER,
    papers::p52::PAPER,
    papers::p54::PAPER,
    papers::p55::PAPER,
    papers::p60::PAPER,
    papers::p66::PAPER,
    papers::p69::PAPER,
    papers::p70::PAPER,
    papers::p72::PAPER,
    papers::p74::PAPER,
    papers::p76::PAPER,
    papers::p77::PAPER,
];

/// What came of a check: exactly what `luthier reproduce NN --json` prints.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Number of the paper.
    pub paper: u32,
    /// What is claimed.
    pub claim: String,
    /// Every arm's figures and every inequality.
    pub measured: Measured,
    /// Whether all essential inequalities hold.
    pub holds: bool,
    /// Over how many seeds.
    pub seeds: usize,
    /// How long it took.
    #[serde(serialize_with = "stats::short")]
    pub seconds: f64,
}

impl Paper {
    /// The check of paper `number`.
    pub fn find(number: u32) -> Result<&'static Paper> {
        PAPERS.iter().find(|paper| paper.number == number).ok_or_else(|| {
            let known: Vec<String> = PAPERS.iter().map(|p| format!("{:02}", p.number)).collect();
            Error::input(format!("paper {number:02}"), "there is no check for it")
                .hint(format!("there are checks for {}", known.join(", ")))
        })
    }

    /// Runs the check in `lab`.
    pub fn run(&self, lab: &Lab) -> Result<Report> {
        let begun = Instant::now();
        let measured = (self.run)(lab)?;
        Ok(Report {
            paper: self.number,
            claim: self.claim.to_string(),
            holds: measured.holds(),
            measured,
            seeds: lab.count(),
            seconds: begun.elapsed().as_secs_f64(),
        })
    }
}
