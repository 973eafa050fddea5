//! A point mass that is to reach a goal of which only its sensors know.
//!
//! `sensor = S · (goal, place) + o`, `speed ← speed + T · P · F · action`, `place ← place + T · speed`
//! within walls at ±1. Sensors `S`, offsets `o` and the action frame `F` (turned, perhaps mirrored,
//! with a gain) are a task's own; half of the sensors tell of the goal, the others of the task. The
//! expert knows the goal: `action = (P · F)⁻¹ (K (goal − place) − D · speed)`, within ±1.

use luthier_core::{Rng, Row, Seed};

/// Steps of an episode.
pub const STEPS: usize = 20;
const TICK: f64 = 0.2;
const POWER: f64 = 2.0;
const PULL: f64 = 3.0;
const DAMPING: f64 = 3.0;

const SENSORS: usize = 8;
/// Of a sensor that tells of the goal and of one that tells of the task: the length of its row of `S`,
/// and how far its offset may be from 0.
const REACH: [(f64, f64); 2] = [(0.8, 0.2), (0.03, 0.85)];
/// In how many steps something else moves the mass than the expert whose action is learned. From
/// undisturbed episodes a policy learns to rest wherever the mass is slow.
const DISTURBED: f64 = 0.5;
/// Place, speed and sensors.
pub const NUMBERS: usize = 4 + SENSORS;
/// Tokens of each number.
const BINS: usize = 24;
/// Tokens of each side of an action.
pub const ACTIONS: usize = 16;
/// The tokens at which the sides of an action are asked for.
const ASK: [u32; 2] = [(NUMBERS * BINS) as u32, (NUMBERS * BINS) as u32 + 1];
/// The first token of an action.
pub const ACTION: u32 = ASK[1] + 1;
/// All tokens.
pub const VOCAB: usize = ACTION as usize + ACTIONS;

/// Where the mass is, how it moves, where it should be.
#[derive(Clone, Copy, Debug)]
pub struct Mass {
    place: [f64; 2],
    speed: [f64; 2],
    goal: [f64; 2],
}

/// A world of its own kind.
#[derive(Clone, Debug)]
pub struct Task {
    sensors: [[f64; 4]; SENSORS],
    offsets: [f64; SENSORS],
    /// `P · F`.
    push: [[f64; 2]; 2],
    /// Its inverse.
    pull: [[f64; 2]; 2],
}

/// Which of `bins` equal parts of -1 to 1 holds `x`; the outer ones reach on.
fn bin(x: f64, bins: usize) -> u32 {
    // A float's cast to an integer saturates at 0.
    (((x + 1.0) / 2.0 * bins as f64).floor() as u32).min(bins as u32 - 1)
}

/// The action of one side that a bin stands for: its middle.
pub fn middle(bin: u32) -> f64 {
    (f64::from(bin) + 0.5) * 2.0 / ACTIONS as f64 - 1.0
}

fn between(rng: &mut Rng, low: f64, high: f64) -> f64 {
    low + (high - low) * rng.uniform()
}

fn product(m: &[[f64; 2]; 2], x: [f64; 2]) -> [f64; 2] {
    m.map(|row| row[0] * x[0] + row[1] * x[1])
}

/// An action drawn without a look at the world.
pub fn any_action(rng: &mut Rng) -> [f64; 2] {
    [between(rng, -1.0, 1.0), between(rng, -1.0, 1.0)]
}

impl Mass {
    /// The start of an episode.
    pub fn draw(rng: &mut Rng) -> Self {
        let mut pair = |most: f64| [between(rng, -most, most), between(rng, -most, most)];
        Mass { place: pair(1.0), speed: pair(0.5), goal: pair(0.8) }
    }

    fn distance(&self) -> f64 {
        (self.goal[0] - self.place[0]).hypot(self.goal[1] - self.place[1])
    }
}

impl Task {
    /// A task like no other.
    pub fn draw(seed: Seed) -> Self {
        let mut rng = seed.rng();
        let reach = |i: usize| REACH[usize::from(i >= SENSORS / 2)];
        let sensors = std::array::from_fn(|i| {
            let row: [f64; 4] = std::array::from_fn(|_| rng.normal());
            let length = row.iter().map(|x| x * x).sum::<f64>().sqrt();
            row.map(|x| reach(i).0 * x / length)
        });
        let offsets = std::array::from_fn(|i| between(&mut rng, -reach(i).1, reach(i).1));
        let (sin, cos) = between(&mut rng, 0.0, std::f64::consts::TAU).sin_cos();
        let mirror = if rng.below(2) == 0 { 1.0 } else { -1.0 };
        let by = POWER * between(&mut rng, 0.8, 1.25);
        let turn = [[cos, -sin * mirror], [sin, cos * mirror]];
        // A turn's inverse is its transpose.
        let back = [[turn[0][0], turn[1][0]], [turn[0][1], turn[1][1]]];
        let scaled = |m: [[f64; 2]; 2], by: f64| m.map(|row| row.map(|x| x * by));
        Task { sensors, offsets, push: scaled(turn, by), pull: scaled(back, 1.0 / by) }
    }

    /// What the mass sees, number by number between -1 and 1.
    fn numbers(&self, mass: &Mass) -> [f64; NUMBERS] {
        let [place, speed, goal] = [mass.place, mass.speed, mass.goal];
        let seen = [goal[0], goal[1], place[0], place[1]];
        let sensor = |i: usize| {
            let sum: f64 = self.sensors[i].iter().zip(seen).map(|(s, x)| s * x).sum();
            sum + self.offsets[i]
        };
        std::array::from_fn(|i| match i {
            0 | 1 => place[i],
            2 | 3 => speed[i - 2] / 2.0,
            _ => sensor(i - 4),
        })
    }

    /// What the mass sees, and the action that is asked for.
    pub fn row(&self, mass: &Mass, action: [f64; 2], example: usize) -> Row {
        let token = |(i, x): (usize, f64)| (i * BINS) as u32 + bin(x, BINS);
        let ids = self.numbers(mass).into_iter().enumerate().map(token).chain(ASK).collect();
        let asked = action.map(|x| ACTION + bin(x, ACTIONS));
        let targets = [0; NUMBERS].into_iter().chain(asked).collect();
        let weights = [0.0; NUMBERS].into_iter().chain([1.0; 2]).collect();
        Row { ids, targets, weights, example, ..Row::default() }
    }

    /// What the expert does.
    pub fn expert(&self, mass: &Mass) -> [f64; 2] {
        let side = |i: usize| PULL * (mass.goal[i] - mass.place[i]) - DAMPING * mass.speed[i];
        product(&self.pull, [side(0), side(1)]).map(|x| x.clamp(-1.0, 1.0))
    }

    /// Moves the mass; the reward is the distance that is left, below 0.
    pub fn step(&self, mass: &mut Mass, action: [f64; 2]) -> f64 {
        let push = product(&self.push, action);
        for ((place, speed), push) in mass.place.iter_mut().zip(&mut mass.speed).zip(push) {
            *speed += TICK * push;
            let free = *place + TICK * *speed;
            *place = free.clamp(-1.0, 1.0);
            // A wall stops what runs into it.
            if free.abs() > 1.0 {
                *speed = 0.0;
            }
        }
        -mass.distance()
    }

    /// What an expert sees and would do in so many episodes, in which it is disturbed.
    pub fn episodes(&self, episodes: usize, seed: Seed) -> Vec<Row> {
        let mut rng = seed.rng();
        let mut rows = Vec::with_capacity(episodes * STEPS);
        for _ in 0..episodes {
            let mut mass = Mass::draw(&mut rng);
            for _ in 0..STEPS {
                let action = self.expert(&mass);
                rows.push(self.row(&mass, action, rows.len()));
                let disturbed = rng.uniform() < DISTURBED;
                self.step(&mut mass, if disturbed { any_action(&mut rng) } else { action });
            }
        }
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_are_those_of_the_paper() {
        assert_eq!([-1.0, 0.0, 1.0].map(|x| bin(x, 64)), [0, 32, 63]);
        assert_eq!([-7.0, -0.97, -0.96, 7.0].map(|x| bin(x, 64)), [0, 0, 1, 63]);
        assert_eq!((middle(0), middle(8), middle(15)), (-0.9375, 0.0625, 0.9375));
        for i in 0..ACTIONS as u32 {
            assert_eq!(bin(middle(i), ACTIONS), i);
        }
    }

    #[test]
    fn the_expert_arrives_in_every_task_in_its_own_frame() {
        let mut rng = Seed(2).rng();
        for task in (0..6).map(|i| Task::draw(Seed(1).at(i))) {
            let x = product(&task.push, product(&task.pull, [0.3, -0.7]));
            assert!((x[0] - 0.3).abs() < 1e-12 && (x[1] + 0.7).abs() < 1e-12);
            for _ in 0..20 {
                let mut mass = Mass::draw(&mut rng);
                let mut left = 0.0;
                for _ in 0..STEPS {
                    let action = task.expert(&mass);
                    left = task.step(&mut mass, action);
                    assert!(mass.place.iter().all(|x| x.abs() <= 1.0));
                }
                assert!(left > -0.3, "{left} {mass:?}");
            }
        }
    }

    #[test]
    fn a_row_holds_every_number_in_tokens_of_its_own_and_asks_for_both_sides() {
        let task = Task::draw(Seed(1));
        let rows = task.episodes(3, Seed(2));
        assert_eq!(rows.len(), 3 * STEPS);
        for row in &rows {
            let places = row.ids[..NUMBERS].iter().map(|id| *id as usize / BINS);
            assert!(places.eq(0..NUMBERS));
            assert_eq!((&row.ids[NUMBERS..], row.trained(), row.len()), (&ASK[..], 2, NUMBERS + 2));
            assert!(row.targets[NUMBERS..].iter().all(|t| (ACTION..VOCAB as u32).contains(t)));
        }
        // Another task's expert sees other sensors in the same place, and does something else.
        let (other, mass) = (Task::draw(Seed(2)), Mass::draw(&mut Seed(3).rng()));
        let [a, b] = [&task, &other].map(|task| task.row(&mass, task.expert(&mass), 0));
        assert_eq!(a.ids[..4], b.ids[..4]);
        assert!(a.ids[4..NUMBERS] != b.ids[4..NUMBERS] && a.targets != b.targets);
    }
}
