//! What is refused instead of being trained silently wrong, and the proof that training and
//! serving read the same ids.

use luthier_core::{Error, Example, Form, Result};

use super::{LossOn, RenderOptions, Rendered, generation_prompt, locate, render};
use crate::tokenizer::Tokenizer;

pub fn refuse(
    rendered: &Rendered,
    form: Form,
    tokenizer: &Tokenizer,
    options: &RenderOptions,
) -> Result<()> {
    let at = tokenizer.name();
    let ids = &rendered.tokens;
    let spelt = |id: u32| tokenizer.token(id).unwrap_or_else(|| id.to_string());
    if let Some(bos) = tokenizer.bos()
        && let Some(i) = ids.windows(2).position(|pair| pair == [bos, bos])
    {
        let what = format!(
            "the beginning-of-text token {} stands twice in a row (tokens {i} and {})",
            spelt(bos),
            i + 1
        );
        return Err(Error::input(at, what)
            .hint("the chat template writes it already: take it out of the text"));
    }
    if rendered.row.trained() == 0 {
        return Err(Error::input(at, "no token of this row would be trained").hint(
            "every turn is switched off, or the answer is empty; drop the row or set `weight` on a turn",
        ));
    }
    let odd = [("padding", tokenizer.pad()), ("unknown", tokenizer.unk())];
    for (kind, token) in odd.into_iter().filter_map(|(kind, id)| Some((kind, id?))) {
        if tokenizer.eos_ids().contains(&token) || tokenizer.bos() == Some(token) {
            continue;
        }
        let trained =
            ids.iter().zip(&rendered.weights).position(|(id, w)| *id == token && *w != 0.0);
        if let Some(i) = trained {
            let what = format!("the {kind} token {} would be trained (token {i})", spelt(token));
            let hint = if kind == "unknown" {
                "the vocabulary cannot spell this text: clean it, or use another model"
            } else {
                "a padding token in the text is a leftover of another tool: remove it"
            };
            return Err(Error::input(at, what).hint(hint));
        }
    }
    if form == Form::Chat && options.loss_on != LossOn::All {
        ends(rendered, tokenizer)?;
    }
    Ok(())
}

/// Every trained assistant turn must train the token that ends it.
fn ends(rendered: &Rendered, tokenizer: &Tokenizer) -> Result<()> {
    for span in rendered.spans.iter().filter(|s| s.role == "assistant" && s.weight != 0.0) {
        let inside =
            rendered.offsets.iter().rposition(|o| !o.is_empty() && o.end <= span.range.end);
        let last = inside.map(|i| rendered.tokens[i]);
        if !last.is_some_and(|id| tokenizer.is_special(id) || tokenizer.eos_ids().contains(&id)) {
            let what = format!(
                "the end of turn {} would never be trained: no end-of-turn token follows it",
                span.turn + 1
            );
            return Err(Error::input(tokenizer.name(), what).hint(
                "a model trained so never stops talking; the chat template must close the assistant's turn with a special token",
            ));
        }
    }
    Ok(())
}

/// Proves that serving will read what training read: the ids of the generation prompt are how the
/// training ids begin, and what follows them is the answer up to a token that ends it.
pub fn parity(example: &Example, tokenizer: &Tokenizer) -> Result<()> {
    let at = example.origin.to_string();
    let prompt = generation_prompt(example, tokenizer)?;
    let options = RenderOptions { loss_on: LossOn::Last };
    for completion in 0..example.completions.len() {
        let rendered = render(example, completion, tokenizer, &options)?;
        let ids = &rendered.tokens;
        if !ids.starts_with(&prompt) {
            let i = ids.iter().zip(&prompt).take_while(|(a, b)| a == b).count();
            let text = |ids: &[u32]| tokenizer.decode_all(ids).unwrap_or_default();
            let end = |n: usize| n.min(i + 8);
            let what = format!(
                "training and serving differ from token {i} on: {:?} against {:?}",
                text(&ids[i..end(ids.len())]),
                text(&prompt[i..end(prompt.len())])
            );
            return Err(Error::input(at, what).hint("the chat template renders the prompt differently once it is answered; earlier turns or the opening of the answer change"));
        }
        // A single turn answers a served prompt; several have tool turns between that serving adds.
        if example.completions[completion].turns.len() > 1 {
            continue;
        }
        let answer = &ids[prompt.len()..];
        let stop = answer.iter().position(|id| tokenizer.eos_ids().contains(id));
        let trained = rendered.weights.iter().rposition(|w| *w != 0.0);
        if stop.map(|i| i + prompt.len()) != trained {
            let what = "serving would stop elsewhere than at the last trained token";
            return Err(locate(Error::input(tokenizer.name(), what), &at).hint(
                "an end-of-turn token inside the answer, or one that eos_token_id does not list",
            ));
        }
    }
    Ok(())
}
