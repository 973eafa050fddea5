//! The data of `luthier quickstart`: requests in plain English and the one JSON action each means.
//!
//! `quickstart.toml` holds the grammar. A row is one sentence with its slots filled from the
//! pools; the answer repeats the values letter by letter in a fixed order. Part of every pool and
//! part of the sentences of every action occur in the test alone, so that the score measures
//! understanding and copying, not memory. Same grammar and seed, same bytes.

use luthier_core::{Rng, Seed};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;

const GRAMMAR: &str = include_str!("quickstart.toml");
const SEED: Seed = Seed(20_240);
const TRAIN_ROWS: usize = 720;
const TEST_ROWS: usize = 120;

type Outcome<T> = Result<T, String>;

/// Which of the two files a row is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Split {
    Train,
    Test,
}

/// The values a slot may take, as groups that are drawn from in turn, each cut into a part that
/// may be trained on and a part kept for the test.
struct Pool {
    groups: Vec<(Vec<String>, Vec<String>)>,
}

struct Slot {
    key: String,
    pool: String,
}

struct Intent {
    action: String,
    slots: Vec<Slot>,
    train: Vec<String>,
    test: Vec<String>,
}

struct Grammar {
    system: String,
    pools: BTreeMap<String, Pool>,
    intents: Vec<Intent>,
}

/// One request and the values that its answer must hold, in the answer's order.
struct Row {
    action: String,
    user: String,
    values: Vec<(String, String)>,
}

/// Writes `train.jsonl` and `test.jsonl` and says what they hold.
pub fn write() -> Outcome<String> {
    let mut said = Vec::new();
    for (name, text) in files()? {
        let path = folder().join(name);
        std::fs::write(&path, &text).map_err(|e| format!("{}: {e}", path.display()))?;
        said.push(format!("{name}: {} rows", text.lines().count()));
    }
    Ok(said.join("\n"))
}

fn folder() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../recipes/quickstart"))
}

/// The two generated files, by name.
fn files() -> Outcome<[(&'static str, String); 2]> {
    let grammar = grammar()?;
    let mut taken = HashSet::new();
    let train = rows(&grammar, Split::Train, TRAIN_ROWS, &mut taken)?;
    let test = rows(&grammar, Split::Test, TEST_ROWS, &mut taken)?;
    let jsonl = |rows: &[Row]| rows.iter().map(|r| line(&grammar.system, r)).collect::<String>();
    Ok([("train.jsonl", jsonl(&train)), ("test.jsonl", jsonl(&test))])
}

fn grammar() -> Outcome<Grammar> {
    let file: toml::Table = GRAMMAR.parse().map_err(|e| format!("quickstart.toml: {e}"))?;
    let text = |v: Option<&toml::Value>, what: &str| {
        v.and_then(toml::Value::as_str)
            .map(str::to_owned)
            .ok_or_else(|| format!("quickstart.toml: {what}: expected a string"))
    };
    let mut pools = counted_pools();
    for (name, list) in file.get("pools").and_then(toml::Value::as_table).into_iter().flatten() {
        let list = text(Some(list), name)?;
        let values = list.split(',').map(|v| v.split_whitespace().collect::<Vec<_>>().join(" "));
        pools.insert(name.clone(), vec![values.collect()]);
    }
    let pools = pools.into_iter().map(|(name, groups)| {
        let pool = Pool::cut(groups, SEED.split("pool").split(&name));
        (name, pool)
    });

    let mut intents = Vec::new();
    for entry in file.get("intents").and_then(toml::Value::as_array).into_iter().flatten() {
        let action = text(entry.get("action"), "action")?;
        let lines = |key: &str| {
            text(entry.get(key), &format!("{action}.{key}"))
                .map(|t| t.lines().map(str::to_owned).collect::<Vec<_>>())
        };
        let mut slots = Vec::new();
        for slot in entry.get("slots").and_then(toml::Value::as_array).into_iter().flatten() {
            let slot = text(Some(slot), "slots")?;
            let (key, pool) = slot.split_once(": ").unwrap_or((&slot, &slot));
            slots.push(Slot { key: key.to_owned(), pool: pool.to_owned() });
        }
        let (train, test) = (lines("train")?, lines("test")?);
        intents.push(Intent { action, slots, train, test });
    }
    Ok(Grammar { system: text(file.get("system"), "system")?, pools: pools.collect(), intents })
}

/// Pools that are quicker to count than to list.
fn counted_pools() -> BTreeMap<String, Vec<Vec<String>>> {
    let halves = ["am", "pm"];
    let days = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
    let months = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    let clock = (0..288).map(|n| format!("{:02}:{:02}", n / 12, n % 12 * 5)).collect();
    let hours = (0..24).map(|n| format!("{} {}", n % 12 + 1, halves[n / 12])).collect();
    let quarters = (0..72)
        .map(|n| format!("{}:{} {}", n % 12 + 1, [15, 30, 45][n / 24], halves[n / 12 % 2]))
        .collect();
    let dates = (0..336).map(|n| format!("{} {}", n / 12 + 1, months[n % 12])).collect();
    let whole = |from: u32, to: u32, step: usize| (from..=to).step_by(step).map(|n| n.to_string());
    let and_a_half = |from: u32, to: u32| (from..=to).map(|n| format!("{n}.5"));
    BTreeMap::from([
        ("time".to_owned(), vec![clock, hours, quarters]),
        ("day".to_owned(), vec![days.map(str::to_owned).to_vec(), dates]),
        ("degrees".to_owned(), vec![whole(8, 32, 1).chain(and_a_half(14, 25)).collect()]),
        ("count".to_owned(), vec![whole(2, 60, 1).collect()]),
        (
            "number".to_owned(),
            vec![
                whole(2, 99, 1).collect(),
                whole(100, 950, 10).collect(),
                and_a_half(1, 60).collect(),
            ],
        ),
    ])
}

impl Pool {
    /// Keeps three values in ten of each group for the test; a handful of values (on, off) is
    /// shared, since there is nothing to copy in a choice.
    fn cut(groups: Vec<Vec<String>>, seed: Seed) -> Pool {
        let cut = |(n, mut values): (usize, Vec<String>)| {
            if values.len() < 5 {
                return (values.clone(), values);
            }
            seed.at(n as u64).rng().shuffle(&mut values);
            let test = values.split_off(values.len() - values.len() * 3 / 10);
            (values, test)
        };
        Pool { groups: groups.into_iter().enumerate().map(cut).collect() }
    }
}

/// Deals every item of each group once before any comes again, so that few rows cover much.
struct Deck<'a> {
    groups: Vec<(&'a [String], Vec<&'a str>)>,
    turn: usize,
    rng: Rng,
}

impl<'a> Deck<'a> {
    fn new(groups: impl IntoIterator<Item = &'a [String]>, seed: Seed) -> Deck<'a> {
        let groups = groups.into_iter().map(|g| (g, Vec::new())).collect();
        Deck { groups, turn: 0, rng: seed.rng() }
    }

    fn draw(&mut self) -> &'a str {
        let turn = self.turn % self.groups.len();
        self.turn += 1;
        let (all, left) = &mut self.groups[turn];
        if left.is_empty() {
            left.extend(all.iter().map(String::as_str));
            self.rng.shuffle(left);
        }
        left.pop().expect("a group that was just refilled holds an item")
    }
}

/// `count` rows, the same number for every action, in shuffled order; `taken` holds the requests
/// that exist already.
fn rows(
    grammar: &Grammar,
    split: Split,
    count: usize,
    taken: &mut HashSet<String>,
) -> Outcome<Vec<Row>> {
    let name = if split == Split::Train { "train" } else { "test" };
    let mut rows = Vec::with_capacity(count);
    for intent in &grammar.intents {
        let seed = SEED.split(name).split(&intent.action);
        let sentences = if split == Split::Train { &intent.train } else { &intent.test };
        let mut sentences = Deck::new([sentences.as_slice()], seed.split("sentence"));
        let mut decks = BTreeMap::new();
        for slot in &intent.slots {
            let pool = grammar.pools.get(&slot.pool).ok_or_else(|| {
                format!("quickstart.toml: {}: no pool is called {}", intent.action, slot.pool)
            })?;
            let seed = seed.split(&slot.key);
            let seen = Deck::new(pool.groups.iter().map(|g| &g.0[..]), seed.split("seen"));
            let kept = Deck::new(pool.groups.iter().map(|g| &g.1[..]), seed.split("kept"));
            decks.insert(slot.key.as_str(), (seen, kept));
        }
        let mut rng = seed.split("rows").rng();
        let wanted = rows.len() + count / grammar.intents.len();
        while rows.len() < wanted {
            let row = row(intent, sentences.draw(), &mut rng, |key, rng| {
                let (seen, kept) = decks.get_mut(key).expect("every slot of the action has a deck");
                // One test value in four is a trained one, as in life.
                if split == Split::Train || rng.below(4) == 0 { seen.draw() } else { kept.draw() }
            })?;
            if taken.insert(row.user.to_lowercase()) {
                rows.push(row);
            }
        }
    }
    SEED.split(name).split("order").rng().shuffle(&mut rows);
    Ok(rows)
}

/// One sentence with its slots filled by `draw`.
fn row<'a>(
    intent: &Intent,
    sentence: &str,
    rng: &mut Rng,
    mut draw: impl FnMut(&str, &mut Rng) -> &'a str,
) -> Outcome<Row> {
    let mut user = sentence.to_owned();
    let mut values = Vec::new();
    let mut pair: Option<&str> = None;
    for slot in &intent.slots {
        let hole = format!("{{{}}}", slot.key);
        if !user.contains(&hole) {
            continue;
        }
        let value = if slot.pool == "unit_pair" {
            // Both units come out of one draw, so that they measure the same thing.
            let (from, to) = pair
                .get_or_insert_with(|| draw(&slot.key, rng))
                .split_once('>')
                .ok_or("quickstart.toml: unit_pair: expected from>to")?;
            if slot.key == "from" { from } else { to }
        } else {
            let mut value = draw(&slot.key, rng);
            while values.iter().any(|(_, v)| v == value) {
                value = draw(&slot.key, rng);
            }
            value
        };
        user = user.replace(&hole, value);
        values.push((slot.key.clone(), value.to_owned()));
    }
    if user.contains('{') {
        return Err(format!("quickstart.toml: {}: a slot is not filled: {user}", intent.action));
    }
    // People are careless with capitals and full stops.
    if rng.below(5) == 0 && !sentence.starts_with('{') && !sentence.starts_with("I ") {
        user[..1].make_ascii_lowercase();
    }
    if rng.below(5) == 0 && user.ends_with(['.', '?']) {
        user.pop();
    }
    Ok(Row { action: intent.action.clone(), user, values })
}

/// The row as one line of JSON.
fn line(system: &str, row: &Row) -> String {
    let mut answer = Map::new();
    answer.insert("action".to_owned(), json!(row.action));
    for (key, value) in &row.values {
        // Amounts are JSON numbers with the digits of the request; everything else is text.
        let number = ["amount", "degrees"].contains(&key.as_str());
        let value = if number { value.parse::<serde_json::Number>().ok() } else { None }
            .map_or_else(|| json!(value), Value::Number);
        answer.insert(key.clone(), value);
    }
    let turn = |role: &str, content: &str| json!({"role": role, "content": content});
    let answer = Value::Object(answer).to_string();
    let messages = [turn("system", system), turn("user", &row.user), turn("assistant", &answer)];
    format!("{}\n", json!({ "messages": messages }))
}

#[cfg(test)]
mod tests;
