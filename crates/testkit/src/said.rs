//! Numbers that a policy says of tokens, given: for objectives that ask for nothing else.

use candle_core::Tensor;
use luthier_core::{Error, Logits, Piece, Result};

/// Log-probabilities of targets `(n,)`, or a head's scores `(n, labels)`; whoever asks for more is
/// refused.
pub struct Said(pub Tensor);

impl Logits for Said {
    fn logp(&mut self, index_m: &[u32], _targets_m: &[u32]) -> Result<Tensor> {
        self.logits(index_m)
    }

    fn logits(&mut self, index_m: &[u32]) -> Result<Tensor> {
        let index = Tensor::from_slice(index_m, index_m.len(), self.0.device())?;
        Ok(self.0.index_select(&index, 0)?)
    }

    fn hidden(&mut self, _index_m: &[u32]) -> Result<Tensor> {
        Err(Error::failed("hidden", "nobody should ask"))
    }

    fn sum(&mut self, _pieces: usize, _piece: &mut Piece) -> Result<Tensor> {
        Err(Error::failed("sum", "nobody should ask"))
    }
}
