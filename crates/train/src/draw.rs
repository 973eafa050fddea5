//! What settings do to the rows of a step at the moment they are drawn: they weigh them by what the
//! policy says of them now, and corrupt what it reads.
//!
//! Rows are changed before they are cut into passes, so the cut changes nothing; and all that is random
//! follows from the seed and the step, so a resumed run draws the same.

use luthier_core::{Error, Result};

use crate::{
    Train,
    job::{Draw, Drawn},
};

pub mod corrupt;
pub mod fresh;
pub mod weigh;

pub use corrupt::{Corrupt, MaskInit, MaskToken, Noise};

/// What `config` does to the rows of a step; `None` where nothing is done to them. `mask` is the token
/// that [`Corrupt`] puts in place of others.
pub fn of(config: &Train, mask: Option<u32>) -> Result<Option<Box<Draw<'_>>>> {
    let fait = config.loss.fait.as_ref();
    let corrupt = match (&config.corrupt, mask) {
        (Some(corrupt), Some(mask)) => Some((corrupt, mask)),
        (Some(_), None) => return Err(Error::failed("train.corrupt", "no mask token was found")),
        (None, _) => None,
    };
    if fait.is_none() && corrupt.is_none() {
        return Ok(None);
    }
    let micro_tokens = config.micro_tokens();
    Ok(Some(Box::new(move |mut drawn: Drawn| {
        // Judged as they are: what is corrupted is read by the coming pass alone.
        if let Some(fait) = fait {
            drawn.rows = weigh::judged(fait, drawn.policy, drawn.rows, micro_tokens)?;
        }
        if let Some((corrupt, mask)) = corrupt {
            let rate = corrupt.rate(drawn.step, drawn.of);
            let (seed, vocab) = (drawn.seed.split("corrupt"), drawn.policy.model.vocab());
            corrupt.apply(&mut drawn.rows, rate, mask, vocab, seed);
        }
        Ok(drawn.rows)
    })))
}
