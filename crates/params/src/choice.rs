//! Which of the bound variables learn, decided again while training goes on.

use luthier_core::{Param, Result, Seed, StateDict};

use crate::Bound;

/// Decides what learns. Training asks before every step.
pub trait Choice: Send {
    /// What learns from this step on; `None` when nothing changes.
    fn choose(&mut self, now: &mut Moment) -> Result<Option<Chosen>>;

    /// What it must remember across a checkpoint, apart from the variables and their masks.
    fn state(&self) -> Result<StateDict> {
        Ok(StateDict::default())
    }

    /// Takes over what [`Choice::state`] gave.
    fn load(&mut self, _state: StateDict) -> Result<()> {
        Ok(())
    }
}

/// Where a run stands.
pub struct Moment<'a> {
    /// Which run of the schedule, from 0.
    pub round: usize,
    /// Steps made in this round.
    pub step: u64,
    /// Steps of this round.
    pub steps: u64,
    /// Whether this step is the first that reads its data (again).
    pub epoch_begins: bool,
    /// Of all draws in this run.
    pub seed: Seed,
    /// Everything that may learn.
    pub all: &'a Bound,
    /// What of it belongs to the form that chooses. The rest learns all the time.
    pub own: &'a [Param],
    /// What of that learns now.
    pub now: &'a [Param],
    /// Tries steps on the data that comes next.
    pub trial: &'a mut dyn Trial,
}

/// Passes over the coming step's data that leave no trace in the optimizer.
pub trait Trial {
    /// Tokens of each row of the coming step, and how many of them are trained.
    fn rows(&self) -> Vec<(usize, usize)>;

    /// Loss and gradients of these variables where they stand.
    fn gradients(&mut self, params: &[Param]) -> Result<(f64, StateDict)>;

    /// Moves the variables by one first step of a new optimizer without weight decay, at the
    /// learning rate of the moment.
    fn step(&mut self, params: &[Param], gradients: &StateDict) -> Result<()>;
}

/// What learns from now on.
pub struct Chosen {
    /// Variables of the form's own, each whole or with a mask.
    pub params: Vec<Param>,
    /// What becomes of the optimizer's memory.
    pub handover: Handover,
    /// What a person should know about it.
    pub note: String,
}

/// What becomes of the optimizer's memory when another choice learns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handover {
    /// Entries that go on learning keep theirs, and the count of steps goes on.
    Keep,
    /// All of it begins anew.
    Fresh,
}
