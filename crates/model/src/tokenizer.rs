//! Text to token ids and back, and the special tokens and chat template that belong to a model.

mod folder;
mod gguf;
mod keys;
mod stream;

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    path::Path,
    sync::OnceLock,
};

use luthier_core::{Error, Result, io};
use serde_json::{Map, Value};
use tokenizers::{AddedToken, PostProcessorWrapper};

use crate::{
    gguf::Gguf,
    template::{ChatTemplate, Conversation, Text},
};

pub use gguf::GgufVocab;
pub use stream::Stream;

/// A model's tokenizer, its special tokens and its chat template.
///
/// Encoding never adds special tokens by itself: templates write them, and raw text gets them from
/// `render`. Truncation and padding settings of a `tokenizer.json` are ignored for the same reason.
#[derive(Debug)]
pub struct Tokenizer {
    /// Where it came from, for messages.
    name: String,
    /// The tokenizer without its post-processor, which would only blur the offsets.
    inner: tokenizers::Tokenizer,
    post: Option<PostProcessorWrapper>,
    /// `bos_token`, `eos_token`, …: what templates see.
    special: BTreeMap<String, String>,
    /// All further keys of `tokenizer_config.json`, written back by `save`.
    config: Map<String, Value>,
    eos: Vec<u32>,
    add_bos: bool,
    size: usize,
    template: Option<ChatTemplate>,
    sha256: OnceLock<String>,
}

impl Tokenizer {
    /// The tokenizer of a model: a Hugging Face folder or a GGUF file.
    pub fn open(path: &Path) -> Result<Self> {
        if path.is_dir() {
            return Tokenizer::from_dir(path);
        }
        Tokenizer::from_gguf(GgufVocab::read(&Gguf::open(path)?)?)
    }

    /// Reads `tokenizer.json` and its companions from a Hugging Face model folder.
    pub fn from_dir(dir: &Path) -> Result<Self> {
        folder::load(dir)
    }

    /// Rebuilds the tokenizer that a GGUF file describes.
    pub fn from_gguf(vocab: GgufVocab) -> Result<Self> {
        gguf::build(vocab)
    }

    /// One token per byte, then `<|im_start|>` 256, `<|im_end|>` 257 (the end of a turn) and
    /// `<|endoftext|>` 258; no beginning-of-text token. For tests and toy models.
    pub fn bytes() -> Self {
        gguf::bytes().expect("the byte vocabulary is complete and its template compiles")
    }

    /// Puts the pieces together; `eos` are the ids that the model's files declare.
    fn assemble(
        name: String,
        mut inner: tokenizers::Tokenizer,
        special: BTreeMap<String, String>,
        config: Map<String, Value>,
        mut eos: Vec<u32>,
        add_bos: Option<bool>,
        template: Option<ChatTemplate>,
    ) -> Result<Self> {
        let failed = |e: tokenizers::Error| Error::input(name.as_str(), format!("tokenizer: {e}"));
        // Named tokens are control tokens even where the vocabulary forgot to say so.
        let named = special.values().filter(|t| inner.token_to_id(t).is_some());
        let named: Vec<AddedToken> = named.map(|t| AddedToken::from(t.as_str(), true)).collect();
        inner.add_special_tokens(named).map_err(failed)?;
        inner.with_truncation(None).map_err(failed)?;
        inner.with_padding(None);
        let plain = inner.encode_fast("a", false).map_err(failed)?.get_ids().first().copied();
        let first = inner.encode_fast("a", true).map_err(failed)?.get_ids().first().copied();
        let bos = special.get("bos_token").and_then(|t| inner.token_to_id(t));
        let post = inner.get_post_processor().cloned();
        inner.with_post_processor(None::<PostProcessorWrapper>);
        let size = inner.get_vocab(true).values().max().map_or(0, |id| *id as usize + 1);
        if let Some(id) = special.get("eos_token").and_then(|t| inner.token_to_id(t)) {
            eos.insert(0, id);
        }
        let mut tokenizer = Tokenizer {
            add_bos: add_bos.unwrap_or(bos.is_some() && first == bos && plain != bos),
            name,
            inner,
            post,
            special,
            config,
            size,
            template,
            eos: Vec::new(),
            sha256: OnceLock::new(),
        };
        eos.extend(tokenizer.end_of_turn());
        let mut seen = BTreeSet::new();
        tokenizer.eos = eos.into_iter().filter(|id| seen.insert(*id)).collect();
        Ok(tokenizer)
    }

    /// The special token with which the chat template closes an assistant's turn.
    fn end_of_turn(&self) -> Option<u32> {
        let turn =
            |role: &str, content: &str| serde_json::json!({"role": role, "content": content});
        let messages = [turn("user", "ping"), turn("assistant", "pong")];
        let conversation = Conversation {
            messages: &messages,
            tools: None,
            add_generation_prompt: false,
            kwargs: &Map::new(),
        };
        // A template that refuses this small talk simply tells nothing about its end of turn.
        let text = self.template.as_ref()?.render(&conversation, &self.special).ok()?.text;
        let (_, tail) = text.rsplit_once("pong")?;
        self.first_special(tail.trim_start())
    }

    /// The special token that `text` begins with.
    fn first_special(&self, text: &str) -> Option<u32> {
        let (id, at) = self.encode_with_offsets(text).ok()?.into_iter().next()?;
        (self.is_special(id) && at.start == 0).then_some(id)
    }

    /// The ids of `text`. Special tokens written in the text are recognised, none are added.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, false).map_err(|e| self.failed(e))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The ids of `text` and the bytes of it that each covers.
    ///
    /// A character that takes several tokens belongs to each of them.
    pub fn encode_with_offsets(&self, text: &str) -> Result<Vec<(u32, Range<usize>)>> {
        let encoding = self.inner.encode(text, false).map_err(|e| self.failed(e))?;
        let spans = encoding.get_offsets().iter().map(|(begin, end)| *begin..*end);
        Ok(encoding.get_ids().iter().copied().zip(spans).collect())
    }

    /// The text of `ids` without special tokens.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.inner.decode(ids, true).map_err(|e| self.failed(e))
    }

    /// The text of `ids` with special tokens.
    pub fn decode_all(&self, ids: &[u32]) -> Result<String> {
        self.inner.decode(ids, false).map_err(|e| self.failed(e))
    }

    /// Decodes token by token; what it returns is always whole characters.
    pub fn decode_stream(&self) -> Stream<'_> {
        Stream::new(self)
    }

    /// The vocabulary's own spelling of token `id`.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The id of the token spelt `token` in the vocabulary.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Whether `id` is a control token rather than text.
    pub fn is_special(&self, id: u32) -> bool {
        self.inner
            .get_added_vocabulary()
            .get_added_tokens_decoder()
            .get(&id)
            .is_some_and(|t| t.special)
    }

    /// The named special token (`bos_token`, `pad_token`, …).
    fn named(&self, name: &str) -> Option<u32> {
        self.id(self.special.get(name)?)
    }

    /// The beginning-of-text token.
    pub fn bos(&self) -> Option<u32> {
        self.named("bos_token")
    }

    /// The first of [`Tokenizer::eos_ids`].
    pub fn eos(&self) -> Option<u32> {
        self.eos.first().copied()
    }

    /// The padding token. luthier never pads; it is known only to be refused in trained text.
    pub fn pad(&self) -> Option<u32> {
        self.named("pad_token")
    }

    /// The token for what the vocabulary cannot spell.
    pub fn unk(&self) -> Option<u32> {
        self.named("unk_token")
    }

    /// Every token that ends an answer: the declared end of text, the generation config's list, and
    /// the token with which the chat template closes a turn.
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos
    }

    /// Whether plain text begins with the beginning-of-text token.
    pub fn add_bos(&self) -> bool {
        self.add_bos
    }

    /// One more than the largest token id.
    pub fn vocab_size(&self) -> usize {
        self.size
    }

    /// The special tokens by name, as templates see them.
    pub fn special(&self) -> &BTreeMap<String, String> {
        &self.special
    }

    /// The chat template.
    pub fn template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref()
    }

    /// Replaces the chat template.
    pub fn set_template(&mut self, template: ChatTemplate) {
        self.template = Some(template);
        if let Some(id) = self.end_of_turn().filter(|id| !self.eos.contains(id)) {
            self.eos.push(id);
        }
        self.sha256 = OnceLock::new();
    }

    /// Renders a conversation through the chat template.
    pub fn chat(&self, conversation: &Conversation<'_>) -> Result<Text> {
        let template = self.template.as_ref().ok_or_else(|| {
            Error::input(self.name.as_str(), "this model has no chat template").hint(
                "put a chat_template.jinja beside the model, or use prompt/completion or plain text data",
            )
        })?;
        template.render(conversation, &self.special)
    }

    /// Where the tokenizer came from.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// SHA-256 over the tokenizer and the chat template.
    pub fn sha256(&self) -> &str {
        self.sha256.get_or_init(|| {
            let template = self.template.as_ref().map_or("", |t| t.source());
            let json = self.to_json().unwrap_or_default();
            io::sha256(format!("{json}\0{template}").as_bytes())
        })
    }

    /// Writes `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja` into `dir`.
    pub fn save(&self, dir: &Path) -> Result<()> {
        folder::save(self, dir)
    }

    fn to_json(&self) -> Result<String> {
        let mut whole = self.inner.clone();
        whole.with_post_processor(self.post.clone());
        whole.to_string(true).map_err(|e| self.failed(e))
    }

    fn failed(&self, error: tokenizers::Error) -> Error {
        Error::failed(self.name.as_str(), format!("tokenizer: {error}"))
    }
}
