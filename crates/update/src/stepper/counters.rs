//! Everything about a run that is a count or a single number, as one tensor.

use candle_core::{Device, Tensor};
use luthier_core::{Error, Result, Seed};

use super::Stepper;
use crate::Memory;

/// The tensor that holds every counter.
pub(super) const PROGRESS: &str = "luthier.progress";

impl Stepper {
    pub(super) fn counters(&self) -> Vec<u64> {
        let Memory { scale, best, bad, good, pause, at_floor, window } = &self.memory;
        let best = [u64::from(best.is_some()), best.unwrap_or(0.0).to_bits()];
        let fixed =
            [self.step, self.begun, self.chosen(), scale.to_bits(), *bad, *good, *pause, *at_floor];
        fixed.into_iter().chain(best).chain(window.iter().map(|x| x.to_bits())).collect()
    }

    pub(super) fn set_counters(&mut self, counters: &[u64]) -> Result<()> {
        let [step, begun, chosen, scale, bad, good, pause, at_floor, known, best, window @ ..] =
            counters
        else {
            return Err(Error::input(PROGRESS, "the saved counters are cut short"));
        };
        if begun > step || *known > 1 {
            return Err(Error::input(PROGRESS, "the saved counters contradict each other")
                .hint("another version of luthier wrote them"));
        }
        if *chosen != self.chosen() {
            return Err(Error::input(PROGRESS, "other entries were learning when this was saved")
                .hint("put the masks of the checkpoint back before its state"));
        }
        (self.step, self.begun) = (*step, *begun);
        self.memory = Memory {
            scale: f64::from_bits(*scale),
            best: (*known == 1).then(|| f64::from_bits(*best)),
            bad: *bad,
            good: *good,
            pause: *pause,
            at_floor: *at_floor,
            window: window.iter().map(|x| f64::from_bits(*x)).collect(),
        };
        Ok(())
    }

    /// Tells one choice of entries from another: buffers of the same length may belong to others.
    fn chosen(&self) -> u64 {
        let mut seed = Seed(0);
        for slot in &self.slots {
            if let Some(mask) = &slot.mask {
                let named = seed.split(&slot.name).at(mask.len() as u64);
                seed = mask.positions().iter().fold(named, |seed, i| seed.at(u64::from(*i)));
            }
        }
        seed.0
    }
}

/// Each counter as four 16-bit limbs, lowest first: a state file holds f32, which is exact for those
/// and for nothing larger than 2²⁴.
pub(super) fn pack(counters: &[u64]) -> Result<Tensor> {
    let limbs =
        counters.iter().flat_map(|c| (0..4).map(move |i| ((c >> (16 * i)) & 0xffff) as f32));
    Ok(Tensor::from_vec(limbs.collect(), (counters.len(), 4), &Device::Cpu)?)
}

pub(super) fn unpack(tensor: &Tensor) -> Result<Vec<u64>> {
    let wrong = || Error::input(PROGRESS, format!("expected limbs, got {:?}", tensor.dims()));
    let (_, 4) = tensor.dims2().map_err(|_| wrong())? else { return Err(wrong()) };
    let join = |limbs: Vec<f32>| limbs.iter().rev().fold(0u64, |c, x| (c << 16) | *x as u64);
    Ok(tensor.to_vec2::<f32>()?.into_iter().map(join).collect())
}
