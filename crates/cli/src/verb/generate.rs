//! `luthier generate`: text from prompts.

use std::{
    io::{IsTerminal, Read},
    path::{Path, PathBuf},
    time::Instant,
};

use luthier_core::{Error, Example, Form, Result, Turn};
use luthier_decode::{Finish, Generated};
use luthier_model::render::generation_prompt;
use luthier_recipe::{
    decode::{Decoding, Job},
    text::Text,
};
use serde::Serialize;

use crate::{
    out,
    verb::{bar, decode_args::DecodeArgs, model_args::ModelArgs, sampling_args::SamplingArgs},
};

/// Arguments of `luthier generate`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// What to answer or go on from [default: standard input]
    #[arg(long, short, value_name = "TEXT", conflicts_with = "prompts")]
    prompt: Option<String>,
    /// Many prompts: one per line of a .txt file, or a data file of any known layout
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// A system turn before each prompt
    #[arg(long, value_name = "TEXT", conflicts_with = "raw")]
    system: Option<String>,
    /// Go on from the prompt as it is, without the model's chat template
    #[arg(long)]
    raw: bool,
    /// Answers per prompt
    #[arg(short, long, value_name = "N", default_value_t = 1)]
    n: usize,
    /// Print one JSON value: a list of {"prompt", "text", "tokens", "finish", "first_token_seconds",
    /// "seconds"}; times count from the first step of all, without loading
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    decode: DecodeArgs,
}

#[derive(Serialize)]
struct Answer<'a> {
    prompt: &'a str,
    text: &'a str,
    tokens: &'a [u32],
    finish: Finish,
    first_token_seconds: f64,
    seconds: f64,
}

/// Generates.
pub fn run(mut args: Args) -> Result<()> {
    if args.n == 0 {
        return Err(Error::input("--n", "expected at least 1, got 0"));
    }
    let table = args.decode.table(&mut args.model)?.unwrap_or_default();
    if args.n > 1 && (table.several() > 1 || table.beam.is_some()) {
        return Err(Error::input("--n", "one answer is chosen or searched for each prompt")
            .hint("leave out --n, or --best-of, --self-consistency and --num-beams"));
    }
    // What can be wrong without the model is found before it is loaded.
    let mut examples = prompts(&args)?;
    let beams = table.beam.map_or(1, |beam| beam.num_beams);
    let at_a_time = examples.len() * args.n * table.several() * beams;
    let loaded = args.model.load_for(at_a_time)?;
    let tokenizer = &loaded.opened.tokenizer;
    let options = args.sampling.options(&loaded.opened, table.sampler.unwrap_or_default())?;
    if table.several() > 1 && options.sampler.temperature == 0.0 {
        return Err(Error::input("--temperature", "at 0 all answers to a prompt are the same")
            .hint("add --temperature 0.7 to choose among different answers"));
    }
    if args.n > 1 && options.sampler.temperature == 0.0 {
        out::say("note: at temperature 0 all answers to a prompt are the same");
    }
    if tokenizer.template().is_none() && !args.raw {
        if args.system.is_some() {
            return Err(Error::input("--system", "this model has no chat template to place it in")
                .hint("write the text into the prompt"));
        }
        out::say("note: this model has no chat template; it goes on from the prompt as it is");
        examples.iter_mut().for_each(|example| example.form = Form::Raw);
    }
    let ids: Vec<Vec<u32>> =
        examples.iter().map(|e| generation_prompt(e, tokenizer)).collect::<Result<_>>()?;
    let decoding = Decoding::open(&table, &loaded.opened, &loaded.policy, at_a_time)?;
    // The first answers come first, so that they are the same for every --n.
    let prompts: Vec<Vec<u32>> = std::iter::repeat_n(&ids, args.n).flatten().cloned().collect();
    let asked_for: Vec<Example> =
        std::iter::repeat_n(&examples, args.n).flatten().cloned().collect();
    let sequences = prompts.len() * table.several();
    // A search shows its answer when it is there.
    let streams = !args.json && sequences == 1;
    let mut broken = None;
    let progress = (sequences > 1).then(|| bar::pieces("generating", sequences));
    let mut lengths = vec![0usize; sequences];
    // When the first and the last token of each sequence came.
    let mut times = vec![[0f64; 2]; sequences];
    let begun = Instant::now();
    let mut listen = |sequence: usize, token: u32, piece: &str| {
        if streams && broken.is_none() {
            broken = out::data(piece).err();
        }
        let now = begun.elapsed().as_secs_f64();
        if lengths[sequence] == 0 {
            times[sequence][0] = now;
        }
        times[sequence][1] = now;
        lengths[sequence] += 1;
        let last = lengths[sequence] == options.max_new_tokens || options.eos.contains(&token);
        if let (true, Some(progress)) = (last, &progress) {
            progress.inc(1);
        }
    };
    let text = Text(tokenizer);
    let agree = |one: &str, other: &str| one.trim() == other.trim();
    let job = Job { examples: &asked_for, prompts: &prompts, options: &options, agree: &agree };
    let all = decoding.answer(&job, &text, &mut listen)?;
    let seconds = begun.elapsed().as_secs_f64();
    progress.inspect(|bar| bar.finish_and_clear());
    if let Some(error) = broken {
        return Err(error);
    }
    let each = ids.len();
    let answer = |(p, sequence): (usize, usize)| {
        let Generated { text, tokens, finish, .. } = &all[sequence];
        let [first_token_seconds, seconds] = times[sequence];
        let prompt = asked(&examples[p]);
        Answer { prompt, text, tokens, finish: *finish, first_token_seconds, seconds }
    };
    let ordered: Vec<Answer> = (0..examples.len())
        .flat_map(|p| (0..args.n).map(move |i| (p, p + i * each)))
        .map(answer)
        .collect();
    match () {
        () if args.json => out::json(&ordered)?,
        () if streams => out::data("\n")?,
        () if ordered.len() == 1 => out::data(&format!("{}\n", ordered[0].text))?,
        () => {
            for (i, Answer { prompt, text, .. }) in ordered.iter().enumerate() {
                out::data(&format!("[{}] {}\n{text}\n\n", i + 1, first_line(prompt)))?;
            }
        }
    }
    let tokens: usize = lengths.iter().sum();
    let rate = tokens as f64 / seconds.max(1e-9);
    out::say(&format!("{tokens} new tokens in {seconds:.1} s ({rate:.0} tokens/s)"));
    Ok(())
}

/// The words of the prompt that the answer follows.
fn asked(example: &Example) -> &str {
    example.prompt.last().map_or("", |turn| turn.content.as_str())
}

fn first_line(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    let shown: String = line.chars().take(80).collect();
    if shown.len() < text.trim_end().len() { shown + " …" } else { shown }
}

fn prompts(args: &Args) -> Result<Vec<Example>> {
    let form = if args.raw { Form::Raw } else { Form::Chat };
    if let Some(file) = &args.prompts {
        return from_file(file, form, args.system.as_deref());
    }
    let text = match &args.prompt {
        Some(text) => text.clone(),
        None if std::io::stdin().is_terminal() => {
            return Err(Error::input("--prompt", "missing: what shall the model answer?")
                .hint("--prompt TEXT, --prompts FILE, or text on standard input"));
        }
        None => {
            let mut text = String::new();
            std::io::stdin()
                .read_to_string(&mut text)
                .map_err(|e| Error::io("standard input", e))?;
            text.strip_suffix('\n').map_or(text.clone(), str::to_string)
        }
    };
    if text.is_empty() {
        return Err(Error::input("--prompt", "the prompt is empty"));
    }
    Ok(vec![example("prompt", 1, text, form, args.system.as_deref())])
}

fn example(name: &str, line: usize, text: String, form: Form, system: Option<&str>) -> Example {
    let system = system.map(|text| Turn::new("system", text));
    let turns = system.into_iter().chain([Turn::new("user", text)]).collect();
    Example { form, ..Example::new(name, line, turns, None) }
}

fn from_file(file: &Path, form: Form, system: Option<&str>) -> Result<Vec<Example>> {
    let name = file.display().to_string();
    if file.extension().is_some_and(|end| end.eq_ignore_ascii_case("txt")) {
        let text = luthier_core::io::read_text(file)?;
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let all: Vec<Example> =
            lines.map(|(i, line)| example(&name, i + 1, line.to_string(), form, system)).collect();
        return match all.is_empty() {
            true => Err(Error::input(name, "there is no prompt in this file")),
            false => Ok(all),
        };
    }
    let options = luthier_data::ReadOptions {
        form: (form == Form::Raw).then_some(form),
        system: system.map(str::to_string),
        ..luthier_data::ReadOptions::default()
    };
    let mut table = luthier_data::read(file, &options)?;
    out::say(&format!("{}: {} prompts, {}", table.name, table.examples.len(), table.layout));
    for example in &mut table.examples {
        // Plain text is all answer and no prompt; here it is what to go on from.
        if example.prompt.is_empty() {
            let text = example.completions.first().map_or("", |c| c.text()).to_string();
            example.prompt = vec![Turn::new("user", text)];
            example.form = form;
        }
        example.completions.clear();
    }
    Ok(table.examples)
}
