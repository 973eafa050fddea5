//! No bytes whatever make a reader panic, and what is read obeys the promises of `Example`.

use luthier_data::{ReadOptions, read};
use parquet::arrow::ArrowWriter;
use proptest::prelude::*;

use crate::{formats::conversations, gzip, kept};

/// Pieces of the formats, so that random files get past the first byte.
fn pieces() -> impl Strategy<Value = Vec<u8>> {
    let known = prop::sample::select(vec![
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "\"",
        "\n",
        "\r\n",
        " ",
        "\u{feff}",
        "null",
        "1e999",
        "-0",
        "\\u00",
        "\\ud800",
        "\"messages\"",
        "\"role\"",
        "\"content\"",
        "\"assistant\"",
        "\"user\"",
        "\"from\"",
        "\"value\"",
        "\"prompt\"",
        "\"completion\"",
        "\"text\"",
        "\"chosen\"",
        "\"rejected\"",
        "\"\\n\\nHuman: a\\n\\nAssistant: é\"",
        "{\"prompt\":\"a\",\"completion\":\"b\"}\n",
        "prompt,completion\n",
        "{\"text\":\"",
        "[[[[[[[[",
        "{\"messages\":[{\"role\":\"assistant\",\"content\":\"x\"}]}\n",
        "{\"chosen\":\"é a\",\"rejected\":\"é b\"}\n",
    ]);
    let piece = prop_oneof![
        4 => known.prop_map(|s| s.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..6),
    ];
    prop::collection::vec(piece, 0..40).prop_map(|p| p.concat())
}

fn try_all(bytes: &[u8], names: &[&str]) {
    for name in names {
        let kept = kept(name, bytes);
        match read(&kept.path, &ReadOptions::default()) {
            Ok(table) => {
                assert!(!table.examples.is_empty());
                let lines = bytes.iter().filter(|b| **b == b'\n').count() + 1;
                let fits = |line| name.ends_with("json") || (1..=lines).contains(&line);
                assert!(table.examples.iter().all(|e| fits(e.origin.line)), "{name}");
            }
            Err(error) => assert_eq!(error.exit_code(), 2, "{name}: {error}"),
        }
    }
}

/// `FUZZ=20000` looks longer.
fn config() -> ProptestConfig {
    let cases = std::env::var("FUZZ").ok().and_then(|n| n.parse().ok()).unwrap_or(400);
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

fn parquet_bytes() -> Vec<u8> {
    let batch = conversations();
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    bytes
}

fn read_damaged_parquet(bytes: &[u8]) {
    let kept = kept("a.parquet", bytes);
    if let Err(error) = read(&kept.path, &ReadOptions::default()) {
        assert_eq!(error.exit_code(), 2, "{error}");
    }
}

/// Some of these make the parquet crate itself panic (`I` in a column chunk's length).
#[test]
fn any_single_damaged_byte_in_parquet() {
    let good = parquet_bytes();
    for at in 0..good.len() {
        let mut bytes = good.clone();
        bytes[at] = b'I';
        read_damaged_parquet(&bytes);
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn any_bytes_as_text_formats(bytes in prop_oneof![pieces(), prop::collection::vec(any::<u8>(), 0..200)]) {
        try_all(&bytes, &["a.jsonl", "a.json", "a.csv", "a.tsv", "a.txt", "a.parquet"]);
    }

    #[test]
    fn any_damage_to_gzip(at in 0usize..80, bit in 0u8..8, cut in 0usize..80) {
        let mut bytes = gzip(b"{\"prompt\":\"a\",\"completion\":\"b\"}\n{\"prompt\":\"c\",\"completion\":\"d\"}\n");
        let n = bytes.len();
        bytes[at % n] ^= 1 << bit;
        bytes.truncate(n - cut % n);
        for name in ["a.jsonl.gz", "a.json.gz", "a.csv.gz", "a.txt.gz"] {
            let kept = kept(name, &bytes);
            if let Err(error) = read(&kept.path, &ReadOptions::default()) {
                assert_eq!(error.exit_code(), 2, "{name}: {error}");
            }
        }
    }

    #[test]
    fn any_damage_to_parquet(damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4), cut in 0usize..40) {
        let mut bytes = parquet_bytes();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if cut < 20 {
            bytes.truncate(bytes.len() - cut);
        }
        read_damaged_parquet(&bytes);
    }
}

/// The csv crate, read by its own rules, is the reference for cells; lines are counted by hand.
#[test]
fn csv_cells_are_those_of_the_csv_crate() {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(["prompt", "completion"]).unwrap();
    let cells: Vec<[String; 2]> = (0..50)
        .map(|i| {
            [
                format!("q{i}{}", ["", "\n", ",", "\"", "\r\nx"][i % 5]),
                format!("a{i}{}", "\n".repeat(i % 3)),
            ]
        })
        .collect();
    cells.iter().for_each(|row| writer.write_record(row).unwrap());
    let bytes = writer.into_inner().unwrap();
    let table = crate::table("a.csv", &bytes);
    let mut line = 2;
    for (row, example) in cells.iter().zip(&table.examples) {
        assert_eq!(example.prompt[0].content, row[0]);
        assert_eq!(example.completions[0].text(), row[1]);
        assert_eq!(example.origin.line, line);
        line += 1 + row.concat().matches('\n').count();
    }
    assert_eq!(table.examples.len(), 50);
}
