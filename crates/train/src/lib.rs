//! The training engine: one step, the loop around it, checkpoints and the log.
//!
//! It knows models, hooks, objectives and updates only through their traits; a method never needs a
//! special case here.

pub mod backward;
pub mod checkpoint;
pub mod config;
pub mod course;
pub mod estimate;
pub mod evaluate;
pub mod log;
pub mod order;
pub mod outcome;
pub mod run;
pub mod step;
pub mod sum;

pub use backward::Activation;
pub use config::Train;
pub use outcome::{Outcome, Stopped};
pub use run::{Job, run};
pub use step::{Step, StepReport};
pub use sum::{Gradients, Sums};
