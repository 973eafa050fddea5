//! Training an editor: edits that are judged by what they do to other words and to other things.

use std::collections::BTreeMap;

use candle_core::Tensor;
use luthier_core::{Batch, Ctx, Error, Hooks, Param, Policy, Result, Row, model::gather_logp};
use luthier_kernels::threads;
use luthier_loss::distribution::log_softmax;
use luthier_update::{Adam, Group, Start, Stepper, Update, schedule::Constant};

use super::{
    Editor, factors,
    factors::{trained_stream, trained_targets},
};

/// One edit and what it is judged by. Only trained tokens count.
#[derive(Clone, Debug)]
pub struct Episode {
    /// What shall be said; several rows are one edit of several facts.
    pub edits: Vec<Row>,
    /// The same asked in other words.
    pub rephrases: Vec<Row>,
    /// What shall stay as it is.
    pub locality: Vec<Row>,
}

/// What an episode gave.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Judged {
    /// Loss of what shall be said, before the edit.
    pub before: f64,
    /// The same in other words, after it.
    pub rephrased: f64,
    /// Divergence of the answers that shall stay.
    pub drift: f64,
    /// Whether its gradient was finite, so that it counts.
    pub counts: bool,
}

/// An editor while it learns.
pub struct Learner {
    editor: Editor,
    params: Vec<Param>,
    stepper: Stepper,
    sums: BTreeMap<String, Tensor>,
    counted: usize,
    met: usize,
}

impl Learner {
    /// Begins to train `editor`.
    pub fn new(editor: Editor) -> Result<Self> {
        let params = editor.params();
        let mend = &editor.mend;
        let mut update = Update {
            adam: Some(Adam { learning_rate: mend.lr, ..Adam::default() }),
            max_grad_norm: 100.0,
            groups: vec![Group {
                at: "**.alpha".into(),
                learning_rate: Some(mend.lr_lr),
                lr_scale: None,
                weight_decay: None,
            }],
            ..Update::default()
        };
        update.schedule.constant = Some(Constant::default());
        let stepper = Stepper::new(&update, &params, &Start::steps(0))?;
        Ok(Learner { editor, params, stepper, sums: BTreeMap::new(), counted: 0, met: 0 })
    }

    /// One episode; after every `accumulate_bs` of them the editor takes a step along the mean of those
    /// whose gradients were finite.
    pub fn episode(&mut self, policy: &Policy, episode: &Episode) -> Result<Judged> {
        threads::together(|| self.judge(policy, episode))
    }

    /// The editor as it is now.
    pub fn finish(self) -> Editor {
        self.editor
    }

    fn judge(&mut self, policy: &Policy, episode: &Episode) -> Result<Judged> {
        let sites = self.editor.mend.sites(policy.model.as_ref())?;
        let (before, found) = factors(policy, &sites, &episode.edits)?;
        self.editor.see(&found)?;
        let (loss, rephrased, drift) = loss(policy, &self.editor, &found, episode)?;
        let store = loss.backward()?;
        let mut gradients = Vec::new();
        let mut counts = loss.to_scalar::<f32>()?.is_finite();
        for Param { name, var, .. } in &self.params {
            let Some(gradient) = store.get(var.as_tensor()) else { continue };
            // A sum is not finite as soon as one term is not.
            counts &= gradient.sum_all()?.to_scalar::<f32>()?.is_finite();
            gradients.push((name, gradient.clone()));
        }
        if counts {
            self.counted += 1;
            for (name, gradient) in gradients {
                let sum = match self.sums.remove(name) {
                    Some(sum) => (sum + gradient)?,
                    None => gradient,
                };
                self.sums.insert(name.clone(), sum);
            }
        }
        self.met += 1;
        if self.met.is_multiple_of(self.editor.mend.accumulate_bs) && self.counted > 0 {
            let by = 1.0 / self.counted as f64;
            let mut means = BTreeMap::new();
            for (name, sum) in std::mem::take(&mut self.sums) {
                // The step clips in place.
                means.insert(name, (sum * by)?.copy()?);
            }
            self.counted = 0;
            self.stepper.step(&|name, _| means.get(name).cloned())?;
        }
        Ok(Judged { before, rephrased, drift, counts })
    }
}

/// `cedit · NLL(rephrase) + cloc · KL(before ‖ after)` with its graph, and both terms.
pub(super) fn loss(
    policy: &Policy,
    editor: &Editor,
    found: &[super::Factors],
    episode: &Episode,
) -> Result<(Tensor, f64, f64)> {
    let (asked, kept) = (trained(&episode.rephrases), trained(&episode.locality));
    if asked == 0 || kept == 0 {
        let what = format!("{asked} trained tokens in other words and {kept} that shall stay");
        return Err(Error::input("episode", format!("has {what}, expected some of both")));
    }
    let mut edits = Hooks::none();
    for (site, pending) in editor.pending(found)? {
        edits.bind(site, pending);
    }
    let hooks = policy.hooks.clone().and(&edits);
    let model = policy.model.as_ref();
    let both = Batch::from_rows(episode.rephrases.iter().chain(&episode.locality));
    let mut ctx = Ctx::new(&hooks, both.rows.clone(), &both.ids_n);
    let h_md = trained_stream(model, &both, &mut ctx)?;
    let logits_mv = model.unembed(&h_md, &mut ctx)?;
    let targets = trained_targets(&both);
    let said = gather_logp(&logits_mv.narrow(0, 0, asked)?, &targets[..asked])?;
    let nll = said.mean_all()?.neg()?;
    let after_mv = log_softmax(&logits_mv.narrow(0, asked, kept)?)?.0;

    let locality = Batch::from_rows(&episode.locality);
    let mut ctx = Ctx::new(&policy.hooks, locality.rows.clone(), &locality.ids_n);
    let h_md = trained_stream(model, &locality, &mut ctx)?;
    let before_mv = log_softmax(&model.unembed(&h_md, &mut ctx)?)?.0.detach();
    let apart_mv = (before_mv.exp()? * (before_mv - after_mv)?)?;
    let drift = (apart_mv.sum_all()? / kept as f64)?;

    let (cedit, cloc) = (editor.mend.cedit, editor.mend.cloc);
    let value = |t: &Tensor| -> Result<f64> { Ok(f64::from(t.to_scalar::<f32>()?)) };
    let (rephrased, drifted) = (value(&nll)?, value(&drift)?);
    Ok((((nll * cedit)? + (drift * cloc)?)?, rephrased, drifted))
}

fn trained(rows: &[Row]) -> usize {
    rows.iter().map(Row::trained).sum()
}
