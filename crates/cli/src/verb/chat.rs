//! `luthier chat`: a conversation at the terminal.

use std::{
    io::{BufRead, IsTerminal},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use luthier_core::{Error, Example, Result, Turn};
use luthier_decode::{Constrain, Finish, Generate, Sampler, SoFar};
use luthier_model::render::generation_prompt;
use luthier_recipe::{
    decode::{Decoding, Job},
    text::Text,
};
use rustyline::error::ReadlineError;

use crate::{
    out,
    verb::{
        decode_args::DecodeArgs,
        model_args::{Loaded, ModelArgs},
        sampling_args::{SamplingArgs, recommended},
    },
};

/// Arguments of `luthier chat`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// A system turn at the beginning
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    decode: DecodeArgs,
}

const HELP: &str = "/reset begins anew, /system TEXT too with another system turn, /quit ends; \
    Ctrl-C stops an answer, Ctrl-D ends";

/// Talks until the input ends.
pub fn run(mut args: Args) -> Result<()> {
    let table = args.decode.table(&mut args.model)?.unwrap_or_default();
    let at_a_time = table.several() * table.beam.map_or(1, |beam| beam.num_beams);
    let loaded = args.model.load_for(at_a_time)?;
    if loaded.opened.tokenizer.template().is_none() {
        return Err(Error::input(&loaded.opened.name, "this model has no chat template")
            .hint("it can go on from a text: luthier generate --raw --prompt TEXT"));
    }
    let (usual, from) = match recommended(&loaded.opened.config.generation) {
        _ if table.sampler.is_some() => {
            (table.sampler.unwrap_or_default(), "as the table of --decode says")
        }
        Some(sampler) => (sampler, "as the model's generation_config.json recommends"),
        None => (Sampler { temperature: 0.7, ..Sampler::default() }, "luthier's default"),
    };
    let options = args.sampling.options(&loaded.opened, usual)?;
    let stop = Arc::new(AtomicBool::new(false));
    let end = Interrupt { stop: stop.clone(), eos: options.eos.clone() };
    let decoding = Decoding::open(&table, &loaded.opened, &loaded.policy, at_a_time)?;
    let mut talk = Talk {
        decoding: decoding.with_constraint(Arc::new(end)),
        turns: args.system.iter().map(|text| Turn::new("system", text)).collect(),
        stop,
        answers: 0,
        loaded,
        options,
    };
    if !std::io::stdin().is_terminal() {
        return talk.lines();
    }
    out::say(&format!(
        "{} at temperature {} ({from})",
        talk.loaded.opened.name, talk.options.sampler.temperature
    ));
    out::say(HELP);
    talk.terminal()
}

/// What one line of input asks for.
enum Said {
    Words(String),
    Nothing,
    End,
}

struct Talk {
    loaded: Loaded,
    decoding: Decoding,
    options: Generate,
    turns: Vec<Turn>,
    stop: Arc<AtomicBool>,
    answers: u64,
}

impl Talk {
    fn lines(&mut self) -> Result<()> {
        for line in std::io::stdin().lock().lines() {
            let line = line.map_err(|e| Error::io("standard input", e))?;
            match self.command(&line) {
                Said::Words(words) => self.answer(words)?,
                Said::Nothing => {}
                Said::End => break,
            }
        }
        Ok(())
    }

    fn terminal(&mut self) -> Result<()> {
        let stop = self.stop.clone();
        ctrlc::set_handler(move || stop.store(true, Ordering::Relaxed))
            .map_err(|e| Error::failed("Ctrl-C", e.to_string()))?;
        let failed = |e: ReadlineError| Error::failed("terminal", e.to_string());
        let mut editor = rustyline::DefaultEditor::new().map_err(failed)?;
        loop {
            let line = match editor.readline("» ") {
                Ok(line) => line,
                Err(ReadlineError::Interrupted) => {
                    out::say("Ctrl-D or /quit ends");
                    continue;
                }
                Err(ReadlineError::Eof) => return Ok(()),
                Err(e) => return Err(failed(e)),
            };
            // A history that cannot be kept is no reason to end a conversation.
            let _ = editor.add_history_entry(&line);
            match self.command(&line) {
                Said::Words(words) => {
                    let before = self.turns.len();
                    if let Err(e) = self.answer(words) {
                        self.turns.truncate(before);
                        out::error(&e);
                    }
                }
                Said::Nothing => {}
                Said::End => return Ok(()),
            }
        }
    }

    fn command(&mut self, line: &str) -> Said {
        let line = line.trim();
        let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        match word {
            "" => return Said::Nothing,
            "/quit" | "/exit" => return Said::End,
            "/reset" => self.turns.retain(|turn| turn.role == "system"),
            "/system" => {
                self.turns.clear();
                let text = rest.trim();
                self.turns.extend((!text.is_empty()).then(|| Turn::new("system", text)));
            }
            "/help" => out::say(HELP),
            // A path or a regex may begin with a slash, too; a single odd word is a typing error.
            word if word.starts_with('/') && rest.is_empty() && !word[1..].contains('/') => {
                out::say(&format!("there is no command {word}; {HELP}"));
            }
            _ => return Said::Words(line.to_string()),
        }
        Said::Nothing
    }

    /// Answers, streaming. The whole conversation is read again each time: templates may rewrite
    /// earlier turns, so that keys and values of the turn before would not always fit.
    fn answer(&mut self, words: String) -> Result<()> {
        let tokenizer = &self.loaded.opened.tokenizer;
        self.turns.push(Turn::new("user", words));
        let example = Example::new("conversation", 1, self.turns.clone(), None);
        let prompt = generation_prompt(&example, tokenizer)?;
        self.stop.store(false, Ordering::Relaxed);
        let several = self.decoding.table().several();
        let mut options = Generate { max_batch: several, ..self.options.clone() };
        // The same words twice need not get the same answer.
        options.sampler.seed = options.sampler.seed.wrapping_add(self.answers);
        self.answers += 1;
        let mut broken = None;
        let mut listen = |_: usize, _: u32, piece: &str| {
            if broken.is_none() && several == 1 {
                broken = out::data(piece).err();
            }
        };
        let text = Text(tokenizer);
        let agree = |one: &str, other: &str| one.trim() == other.trim();
        let (examples, prompts) = (&[example], &[prompt]);
        let job = Job { examples, prompts, options: &options, agree: &agree };
        let answers = self.decoding.answer(&job, &text, &mut listen)?;
        if let Some(error) = broken {
            return Err(error);
        }
        if several > 1 {
            answers.iter().try_for_each(|answer| out::data(&answer.text))?;
        }
        out::data("\n")?;
        for answer in answers {
            if self.stop.load(Ordering::Relaxed) {
                out::say("(stopped)");
            } else if answer.finish == Finish::Length {
                out::say(&format!("(cut after {} tokens; --max-new-tokens)", answer.tokens.len()));
            }
            self.turns.push(Turn::new("assistant", answer.text));
        }
        Ok(())
    }
}

/// Once told to, leaves only the end of the sequence to be chosen.
struct Interrupt {
    stop: Arc<AtomicBool>,
    eos: Vec<u32>,
}

impl Constrain for Interrupt {
    fn constrain(&self, _: &SoFar, logits_v: &mut [f32]) {
        let Some(eos) = self.eos.first().filter(|_| self.stop.load(Ordering::Relaxed)) else {
            return;
        };
        logits_v.fill(f32::NEG_INFINITY);
        logits_v[*eos as usize] = 0.0;
    }
}
