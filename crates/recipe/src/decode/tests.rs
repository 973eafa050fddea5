use std::path::Path;

use luthier_core::{Example, Turn};
use luthier_decode::combine::Emulate;
use luthier_model::Tokenizer;

use super::*;
use crate::Recipe;

fn table(text: &str) -> Result<Decode> {
    Ok(Recipe::parse(text, "r.toml")?.decode.unwrap_or_default())
}

#[test]
fn a_table_is_read_with_its_defaults_and_survives_a_round_trip() {
    let text = "[decode.sources.tuned]\nmodel = \"t\"\n[decode.sources.untuned]\nmodel = \"u\"\n\
        [decode.combine.emulate]\ntop_p = 0.9\n[decode.draft]\nsource = \"tuned\"\n";
    let decode = table(text).unwrap();
    assert_eq!(decode.combine, Combine::Emulate(Emulate { top_p: 0.9, ..Emulate::default() }));
    assert_eq!(decode.draft, Some(DraftBy { source: "tuned".into(), tokens: 5 }));
    assert_eq!((decode.several(), decode.check().is_ok()), (1, true));
    let recipe = Recipe { decode: Some(decode), ..Recipe::default() };
    assert_eq!(Recipe::parse(&recipe.to_toml().unwrap(), "again").unwrap(), recipe);
    let error = table("[decode.combine.emulat]\n").unwrap_err().to_string();
    assert!(error.contains("did you mean emulate"), "{error}");
    let beam = table("[decode.beam]\nnum_beams = 2\nearly_stopping = \"never\"\n").unwrap();
    let again = table("[decode.beam]\nnum_beams = 2\nearly_stopping = true\n").unwrap();
    assert_ne!(beam.beam, again.beam);
}

#[test]
fn what_contradicts_itself_is_refused_by_its_key() {
    for (text, at) in [
        ("[decode]\nbest_of = 0\n", "decode.best_of"),
        ("[decode]\nbest_of = 2\nself_consistency = 2\n", "decode.best_of"),
        ("[decode]\nbest_of = 2\n[decode.beam]\n", "decode.beam"),
        ("[decode.constrain]\nregex = \"a\"\nchoice = [\"a\"]\n", "decode.constrain.regex"),
        ("[decode.constrain.dry]\nbase = 0.5\n", "decode.constrain.dry.base"),
        ("[decode.constrain.rising_end]\nover = 0\n", "decode.constrain.rising_end.over"),
        ("[decode.constrain.shift]\n\"a\" = inf\n", "decode.constrain.shift"),
    ] {
        let error = table(text).unwrap().check().unwrap_err();
        assert!(error.to_string().starts_with(at) && error.exit_code() == 2, "{error}");
    }
}

#[test]
fn files_are_meant_relative_to_the_recipe() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("there")).unwrap();
    let mut decode = table(
        "[decode.sources.a]\nmodel = \"there\"\nadapter = \"lora\"\n[decode.sources.b]\n\
            model = \"some-name\"\n[decode.constrain]\njson_schema = \"s.json\"\n",
    )
    .unwrap();
    decode.rebase(dir.path());
    let at = |name: &str| dir.path().join(name);
    assert_eq!(Path::new(&decode.sources["a"].model), at("there"));
    assert_eq!(decode.sources["a"].adapter, Some(at("lora")));
    assert_eq!(decode.sources["b"].model, "some-name");
    assert_eq!(decode.constrain.json_schema, Some(at("s.json")));
}

#[test]
fn a_source_words_its_prompt_as_it_is_told() {
    let tokenizer = Tokenizer::bytes();
    let turns = vec![Turn::new("system", "Sing."), Turn::new("user", "Hello")];
    let example = Example::new("t", 1, turns, None);
    let text = |ids: &[u32]| tokenizer.decode_all(ids).unwrap();
    let ids = luthier_model::render::generation_prompt(&example, &tokenizer).unwrap();
    let own =
        |source: Source| prompts::own(&source, &example, &ids, &tokenizer, &tokenizer).unwrap();
    assert_eq!(own(Source::default()), None);
    let last = own(Source { template: Template::LastToken, ..Source::default() }).unwrap();
    assert_eq!(last, ids[ids.len() - 1..]);
    let raw = own(Source { template: Template::Raw, ..Source::default() }).unwrap();
    assert_eq!(text(&raw), "Sing.Hello");
    let user = own(Source { user: Some("Bye".into()), ..Source::default() }).unwrap();
    assert_eq!(text(&user), text(&ids).replace("Hello", "Bye"));
    let system = own(Source { system: Some("Be quiet.".into()), ..Source::default() }).unwrap();
    assert_eq!(text(&system), text(&ids).replace("Sing.", "Be quiet."));
    let none = own(Source { system: Some(String::new()), ..Source::default() }).unwrap();
    assert!(!text(&none).contains("system"), "{}", text(&none));
}

#[test]
fn rules_find_their_tokens() {
    use luthier_decode::{Constrain, SoFar};
    let tokenizer = Tokenizer::bytes();
    let decode = table(
        "[decode.constrain.shift]\n\"a\" = 2.0\n\"\\n\" = 1.0\n\"no token\" = 9.0\n\
            [decode.constrain.rising_end]\nover = 2\nbias = 3.0\n\
            [decode.constrain.seen]\nafter = \"user\\n\"\n",
    )
    .unwrap();
    let rules = rules::constraints(&decode.constrain, &tokenizer).unwrap();
    let prompt = tokenizer.encode("zz<|im_start|>user\nbb").unwrap();
    let mut logits = vec![0.0; 259];
    for rule in rules {
        rule.constrain(&SoFar { prompt: &prompt, tokens: &[u32::from(b'c')] }, &mut logits);
    }
    let changed: Vec<(usize, f32)> =
        logits.iter().copied().enumerate().filter(|(_, l)| *l != 0.0).collect();
    // The ends rise; b and c are there already, z and the user's mark do not count.
    let expected = [(10, 1.0), (97, 2.0), (98, -1.5), (99, -1.5), (257, 1.5)];
    assert_eq!(changed[..expected.len()], expected);
    assert!(changed[expected.len()..].iter().all(|(id, by)| *id == 258 && *by == 1.5));
}

#[test]
fn vocabularies_are_compared_token_by_token() {
    let bytes = Tokenizer::bytes();
    assert!(compare("a", &bytes, &Tokenizer::bytes()).is_ok());
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/merges/tokens/plain");
    let other = Tokenizer::from_dir(Path::new(golden)).unwrap();
    let error = compare("small", &other, &bytes).unwrap_err();
    let text = error.to_string();
    assert!(text.starts_with("decode.sources.small: token ") && error.exit_code() == 2, "{text}");
    assert!(text.contains("there and `"), "{text}");
}
