//! "Did you mean …": the nearest known names to a misspelt one.

/// The up to `n` names of `known` closest to `got`, nearest first; only plausible ones.
pub fn nearest<'a>(got: &str, known: impl IntoIterator<Item = &'a str>, n: usize) -> Vec<&'a str> {
    let mut scored: Vec<(f64, &str)> = known
        .into_iter()
        .map(|k| (strsim::jaro_winkler(&got.to_lowercase(), &k.to_lowercase()), k))
        .filter(|(score, _)| *score > 0.7)
        .collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    scored.into_iter().take(n).map(|(_, k)| k).collect()
}

/// A ready hint sentence: the nearest names, or all of them when nothing is near.
pub fn suggest<'a>(got: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let all: Vec<&str> = known.into_iter().collect();
    match nearest(got, all.iter().copied(), 3).as_slice() {
        [] => format!("known: {}", all.join(", ")),
        near => format!("did you mean {}?", near.join(" or ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_key_finds_its_neighbour() {
        let known = ["learning_rate", "weight_decay", "warmup_steps"];
        assert_eq!(suggest("lerning_rate", known), "did you mean learning_rate?");
        assert!(suggest("zzz", known).starts_with("known: learning_rate"));
    }
}
