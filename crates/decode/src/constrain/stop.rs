//! Stop strings, and the text held back so that no part of one is ever shown.

/// Watches a growing text for stop strings.
///
/// Text that could still become a stop string is held: after `"Hello\nUs"` with the stop string
/// `"\nUser:"` only `"Hello"` is out.
#[derive(Clone, Debug, Default)]
pub struct Stops {
    strings: Vec<String>,
    held: String,
}

impl Stops {
    /// Watches for `strings`, none of which may be empty.
    pub fn new(strings: &[String]) -> Self {
        assert!(strings.iter().all(|s| !s.is_empty()), "an empty string stops everything");
        Stops { strings: strings.to_vec(), held: String::new() }
    }

    /// Adds `piece`; the text that is now safe to show, and whether a stop string was completed.
    /// Of several, the one completed first counts, so how the text was cut into pieces does not.
    pub fn push(&mut self, piece: &str) -> (String, bool) {
        self.held.push_str(piece);
        let found = self.strings.iter().filter_map(|s| Some((self.held.find(s)?, s.len())));
        if let Some((at, _)) = found.min_by_key(|(at, len)| (at + len, *at)) {
            let mut safe = std::mem::take(&mut self.held);
            safe.truncate(at);
            return (safe, true);
        }
        let keep = self.unsafe_from();
        let rest = self.held.split_off(keep);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// The held text, once nothing more can come.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Where the longest ending that begins a stop string starts.
    fn unsafe_from(&self) -> usize {
        let longest = self.strings.iter().map(String::len).max().unwrap_or(1) - 1;
        let mut starts = self.held.char_indices().map(|(at, _)| at);
        let from = self.held.len().saturating_sub(longest);
        starts
            .find(|at| *at >= from && self.strings.iter().any(|s| s.starts_with(&self.held[*at..])))
            .unwrap_or(self.held.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
        let strings: Vec<String> = stops.iter().map(|s| s.to_string()).collect();
        let mut watch = Stops::new(&strings);
        let mut out = Vec::new();
        for piece in pieces {
            let (safe, stopped) = watch.push(piece);
            out.push(safe);
            if stopped {
                return (out, true);
            }
        }
        out.push(watch.finish());
        (out, false)
    }

    #[test]
    fn a_beginning_is_held_until_it_is_decided() {
        assert_eq!(run(&["\nUser:"], &["Hi\nUs", "er", ": x"]).0, ["Hi", "", ""]);
        assert_eq!(run(&["\nUser:"], &["Hi\nUs", "ual"]).0, ["Hi", "\nUsual", ""]);
        assert_eq!(run(&["\nUser:"], &["Hi\nUs"]).0, ["Hi", "\nUs"]);
    }

    /// Independent twin: read the whole text letter by letter and look back.
    fn twin(stops: &[&str], text: &str) -> Option<usize> {
        let ends = text.char_indices().map(|(at, c)| at + c.len_utf8());
        let mut cuts = ends.filter_map(|end| {
            let ending = stops.iter().filter(|s| text[..end].ends_with(**s));
            ending.map(|s| end - s.len()).min()
        });
        cuts.next()
    }

    #[test]
    fn pieces_do_not_matter() {
        let text = "aabaababé木abaé木bcd";
        let cases = [
            &["abab"][..],
            &["é木b", "baba"],
            &["木a", "zz"],
            &["zz"],
            &["木bcd", "bc"],
            &["cd", "bcd"],
        ];
        for stops in cases {
            let cut = twin(stops, text);
            let chars: Vec<String> = text.chars().map(String::from).collect();
            for width in 1..8 {
                let pieces: Vec<String> = chars.chunks(width).map(|c| c.concat()).collect();
                let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
                let (out, stopped) = run(stops, &pieces);
                assert_eq!(out.concat(), text[..cut.unwrap_or(text.len())], "{stops:?} {width}");
                assert_eq!(stopped, cut.is_some());
            }
        }
    }
}
