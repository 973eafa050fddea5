//! The training engine: one step, the loop around it, checkpoints and the log.
//!
//! It knows models, hooks, objectives and updates only through their traits; a method never needs a
//! special case here.

pub mod backward;
pub mod balance;
pub mod beside;
pub mod checkpoint;
pub mod config;
pub mod copilot;
pub mod course;
pub mod draw;
pub mod estimate;
pub mod evaluate;
pub mod job;
pub mod log;
pub mod neftune;
pub mod order;
pub mod outcome;
pub mod run;
pub mod step;
pub mod sum;

pub use backward::Activation;
pub use balance::Balance;
pub use beside::Beside;
pub use config::Train;
pub use copilot::Copilot;
pub use draw::{Corrupt, MaskInit, MaskToken, Noise};
pub use job::{Draw, Drawn, Job};
pub use outcome::{Outcome, Stopped};
pub use run::{run, run_beside};
pub use step::{Step, StepReport};
pub use sum::{Gradients, Sums};
