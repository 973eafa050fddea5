//! `{% generation %}` blocks: accepted by rewriting the tags, found again in the output.
//!
//! A block becomes a `{% with %}` scope whose first and last output is a Unicode noncharacter.
//! Noncharacters are never exchanged as text, so they can be taken out again without loss.

use super::Text;

const OPEN: char = '\u{FDD0}';
const CLOSE: char = '\u{FDD1}';

/// Rewrites the tags and says whether there were any. Line numbers stay as they are.
pub fn prepare(source: &str) -> (String, bool) {
    let mut out = String::with_capacity(source.len() + 128);
    let (mut rest, mut marked) = (source, false);
    while let Some(begin) = rest.find("{%") {
        let Some(length) = rest[begin..].find("%}") else { break };
        let tag = &rest[begin..begin + length + 2];
        let inner = &tag[2..tag.len() - 2];
        let left = if inner.starts_with(['-', '+']) { &inner[..1] } else { "" };
        let body = &inner[left.len()..];
        let right = if body.ends_with(['-', '+']) { &body[body.len() - 1..] } else { "" };
        let word = body[..body.len() - right.len()].trim();
        out.push_str(&rest[..begin]);
        // The outer tags keep the author's whitespace signs; between them there is no whitespace.
        match word {
            "generation" => {
                marked = true;
                out.push_str(&format!(
                    "{{%{left} with %}}{{{{ '{OPEN}' }}}}{{% set _ = 0 {right}%}}"
                ));
            }
            "endgeneration" => {
                out.push_str(&format!(
                    "{{%{left} set _ = 0 %}}{{{{ '{CLOSE}' }}}}{{% endwith {right}%}}"
                ));
            }
            _ => out.push_str(tag),
        }
        rest = &rest[begin + length + 2..];
    }
    out.push_str(rest);
    (out, marked)
}

/// Takes the marks out of rendered text and returns where the blocks were.
pub fn collect(rendered: &str) -> Text {
    let mut found = Text { text: String::with_capacity(rendered.len()), generation: Vec::new() };
    let mut open = None;
    for c in rendered.chars() {
        match c {
            OPEN => open = Some(found.text.len()),
            CLOSE => {
                if let Some(begin) = open.take() {
                    found.generation.push(begin..found.text.len());
                }
            }
            c => found.text.push(c),
        }
    }
    found
}
