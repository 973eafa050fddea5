//! What learns changes between two steps.

use std::{collections::HashMap, mem};

use luthier_core::{Error, Mask, Param, Result};

use super::{Stepper, slot::Slot};
use crate::optimizer::{Data, Of};

impl Stepper {
    /// Goes on with other variables, or other entries of them. The schedule goes on too.
    ///
    /// With `keep`, the optimizer's memory follows variables by name and entries by position: what
    /// goes on learning keeps its numbers, what joins begins at its beginning, what leaves is
    /// forgotten, and the count of steps goes on. Without, all memory begins anew and the next step
    /// is again the first. Running averages, and where penalties pull to, follow either way; for
    /// what joins both begin at the weights as they are.
    ///
    /// On an error nothing has changed.
    pub fn rebind(&mut self, params: &[Param], keep: bool) -> Result<()> {
        self.expect_training("changing what learns")?;
        let mut slots = self.bind(params, false)?;
        let known: HashMap<&str, usize> =
            self.slots.iter().enumerate().map(|(i, slot)| (slot.name.as_str(), i)).collect();
        // Variables that go on as they were, whose memory moves over when nothing can fail any more.
        let mut same = Vec::new();
        for (new, slot) in slots.iter_mut().enumerate() {
            let old = known.get(slot.name.as_str()).copied();
            match old.map(|old| (old, &self.slots[old])) {
                None => {
                    slot.begin_state(&self.plan)?;
                    slot.begin_records(self.records())?;
                }
                Some((_, old)) if old.var.dims() != slot.var.dims() => {
                    let (from, to) = (old.var.dims(), slot.var.dims());
                    let what = format!("its shape was {from:?} and is {to:?}");
                    return Err(Error::failed(&slot.name, what));
                }
                Some((i, old)) if old.mask == slot.mask => {
                    if !keep {
                        slot.begin_state(&self.plan)?;
                    }
                    same.push((new, i));
                }
                Some((_, old)) => {
                    slot.begin_state(&self.plan)?;
                    slot.begin_records(self.records())?;
                    let (from, to) = (old.mask.as_ref(), slot.mask.as_ref());
                    follow((&old.origin, from), (&mut slot.origin, to));
                    follow((&old.average, from), (&mut slot.average, to));
                    if keep {
                        self.hand_over(old, slot)?;
                    }
                }
            }
        }
        drop(known);
        for (new, old) in same {
            let (slot, old) = (&mut slots[new], &mut self.slots[old]);
            slot.origin = mem::take(&mut old.origin);
            slot.average = mem::take(&mut old.average);
            if keep {
                slot.state = mem::take(&mut old.state);
            }
        }
        self.slots = slots;
        if !keep {
            self.begun = self.step;
        }
        Ok(())
    }

    /// The buffers of a variable for other entries of it.
    fn hand_over(&self, old: &Slot, slot: &mut Slot) -> Result<()> {
        let vectors = old.dims().len() < 2 && slot.dims().len() < 2;
        let (from, to) = (old.mask.as_ref(), slot.mask.as_ref());
        let codes = old.state.iter().chain(&slot.state).any(|data| matches!(data, Data::U8(_)));
        let buffers = self.plan.state.iter().zip(&old.state).zip(&mut slot.state);
        for (((buffer, of), was), is) in buffers {
            match (of, was, is) {
                (Of::One, was, is) => *is = was.clone(),
                (Of::Elements | Of::Parameters | Of::Codes(_), Data::F32(was), Data::F32(is)) => {
                    follow((was, from), (is, to));
                }
                (Of::Rows, Data::F32(was), Data::F32(is)) if vectors => {
                    follow((was, from), (is, to));
                }
                (Of::Columns, ..) if vectors => {}
                // Nothing is in blocks that has no codes.
                (Of::Blocks(_), ..) if !codes => {}
                _ => {
                    let (optimizer, _) = self.update.optimizer()?;
                    let what = format!(
                        "keeps `{buffer}` for many numbers at once, which cannot follow other \
                         entries of {}",
                        slot.name
                    );
                    return Err(Error::input(format!("train.update.{optimizer}"), what)
                        .hint("use adamw, or let the optimizer begin anew with every choice"));
                }
            }
        }
        Ok(())
    }
}

/// Copies what `from` has for the entries of its mask to the same entries in `to`; the others stay.
fn follow((from, old): (&[f32], Option<&Mask>), (to, new): (&mut [f32], Option<&Mask>)) {
    if from.is_empty() || to.is_empty() {
        return;
    }
    match (old, new) {
        (None, None) => to.copy_from_slice(from),
        (Some(old), None) => old.scatter(from, to),
        (None, Some(new)) => to.copy_from_slice(&new.gather(from)),
        (Some(old), Some(new)) => {
            let mut rest = old.positions().iter().zip(from).peekable();
            for (at, to) in new.positions().iter().zip(to) {
                while rest.next_if(|(known, _)| *known < at).is_some() {}
                if let Some((_, number)) = rest.next_if(|(known, _)| *known == at) {
                    *to = *number;
                }
            }
        }
    }
}
