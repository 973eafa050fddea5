//! One input as it is, or times `scale`: for stacking layers.

use luthier_core::Result;

use crate::{
    combine::Combine,
    method::Given,
    operands::{As, Cut, Put, Work},
};

/// `merge_method: passthrough`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Passthrough {
    /// A factor.
    pub scale: Option<f64>,
}

impl Passthrough {
    pub(crate) fn of(given: &Given) -> Result<Box<dyn Combine>> {
        Ok(Box::new(Passthrough { scale: given.maybe("scale") }))
    }
}

impl Combine for Passthrough {
    fn combine(&self, work: &Work<'_>, put: Put<'_>) -> Result<()> {
        work.write(Cut::Anywhere, As::Values, put, |_, loaded| {
            std::mem::swap(&mut loaded.out, &mut loaded.others[0]);
            if let Some(scale) = self.scale {
                loaded.out.iter_mut().for_each(|x| *x *= scale as f32);
            }
            Ok(())
        })
    }
}
