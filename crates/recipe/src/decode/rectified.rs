//! A pilot whose probabilities its copilot corrects: `p̂ + λ f` in the place of logits, token by token.
//!
//! The pilot keeps its keys and values. Of the copilot a sequence keeps what it saw of the pilot, as it
//! reads that, and what it read of its own earlier corrections; the rest, a few narrow blocks over the
//! answer so far, is computed again for every token.

use std::path::PathBuf;

use luthier_core::{Cache, Ctx, Error, Policy, Result};
use luthier_decode::{Combine, Source, combine::Rectify, sources::Step};
use luthier_kernels::tensor;
use luthier_params::copilot::{CONFIG, Copilot, States};
use serde::{Deserialize, Serialize};

/// `[decode.sources.NAME.copilot]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CopilotBy {
    /// What training with `[train.copilot]` has written, or a checkpoint of it.
    pub folder: PathBuf,
    /// How much of its corrections; as it was trained for, if this is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lambda: Option<f64>,
}

/// A copilot that is open.
pub struct Corrector {
    copilot: Copilot,
    rule: Rectify,
}

impl CopilotBy {
    /// Opens it beside `pilot`; `at` is its table.
    pub fn open(&self, at: &str, pilot: &Policy) -> Result<Corrector> {
        let (copilot, config) = Copilot::open(&self.folder).map_err(|e| Error::within(at, e))?;
        let rule = Rectify { lambda: self.lambda.unwrap_or(config.lambda) };
        if !(rule.lambda.is_finite() && rule.lambda >= 0.0) {
            let what = format!("expected a number of at least 0, got {}", rule.lambda);
            return Err(Error::input(format!("{at}.lambda"), what));
        }
        let file = self.folder.join(CONFIG);
        for (what, of_copilot, of_pilot) in [
            ("tokens", copilot.sizes.vocab, pilot.model.vocab()),
            ("width", copilot.sizes.pilot_width, pilot.model.width()),
        ] {
            if of_copilot != of_pilot {
                let what =
                    format!("expected a pilot with {of_copilot} ({what}), got one with {of_pilot}");
                return Err(Error::input(format!("{at}: {}", file.display()), what)
                    .hint(format!("it was trained beside {}", config.base)));
            }
        }
        if pilot.hooks.virtual_tokens > 0 {
            let what = "beside an adapter with virtual tokens, which stand for no text";
            return Err(Error::input(at, what).hint("use an adapter without virtual tokens"));
        }
        Ok(Corrector { copilot, rule })
    }
}

impl Corrector {
    /// `pilot` with this copilot as a source, with room for `max_batch` live sequences.
    pub fn source<'a>(
        &'a self,
        pilot: &'a Policy,
        max_batch: usize,
        vocab: usize,
    ) -> Rectified<'a> {
        let cache = Cache::new(max_batch, pilot.model.n_layers());
        Rectified { pilot, by: self, cache, pasts: vec![Past::default(); max_batch], vocab }
    }
}

/// What the copilot knows of one sequence.
#[derive(Clone, Default)]
struct Past {
    /// Both halves of what it saw of the pilot, `(n, d)` flat.
    seen: [Vec<f32>; 2],
    /// Positions at which it was asked.
    at: Vec<u32>,
    /// What it read of each correction, `(m, d)` flat.
    read: Vec<f32>,
}

impl Past {
    /// Forgets the tokens from position `len` on.
    fn truncate(&mut self, len: usize, d: usize) {
        self.seen.iter_mut().for_each(|half| half.truncate(len * d));
        let m = self.at.partition_point(|at| (*at as usize) < len);
        self.at.truncate(m);
        self.read.truncate(m * d);
    }
}

/// A pilot and its copilot.
pub struct Rectified<'a> {
    pilot: &'a Policy,
    by: &'a Corrector,
    cache: Cache,
    pasts: Vec<Past>,
    vocab: usize,
}

impl Rectified<'_> {
    /// The copilot's correction after the token at position `at`, of the whole vocabulary.
    fn correction(&mut self, slot: usize, at: usize) -> Result<Vec<f32>> {
        let (copilot, past) = (&self.by.copilot, &mut self.pasts[slot]);
        let d = copilot.sizes.width;
        past.at.push(at as u32);
        // What is read of this place's own correction is read by the next place alone.
        past.read.resize(past.at.len() * d, 0.0);
        let half = |half: &[f32]| tensor::from_vec(half[..(at + 1) * d].to_vec(), (at + 1, d));
        let aligned = [half(&past.seen[0])?, half(&past.seen[1])?];
        let m = past.at.len();
        let read_md = tensor::from_vec(past.read.clone(), (m, d))?;
        let hidden_md = copilot.hidden(&read_md, &aligned, &past.at)?;
        let f_1v = copilot.correct(&hidden_md.narrow(0, m - 1, 1)?.contiguous()?)?.detach();
        let read = copilot.read(&f_1v)?.flatten_all()?.to_vec1::<f32>()?;
        past.read[(m - 1) * d..].copy_from_slice(&read);
        Ok(f_1v.flatten_all()?.to_vec1()?)
    }

    /// Runs the pilot on new tokens and keeps what the copilot sees of it.
    fn pilots(&mut self, step: &Step, logits_bv: &mut Vec<f32>) -> Result<()> {
        step.take_up(&mut self.cache);
        let (model, rows) = (self.pilot.model.as_ref(), &step.rows);
        let mut ctx = Ctx::new(&self.pilot.hooks, rows.clone(), step.ids_n);
        ctx.cache = Some(&mut self.cache);
        let mut states = States::default();
        let mut h_nd = model.embed(step.ids_n, &mut ctx)?.detach();
        states.take(&h_nd)?;
        for layer in 0..model.n_layers() {
            h_nd = model.forward(layer, h_nd, &mut ctx)?;
            states.take(&h_nd)?;
        }
        self.cache.advance((0..rows.b()).map(|row| rows.range(row).len()));
        step.asked_logits(self.pilot, &h_nd, self.vocab, logits_bv)?;
        let (copilot, d) = (&self.by.copilot, self.by.copilot.sizes.width);
        let halves = copilot.align(&states.pooled()?)?;
        for (half, aligned_nd) in halves.iter().enumerate() {
            tensor::with(&aligned_nd.detach(), |aligned| {
                for (row, slot) in step.slots_b.iter().enumerate() {
                    let range = rows.range(row);
                    let new = &aligned[range.start * d..range.end * d];
                    self.pasts[*slot].seen[half].extend_from_slice(new);
                }
            })?;
        }
        Ok(())
    }
}

impl Source for Rectified<'_> {
    fn vocab(&self) -> usize {
        self.vocab
    }

    fn step(&mut self, step: &Step, logits_bv: &mut Vec<f32>) -> Result<()> {
        let pairs = || step.from_b.iter().zip(step.slots_b).filter(|(from, slot)| from != slot);
        // All are copied before any is written: one slot may take the place of another.
        let copies: Vec<Past> = pairs().map(|(from, _)| self.pasts[*from].clone()).collect();
        for ((_, slot), copy) in pairs().zip(copies) {
            self.pasts[*slot] = copy;
        }
        let d = self.by.copilot.sizes.width;
        let begin = |row: usize| step.rows.positions_n[step.rows.offsets[row]] as usize;
        for (row, slot) in step.slots_b.iter().enumerate() {
            self.pasts[*slot].truncate(begin(row), d);
        }
        self.pilots(step, logits_bv)?;
        if self.by.rule.lambda == 0.0 {
            return Ok(());
        }
        let mut out_v = vec![0.0; self.vocab];
        let mut asked = logits_bv.chunks_mut(self.vocab);
        for (row, (slot, read)) in step.slots_b.iter().zip(step.read_b).enumerate() {
            let end = begin(row) + step.rows.range(row).len();
            for at in end - read..end {
                let f_v = self.correction(*slot, at)?;
                let Some(logits_v) = asked.next() else { continue };
                self.by.rule.combine(&[logits_v, &f_v[..self.vocab]], &mut out_v);
                logits_v.copy_from_slice(&out_v);
            }
        }
        Ok(())
    }

    fn free(&mut self, slot: usize) {
        self.cache.clear(slot);
        self.pasts[slot] = Past::default();
    }
}

#[cfg(test)]
mod tests;
