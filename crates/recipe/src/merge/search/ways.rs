//! The ways to search: which merges are tried, in which order.

use luthier_core::{Error, Result};
use serde_json::{Map, Value};

use super::{Accept, Trials, change::set};

/// A soup of those models that do not make it worse.
pub(super) fn greedy(
    trials: &mut Trials<'_>,
    value: &Value,
    accept: Accept,
    at: &str,
) -> Result<()> {
    let all = value.get("models").and_then(Value::as_array).filter(|all| !all.is_empty());
    let all = all.ok_or_else(|| Error::input(at, "a greedy soup takes `models`"))?;
    let soup = |members: &[usize]| -> (Value, Value) {
        let mut file = value.clone();
        file["models"] = members.iter().map(|i| all[*i].clone()).collect();
        let names = members.iter().map(|i| all[*i]["model"].clone()).collect();
        (file, names)
    };
    let mut alone = Vec::new();
    for i in 0..all.len() {
        let (file, names) = soup(&[i]);
        alone.push((i, trials.one(&file, names)?));
    }
    // Equal ones stay in the order of the file.
    alone.sort_by(|a, b| b.1.total_cmp(&a.1));
    let (mut members, mut best) = (vec![alone[0].0], alone[0].1);
    for (i, _) in &alone[1..] {
        let with = [members.as_slice(), &[*i]].concat();
        let (file, names) = soup(&with);
        let score = trials.one(&file, names)?;
        let taken = match accept {
            Accept::AsGood => score >= best,
            Accept::Better => score > best,
        };
        if taken {
            (members, best) = (with, score);
        }
    }
    // Of equal scores the larger soup, which need not have been the first.
    let (file, names) = soup(&members);
    trials.choose(&file, &names)
}

/// The values of each name, in the order of the file.
fn lists<'v>(names: &'v Map<String, Value>, at: &str) -> Result<Vec<(&'v str, &'v [Value])>> {
    let list = |(name, values): (&'v String, &'v Value)| match values.as_array() {
        Some(values) if !values.is_empty() => Ok((name.as_str(), values.as_slice())),
        _ => Err(Error::input(format!("{at}.{name}"), format!("expected a list, got {values}"))),
    };
    names.iter().map(list).collect()
}

/// The file with these settings, and the settings themselves.
fn with(
    value: &Value,
    lists: &[(&str, &[Value])],
    chosen: &[usize],
    at: &str,
) -> Result<(Value, Value)> {
    let (mut file, mut settings) = (value.clone(), Map::new());
    for ((name, values), i) in lists.iter().zip(chosen) {
        set(&mut file, name, &values[*i], at)?;
        settings.insert(name.to_string(), values[*i].clone());
    }
    Ok((file, Value::Object(settings)))
}

/// Every combination, the last name's values fastest.
pub(super) fn grid(
    trials: &mut Trials<'_>,
    value: &Value,
    names: &Map<String, Value>,
    at: &str,
) -> Result<()> {
    let at = format!("{at}.grid");
    let lists = lists(names, &at)?;
    let total: usize = lists.iter().map(|(_, values)| values.len()).product();
    for n in 0..total {
        let (mut left, mut chosen) = (n, vec![0; lists.len()]);
        for (place, (_, values)) in chosen.iter_mut().zip(&lists).rev() {
            (*place, left) = (left % values.len(), left / values.len());
        }
        let (file, settings) = with(value, &lists, &chosen, &at)?;
        trials.one(&file, settings)?;
    }
    Ok(())
}

/// One name after the other, from the first values on.
pub(super) fn coordinate(
    trials: &mut Trials<'_>,
    value: &Value,
    names: &Map<String, Value>,
    rounds: usize,
    at: &str,
) -> Result<()> {
    let at = format!("{at}.coordinate");
    let lists = lists(names, &at)?;
    let mut chosen = vec![0; lists.len()];
    let (file, settings) = with(value, &lists, &chosen, &at)?;
    let mut best = trials.one(&file, settings)?;
    for _ in 0..rounds {
        let before = chosen.clone();
        for name in 0..lists.len() {
            for i in 0..lists[name].1.len() {
                let mut other = chosen.clone();
                other[name] = i;
                let (file, settings) = with(value, &lists, &other, &at)?;
                let score = trials.one(&file, settings)?;
                if score > best {
                    (chosen, best) = (other, score);
                }
            }
        }
        if chosen == before {
            break;
        }
    }
    Ok(())
}
