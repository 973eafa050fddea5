//! `luthier chat`: a conversation at the terminal.

use std::{
    io::{BufRead, IsTerminal},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use luthier_core::{Error, Example, Result, Turn};
use luthier_decode::{
    Constrain, Finish, Generate, Parts, Sampler, SoFar, combine::Identity, generate_from,
    sources::PolicySource,
};
use luthier_model::render::generation_prompt;
use luthier_recipe::text::Text;
use rustyline::error::ReadlineError;

use crate::{
    out,
    verb::{
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
}

const HELP: &str = "/reset begins anew, /system TEXT too with another system turn, /quit ends; \
    Ctrl-C stops an answer, Ctrl-D ends";

/// Talks until the input ends.
pub fn run(args: Args) -> Result<()> {
    let loaded = args.model.load_for(1)?;
    if loaded.opened.tokenizer.template().is_none() {
        return Err(Error::input(&loaded.opened.name, "this model has no chat template")
            .hint("it can go on from a text: luthier generate --raw --prompt TEXT"));
    }
    let (usual, from) = match recommended(&loaded.opened.config.generation) {
        Some(sampler) => (sampler, "as the model's generation_config.json recommends"),
        None => (Sampler { temperature: 0.7, ..Sampler::default() }, "luthier's default"),
    };
    let options = args.sampling.options(&loaded.opened, usual)?;
    let mut talk = Talk {
        turns: args.system.iter().map(|text| Turn::new("system", text)).collect(),
        stop: Arc::new(AtomicBool::new(false)),
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
        let mut options = Generate { max_batch: 1, ..self.options.clone() };
        // The same words twice need not get the same answer.
        options.sampler.seed = options.sampler.seed.wrapping_add(self.answers);
        self.answers += 1;
        let end = Interrupt { stop: self.stop.clone(), eos: options.eos.clone() };
        let parts = Parts {
            sources: vec![Box::new(PolicySource::new(&self.loaded.policy, 1))],
            combine: &Identity {},
            constrain: vec![Box::new(end)],
        };
        let mut broken = None;
        let mut listen = |_: usize, _: u32, piece: &str| {
            if broken.is_none() {
                broken = out::data(piece).err();
            }
        };
        let text = Text(tokenizer);
        let answers = generate_from(parts, &[prompt], &options, &text, &mut listen)?;
        if let Some(error) = broken {
            return Err(error);
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
