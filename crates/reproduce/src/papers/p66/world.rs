//! A world of tools whose names share their beginnings, as conversations and as rows of words.

use luthier_core::{Error, Example, Result, Rng, Row, Seed, Table, Turn};
use luthier_data::{
    Step,
    transform::{
        call_turns::CallTurns,
        key_tokens::{self, KeyTokens},
    },
};
use luthier_probe::tool_call::{Call, Tool};
use luthier_recipe::tools::{key_places, key_weight};
use serde_json::Value;

const VERBS: [&str; 4] = ["get", "find", "list", "send"];
const NOUNS: [&str; 4] = ["paper", "author", "place", "letter"];
/// What may follow a verb and a noun.
const ENDINGS: [&[&str]; 4] = [&[], &["s"], &["s", "by"], &["s", "by", "key"]];
const PARAMETERS: [&str; 6] = ["title", "name", "year", "city", "count", "order"];
/// Words that values are made of.
const VALUES: usize = 24;
/// Words of a value.
const VALUE: usize = 3;
const SIGNS: [&str; 14] = [
    "def",
    "(",
    ")",
    ":",
    "=",
    "'",
    ",",
    "finish",
    "answer",
    "done",
    "User",
    "Output",
    "Assistant",
    "error",
];
const TOOLS: usize = VERBS.len() * NOUNS.len() * ENDINGS.len();
/// What an output says of a call that failed.
const FAILURE: &str = "error : done";

/// All words: those above, and one for the intent behind each tool.
pub struct Words {
    all: Vec<String>,
}

impl Words {
    pub fn new() -> Self {
        let mut all: Vec<String> = SIGNS.iter().map(|word| word.to_string()).collect();
        all.extend(VERBS.iter().chain(&NOUNS).chain(&PARAMETERS).map(|word| word.to_string()));
        all.extend(["s", "by", "key"].map(String::from));
        all.extend((0..VALUES).map(|i| format!("v{i}")));
        all.extend((0..TOOLS).map(|i| format!("intent{i}")));
        // The end of an answer.
        all.push(".".into());
        Words { all }
    }

    pub fn len(&self) -> usize {
        self.all.len()
    }

    pub fn end(&self) -> u32 {
        self.all.len() as u32 - 1
    }

    pub fn ids(&self, text: &str) -> Result<Vec<u32>> {
        let id = |word: &str| {
            let place = self.all.iter().position(|known| known == word);
            place.map(|id| id as u32).ok_or_else(|| Error::failed(word, "is no word of this world"))
        };
        text.split_whitespace().map(id).collect()
    }

    pub fn text(&self, ids: &[u32]) -> String {
        let words = ids.iter().filter(|id| **id != self.end());
        words.map(|id| self.all[*id as usize].as_str()).collect::<Vec<_>>().join(" ")
    }
}

/// The words of tool `i`'s name, and what it wants.
fn tool(i: usize) -> Tool {
    let (verb, noun) = (i / (NOUNS.len() * ENDINGS.len()), i / ENDINGS.len() % NOUNS.len());
    let words = [&[VERBS[verb], NOUNS[noun]], ENDINGS[i % ENDINGS.len()]].concat();
    // One to three parameters, which differ from tool to tool.
    let wanted = (0..1 + i % 3).map(|p| PARAMETERS[(i / 3 + 2 * p) % PARAMETERS.len()].to_string());
    Tool { name: words.join(" "), parameters: wanted.collect() }
}

fn finish() -> Tool {
    Tool { name: "finish".into(), parameters: vec!["answer".into()] }
}

/// A call of `tool` with these values.
fn call(tool: &Tool, values: &[String]) -> String {
    let argument = |(name, value): (&String, &String)| format!("{name} = ' {value} '");
    let all: Vec<String> = tool.parameters.iter().zip(values).map(argument).collect();
    format!("{} ( {} )", tool.name, all.join(" , "))
}

/// What is asked, and what is right.
pub struct Task {
    pub tools: Vec<Tool>,
    system: String,
    asked: String,
    /// The same where the tool itself is named.
    named: String,
    gold: String,
    failed: String,
}

impl Task {
    /// Four tools: two of one verb and noun, one more of that verb, and `finish`; one of the first three, or
    /// now and then the last, is wanted.
    pub fn draw(rng: &mut Rng) -> Self {
        let verb = rng.below(VERBS.len());
        let noun = rng.below(NOUNS.len());
        let other = (noun + 1 + rng.below(NOUNS.len() - 1)) % NOUNS.len();
        let mut endings: Vec<usize> = (0..ENDINGS.len()).collect();
        rng.shuffle(&mut endings);
        let number =
            |noun: usize, ending: usize| (verb * NOUNS.len() + noun) * ENDINGS.len() + ending;
        let numbers = [
            number(noun, endings[0]),
            number(noun, endings[1]),
            number(other, rng.below(ENDINGS.len())),
        ];
        let wanted = rng.below(10);
        let (gold, intent) = match numbers.get(wanted / 3) {
            Some(number) => (tool(*number), format!("intent{number}")),
            None => (finish(), "done".to_string()),
        };
        let mut tools: Vec<Tool> = numbers.iter().map(|i| tool(*i)).chain([finish()]).collect();
        rng.shuffle(&mut tools);
        let mut value = || {
            let words: Vec<String> =
                (0..VALUE).map(|_| format!("v{}", rng.below(VALUES))).collect();
            words.join(" ")
        };
        let values: Vec<String> = gold.parameters.iter().map(|_| value()).collect();
        let stub = |tool: &Tool| format!("def {} ( {} ) :", tool.name, tool.parameters.join(" , "));
        let system = tools.iter().map(stub).collect::<Vec<String>>().join("\n");
        let failed = failure(&gold, &values, rng);
        let ask = |what: &str| format!("{what} : {}", values.join(" , "));
        let (asked, named) = (ask(&intent), ask(&gold.name));
        let gold = call(&gold, &values);
        Task { tools, system, asked, named, gold, failed }
    }

    /// The right call.
    pub fn gold(&self) -> Option<Call> {
        Call::parse(&self.gold)
    }

    /// The conversation; with `fails`, the first call fails and is mended.
    pub fn example(&self, line: usize, fails: bool) -> Example {
        let mut turns = vec![Turn::new("system", &self.system), Turn::new("user", &self.asked)];
        if fails {
            turns.push(Turn::new("assistant", &self.failed));
            turns.push(Turn::new("tool", FAILURE));
        }
        Example::new("world", line, turns, Some(Turn::new("assistant", &self.gold)))
    }
}

/// A call that fails: another value, a parameter too many, or one that there is not.
fn failure(gold: &Tool, values: &[String], rng: &mut Rng) -> String {
    let odd: Vec<&str> = PARAMETERS
        .iter()
        .copied()
        .filter(|p| !gold.parameters.iter().any(|own| own == p))
        .collect();
    let odd = odd[rng.below(odd.len())].to_string();
    let (mut tool, mut values) = (gold.clone(), values.to_vec());
    if rng.below(2) == 0 {
        let place = rng.below(tool.parameters.len());
        tool.parameters[place] = odd;
    } else {
        values.push(values[0].clone());
        tool.parameters.push(odd);
    }
    call(&tool, &values)
}

/// `n` tasks in which the tool itself is named: how calls are written, without what anybody means.
pub fn spelt_out(n: usize, seed: Seed) -> Table {
    let mut rng = seed.rng();
    let mut example = |line: usize| {
        let mut task = Task::draw(&mut rng);
        task.asked = std::mem::take(&mut task.named);
        task.example(line, false)
    };
    table((1..=n).map(&mut example).collect())
}

/// `n` tasks; of the conversations about them, a share begins with a call that fails.
pub fn examples(n: usize, failing: f64, seed: Seed) -> Table {
    let mut rng = seed.rng();
    let mut example = |line: usize| {
        let task = Task::draw(&mut rng);
        let fails = rng.uniform() < failing;
        task.example(line, fails)
    };
    table((1..=n).map(&mut example).collect())
}

fn table(examples: Vec<Example>) -> Table {
    Table { name: "world".into(), layout: "made".into(), sha256: String::new(), examples }
}

/// The rows of a table: what `turns` learns, with deciding tokens of at most `max_weight`.
pub fn rows(words: &Words, table: Table, turns: &CallTurns, max_weight: f64) -> Result<Vec<Row>> {
    let table = turns.apply(table, Seed(0))?;
    let table = KeyTokens { max_weight, ..KeyTokens::default() }.apply(table, Seed(0))?;
    let row = |(i, example): (usize, &Example)| {
        let prompt = prompt(words, &example.prompt)?;
        let mut answer = words.ids(example.completions[0].text())?;
        answer.push(words.end());
        let tokens = [&prompt[..], &answer].concat();
        let mut weights = vec![0.0; prompt.len()];
        weights.extend(weigh(words, &answer, &example.columns[key_tokens::COLUMN])?);
        Ok(Row::from_tokens(&tokens, &weights, i))
    };
    table.examples.iter().enumerate().map(row).collect()
}

/// The weight of every token of a call.
fn weigh(words: &Words, answer: &[u32], found: &Value) -> Result<Vec<f32>> {
    let text = |key: &str| found[key].as_str().unwrap_or_default();
    let behind = &answer[words.ids(text("name"))?.len()..];
    let others = found["others"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let others: Vec<Vec<u32>> =
        others.map(|name| Ok([&words.ids(name)?, behind].concat())).collect::<Result<_>>()?;
    let keys = key_places(answer, &others);
    let most = found["max_weight"].as_f64().unwrap_or(1.0);
    let weight = key_weight(keys.len(), answer.len() - keys.len(), most) as f32;
    Ok((0..answer.len()).map(|i| if keys.contains(&i) { weight } else { 1.0 }).collect())
}

/// The words before an answer.
pub fn prompt(words: &Words, turns: &[Turn]) -> Result<Vec<u32>> {
    let mut ids = Vec::new();
    for turn in turns {
        let who = match turn.role.as_str() {
            "user" => "User : ",
            "tool" => "Output : ",
            "assistant" => "Assistant : ",
            _ => "",
        };
        ids.extend(words.ids(&format!("{who}{}", turn.content))?);
        if turn.role == "assistant" {
            ids.push(words.end());
        }
    }
    ids.extend(words.ids("Assistant :")?);
    Ok(ids)
}
