//! Tokenizers from GGUF vocabularies and folders, decoding streams, saving.

use std::path::Path;

use luthier_model::{Tokenizer, pull::BuiltIn, template::ChatTemplate, tokenizer::GgufVocab};
use serde_json::json;

/// The spelling of a byte in byte-level vocabularies, as published with GPT-2: bytes that print in
/// Latin-1 stand for themselves, the others follow from U+0100 in order.
fn spell(byte: u8) -> String {
    let prints = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let code = match prints(byte) {
        true => u32::from(byte),
        false => 256 + (0..byte).filter(|b| !prints(*b)).count() as u32,
    };
    char::from_u32(code).unwrap().to_string()
}

fn bpe(pre: &str, words: &[&str]) -> GgufVocab {
    let mut vocab = GgufVocab {
        file: "toy.gguf".into(),
        model: "gpt2".into(),
        pre: Some(pre.into()),
        tokens: (0..=255).map(spell).collect(),
        ..GgufVocab::default()
    };
    for word in words {
        // Each word is reached by merging its letters from the left.
        let letters: Vec<char> = word.chars().collect();
        for i in 1..letters.len() {
            let left: String = letters[..i].iter().collect();
            let whole: String = letters[..=i].iter().collect();
            if !vocab.tokens.contains(&whole) {
                vocab.merges.push(format!("{left} {}", letters[i]));
                vocab.tokens.push(whole);
            }
        }
    }
    vocab.types = vec![1; vocab.tokens.len()];
    vocab
}

fn pieces(tokenizer: &Tokenizer, text: &str) -> Vec<String> {
    let ids = tokenizer.encode(text).unwrap();
    ids.iter().map(|id| tokenizer.decode_all(&[*id]).unwrap()).collect()
}

#[test]
fn the_byte_tokenizer_is_the_identity() {
    let t = Tokenizer::bytes();
    assert_eq!(t.vocab_size(), 259);
    assert_eq!(
        (t.id("<|im_start|>"), t.id("<|im_end|>"), t.id("<|endoftext|>")),
        (Some(256), Some(257), Some(258))
    );
    assert_eq!((t.bos(), t.eos(), t.eos_ids(), t.pad()), (None, Some(257), &[257][..], Some(258)));
    let text = "Ä tab\t, \u{0} nul, 漢字 😀\r\n";
    let ids = t.encode(text).unwrap();
    assert_eq!(ids, text.bytes().map(u32::from).collect::<Vec<_>>());
    assert_eq!(t.decode(&ids).unwrap(), text);
    assert_eq!(t.encode("a<|im_end|>b").unwrap(), [97, 257, 98]);
    assert_eq!(t.decode(&[97, 257, 98]).unwrap(), "ab");
    assert_eq!(t.decode_all(&[97, 257, 98]).unwrap(), "a<|im_end|>b");
    assert!(t.is_special(256) && !t.is_special(97));
}

#[test]
fn offsets_are_bytes_of_the_text() {
    let t = Tokenizer::bytes();
    let spans = t.encode_with_offsets("é<|im_end|> x").unwrap();
    let got: Vec<(u32, usize, usize)> = spans.iter().map(|(id, r)| (*id, r.start, r.end)).collect();
    // Both bytes of é belong to the whole character.
    assert_eq!(got, [(0xC3, 0, 2), (0xA9, 0, 2), (257, 2, 12), (32, 12, 13), (120, 13, 14)]);
}

#[test]
fn a_stream_never_shows_half_a_character() {
    let t = Tokenizer::bytes();
    let text = "ab 漢é😀!";
    let mut stream = t.decode_stream();
    let mut shown = String::new();
    for id in t.encode(text).unwrap() {
        let piece = stream.push(id).unwrap();
        assert!(!piece.contains('\u{FFFD}'), "{piece:?}");
        shown.push_str(&piece);
    }
    assert_eq!(shown, text);
    assert_eq!(stream.finish().unwrap(), "");
    let mut cut = t.decode_stream();
    assert_eq!(cut.push(0xF0).unwrap() + &cut.push(0x9F).unwrap(), "");
    assert!(cut.finish().unwrap().starts_with('\u{FFFD}'));
    // Bytes that never become a character do not hold the text back for ever.
    let mut broken = t.decode_stream();
    let told = broken.push(0xF0).unwrap() + &broken.push(97).unwrap() + &broken.push(98).unwrap();
    assert_eq!(told, "\u{FFFD}ab");
}

#[test]
fn numbers_are_cut_as_each_family_cuts_them() {
    let words = ["1234567", "Ġab"];
    let cut =
        |pre: &str, text: &str| pieces(&Tokenizer::from_gguf(bpe(pre, &words)).unwrap(), text);
    assert_eq!(cut("smollm", "x1234 ab"), ["x", "1", "2", "3", "4", " ab"]);
    assert_eq!(cut("gpt-2", "x1234 ab"), ["x", "1234", " ab"]);
    assert_eq!(cut("llama-bpe", "x1234 ab"), ["x", "123", "4", " ab"]);
    assert_eq!(cut("qwen2", "x1234 ab"), ["x", "1", "2", "3", "4", " ab"]);
    // GPT-2 keeps the blank with the word after it; the later rules keep a symbol with it, too.
    let words = ["-ab"];
    let cut = |pre: &str| pieces(&Tokenizer::from_gguf(bpe(pre, &words)).unwrap(), "-ab");
    assert_eq!(
        (cut("gpt-2"), cut("llama-bpe")),
        (vec!["-".into(), "a".into(), "b".into()], vec!["-ab".to_string()])
    );
}

#[test]
fn what_a_gguf_says_wrongly_is_named() {
    let says = |vocab: GgufVocab| {
        let error = Tokenizer::from_gguf(vocab).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        error.to_string()
    };
    let text = says(bpe("tekken-9", &[]));
    assert!(
        text.contains("toy.gguf")
            && text.contains("`tekken-9`")
            && text.contains("Hugging Face folder"),
        "{text}"
    );
    let text = says(GgufVocab { merges: vec!["a zz".into()], ..bpe("gpt-2", &[]) });
    assert!(text.contains("merges[0]") && text.contains("`a zz`"), "{text}");
    let text = says(GgufVocab { types: vec![1, 3], ..bpe("gpt-2", &[]) });
    assert!(text.contains("token_type") && text.contains("2 entries for 256"), "{text}");
    let text = says(GgufVocab { eos: Some(400), ..bpe("gpt-2", &[]) });
    assert!(text.contains("eos_token") && text.contains("400"), "{text}");
    let text = says(GgufVocab { model: "bert".into(), ..bpe("gpt-2", &[]) });
    assert!(text.contains("`bert`"), "{text}");
    let text = says(GgufVocab { chat_template: Some("{% if %}".into()), ..bpe("gpt-2", &[]) });
    assert!(text.contains("toy.gguf tokenizer.chat_template:1"), "{text}");
}

fn sentence_pieces() -> GgufVocab {
    let mut vocab =
        GgufVocab { file: "sp.gguf".into(), model: "llama".into(), ..GgufVocab::default() };
    let mut push = |token: String, ty: i32, score: f32| {
        vocab.tokens.push(token);
        vocab.types.push(ty);
        vocab.scores.push(score);
    };
    push("<unk>".into(), 2, 0.0);
    push("<s>".into(), 3, 0.0);
    push("</s>".into(), 3, 0.0);
    (0..=255u8).for_each(|b| push(format!("<0x{b:02X}>"), 6, 0.0));
    for (token, score) in [
        ("▁", -5.0),
        ("a", -6.0),
        ("b", -7.0),
        ("c", -8.0),
        ("ab", -1.0),
        ("bc", -0.5),
        ("▁a", -2.0),
    ] {
        push(token.into(), 1, score);
    }
    GgufVocab { bos: Some(1), eos: Some(2), unknown: Some(0), ..vocab }
}

#[test]
fn sentence_pieces_merge_by_score_and_fall_back_to_bytes() {
    let t = Tokenizer::from_gguf(sentence_pieces()).unwrap();
    let spelt = |text: &str| -> Vec<String> {
        t.encode(text).unwrap().iter().map(|id| t.token(*id).unwrap()).collect()
    };
    // `bc` has the best score, so it is merged before `ab`; `▁a` then.
    assert_eq!(spelt("abc"), ["▁a", "bc"]);
    assert_eq!(spelt("ab"), ["▁", "ab"]);
    assert_eq!(spelt("é"), ["▁", "<0xC3>", "<0xA9>"]);
    for text in ["abc", "a é  b", "c"] {
        assert_eq!(t.decode(&t.encode(text).unwrap()).unwrap(), text);
    }
    assert!(t.add_bos() && t.bos() == Some(1) && t.unk() == Some(0));
    let bare =
        GgufVocab { add_space_prefix: Some(false), add_bos: Some(false), ..sentence_pieces() };
    let t = Tokenizer::from_gguf(bare).unwrap();
    assert_eq!(t.encode("ab").unwrap(), [t.id("ab").unwrap()]);
    assert!(!t.add_bos());
    // Explicit merges win over scores.
    let t = Tokenizer::from_gguf(GgufVocab { merges: vec!["a b".into()], ..sentence_pieces() })
        .unwrap();
    assert_eq!(t.encode("abc").unwrap(), ["▁", "ab", "c"].map(|p| t.id(p).unwrap()));
}

#[test]
fn a_saved_tokenizer_is_the_same_tokenizer() {
    let dir = tempfile::tempdir().unwrap();
    for (i, t) in [Tokenizer::bytes(), Tokenizer::from_gguf(sentence_pieces()).unwrap()]
        .into_iter()
        .enumerate()
    {
        let dir = dir.path().join(i.to_string());
        t.save(&dir).unwrap();
        let back = Tokenizer::from_dir(&dir).unwrap();
        let text = "a b<|im_end|> é 12\n";
        assert_eq!(back.encode(text).unwrap(), t.encode(text).unwrap());
        assert_eq!(
            (back.eos_ids(), back.bos(), back.pad(), back.add_bos()),
            (t.eos_ids(), t.bos(), t.pad(), t.add_bos())
        );
        assert_eq!(
            back.template().map(ChatTemplate::source),
            t.template().map(ChatTemplate::source)
        );
        assert_eq!(back.sha256(), t.sha256());
        let again = dir.join("again");
        back.save(&again).unwrap();
        let read = |d: &Path, f: &str| std::fs::read(d.join(f)).unwrap();
        for file in ["tokenizer.json", "tokenizer_config.json"] {
            assert_eq!(read(&dir, file), read(&again, file), "{file}");
        }
    }
}

#[test]
fn the_template_file_wins_and_lists_have_a_default() {
    let dir = tempfile::tempdir().unwrap();
    Tokenizer::bytes().save(dir.path()).unwrap();
    let config = dir.path().join("tokenizer_config.json");
    let entry =
        json!([{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]);
    let write = |template: serde_json::Value| {
        let text =
            json!({"eos_token": {"content": "<|im_end|>"}, "chat_template": template}).to_string();
        std::fs::write(&config, text).unwrap();
    };
    let source =
        || Tokenizer::from_dir(dir.path()).unwrap().template().map(|t| t.source().to_string());
    write(entry.clone());
    assert!(source().unwrap().contains("<|im_start|>"));
    std::fs::remove_file(dir.path().join("chat_template.jinja")).unwrap();
    assert_eq!(source().unwrap(), "D");
    write(json!("plain"));
    assert_eq!(source().unwrap(), "plain");
    write(json!(null));
    assert_eq!(source(), None);
    std::fs::write(dir.path().join("generation_config.json"), r#"{"eos_token_id": [258, 257]}"#)
        .unwrap();
    assert_eq!(Tokenizer::from_dir(dir.path()).unwrap().eos_ids(), [257, 258]);
    std::fs::write(dir.path().join("tokenizer.json"), "{").unwrap();
    let error = Tokenizer::from_dir(dir.path()).unwrap_err().to_string();
    assert!(error.contains("tokenizer.json") && error.contains("cut short"), "{error}");
}

/// Needs the built-in model; says so when it is not there.
#[test]
fn the_real_vocabulary_gives_the_published_ids() {
    let Some(path) = BuiltIn::find("smollm2-135m-instruct").and_then(|b| b.cached().ok().flatten())
    else {
        eprintln!("skipped: the built-in model is not here (luthier pull smollm2-135m-instruct)");
        return;
    };
    let t = Tokenizer::open(&path).unwrap();
    assert_eq!(t.vocab_size(), 49152);
    assert_eq!(t.encode("<|endoftext|><|im_start|><|im_end|>").unwrap(), [0, 1, 2]);
    assert_eq!((t.eos_ids(), t.add_bos()), (&[2][..], false));
    for text in ["Hello, world! 1234", "  naïve\n\n\tcafé 漢字 😀", "don't you'll I'd"] {
        assert_eq!(t.decode(&t.encode(text).unwrap()).unwrap(), text);
    }
}
