//! Tokenizers rebuilt from the vocabulary in a GGUF file, and the byte tokenizer for tests.

use std::collections::BTreeMap;

use luthier_core::{Error, Result};
use serde_json::{Map, json};
use tokenizers::{
    AddedToken, DecoderWrapper, NormalizerWrapper, PreTokenizerWrapper, SplitDelimiterBehavior,
    decoders::{
        byte_fallback::ByteFallback, fuse::Fuse, sequence::Sequence as Decoders, strip::Strip,
    },
    models::bpe::{BPE, Merges, Vocab},
    normalizers::{NFC, Prepend, Replace, Sequence as Normalizers},
    pre_tokenizers::{
        byte_level::ByteLevel,
        digits::Digits,
        sequence::Sequence as PreTokenizers,
        split::{Split, SplitPattern},
    },
};

use super::Tokenizer;
use crate::template::ChatTemplate;

/// What a GGUF file says about its tokenizer, under the names of its `tokenizer.ggml.*` keys.
#[derive(Clone, Debug, Default)]
pub struct GgufVocab {
    /// The file, for messages.
    pub file: String,
    /// `model`: `gpt2` (byte-level BPE) or `llama` (SentencePiece).
    pub model: String,
    /// `pre`: which rule cuts text into words before BPE.
    pub pre: Option<String>,
    /// `tokens`: the spelling of every token.
    pub tokens: Vec<String>,
    /// `token_type`: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte.
    pub types: Vec<i32>,
    /// `scores`, for SentencePiece.
    pub scores: Vec<f32>,
    /// `merges`: pairs as `left right`.
    pub merges: Vec<String>,
    /// `bos_token_id`.
    pub bos: Option<u32>,
    /// `eos_token_id`.
    pub eos: Option<u32>,
    /// `eot_token_id`: the end of a turn.
    pub eot: Option<u32>,
    /// `eom_token_id`: the end of a message that waits for a tool.
    pub eom: Option<u32>,
    /// `unknown_token_id`.
    pub unknown: Option<u32>,
    /// `padding_token_id`.
    pub padding: Option<u32>,
    /// `add_bos_token`.
    pub add_bos: Option<bool>,
    /// `add_space_prefix`.
    pub add_space_prefix: Option<bool>,
    /// `tokenizer.chat_template`.
    pub chat_template: Option<String>,
}

const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const BYTE: i32 = 6;

/// Word-cutting rules by their `tokenizer.ggml.pre` names.
const GPT2: [&str; 8] =
    ["default", "gpt-2", "mpt", "olmo", "jais", "roberta-bpe", "phi-2", "trillion"];
const DIGITS: [&str; 7] =
    ["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"];
const LLAMA3: [&str; 7] =
    ["llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "smaug-bpe", "dbrx"];
const QWEN2: [&str; 3] = ["qwen2", "deepseek-r1-qwen", "stablelm2"];

/// Llama 3's rule: contractions, words with one leading non-letter, numbers of up to `{1,3}` digits,
/// punctuation with its line ends, blanks.
const WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}NUMBER| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

pub fn build(vocab: GgufVocab) -> Result<Tokenizer> {
    let n = vocab.tokens.len();
    let at = format!("{} tokenizer.ggml", vocab.file);
    if n == 0 {
        return Err(Error::input(format!("{at}.tokens"), "the vocabulary is empty"));
    }
    for (key, len) in [("token_type", vocab.types.len()), ("scores", vocab.scores.len())] {
        if len != 0 && len != n {
            let what = format!("{len} entries for {n} tokens");
            return Err(Error::input(format!("{at}.{key}"), what)
                .hint("the file is damaged; fetch it again"));
        }
    }
    let mut inner = match vocab.model.as_str() {
        "gpt2" => byte_level(&vocab, &at)?,
        "llama" => sentence_piece(&vocab, &at)?,
        other => {
            let what = format!("`{other}` tokenizers are not supported; known: gpt2, llama");
            return Err(Error::input(format!("{at}.model"), what)
                .hint("use the model's Hugging Face folder, which holds tokenizer.json"));
        }
    };
    let of_type = |wanted: i32| {
        let typed = vocab.tokens.iter().zip(&vocab.types).filter(move |(_, t)| **t == wanted);
        typed.map(move |(token, _)| {
            AddedToken::from(token.as_str(), wanted == CONTROL).normalized(false)
        })
    };
    let added: Vec<AddedToken> =
        of_type(CONTROL).chain(of_type(USER_DEFINED)).filter(|t| !t.content.is_empty()).collect();
    inner.add_tokens(added).map_err(|e| Error::input(format!("{at}.tokens"), e.to_string()))?;

    let mut special = BTreeMap::new();
    let named = [
        ("bos_token", vocab.bos),
        ("eos_token", vocab.eos),
        ("unk_token", vocab.unknown),
        ("pad_token", vocab.padding),
    ];
    for (name, id) in named.into_iter().filter_map(|(name, id)| Some((name, id?))) {
        let token = vocab.tokens.get(id as usize).ok_or_else(|| {
            Error::input(
                format!("{at}.{name}_id"),
                format!("{id} is outside the vocabulary of {n}"),
            )
        })?;
        special.insert(name.to_string(), token.clone());
    }
    let eos =
        [vocab.eot, vocab.eom].into_iter().flatten().filter(|id| (*id as usize) < n).collect();
    let template = match &vocab.chat_template {
        Some(source) => {
            Some(ChatTemplate::new(format!("{} tokenizer.chat_template", vocab.file), source)?)
        }
        None => None,
    };
    // SentencePiece models add the beginning-of-text token unless they say otherwise.
    let add_bos = vocab.add_bos.unwrap_or(vocab.model == "llama");
    let mut config = Map::new();
    config.insert("add_bos_token".to_string(), json!(add_bos));
    Tokenizer::assemble(vocab.file, inner, special, config, eos, Some(add_bos), template)
}

fn numbered(vocab: &GgufVocab) -> Vocab {
    vocab.tokens.iter().enumerate().map(|(id, token)| (token.clone(), id as u32)).collect()
}

/// Splits `left right` where both halves are tokens; a half may itself hold blanks.
fn pairs(vocab: &GgufVocab, known: &Vocab, at: &str) -> Result<Merges> {
    let cut = |merge: &str| {
        let mut blanks = merge.match_indices(' ').filter(|(i, _)| *i > 0);
        blanks.find_map(|(i, _)| {
            let (left, right) = (&merge[..i], &merge[i + 1..]);
            let both = known.contains_key(left) && known.contains_key(right);
            both.then(|| (left.to_string(), right.to_string()))
        })
    };
    let parsed = vocab.merges.iter().enumerate().map(|(i, merge)| {
        cut(merge).ok_or_else(|| {
            Error::input(
                format!("{at}.merges[{i}]"),
                format!("`{merge}` is not a pair of known tokens"),
            )
            .hint("the file is damaged; fetch it again")
        })
    });
    parsed.collect()
}

fn byte_level(vocab: &GgufVocab, at: &str) -> Result<tokenizers::Tokenizer> {
    let pre = vocab.pre.as_deref().unwrap_or("default");
    let words = |number: &str| {
        let pattern = SplitPattern::Regex(WORDS.replace("NUMBER", number));
        Split::new(pattern, SplitDelimiterBehavior::Isolated, false)
            .map(|split| -> Vec<PreTokenizerWrapper> {
                vec![split.into(), ByteLevel::new(false, false, false).into()]
            })
            .map_err(|e| Error::failed(at, e.to_string()))
    };
    let gpt2 = || PreTokenizerWrapper::from(ByteLevel::new(false, false, true));
    let steps = match pre {
        _ if GPT2.contains(&pre) => vec![gpt2()],
        _ if DIGITS.contains(&pre) => vec![Digits::new(true).into(), gpt2()],
        _ if LLAMA3.contains(&pre) => words("{1,3}")?,
        _ if QWEN2.contains(&pre) => words("")?,
        _ => {
            let known = [&GPT2[..], &DIGITS, &LLAMA3, &QWEN2].concat().join(", ");
            return Err(Error::input(
                format!("{at}.pre"),
                format!("`{pre}` is not a known way of cutting words; known: {known}"),
            )
            .hint("a wrong guess would give wrong tokens: use the model's Hugging Face folder"));
        }
    };
    let known = numbered(vocab);
    let merges = pairs(vocab, &known, at)?;
    // Llama 3's vocabulary has whole words that its merges do not reach.
    let whole = LLAMA3[..5].contains(&pre);
    let model = BPE::builder()
        .vocab_and_merges(known, merges)
        .ignore_merges(whole)
        .build()
        .map_err(|e| Error::input(format!("{at}.merges"), e.to_string()))?;
    let mut inner = tokenizers::Tokenizer::new(model);
    if QWEN2[..2].contains(&pre) {
        inner.with_normalizer(Some(NFC)).map_err(|e| Error::failed(at, e.to_string()))?;
    }
    inner.with_pre_tokenizer(Some(PreTokenizers::new(steps)));
    inner.with_decoder(Some(ByteLevel::new(false, false, false)));
    Ok(inner)
}

fn sentence_piece(vocab: &GgufVocab, at: &str) -> Result<tokenizers::Tokenizer> {
    if vocab.scores.is_empty() && vocab.merges.is_empty() {
        return Err(Error::input(format!("{at}.scores"), "neither scores nor merges are given"));
    }
    let failed = |e: tokenizers::Error| Error::failed(at, e.to_string());
    let known = numbered(vocab);
    let merges = if vocab.merges.is_empty() {
        merges_from_scores(vocab, &known)
    } else {
        pairs(vocab, &known, at)?
    };
    let type_of = |id: u32| vocab.types.get(id as usize).copied();
    let unknown = vocab
        .unknown
        .or_else(|| (0..vocab.tokens.len() as u32).find(|id| type_of(*id) == Some(UNKNOWN)));
    let mut model = BPE::builder()
        .fuse_unk(true)
        .byte_fallback(vocab.types.contains(&BYTE))
        .vocab_and_merges(known, merges);
    if let Some(token) = unknown.and_then(|id| vocab.tokens.get(id as usize)) {
        model = model.unk_token(token.clone());
    }
    let mut inner = tokenizers::Tokenizer::new(model.build().map_err(failed)?);
    let prefixed = vocab.add_space_prefix.unwrap_or(true);
    let mut normal: Vec<NormalizerWrapper> = Vec::new();
    if prefixed {
        normal.push(Prepend::new("▁".to_string()).into());
    }
    normal.push(Replace::new(" ", "▁").map_err(failed)?.into());
    inner.with_normalizer(Some(Normalizers::new(normal))).map_err(failed)?;
    let mut decode: Vec<DecoderWrapper> = vec![
        Replace::new("▁", " ").map_err(failed)?.into(),
        ByteFallback::new().into(),
        Fuse::new().into(),
    ];
    if prefixed {
        decode.push(Strip::new(' ', 1, 0).into());
    }
    inner.with_decoder(Some(Decoders::new(decode)));
    Ok(inner)
}

/// SentencePiece stores a score per piece instead of merges: every way of making a piece from two
/// others is a merge, best score first; ties keep the order of ids, longer left halves first.
fn merges_from_scores(vocab: &GgufVocab, known: &Vocab) -> Merges {
    let mut found: Vec<(f32, u32, &str, &str)> = Vec::new();
    for (id, token) in vocab.tokens.iter().enumerate() {
        if matches!(vocab.types.get(id), Some(&(UNKNOWN | CONTROL | BYTE))) {
            continue;
        }
        let first = found.len();
        for (i, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(i);
            if known.contains_key(left) && known.contains_key(right) {
                found.push((vocab.scores[id], id as u32, left, right));
            }
        }
        found[first..].sort_by_key(|(_, _, left, right)| (known[*left], known[*right]));
    }
    let length = |text: &str| text.chars().count();
    found.sort_by(|a, b| {
        b.0.total_cmp(&a.0)
            .then_with(|| length(b.2).cmp(&length(a.2)))
            .then_with(|| length(b.3).cmp(&length(a.3)))
    });
    found.into_iter().map(|(_, _, left, right)| (left.to_string(), right.to_string())).collect()
}

/// ChatML, in luthier's own words, for the byte tokenizer.
const CHATML: &str = "{%- for message in messages -%}
{{- '<|im_start|>' ~ message.role ~ '\\n' -}}
{%- if message.role == 'assistant' -%}
{%- generation -%}{{- message.content ~ '<|im_end|>' -}}{%- endgeneration -%}
{%- else -%}
{{- message.content ~ '<|im_end|>' -}}
{%- endif -%}
{{- '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
";

/// The characters by which byte-level vocabularies spell the bytes 0–255: printable Latin-1 as
/// itself, the rest in order from U+0100.
fn spellings() -> Vec<String> {
    let mut next = 0x100u32;
    let spell = |byte: u32| {
        let printable = matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
        let code = if printable { byte } else { next };
        next += u32::from(!printable);
        char::from_u32(code).expect("all codes are below the surrogates").to_string()
    };
    (0..256).map(spell).collect()
}

pub fn bytes() -> Result<Tokenizer> {
    let mut tokens = spellings();
    tokens.extend(["<|im_start|>", "<|im_end|>", "<|endoftext|>"].map(String::from));
    let mut types = vec![1; 256];
    types.extend([CONTROL; 3]);
    build(GgufVocab {
        file: "byte tokenizer".to_string(),
        model: "gpt2".to_string(),
        tokens,
        types,
        eos: Some(257),
        padding: Some(258),
        add_bos: Some(false),
        chat_template: Some(CHATML.to_string()),
        ..GgufVocab::default()
    })
}
