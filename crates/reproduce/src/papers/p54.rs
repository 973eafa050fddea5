//! L2M (Schmied et al. 2023, paper 54): a pool of modulators over a frozen model learns task after task
//! without being told which one it is at.
//!
//! A decoder learns from experts to drive a point mass in eight worlds that differ in sensors and
//! action frame (`world`), then five new ones, one after another. Arms: all weights; one LoRA for all
//! tasks (a pool of one); a prompt for each task, given its number; L2M; L2M without count penalty; a
//! LoRA for each task, given its number (oracle). Measured after the last task: returns in old and new
//! worlds by rollout, 0 for chance and 1 for the expert. The old worlds are protected as in the paper's
//! variant with keys for them: the first eight entries do nothing, have the mean queries of the old
//! worlds as keys, and count as used.
//!
//! **Departures**: (1) behaviour cloning with one step of context: every episode is an expert's and the
//! state is whole, so returns-to-go and earlier steps would say nothing; half of the steps are disturbed,
//! for a policy that has only seen experts at work rests wherever it is slow; (2) states in 24 bins; half
//! of the eight sensors tell little more than which world it is: where only the map differs, the mean
//! of a state's embeddings does not say it; (3) there is no pool of prompts here: a prompt for each
//! task, given its number, is the most that such a pool could choose; (4) updates of 32 states in place
//! of 64; (5) all seeds start from one pretrained model and differ in new worlds, starts, order and
//! draws; (6) the optimizer begins anew with every task and its rate falls to 0, as in any run here;
//! the rate is the best of three for the LoRA by task number, keys have the recipe's; (7) a world's
//! states may spread over several entries: what counts is that no other world learns in them.

use candle_core::{Device, Tensor, Var};
use luthier_core::{Error, Result, Row, Seed};
use luthier_params::{Bound, Full, Params};
use luthier_train::Train;

use crate::{
    Estimate, Inequality, Lab, Limit, Measured, Paper, Pretraining, Sizes, Small, recipe,
    stats::mean,
};
use exam::Exam;
use world::Task;

mod exam;
mod world;

/// The check.
pub const PAPER: Paper = Paper {
    number: 54,
    title: "L2M: a pool of modulators",
    claim: "a pool of modulators of which each state chooses one learns task after task like a LoRA \
        of each task's own, and keeps the old tasks; counts keep tasks from sharing an entry",
    recipes: &[POOL, PROMPT],
    seeds: 3,
    run,
};

const POOL: &str = "recipes/adapter/pool.toml";
const PROMPT: &str = "recipes/adapter/prompt.toml";

const SIZES: Sizes = Sizes {
    layers: 3,
    width: 64,
    heads: 4,
    kv_heads: 4,
    ffn: 128,
    vocab: world::VOCAB,
    tied: false,
};

/// Worlds of pretraining, and as many protected entries.
const OLD: usize = 8;
const NEW: usize = 5;
/// Entries for new worlds.
const FREE: usize = 10;
/// Episodes that each old and each new world is learned from, and those that are driven to measure.
const EPISODES: [usize; 3] = [200, 100, 16];

/// What all arms have in common: steps and their size.
const STEPS: [&str; 4] = ["batch_size=32", "micro_tokens=1024", "epochs=1000", "max_steps=400"];
/// Of all arms but prompts, which have their recipe's.
const RATE: &str = "learning_rate=6e-3";

/// Designs before this one, in case somebody thinks of them again.
const TRIED: [&str; 2] = [
    "tried before: six sensors alike, experts undisturbed: 0.236 in the old worlds before the stream, so \
        that there was nothing to lose",
    "tried before, one seed: four sensors of the goal and three of the world, of which mean queries as \
        keys told 64 % of the states; keys at ten times the rate: L2M kept 0.852 of the old return and \
        reached 0.676 in new worlds, LoRA by task number 0.863; two inequalities did not hold",
];

const FULL: &str = "full fine-tuning";
const ONE: &str = "one LoRA";
const PROMPTS: &str = "prompt by task number";
const L2M: &str = "L2M";
const UNCOUNTED: &str = "L2M, no count penalty";
const ORACLE: &str = "LoRA by task number";
const ARMS: [&str; 6] = [FULL, ONE, PROMPTS, L2M, UNCOUNTED, ORACLE];

const KEPT: &str = "old worlds, share kept";
const REACHED: &str = "new worlds";
const LEARNED: &str = "just learned";
const FORGOTTEN: &str = "forgotten";
const OWN: &str = "worlds with entries of their own";
const FOUND: &str = "states that find them";

fn run(lab: &Lab) -> Result<Measured> {
    let seed = Seed(54);
    let tasks: Vec<Task> = (0..OLD as u64).map(|i| Task::draw(seed.split("world").at(i))).collect();
    let of_task = |i: usize| tasks[i].episodes(EPISODES[0], seed.split("episodes").at(i as u64));
    let rows: Vec<Vec<Row>> = (0..OLD).map(of_task).collect();
    let set = ["batch_size=64", "micro_tokens=1024", "epochs=12", "learning_rate=2e-3"];
    let config = recipe("recipes/full/sft.toml", &set)?;
    let all = rows.concat();
    let how = Pretraining { name: "worlds", sizes: SIZES, rows: &all, config: &config };
    let base = lab.pretrained(&how)?;
    let embed = Embedding::of(&base)?;
    let keys = rows.iter().map(|rows| embed.key(rows)).collect();
    let exam = Exam::new(tasks, EPISODES[2], seed.split("exam"))?;
    let score = exam.score(&base.policy()?)?;
    lab.say(&format!("return in the old worlds before the stream: {score:.3}"));
    let old = Old { base, embed, keys, exam, score };

    let mut measured = Measured::default();
    for seed in lab.seeds() {
        let stream: Vec<Stage> = (0..NEW as u64)
            .map(|i| Stage::new(Seed(seed).split("new").at(i)))
            .collect::<Result<_>>()?;
        for arm in ARMS {
            let end = course(lab, &old, &stream, arm, seed)?;
            end.add(arm, &old, &mut measured);
            lab.say(&format!(
                "seed {seed}, {arm}: old worlds {:.3}, new worlds {:.3}, just learned {:.3}",
                end.old,
                mean(&end.new),
                mean(&end.learned)
            ));
        }
        measured.add("before", KEPT, 1.0);
        let untrained = |stage: &Stage| stage.exam.score(&old.base.policy()?);
        let untrained = stream.iter().map(untrained).collect::<Result<Vec<f64>>>()?;
        measured.add("before", REACHED, mean(&untrained));
        measured.add("mean queries as keys", FOUND, old.told_apart(&stream));
    }
    claims(&mut measured)?;
    measured.note(format!("return in the old worlds before the stream: {score:.3}"));
    TRIED.iter().for_each(|tried| measured.note(*tried));
    Ok(measured)
}

fn claims(measured: &mut Measured) -> Result<()> {
    let of = |arm: &str, figure: &str| measured.values(arm, figure);
    let limit = |what: &str, arm: &str, figure: &str, limit: Limit| -> Result<Inequality> {
        Ok(Inequality::new(what, Estimate::of(of(arm, figure)?), limit))
    };
    let pair = |one: &str, other: &str, limit: Limit| -> Result<Inequality> {
        let what = format!("return in new worlds, {one} − {other}");
        Ok(Inequality::paired(what, of(one, REACHED)?, of(other, REACHED)?, limit))
    };
    let claims = [
        limit("share kept of the old return, L2M", L2M, KEPT, Limit::AtLeast(0.95))?,
        limit("share kept of the old return, full fine-tuning", FULL, KEPT, Limit::AtMost(0.6))?,
        pair(L2M, ONE, Limit::AtLeast(0.15))?,
        pair(L2M, PROMPTS, Limit::AtLeast(0.1))?,
        pair(ORACLE, L2M, Limit::AtMost(0.05))?,
        limit("new worlds with entries of their own, L2M", L2M, OWN, Limit::AtLeast(NEW as f64))?,
        limit(
            "new worlds with entries of their own, no count penalty",
            UNCOUNTED,
            OWN,
            Limit::AtMost(NEW as f64 - 1.0),
        )?,
        pair(L2M, UNCOUNTED, Limit::Above(0.0))?,
    ];
    claims.into_iter().for_each(|claim| measured.claim(claim));
    Ok(())
}

/// The training settings of an arm for one stage.
fn settings(arm: &str, seed: u64, stage: usize) -> Result<Train> {
    let size = format!("size={}", if pooled(arm) { OLD + FREE } else { 1 });
    let count = format!("count_penalty={}", arm != UNCOUNTED);
    let of_pool = [RATE, "r=4", "alpha=8", &size, &count];
    let mut config = match arm {
        PROMPTS => recipe(PROMPT, &[&STEPS[..], &["n_virtual=5"]].concat())?,
        _ => recipe(POOL, &[&STEPS[..], &of_pool].concat())?,
    };
    if arm == FULL {
        config.params = Params { full: Some(Full::default()), ..Params::default() };
        // They are for keys.
        config.update.groups.clear();
    }
    config.seed = 10 * seed + stage as u64;
    Ok(config)
}

/// Whether states choose among entries.
fn pooled(arm: &str) -> bool {
    [L2M, UNCOUNTED].contains(&arm)
}

/// Which of an arm's sets of variables learns task `i`: those that know numbers have one for each.
fn set_of(arm: &str, i: usize) -> usize {
    if [PROMPTS, ORACLE].contains(&arm) { i } else { 0 }
}

/// The pretrained model and what it can do.
struct Old {
    base: Small,
    embed: Embedding,
    /// The key of each world.
    keys: Vec<Vec<f64>>,
    exam: Exam,
    score: f64,
}

/// A new world.
struct Stage {
    exam: Exam,
    rows: Vec<Row>,
    /// States that nothing is learned from.
    states: Vec<Row>,
}

impl Stage {
    fn new(seed: Seed) -> Result<Self> {
        let task = Task::draw(seed);
        let rows = task.episodes(EPISODES[1], seed.split("episodes"));
        let states = task.episodes(5, seed.split("states"));
        Ok(Stage { exam: Exam::new(vec![task], EPISODES[2], seed.split("exam"))?, rows, states })
    }
}

/// What one arm does with one seed.
struct End {
    old: f64,
    new: Vec<f64>,
    learned: Vec<f64>,
    /// Of a pool: new worlds with an entry of their own, and the share of states that find it.
    entries: Option<[f64; 2]>,
}

fn course(lab: &Lab, old: &Old, stream: &[Stage], arm: &str, seed: u64) -> Result<End> {
    let mut bounds: Vec<Bound> = Vec::new();
    let (mut learned, mut counted) = (Vec::new(), Vec::new());
    for (i, stage) in stream.iter().enumerate() {
        let config = settings(arm, seed, i)?;
        if bounds.len() == set_of(arm, i) {
            let bound = old.base.bind(&config)?;
            if pooled(arm) {
                old.protect(&bound)?;
            }
            bounds.push(bound);
        }
        let bound = &bounds[set_of(arm, i)];
        let placeholders = bound.policy.hooks.virtual_tokens;
        let rows: Vec<Row> =
            stage.rows.iter().map(|row| row.clone().behind(placeholders)).collect();
        let before = if pooled(arm) { numbers(bound, "pool.counts")? } else { Vec::new() };
        lab.train(bound, &rows, &config)?;
        learned.push(stage.exam.score(&bound.policy)?);
        if pooled(arm) {
            let after = numbers(bound, "pool.counts")?;
            counted.push(after.iter().zip(&before).map(|(after, before)| after - before).collect());
        }
    }
    let score = |(i, stage): (usize, &Stage)| stage.exam.score(&bounds[set_of(arm, i)].policy);
    let new = stream.iter().enumerate().map(score).collect::<Result<_>>()?;
    let entries = if pooled(arm) { Some(old.entries(&bounds[0], stream, &counted)?) } else { None };
    // Who knows the number of a task knows that an old one is none of the new.
    let old = match set_of(arm, 1) {
        0 => old.exam.score(&bounds[0].policy)?,
        _ => old.score,
    };
    Ok(End { old, new, learned, entries })
}

impl End {
    fn add(&self, arm: &str, old: &Old, measured: &mut Measured) {
        let lost: Vec<f64> = self.learned.iter().zip(&self.new).map(|(was, is)| was - is).collect();
        measured.add(arm, KEPT, self.old / old.score);
        measured.add(arm, REACHED, mean(&self.new));
        measured.add(arm, LEARNED, mean(&self.learned));
        measured.add(arm, FORGOTTEN, mean(&lost));
        if let Some([own, found]) = self.entries {
            measured.add(arm, OWN, own);
            measured.add(arm, FOUND, found);
        }
    }
}

impl Old {
    /// Gives the first entries of a new pool to the old worlds.
    fn protect(&self, bound: &Bound) -> Result<()> {
        for (i, key) in self.keys.iter().enumerate() {
            set(bound, &format!("pool.{i}.key"), key)?;
        }
        let used = |i: usize| if i < OLD { (EPISODES[0] * world::STEPS) as f64 } else { 0.0 };
        set(bound, "pool.counts", &(0..OLD + FREE).map(used).collect::<Vec<f64>>())
    }

    /// How many new worlds learned in entries in which no other world did, and the share of their
    /// states that choose such an entry outside of training. `counted`: rows of each world by entry.
    fn entries(&self, bound: &Bound, stream: &[Stage], counted: &[Vec<f64>]) -> Result<[f64; 2]> {
        let own: Vec<Vec<bool>> = (0..stream.len()).map(|world| alone(counted, world)).collect();
        let mostly = |(rows, own): &(&Vec<f64>, &Vec<bool>)| {
            let alone = rows.iter().zip(*own).filter(|(_, own)| **own).map(|(rows, _)| rows);
            alone.sum::<f64>() >= 0.9 * rows.iter().sum::<f64>()
        };
        let worlds = counted.iter().zip(&own).filter(mostly).count();
        let key =
            |e: usize| -> Result<Vec<f64>> { Ok(unit(&numbers(bound, &format!("pool.{e}.key"))?)) };
        let keys: Vec<Vec<f64>> = (0..OLD + FREE).map(key).collect::<Result<_>>()?;
        let share = |(stage, own): (&Stage, &Vec<bool>)| {
            share(&stage.states, |row| own[self.embed.nearest(row, &keys)])
        };
        let found: Vec<f64> = stream.iter().zip(&own).map(share).collect();
        Ok([worlds as f64, mean(&found)])
    }

    /// The share of states of new worlds that are nearest to the mean query of theirs: what the best
    /// keys could do.
    fn told_apart(&self, stream: &[Stage]) -> f64 {
        let new = stream.iter().map(|stage| self.embed.key(&stage.rows));
        let keys: Vec<Vec<f64>> =
            self.keys.iter().cloned().chain(new).map(|key| unit(&key)).collect();
        let told = |(i, stage): (usize, &Stage)| {
            share(&stage.states, |row| self.embed.nearest(row, &keys) == OLD + i)
        };
        mean(&stream.iter().enumerate().map(told).collect::<Vec<f64>>())
    }
}

/// The free entries in which one new world had rows, and no other.
fn alone(counted: &[Vec<f64>], world: usize) -> Vec<bool> {
    let users = |e: usize| counted.iter().filter(|rows| rows[e] > 0.0).count();
    let own = |(e, rows): (usize, &f64)| e >= OLD && *rows > 0.0 && users(e) == 1;
    counted[world].iter().enumerate().map(own).collect()
}

fn share(rows: &[Row], which: impl Fn(&Row) -> bool) -> f64 {
    rows.iter().filter(|row| which(row)).count() as f64 / rows.len() as f64
}

fn var<'a>(bound: &'a Bound, name: &str) -> Result<&'a Var> {
    bound.var(name).ok_or_else(|| Error::failed(name, "is not among the variables"))
}

fn numbers(bound: &Bound, name: &str) -> Result<Vec<f64>> {
    Ok(var(bound, name)?.to_vec1::<f32>()?.into_iter().map(f64::from).collect())
}

fn set(bound: &Bound, name: &str, numbers: &[f64]) -> Result<()> {
    let numbers: Vec<f32> = numbers.iter().map(|x| *x as f32).collect();
    Ok(var(bound, name)?.set(&Tensor::new(numbers, &Device::Cpu)?)?)
}

/// The model's table, to ask as a pool asks.
struct Embedding(Vec<Vec<f32>>);

impl Embedding {
    fn of(base: &Small) -> Result<Self> {
        let name = "model.embed_tokens.weight";
        let table = base.weights.get(name).ok_or_else(|| Error::failed(name, "is missing"))?;
        Ok(Embedding(table.to_vec2::<f32>()?))
    }

    /// The direction of the mean of a prompt's embeddings.
    fn query(&self, row: &Row) -> Vec<f64> {
        let mut sum = vec![0.0; SIZES.width];
        for id in &row.ids[..=world::NUMBERS] {
            let embedding = &self.0[*id as usize];
            sum.iter_mut().zip(embedding).for_each(|(sum, x)| *sum += f64::from(*x));
        }
        unit(&sum)
    }

    /// A key for a world's rows, as long as keys are at the beginning.
    fn key(&self, rows: &[Row]) -> Vec<f64> {
        let mut sum = vec![0.0; SIZES.width];
        for row in rows {
            sum.iter_mut().zip(self.query(row)).for_each(|(sum, x)| *sum += x);
        }
        let length = (SIZES.width as f64 / 3.0).sqrt();
        unit(&sum).into_iter().map(|x| x * length).collect()
    }

    /// The key with the largest cosine.
    fn nearest(&self, row: &Row, keys: &[Vec<f64>]) -> usize {
        let query = self.query(row);
        let cosine = |key: &Vec<f64>| key.iter().zip(&query).map(|(k, q)| k * q).sum::<f64>();
        let cosines: Vec<f64> = keys.iter().map(cosine).collect();
        (0..keys.len()).fold(0, |best, e| if cosines[e] > cosines[best] { e } else { best })
    }
}

fn unit(x: &[f64]) -> Vec<f64> {
    let length = x.iter().map(|x| x * x).sum::<f64>().sqrt().max(f64::MIN_POSITIVE);
    x.iter().map(|x| x / length).collect()
}

#[cfg(test)]
mod tests;
