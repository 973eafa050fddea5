//! A call as Python writes it: a name and named literals.

use std::collections::BTreeMap;

/// What an argument may be.
#[derive(Clone, Debug)]
pub enum Value {
    /// `None`, or `null`.
    Nothing,
    /// `True`, or `false`.
    Bool(bool),
    /// A number; `1` and `1.0` are one.
    Number(f64),
    /// A text in quotes.
    Text(String),
    /// A list or tuple.
    List(Vec<Value>),
    /// A dictionary.
    Map(Vec<(Value, Value)>),
}

impl PartialEq for Value {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Value::Nothing, Value::Nothing) => true,
            (Value::Bool(a), Value::Bool(b)) => a == b,
            (Value::Number(a), Value::Number(b)) => a == b,
            (Value::Text(a), Value::Text(b)) => a == b,
            (Value::List(a), Value::List(b)) => a == b,
            // The order of keys means nothing.
            (Value::Map(a), Value::Map(b)) => {
                a.len() == b.len() && a.iter().all(|pair| b.contains(pair))
            }
            _ => false,
        }
    }
}

/// `name(argument=value, …)`.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// What is called.
    pub name: String,
    /// With what.
    pub arguments: BTreeMap<String, Value>,
}

/// Lists within lists: deeper ones are no call anybody meant, and must not end the program.
const DEEPEST: usize = 32;

impl Call {
    /// The call that a text is, white space around it aside; `None` if it is none. Every argument needs a
    /// name, and none may come twice.
    pub fn parse(text: &str) -> Option<Call> {
        let (name, rest) = text.trim().split_once('(')?;
        let name = name.trim();
        let plain = |c: char| c.is_alphanumeric() || "_-. ".contains(c);
        if name.is_empty() || !name.chars().all(plain) {
            return None;
        }
        let mut reader = Reader { rest };
        let mut arguments = BTreeMap::new();
        if !reader.eat(")") {
            loop {
                let (key, value) = (reader.name()?, reader.eat("=").then(|| reader.value(0))??);
                if arguments.insert(key, value).is_some() {
                    return None;
                }
                let comma = reader.eat(",");
                if reader.eat(")") {
                    break;
                }
                if !comma {
                    return None;
                }
            }
        }
        reader.rest.trim().is_empty().then(|| Call { name: name.to_string(), arguments })
    }
}

struct Reader<'a> {
    rest: &'a str,
}

impl Reader<'_> {
    /// Passes over white space and `token`, if it comes next.
    fn eat(&mut self, token: &str) -> bool {
        self.rest = self.rest.trim_start();
        match self.rest.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    /// What `kept` lets through, from the next visible character on.
    fn word(&mut self, kept: impl Fn(char) -> bool) -> &str {
        self.rest = self.rest.trim_start();
        let end = self.rest.find(|c| !kept(c)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word
    }

    fn name(&mut self) -> Option<String> {
        let name = self.word(|c| c.is_alphanumeric() || c == '_');
        (!name.is_empty() && !name.starts_with(|c: char| c.is_numeric())).then(|| name.to_string())
    }

    fn value(&mut self, depth: usize) -> Option<Value> {
        self.rest = self.rest.trim_start();
        if depth > DEEPEST {
            return None;
        }
        match self.rest.chars().next()? {
            quote @ ('\'' | '"') => self.text(quote).map(Value::Text),
            '[' => self.list('[', ']', depth).map(Value::List),
            '(' => self.list('(', ')', depth).map(Value::List),
            '{' => self.map(depth).map(Value::Map),
            _ => self.plain(),
        }
    }

    /// A number, or one of the named values.
    fn plain(&mut self) -> Option<Value> {
        let word = self.word(|c| c.is_alphanumeric() || "+-._".contains(c));
        match word {
            "None" | "null" => Some(Value::Nothing),
            "True" | "true" => Some(Value::Bool(true)),
            "False" | "false" => Some(Value::Bool(false)),
            // Rust reads names of numbers that Python does not.
            _ if word.contains(|c: char| c.is_ascii_digit()) => {
                word.replace('_', "").parse().ok().map(Value::Number)
            }
            _ => None,
        }
    }

    fn text(&mut self, quote: char) -> Option<String> {
        let triple = String::from(quote).repeat(3);
        let end = if self.rest.starts_with(&triple) { triple } else { String::from(quote) };
        self.rest = &self.rest[end.len()..];
        let mut text = String::new();
        loop {
            if let Some(rest) = self.rest.strip_prefix(end.as_str()) {
                self.rest = rest;
                return Some(text);
            }
            let mut chars = self.rest.chars();
            match chars.next()? {
                '\\' => match chars.next()? {
                    'n' => text.push('\n'),
                    't' => text.push('\t'),
                    'r' => text.push('\r'),
                    c @ ('\\' | '\'' | '"') => text.push(c),
                    '\n' => {}
                    // As Python does with an escape that it does not know.
                    other => text.extend(['\\', other]),
                },
                c => text.push(c),
            }
            self.rest = chars.as_str();
        }
    }

    fn list(&mut self, open: char, close: char, depth: usize) -> Option<Vec<Value>> {
        self.rest = self.rest.strip_prefix(open)?;
        let close = String::from(close);
        let mut items = Vec::new();
        if self.eat(&close) {
            return Some(items);
        }
        loop {
            items.push(self.value(depth + 1)?);
            let comma = self.eat(",");
            if self.eat(&close) {
                return Some(items);
            }
            if !comma {
                return None;
            }
        }
    }

    fn map(&mut self, depth: usize) -> Option<Vec<(Value, Value)>> {
        self.rest = self.rest.strip_prefix('{')?;
        let mut items: Vec<(Value, Value)> = Vec::new();
        if self.eat("}") {
            return Some(items);
        }
        loop {
            let key = self.value(depth + 1)?;
            let value = self.eat(":").then(|| self.value(depth + 1))??;
            // The last of equal keys counts.
            items.retain(|(known, _)| *known != key);
            items.push((key, value));
            let comma = self.eat(",");
            if self.eat("}") {
                return Some(items);
            }
            if !comma {
                return None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn argument(text: &str) -> Option<Value> {
        Call::parse(&format!("f(x={text})")).map(|call| call.arguments["x"].clone())
    }

    #[test]
    fn literals_are_pythons() {
        let text = |text: &str| Some(Value::Text(text.into()));
        assert_eq!(argument("'a, (b) = c'"), text("a, (b) = c"));
        assert_eq!(argument(r#""it's \"so\"\n\q""#), text("it's \"so\"\n\\q"));
        assert_eq!(argument("'''two 'words' '''"), text("two 'words' "));
        assert_eq!(argument("''"), text(""));
        assert_eq!(argument("-1_000.50"), Some(Value::Number(-1000.5)));
        assert_eq!(argument("1"), argument("1.0"));
        assert_eq!(argument("2e3"), Some(Value::Number(2000.0)));
        assert_eq!(
            (argument("True"), argument("None")),
            (Some(Value::Bool(true)), Some(Value::Nothing))
        );
        assert_eq!(argument("[1, 'a', (True,), ]"), argument("[1.0, \"a\", [True]]"));
        assert_eq!(argument("{'a': 1, 'b': []}"), argument("{'b': [], 'a': 1,}"));
        assert_ne!(argument("[1, 2]"), argument("[2, 1]"));
        assert_ne!(argument("'1'"), argument("1"));
    }

    #[test]
    fn calls_have_named_arguments_each_once() {
        let call = Call::parse("  get papers by(author='Ada', year=1843)  ").unwrap();
        assert_eq!((call.name.as_str(), call.arguments.len()), ("get papers by", 2));
        assert!(Call::parse("f()").unwrap().arguments.is_empty());
        for text in [
            "f",
            "f(",
            "(x=1)",
            "f(1)",
            "f(x)",
            "f(x=1, x=2)",
            "f(x=1 y=2)",
            "f(x=1))",
            "f(x=1) done",
            "f(x='a)",
            "f(x=y)",
            "f(x=nan)",
            "f(x=[1,,2])",
            "f(,)",
            "f(x=)",
            "Sure! f(x=1)",
            "f(x={1})",
        ] {
            assert_eq!(Call::parse(text), None, "{text}");
        }
        assert_eq!(argument(&format!("{}{}", "[".repeat(9999), "]".repeat(9999))), None);
    }

    #[test]
    fn any_text_has_an_answer() {
        let pieces = "( ) [ ] { } , : = ' \" \\ a 1 . - é";
        let pieces: Vec<&str> = pieces.split(' ').chain([" ", "aaa"]).collect();
        let mut rng = luthier_core::Seed(3).rng();
        for n in 0..4000 {
            let text: String = (0..n % 24).map(|_| pieces[rng.below(pieces.len())]).collect();
            let _ = Call::parse(&text);
            let _ = Call::parse(&format!("f(x={text}"));
        }
    }
}
