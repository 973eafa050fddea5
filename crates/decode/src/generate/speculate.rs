//! Speculative decoding (Leviathan et al. 2023, arXiv 2211.17192; Chen et al. 2023, arXiv 2302.01318)
//! of any combination: one source writes a few tokens ahead, the others read them in one pass, and what
//! the combination would not have said is drawn again. What comes out is distributed as without.
//!
//! With `q` the draft's distribution and `p` the combination's, both after constraints, penalties and
//! warpers: a token `w` stays with probability `min(1, p(w) / q(w))`; at the first that does not, one is
//! drawn from `max(0, p − q)`, normalised, and the rest of the draft is dropped. At temperature 0 both
//! have one token, and the text is that of greedy decoding token by token.
//! **Departures**: (1) where all drafted tokens stay, none is added: the drafting source has not read
//! the last of them. (2) The drafting source is one of those that are combined (the small tuned model of
//! an emulation), so that its own logits are not computed twice.

use luthier_core::Result;

use super::{Chosen, Draft, Laid, Live, Task, logp, place};
use crate::{
    Constrain, SoFar, Source,
    choose::{Candidate, draw},
};

/// What was written ahead of one sequence.
#[derive(Default)]
struct Ahead {
    tokens: Vec<u32>,
    /// The drafting source's logits before each of them, flat.
    logits_mv: Vec<f32>,
    /// What each was drawn from.
    from: Vec<Vec<Candidate>>,
}

/// What the other sources said of one row's draft.
struct Others<'a> {
    /// By source; nothing for the one that drafted.
    logits_smv: &'a [Vec<f32>],
    /// The first of the row's places.
    start: usize,
    /// Who drafted.
    draft: usize,
}

impl Task<'_> {
    /// The next tokens of every sequence: at least one, at most as many as are drafted.
    pub(super) fn drafted(
        &self,
        sources: &mut [Box<dyn Source + '_>],
        live: &[Live],
        draft: Draft,
    ) -> Result<Vec<Vec<Chosen>>> {
        let ahead = self.write(sources[draft.source].as_mut(), live, draft)?;
        // Everyone else reads all but the last drafted token, and says what it thinks before each.
        let texts: Vec<Vec<u32>> = (live.iter().zip(&ahead))
            .map(|(seq, a)| [&seq.unread[..], &a.tokens[..a.tokens.len() - 1]].concat())
            .collect();
        let rows = live.iter().zip(&texts).zip(&ahead);
        let laid = Laid::new(rows.map(|((seq, ids), a)| seq.reading(ids, a.tokens.len())));
        let mut logits_smv = vec![Vec::new(); sources.len()];
        for (i, (source, to)) in sources.iter_mut().zip(&mut logits_smv).enumerate() {
            if i != draft.source {
                source.step(&laid.step(), to)?;
            }
        }
        let starts: Vec<usize> = (ahead.iter())
            .scan(0, |next, a| {
                *next += a.tokens.len();
                Some(*next - a.tokens.len())
            })
            .collect();
        self.side_by_side(live, |row, seq| {
            let others =
                Others { logits_smv: &logits_smv, start: starts[row], draft: draft.source };
            self.judge(seq, &ahead[row], &others)
        })
    }

    /// Lets one source write ahead.
    fn write(&self, source: &mut dyn Source, live: &[Live], draft: Draft) -> Result<Vec<Ahead>> {
        let mut ahead: Vec<Ahead> = live.iter().map(|_| Ahead::default()).collect();
        let most = |seq: &Live| {
            let room = self.options.room(self.prompts[seq.sequence].len());
            draft.tokens.min(room - seq.tokens.len())
        };
        let ended = |a: &Ahead| a.tokens.last().is_some_and(|t| self.options.eos.contains(t));
        let mut logits_bv = Vec::new();
        for step in 0..draft.tokens {
            let rows: Vec<usize> =
                (0..live.len()).filter(|i| step < most(&live[*i]) && !ended(&ahead[*i])).collect();
            if rows.is_empty() {
                break;
            }
            let laid = Laid::new(rows.iter().map(|i| {
                let seq = &live[*i];
                match step {
                    0 => seq.reading(&seq.unread, 1),
                    _ => {
                        let mut reading = seq.reading(&ahead[*i].tokens[step - 1..], 1);
                        reading.start += seq.unread.len() + step - 1;
                        reading
                    }
                }
            }));
            source.step(&laid.step(), &mut logits_bv)?;
            for (i, logits_v) in rows.into_iter().zip(logits_bv.chunks(self.vocab)) {
                let seq = &live[i];
                let tokens = [&seq.tokens[..], &ahead[i].tokens].concat();
                let so_far = SoFar { prompt: &self.prompts[seq.sequence], tokens: &tokens };
                let mut own = logits_v.to_vec();
                let from = self.candidates(&so_far, &mut own, seq)?;
                let mut rng = self.seed("draft", seq, step).rng();
                let a = &mut ahead[i];
                a.tokens.push(draw(&from, rng.uniform()));
                a.from.push(from);
                a.logits_mv.extend_from_slice(logits_v);
            }
        }
        Ok(ahead)
    }

    /// What is left to draw from, after constraints, penalties and warpers.
    fn candidates(
        &self,
        so_far: &SoFar,
        logits_v: &mut [f32],
        seq: &Live,
    ) -> Result<Vec<Candidate>> {
        self.constrain.constrain(so_far, logits_v);
        let sampler = &self.options.sampler;
        sampler.penalise(so_far, logits_v);
        let kept = sampler.candidates(logits_v);
        kept.map_err(|e| place(e, seq.sequence, so_far.tokens.len()))
    }

    /// Which of the drafted tokens stay, and what stands in the place of the first that does not.
    fn judge(&self, seq: &Live, ahead: &Ahead, others: &Others) -> Result<Vec<Chosen>> {
        let v = self.vocab;
        let mut chosen = Vec::with_capacity(ahead.tokens.len());
        for (i, drafted) in ahead.tokens.iter().enumerate() {
            let tokens = [&seq.tokens[..], &ahead.tokens[..i]].concat();
            let so_far = SoFar { prompt: &self.prompts[seq.sequence], tokens: &tokens };
            let picked: Vec<&[f32]> = (others.logits_smv.iter().enumerate())
                .map(|(source, all)| match source == others.draft {
                    true => &ahead.logits_mv[i * v..][..v],
                    false => &all[(others.start + i) * v..][..v],
                })
                .collect();
            let mut logits_v = vec![0.0; v];
            self.combine.combine(&picked, &mut logits_v);
            let raw = self.options.logprobs.then(|| logits_v.clone());
            let wanted = self.candidates(&so_far, &mut logits_v, seq)?;
            let uniform = |purpose: &str| self.seed(purpose, seq, i).rng().uniform();
            let (p, q) = (probability(&wanted), probability(&ahead.from[i]));
            let stays = uniform("accept") * q(*drafted) < p(*drafted);
            let token = match stays {
                true => *drafted,
                false => {
                    let rest = |c: &Candidate| {
                        let left = p(c.id) - q(c.id);
                        (left > 0.0).then(|| Candidate { id: c.id, logit: left.ln() as f32 })
                    };
                    let rest: Vec<Candidate> = wanted.iter().filter_map(rest).collect();
                    // Nothing is left only where rounding made two equal distributions differ.
                    let rest = if rest.is_empty() { &wanted } else { &rest };
                    draw(rest, uniform("resample"))
                }
            };
            let logprob = raw.map(|raw| logp(&raw, token));
            chosen.push(Chosen { token, logprob, memory: seq.memory });
            if !stays {
                break;
            }
        }
        Ok(chosen)
    }
}

/// The probability of each id among candidates, which are in the order of their ids.
fn probability(kept: &[Candidate]) -> impl Fn(u32) -> f64 + '_ {
    let best = kept.iter().map(|c| c.logit).fold(f32::NEG_INFINITY, f32::max);
    let weight = move |c: &Candidate| f64::from(c.logit - best).exp();
    let z: f64 = kept.iter().map(weight).sum();
    move |id| match kept.binary_search_by_key(&id, |c| c.id) {
        Ok(at) => weight(&kept[at]) / z,
        Err(_) => 0.0,
    }
}
