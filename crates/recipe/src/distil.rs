//! On-policy distillation (Agarwal et al. 2024, GKD): a share `lmbda` of the steps reads answers of the
//! student itself in the place of the data's, and the teacher judges these.
//!
//! Whether a step does, and what is answered, follows from the seed and the number of the step.
//! **Departures** from TRL's trainer: (1) a prompt ends where the first trained answer begins, and of a
//! conversation with several only the first is answered; (2) a prompt that leaves no room for an answer
//! keeps the data's.

use luthier_core::Row;
use luthier_decode::{Generate, Sampler, generate};
use luthier_loss::Distil;
use luthier_model::Tokenizer;
use luthier_train::{Draw, Drawn};

use crate::text::Text;

/// Prompts that are answered at a time, and so sequences that are read in one pass of decoding.
const ANSWERED: usize = 32;

/// What is done to the rows of a step before `then`: some steps' answers are made anew.
pub fn draw<'a>(
    distil: Option<&'a Distil>,
    tokenizer: &'a Tokenizer,
    max_context: usize,
    then: Option<Box<Draw<'a>>>,
) -> Option<Box<Draw<'a>>> {
    let Some(distil) = distil.filter(|distil| distil.lmbda > 0.0) else { return then };
    Some(Box::new(move |drawn: Drawn| {
        let Drawn { step, of, seed, policy, rows } = drawn;
        let own = seed.split("on-policy");
        // Half open on the side of 1, so that a share of 1 is every step and one of 0 none.
        let rows = match own.rng().uniform() < distil.lmbda {
            true => {
                let options = Generate {
                    max_new_tokens: distil.max_new_tokens,
                    max_context,
                    max_batch: ANSWERED,
                    eos: tokenizer.eos_ids().to_vec(),
                    sampler: Sampler {
                        temperature: distil.sampling_temperature as f32,
                        seed: own.split("answers").0,
                        ..Sampler::default()
                    },
                    ..Generate::default()
                };
                let behind = policy.hooks.virtual_tokens;
                let prompts: Vec<Vec<u32>> = rows.iter().map(|row| prompt(row, behind)).collect();
                let answers =
                    generate(policy, &prompts, &options, &Text(tokenizer), &mut |_, _, _| ())?;
                let answered = rows.into_iter().zip(prompts).zip(answers);
                answered
                    .map(|((row, prompt), answer)| with(row, prompt, &answer.tokens, behind))
                    .collect()
            }
            false => rows,
        };
        let drawn = Drawn { step, of, seed, policy, rows };
        match &then {
            Some(then) => then(drawn),
            None => Ok(drawn.rows),
        }
    }))
}

/// The tokens before the first trained one, without placeholders for virtual tokens.
fn prompt(row: &Row, behind: usize) -> Vec<u32> {
    let first = row.weights.iter().position(|w| *w != 0.0).unwrap_or(row.len().saturating_sub(1));
    row.ids.get(behind..=first).unwrap_or_default().to_vec()
}

/// The row with another answer to its prompt, if there is one.
fn with(row: Row, prompt: Vec<u32>, answer: &[u32], behind: usize) -> Row {
    if answer.is_empty() || prompt.is_empty() {
        return row;
    }
    let weights = [vec![0.0; prompt.len()], vec![1.0; answer.len()]].concat();
    let made = Row::from_tokens(&[&prompt, answer].concat(), &weights, row.example);
    let Row { ids, targets, weights, .. } = made;
    // Marks and stored words belong to the targets that are gone.
    Row { ids, targets, weights, tags: Vec::new(), teacher: None, ..row }.behind(behind)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> Row {
        Row { task: 3, ..Row::from_tokens(&[5, 6, 7, 8, 9], &[0.0, 0.0, 0.0, 1.0, 1.0], 4) }
    }

    #[test]
    fn another_answer_stands_behind_the_same_prompt() {
        assert_eq!(prompt(&row(), 0), [5, 6, 7]);
        let made = with(row(), prompt(&row(), 0), &[1, 2, 3], 0);
        assert_eq!(
            (made.ids.as_slice(), made.targets.as_slice()),
            (&[5, 6, 7, 1, 2][..], &[6, 7, 1, 2, 3][..])
        );
        assert_eq!(made.weights, [0.0, 0.0, 1.0, 1.0, 1.0]);
        assert_eq!((made.example, made.task), (4, 3));
        assert_eq!(with(row(), prompt(&row(), 0), &[], 0), row());
    }

    #[test]
    fn placeholders_stay_in_front_and_are_not_read_as_tokens() {
        let placed = row().behind(2);
        assert_eq!(prompt(&placed, 2), [5, 6, 7]);
        let made = with(placed, vec![5, 6, 7], &[1], 2);
        assert_eq!(made.ids, [0, 0, 5, 6, 7]);
        assert_eq!(made.weights, [0.0, 0.0, 0.0, 0.0, 1.0]);
        assert_eq!(made.targets[4], 1);
    }
}
