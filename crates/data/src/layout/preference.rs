//! A better and a worse answer to one prompt: two completions with the mark `chosen` 1 and 0.
//!
//! Three ways of saying the prompt are known. It has a column of its own; or both answers are whole
//! conversations (message lists, or `Human:`/`Assistant:` text) and share their beginning; or both
//! are whole raw texts, whose common beginning up to the last white space is the prompt.

use luthier_core::{Completion, Form, Result, Turn};

use super::{
    Parts,
    cells::{Cells, Said},
    prompt_completion::{check, untrained},
    recognise::completion,
};

pub(super) fn read(cells: &mut Cells, form: Option<Form>) -> Result<Parts> {
    let prompt = cells.said("prompt", "user")?;
    let input = cells.text("input")?.filter(|s| !s.trim().is_empty());
    let (Some(chosen), Some(rejected)) =
        (cells.said("chosen", "assistant")?, cells.said("rejected", "assistant")?)
    else {
        return Err(cells.error("chosen and rejected are not both there"));
    };
    let scores = [score(cells, "score_chosen")?, score(cells, "score_rejected")?];
    let whole = |said: &Said| !said.plain && said.turns[0].role != "assistant";
    let dialogue = |said: &Said| said.plain && parse(&said.turns[0].content).is_some();
    let mut parts = if whole(&chosen) && whole(&rejected) {
        check(cells, &chosen, form)?;
        check(cells, &rejected, form)?;
        shared(cells, prompt, chosen.turns, rejected.turns)?
    } else if prompt.is_none()
        && dialogue(&chosen)
        && dialogue(&rejected)
        && form != Some(Form::Raw)
    {
        let turns = |said: &Said| parse(&said.turns[0].content).unwrap_or_default();
        let (a, b) = (turns(&chosen), turns(&rejected));
        check(cells, &Said { column: chosen.column, turns: a.clone(), plain: false }, form)?;
        check(cells, &Said { column: rejected.column, turns: b.clone(), plain: false }, form)?;
        shared(cells, None, a, b)?
    } else if let Some(mut prompt) = prompt {
        check(cells, &chosen, form)?;
        check(cells, &rejected, form)?;
        if form == Some(Form::Raw) && !prompt.plain {
            return Err(
                cells.wrong(prompt.column, "form = \"raw\" expects text, found a list of messages")
            );
        }
        if prompt.plain && prompt.turns[0].content.trim().is_empty() {
            return Err(cells.wrong(prompt.column, "the prompt is empty"));
        }
        if let (Some(input), true) = (input, prompt.plain) {
            prompt.turns[0].content += &format!("\n{input}");
        }
        let answers = vec![completion(chosen.turns), completion(rejected.turns)];
        Parts { prompt: prompt.turns, completions: answers, form: form.unwrap_or_default() }
    } else if chosen.plain && rejected.plain && form != Some(Form::Chat) {
        raw(cells, &chosen, &rejected)?
    } else {
        return Err(cells
            .error("chosen and rejected have no prompt in common")
            .hint("name its column, as in columns.prompt = \"…\""));
    };
    untrained(&mut parts.prompt);
    for (answer, (mark, score)) in
        parts.completions.iter_mut().zip([1.0, 0.0].into_iter().zip(scores))
    {
        answer.marks.insert("chosen".to_owned(), mark);
        answer.marks.extend(score.map(|score| ("score".to_owned(), score)));
    }
    Ok(parts)
}

fn score(cells: &mut Cells, role: &str) -> Result<Option<f64>> {
    let Some((column, value)) = cells.take(role) else { return Ok(None) };
    match value.as_f64() {
        Some(score) => Ok(Some(score)),
        None => {
            Err(cells
                .wrong(column, format!("expected a number, found {}", super::describe(&value))))
        }
    }
}

/// The prompt is what two conversations share, short of the last turn of either.
fn shared(cells: &Cells, prompt: Option<Said>, a: Vec<Turn>, b: Vec<Turn>) -> Result<Parts> {
    let most = a.len().min(b.len()).saturating_sub(1);
    let common = (0..most).find(|i| a[*i] != b[*i]).unwrap_or(most);
    if common == 0 {
        return Err(cells
            .error("chosen and rejected begin with different turns")
            .hint("they must be conversations with the same beginning"));
    }
    if let Some(said) = prompt {
        let asked = a[..common].iter().rev().find(|turn| turn.role == "user");
        let agrees = if said.plain {
            asked.is_none_or(|turn| turn.content.trim() == said.turns[0].content.trim())
        } else {
            a[..common].starts_with(&said.turns) || said.turns.starts_with(&a[..common])
        };
        if !agrees {
            let what = "is not what chosen and rejected begin with";
            return Err(cells.wrong(said.column, what));
        }
    }
    let rest =
        |turns: Vec<Turn>| -> Completion { completion(turns.into_iter().skip(common).collect()) };
    let prompt = a[..common].to_vec();
    Ok(Parts { prompt, completions: vec![rest(a), rest(b)], form: Form::Chat })
}

/// The common beginning of two texts, cut back to white space so that no word is torn.
fn raw(cells: &Cells, chosen: &Said, rejected: &Said) -> Result<Parts> {
    let (a, b) = (&chosen.turns[0].content, &rejected.turns[0].content);
    let common: usize =
        a.chars().zip(b.chars()).take_while(|(x, y)| x == y).map(|(x, _)| x.len_utf8()).sum();
    let cut =
        a[..common].char_indices().rev().find(|(_, c)| c.is_whitespace()).map_or(0, |(i, _)| i);
    if a[cut..].trim().is_empty() || b[cut..].trim().is_empty() {
        return Err(
            cells.error("one of chosen and rejected is nothing but the beginning of the other")
        );
    }
    let prompt = if cut == 0 { Vec::new() } else { vec![Turn::new("user", &a[..cut])] };
    let answer = |text: &str| completion(vec![Turn::new("assistant", &text[cut..])]);
    Ok(Parts { prompt, completions: vec![answer(a), answer(b)], form: Form::Raw })
}

/// `\n\nHuman: …\n\nAssistant: …` as turns.
fn parse(text: &str) -> Option<Vec<Turn>> {
    const MARKS: [(&str, &str); 2] = [("\n\nHuman:", "user"), ("\n\nAssistant:", "assistant")];
    let text = format!("\n\n{}", text.trim_start());
    let mut starts: Vec<(usize, &str, &str)> = MARKS
        .iter()
        .flat_map(|(mark, role)| text.match_indices(mark).map(move |(i, _)| (i, *mark, *role)))
        .collect();
    starts.sort_unstable();
    let (first, _, role) = *starts.first()?;
    if first != 0 || role != "user" {
        return None;
    }
    let ends = starts.iter().skip(1).map(|s| s.0).chain([text.len()]);
    let turns = starts
        .iter()
        .zip(ends)
        .map(|((start, mark, role), end)| Turn::new(*role, text[start + mark.len()..end].trim()));
    Some(turns.collect())
}
