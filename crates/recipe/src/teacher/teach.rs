//! `luthier teach`: asking a teacher beforehand, and writing down what it says.

use luthier_core::{Error, Result, Row, Seed};
use luthier_loss::Unit;
use luthier_model::{
    Tokenizer,
    render::{RenderOptions, Rendered, render_table},
};
use serde::Serialize;

use super::{Aligned, Cache, Spoken, aligned, spans::translated, speak};
use crate::{
    decode::compare,
    evaluate::OnDone,
    prepare::{self, Prepared},
    schema::Data,
};

/// Rows as the student reads them, and what the teacher has said of them.
pub struct Lesson {
    /// The rows, of training and evaluation data.
    pub rows: Vec<Row>,
    /// What was said; of rows of a teacher with other tokens, in the student's.
    pub cache: Cache,
    /// The same as it was said, where both have the same tokens.
    pub spoken: Option<Vec<Spoken>>,
    /// Sizes.
    pub counts: Counts,
}

/// Sizes of what was said.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Counts {
    /// Rows with a trained target.
    pub rows: usize,
    /// Their trained targets.
    pub targets: usize,
    /// Of these, targets of which the teacher said anything.
    pub covered: usize,
    /// The mean probability of all that is stored for a target.
    pub mass: f64,
    /// Whether the teacher cuts text otherwise.
    pub across: bool,
}

/// Asks `teacher` (policy, tokenizer) about the rows that `data` gives a student.
pub fn teach(
    teacher: (&luthier_core::Policy, &Tokenizer),
    student: &Tokenizer,
    data: &Data,
    seed: Seed,
    k: usize,
    on_done: OnDone,
) -> Result<Lesson> {
    let (train, eval) = prepare::both(data, student, seed, Unit::Row)?;
    let sets: Vec<&Prepared> = [Some(&train), eval.as_ref()].into_iter().flatten().collect();
    let mut rows: Vec<Row> = sets.iter().flat_map(|set| set.rows.iter().cloned()).collect();
    let mut counts =
        Counts { across: compare("teacher", teacher.1, student).is_err(), ..Counts::default() };
    let mut cache = Cache::default();
    let mut spoken = None;
    if counts.across {
        let mut found: Vec<(Row, Aligned)> = Vec::new();
        for set in &sets {
            found.extend(of_set(set, student, teacher.1, data)?);
        }
        let asked: Vec<Row> = found.iter().map(|(_, aligned)| aligned.teacher.clone()).collect();
        let said = speak(teacher.0, &asked, k, on_done)?;
        let words = translated(teacher.1, student);
        let eos = student.eos().unwrap_or(luthier_loss::term::distil::NONE);
        for ((row, aligned), said) in found.iter().zip(&said) {
            let trained = row.targets.iter().zip(&row.weights).filter(|(_, w)| **w != 0.0);
            let targets: Vec<u32> = trained.map(|(target, _)| *target).collect();
            let told = aligned.told(said, &words, (eos, teacher.1.eos_ids()), &targets);
            counts.covered += aligned.covered().0;
            counts.targets += targets.len();
            cache.add(row, told);
        }
        rows = found.into_iter().map(|(row, _)| row).collect();
    } else {
        rows.retain(|row| row.trained() > 0);
        let said = speak(teacher.0, &rows, k, on_done)?;
        let mut mass = 0.0;
        for (row, said) in rows.iter().zip(&said) {
            mass += said.told.logps.iter().map(|logp| f64::from(*logp).exp()).sum::<f64>();
            counts.targets += row.trained();
            cache.add(row, said.told.clone());
        }
        (counts.covered, counts.mass) = (counts.targets, mass / counts.targets.max(1) as f64);
        spoken = Some(said);
    }
    counts.rows = rows.len();
    if counts.targets == 0 {
        return Err(Error::input(
            "--data",
            "no token of it is trained, so there is nothing to ask",
        ));
    }
    Ok(Lesson { rows, cache, spoken, counts })
}

/// The rows of a set with what a teacher of other tokens reads for them.
fn of_set(
    set: &Prepared,
    student: &Tokenizer,
    teacher: &Tokenizer,
    data: &Data,
) -> Result<Vec<(Row, Aligned)>> {
    if set.cut.over_length > 0 {
        let what = format!("{} rows were too long and cut or dropped", set.cut.over_length);
        return Err(Error::input(&set.table.name, what)
            .hint("across tokenizers whole rows are compared: raise max_length"));
    }
    if data.block_size.is_some() {
        let what = "texts laid end to end are cut elsewhere by other tokens";
        return Err(Error::input("data.block_size", what)
            .hint("leave it out, or take a teacher with the student's tokens"));
    }
    let options = RenderOptions { loss_on: data.loss_on };
    let both = [student, teacher].map(|t| render_table(&set.table, t, &options));
    let [ours, theirs]: [Result<Vec<Rendered>>; 2] = both;
    let mut found = Vec::new();
    for (own, other) in ours?.iter().zip(&theirs?) {
        if own.row.trained() > 0 {
            let at = set.origin(own.row.example);
            found.push((own.row.clone(), aligned(&at, (own, student), (other, teacher))?));
        }
    }
    Ok(found)
}
