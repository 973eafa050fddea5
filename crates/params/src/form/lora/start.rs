//! Where an adapter's numbers begin.

use candle_core::Tensor;
use luthier_core::{Error, Model, Result, Seed, SiteKind};

use super::{
    Lora, LoraInit, Target, dora,
    factor::{Pair, complementary, singular, triangular},
    hook::Removed,
};
use crate::Scope;

/// What does not begin at the drawn values or zeros that it has otherwise.
#[derive(Default)]
pub(super) struct Start {
    pub a_ri: Option<Tensor>,
    pub b_or: Option<Tensor>,
    /// What is taken off the weight, which the factors begin as.
    pub removed: Option<Removed>,
    /// DoRA's vector.
    pub lengths: Option<Tensor>,
}

impl From<Pair> for Start {
    fn from(Pair { a_ri, b_or }: Pair) -> Self {
        Start { a_ri: Some(a_ri), b_or: Some(b_or), ..Start::default() }
    }
}

/// What the scope knows of one target; it cannot itself go to several threads.
pub(super) struct Known {
    /// Whether a file's values replace those that would be computed.
    given: bool,
    seed: Seed,
    /// The weight before quantisation.
    exact: Option<Tensor>,
}

impl Known {
    pub fn of(lora: &Lora, target: &Target, scope: &Scope) -> Self {
        let name = &target.site.name;
        let exact = lora.needs_weights().then(|| scope.found(&format!("{name}.weight"))).flatten();
        Known { given: scope.is_given(), seed: scope.seed(&format!("{name}.lora")), exact }
    }
}

impl Start {
    /// Of one target.
    pub fn of(lora: &Lora, model: &dyn Model, target: &Target, known: Known) -> Result<Self> {
        let given = known.given;
        let mut start = Self::factors(lora, model, target, known)?;
        if lora.dora && !given {
            start.measure(model, target)?;
        }
        Ok(start)
    }

    fn factors(lora: &Lora, model: &dyn Model, target: &Target, known: Known) -> Result<Self> {
        let (Target { site, r, scale, .. }, (i, o)) = (*target, target.widths());
        let SiteKind::Linear { .. } = site.kind else { return Ok(Start::default()) };
        let weight = || Ok::<_, Error>(model.affine(site.id)?.w_oi);
        let without = |pair: Pair| {
            let (a_ri, b_or) = (pair.a_ri.clone(), pair.b_or.clone());
            Start { removed: Some(Removed { a_ri, b_or, scale }), ..pair.into() }
        };
        Ok(match lora.init {
            LoraInit::Kaiming | LoraInit::Gaussian | LoraInit::Eva => Start::default(),
            LoraInit::Pissa => without(singular(&site.name, &weight()?, r, scale)?),
            LoraInit::Olora => without(triangular(&weight()?, r)?),
            LoraInit::Orthogonal | LoraInit::Loftq if known.given => Start::default(),
            LoraInit::Orthogonal => complementary(known.seed, o, i, r)?.into(),
            LoraInit::Loftq => {
                let missing = || {
                    Error::failed(&site.name, "its weight before quantisation is not known")
                        .hint("init = \"loftq\" makes up for what quantising the base lost")
                };
                let lost = (known.exact.ok_or_else(missing)? - weight()?)?;
                singular(&site.name, &lost, r, scale)?.into()
            }
        })
    }

    /// Sets DoRA's lengths to those the weight has.
    pub fn measure(&mut self, model: &dyn Model, target: &Target) -> Result<()> {
        let mut weight = model.affine(target.site.id)?.w_oi;
        self.lengths = Some(match target.site.kind {
            // The table's addition begins at 0.
            SiteKind::Embed { .. } => dora::column_lengths(&weight, None)?,
            _ => {
                if let Some(removed) = &self.removed {
                    weight = removed.from(&weight)?;
                }
                let add = match (&self.a_ri, &self.b_or) {
                    (Some(a_ri), Some(b_or)) => Some((b_or.matmul(a_ri)? * target.scale)?),
                    _ => None,
                };
                dora::row_lengths(&weight, add.as_ref())?
            }
        });
        Ok(())
    }
}
