//! Logits that are given: the end of a pass of whatever is no language model, a small net's mostly.

use candle_core::{Device, Tensor};
use luthier_core::{Error, Logits, Piece, Result, model::gather_logp};

/// A table of logits, `(n, v)`, asked like a model.
pub struct Given(pub Tensor);

impl Logits for Given {
    fn logp(&mut self, index_m: &[u32], targets_m: &[u32]) -> Result<Tensor> {
        gather_logp(&self.logits(index_m)?, targets_m)
    }

    fn logits(&mut self, index_m: &[u32]) -> Result<Tensor> {
        let index = Tensor::from_slice(index_m, index_m.len(), self.0.device())?;
        Ok(self.0.index_select(&index, 0)?)
    }

    fn hidden(&mut self, _index_m: &[u32]) -> Result<Tensor> {
        Err(Error::failed("logits", "a table of them has no residual stream"))
    }

    fn sum(&mut self, pieces: usize, piece: &mut Piece) -> Result<Tensor> {
        sum(self, pieces, piece)
    }
}

/// All pieces added up in one graph.
pub fn sum(out: &mut dyn Logits, pieces: usize, piece: &mut Piece) -> Result<Tensor> {
    let none = Tensor::new(0f32, &Device::Cpu)?;
    (0..pieces).try_fold(none, |sum, i| Ok((sum + piece(&mut *out, i)?)?))
}
