//! How a gradient becomes a step.

use luthier_core::{Error, Result};

pub mod adafactor;
pub mod adam;
pub mod adamw;
pub mod adamw_8bit;
pub mod lion;
pub mod muon;
pub mod schedule_free;
pub mod sgd;

pub use adafactor::Adafactor;
pub use adam::Adam;
pub use adamw::AdamW;
pub use adamw_8bit::AdamW8Bit;
pub use lion::Lion;
pub use muon::{AdjustLr, Muon};
pub use schedule_free::ScheduleFree;
pub use sgd::Sgd;

/// A rule from (parameter, gradient, state) to the next parameter and state.
pub trait Optimizer: Send + Sync {
    /// Refuses settings without a meaning, and says what the rule needs; `at` is its recipe key.
    fn plan(&self, at: &str) -> Result<Plan>;

    /// One step of one variable, in place: `param` and `grad` are its numbers in rows of `dims`
    /// (one row if only chosen entries learn), `state` the buffers in the order of the plan.
    /// Threads must not show in the result.
    fn apply(
        &self,
        now: &Move,
        dims: &[usize],
        param: &mut [f32],
        grad: &[f32],
        state: &mut [Data],
    );

    /// Whether the numbers to train with are not those to use.
    fn exchanges(&self) -> bool {
        false
    }

    /// Exchanges the two, where they differ (schedule-free rules); a second call undoes the first
    /// up to rounding.
    fn exchange(&self, _param: &mut [f32], _state: &mut [Data]) {}
}

/// What an optimizer needs from the stepper.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Learning rate of variables without a group.
    pub learning_rate: f64,
    /// Weight decay of variables without a group.
    pub weight_decay: f64,
    /// Buffers by torch's names.
    pub state: Vec<(&'static str, Of)>,
}

/// What a buffer has numbers of, and where they begin. What is neither a matrix nor a vector counts
/// as a matrix with rows along its last dimension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// One per element, from 0.
    Elements,
    /// One per element, from the parameter's own value.
    Parameters,
    /// One byte per element, from 0; below so many elements, one number per element.
    Codes(usize),
    /// One per so many elements, and one for what is left, from 0.
    Blocks(usize),
    /// One per row of a matrix, from 0; of a vector, one per element.
    Rows,
    /// One per column of a matrix, from 0; none of a vector.
    Columns,
    /// A single number, from 0.
    One,
}

/// A buffer.
#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    /// Numbers.
    F32(Vec<f32>),
    /// Codes of numbers.
    U8(Vec<u8>),
}

/// The numbers of one step for one variable.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Move {
    /// 1 for the first step.
    pub t: u64,
    /// After schedule and group.
    pub learning_rate: f64,
    /// After group.
    pub weight_decay: f64,
    /// What every gradient is multiplied by (clipping).
    pub grad_scale: f32,
}

impl Of {
    /// The buffer of a variable of `dims` before its first step; `numbers` are its values.
    pub fn begin(self, dims: &[usize], numbers: &[f32]) -> Data {
        let (n, columns) = (numbers.len(), dims.last().copied().unwrap_or(1).max(1));
        let len = match self {
            Of::Parameters => return Data::F32(numbers.to_vec()),
            Of::Codes(least) if n >= least => return Data::U8(vec![0; n]),
            Of::Elements | Of::Codes(_) => n,
            Of::Blocks(size) => n.div_ceil(size),
            Of::Rows if dims.len() < 2 => n,
            Of::Rows => n / columns,
            Of::Columns if dims.len() < 2 => 0,
            Of::Columns => columns,
            Of::One => 1,
        };
        Data::F32(vec![0.0; len])
    }
}

impl Data {
    /// How many numbers or codes.
    pub fn len(&self) -> usize {
        match self {
            Data::F32(x) => x.len(),
            Data::U8(x) => x.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The numbers of a buffer that was planned to have numbers.
    pub(crate) fn numbers(&mut self) -> &mut [f32] {
        match self {
            Data::F32(x) => x,
            Data::U8(_) => unreachable!("planned as numbers"),
        }
    }
}

pub(crate) fn check_rate(at: &str, key: &str, value: f64) -> Result<()> {
    if value.is_finite() && value >= 0.0 {
        return Ok(());
    }
    Err(Error::input(
        format!("{at}.{key}"),
        format!("expected a number of at least 0, got {value}"),
    ))
}

pub(crate) fn check_share(at: &str, key: &str, value: f64) -> Result<()> {
    if (0.0..1.0).contains(&value) {
        return Ok(());
    }
    let what = format!("expected at least 0 and below 1, got {value}");
    Err(Error::input(format!("{at}.{key}"), what))
}

/// The point at `share` of the way between two, from the nearer end as torch's `lerp` goes.
#[inline(always)]
pub(crate) fn lerp(from: f32, to: f32, share: f32) -> f32 {
    match share.abs() < 0.5 {
        true => from + share * (to - from),
        false => to + (share - 1.0) * (to - from),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_follow_the_shape() {
        let len = |of: Of, dims: &[usize]| {
            let numbers = vec![2.0; dims.iter().product()];
            of.begin(dims, &numbers).len()
        };
        assert_eq!([len(Of::Rows, &[3, 5]), len(Of::Columns, &[3, 5])], [3, 5]);
        assert_eq!([len(Of::Rows, &[5]), len(Of::Columns, &[5])], [5, 0]);
        assert_eq!([len(Of::Rows, &[2, 3, 5]), len(Of::Columns, &[2, 3, 5])], [6, 5]);
        assert_eq!(
            [len(Of::Blocks(4), &[9]), len(Of::Blocks(4), &[8]), len(Of::One, &[8])],
            [3, 2, 1]
        );
        assert_eq!(Of::Codes(4).begin(&[3], &[2.0; 3]), Data::F32(vec![0.0; 3]));
        assert_eq!(Of::Codes(3).begin(&[3], &[2.0; 3]), Data::U8(vec![0; 3]));
        assert_eq!(Of::Parameters.begin(&[2], &[2.0; 2]), Data::F32(vec![2.0; 2]));
    }
}
