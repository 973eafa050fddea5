//! Just enough of Rust's grammar to tell code from comments and texts, and tests from the rest.

use std::ops::Range;

/// The same text with comments, and what stands between quotes, replaced by blanks. Line ends stay,
/// so that line numbers do.
pub fn code(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    let mut before = ' ';
    while let Some(c) = rest.chars().next() {
        let word = before.is_alphanumeric() || before == '_';
        let (kept, hidden, end) = if rest.starts_with("//") {
            (0, rest.find('\n').unwrap_or(rest.len()), 0)
        } else if rest.starts_with("/*") {
            (0, comment(rest), 0)
        } else if let Some((open, close)) = (!word).then(|| raw_string(rest)).flatten() {
            let body = rest[open..].find(&close).unwrap_or(rest.len() - open);
            (open, body, close.len())
        } else if c == '"' {
            (1, quoted(&rest[1..], '"'), 1)
        } else if c == '\'' && is_char(rest) {
            (1, quoted(&rest[1..], '\''), 1)
        } else {
            (c.len_utf8(), 0, 0)
        };
        out.push_str(&rest[..kept]);
        rest[kept..kept + hidden].chars().for_each(|c| out.push(if c == '\n' { c } else { ' ' }));
        let end = (kept + hidden + end).min(rest.len());
        out.push_str(&rest[kept + hidden..end]);
        before = rest[..end].chars().next_back().unwrap_or(c);
        rest = &rest[end..];
    }
    out
}

/// Bytes of a block comment, which may hold others.
fn comment(text: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < text.len() {
        if text[at..].starts_with("/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if text[at..].starts_with("*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                return at;
            }
        } else {
            at += text[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    text.len()
}

/// Bytes of a raw string's opening (`br##"`), and its closing.
fn raw_string(text: &str) -> Option<(usize, String)> {
    let prefix = ["r", "br", "cr"].into_iter().find(|p| {
        let after = text.strip_prefix(p).map(|t| t.trim_start_matches('#'));
        after.is_some_and(|t| t.starts_with('"'))
    })?;
    let hashes = text[prefix.len()..].bytes().take_while(|b| *b == b'#').count();
    Some((prefix.len() + hashes + 1, format!("\"{}", "#".repeat(hashes))))
}

/// Bytes up to the closing quote.
fn quoted(text: &str, close: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == close => return at,
            _ => {}
        }
    }
    text.len()
}

/// Whether a quote opens a character rather than naming a lifetime.
fn is_char(text: &str) -> bool {
    let mut chars = text.chars().skip(1);
    matches!((chars.next(), chars.next()), (Some('\\'), _) | (Some(_), Some('\'')))
}

/// Blanks out what is compiled for tests only, and lists the modules (`mod tests;`) that stand in
/// files of their own.
pub fn without_tests(code: &str) -> (String, Vec<String>) {
    const MARK: &str = "#[cfg(test)]";
    let mut kept = code.to_owned();
    let mut modules = Vec::new();
    let mut from = 0;
    while let Some(at) = code[from..].find(MARK).map(|at| from + at) {
        let after = at + MARK.len();
        let stop = code[after..].find(['{', ';']).map_or(code.len(), |i| after + i);
        let end = if code[stop..].starts_with('{') { braces(code, stop).end } else { stop + 1 };
        let item = code[after..stop].split_whitespace().collect::<Vec<_>>();
        if let ([.., "mod", name], true) = (&item[..], code[stop..].starts_with(';')) {
            modules.push((*name).to_owned());
        }
        let end = end.min(code.len());
        let blank = |c: char| if c == '\n' { '\n' } else { ' ' };
        let hidden: String = code[at..end].bytes().map(|b| blank(char::from(b))).collect();
        kept.replace_range(at..end, &hidden);
        from = end;
    }
    (kept, modules)
}

/// From an opening brace to behind the one that closes it.
pub fn braces(code: &str, open: usize) -> Range<usize> {
    let mut depth = 0;
    for (at, c) in code[open..].char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return open..open + at + 1;
        }
    }
    open..code.len()
}

/// Whether `word` stands in `code` by itself.
pub fn has_word(code: &str, word: &str) -> bool {
    let part = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    code.match_indices(word).any(|(at, _)| {
        !part(code[..at].chars().next_back()) && !part(code[at + word.len()..].chars().next())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_texts_are_blanked_and_lines_stay() {
        let text = "a(); // unsafe\n/* x /* y */ unsafe */ b(\"unsafe \\\" {\", 'u');\nc::<'a>(r#\"un\"safe\"#);";
        let code = code(text);
        assert_eq!(code.lines().count(), 3);
        assert!(!code.contains("safe") && !code.contains('u') && !code.contains('{'), "{code}");
        for kept in ["a();", "b(\"", "\", ' ');", "c::<'a>(r#\"", "\"#);"] {
            assert!(code.contains(kept), "{kept} in {code}");
        }
        assert_eq!(super::code("f('\\'', b'x', \"\")"), "f('  ', b' ', \"\")");
        assert_eq!(super::code("for\"x\" 'é' é"), "for\" \" ' ' é");
    }

    #[test]
    fn tests_are_cut_out() {
        let text = "fn a() { x }\n#[cfg(test)]\nmod tests {\n fn b() { y.unwrap() }\n}\n\
            fn c() {}\n#[cfg(test)]\nmod more;\n";
        let (kept, modules) = without_tests(text);
        assert!(kept.contains("fn a() { x }") && kept.contains("fn c() {}"));
        assert!(!kept.contains("unwrap") && !kept.contains("more"));
        assert_eq!((kept.len(), modules), (text.len(), vec!["more".to_owned()]));
    }

    #[test]
    fn words_are_whole() {
        assert!(has_word("use serde::X;", "serde") && has_word("(gemm", "gemm"));
        assert!(!has_word("use serde_json::X;", "serde") && !has_word("my_serde::X", "serde"));
    }
}
