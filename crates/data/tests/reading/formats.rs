use std::{path::Path, sync::Arc};

use arrow_array::{
    ArrayRef, DictionaryArray, Float32Array, Int64Array, RecordBatch, StringArray, StructArray,
    TimestampMillisecondArray,
    builder::{Int32Builder, ListBuilder, StringBuilder, StructBuilder},
    types::Int32Type,
};
use arrow_schema::{DataType, Field, Fields};
use luthier_core::{Table, io};
use luthier_data::{ReadOptions, read, read_many};
use parquet::{arrow::ArrowWriter, basic::Compression, file::properties::WriterProperties};
use serde_json::json;

use crate::{gzip, kept, options, table, try_table};

const JSONL: &str = concat!(
    "{\"question\":\"1+1?\",\"answer\":\"2\",\"id\":7}\n",
    "\n",
    "{\"question\":\"naïve, \\\"x\\\"\\ny?\",\"answer\":\"3\",\"id\":8}\n",
);

fn answers(table: &Table) -> Vec<(String, String, usize)> {
    let of = |e: &luthier_core::Example| {
        (e.prompt[0].content.clone(), e.completions[0].text().to_owned(), e.origin.line)
    };
    table.examples.iter().map(of).collect()
}

fn expected(lines: [usize; 2]) -> Vec<(String, String, usize)> {
    vec![("1+1?".into(), "2".into(), lines[0]), ("naïve, \"x\"\ny?".into(), "3".into(), lines[1])]
}

#[test]
fn jsonl_counts_physical_lines_and_hashes_the_file() {
    let t = table("a.jsonl", JSONL);
    assert_eq!(answers(&t), expected([1, 3]));
    assert_eq!(t.layout, "prompt/completion (columns question, answer; beside them id)");
    assert_eq!(t.sha256, io::sha256(JSONL.as_bytes()));
    assert_eq!(t.examples[1].columns, json!({"id": 8}).as_object().unwrap().clone());
    assert!(t.examples[1].origin.to_string().ends_with("a.jsonl:3"));
    let windows = format!("\u{feff}{}", JSONL.replace('\n', "\r\n"));
    assert_eq!(answers(&table("a.ndjson", &windows)), expected([1, 3]));
    assert_eq!(answers(&table("A.JSONL", JSONL.trim_end())), expected([1, 3]));
}

#[test]
fn gzip_is_read_through_and_hashed_as_it_lies_there() {
    // Two members in one file, as `cat a.gz b.gz` makes them.
    let (first, second) = JSONL.split_at(20);
    let bytes = [gzip(first.as_bytes()), gzip(second.as_bytes())].concat();
    let t = table("a.jsonl.gz", &bytes);
    assert_eq!(answers(&t), expected([1, 3]));
    assert_eq!(t.sha256, io::sha256(&bytes));
    assert_eq!(answers(&table("a.jsonl", &bytes)), expected([1, 3]));
}

#[test]
fn json_arrays_wrapped_arrays_and_misnamed_lines() {
    let rows = "[{\"question\":\"1+1?\",\"answer\":\"2\"},\n\n {\"question\":\"naïve, \\\"x\\\"\\ny?\",\"answer\":\"3\"}]";
    let wrapped = format!("\u{feff}{{\"version\": 1, \"tags\": [], \"data\": {rows}}}");
    assert_eq!(answers(&table("a.json", rows)), expected([1, 2]));
    assert_eq!(answers(&table("a.json", wrapped)), expected([1, 2]));
    let t = table("a.json.gz", gzip(rows.as_bytes()));
    assert_eq!((answers(&t), t.sha256), (expected([1, 2]), io::sha256(&gzip(rows.as_bytes()))));
    assert_eq!(answers(&table("lines.json", JSONL)), expected([1, 3]));
    let one = "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"},\n {\"role\": \"assistant\", \"content\": \"b\"}]}";
    assert_eq!(table("one.json", one).layout, "messages (column messages)");
}

#[test]
fn csv_names_the_physical_line_of_every_record() {
    let csv = "id,question,answer\n\n7,1+1?,2\n\n8,\"naïve, \"\"x\"\"\ny?\",3\n9,last,4";
    let mut want = expected([3, 5]);
    want.push(("last".into(), "4".into(), 7));
    for text in [
        csv.to_owned(),
        csv.replace("x\"\"\ny", "x\"\"\u{1}y").replace('\n', "\r\n").replace('\u{1}', "\n"),
    ] {
        assert_eq!(answers(&table("a.csv", &text)), want, "{text:?}");
        assert_eq!(answers(&table("a.csv.gz", gzip(text.as_bytes()))), want);
        assert_eq!(answers(&table("a.csv", format!("\u{feff}{text}\n"))), want);
    }
    let t = table("a.tsv", "question\tanswer\n1+1?\t2\n");
    assert_eq!(answers(&t), expected([2, 3])[..1]);
    let listed = "messages\n\"[{\"\"role\"\":\"\"user\"\",\"\"content\"\":\"\"a\"\"},{\"\"role\"\":\"\"assistant\"\",\"\"content\"\":\"\"b\"\"}]\"\n";
    assert_eq!(table("m.csv", listed).layout, "messages (column messages)");
}

#[test]
fn text_is_one_example_per_paragraph() {
    let t = table("a.txt", "\u{feff}\n  \nOne\nstill one.\r\n\n\nTwo.\n");
    let texts: Vec<_> =
        t.examples.iter().map(|e| (e.completions[0].text(), e.origin.line)).collect();
    assert_eq!(texts, [("One\nstill one.", 3), ("Two.", 7)]);
    assert_eq!(t.layout, "text (column text)");
    assert_eq!(table("a.txt.gz", gzip(b"x\n\ny")).examples.len(), 2);
}

fn write_parquet(path: &Path, batch: &RecordBatch, compression: Compression) {
    let properties = WriterProperties::builder().set_compression(compression).build();
    let file = std::fs::File::create(path).unwrap();
    let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(properties)).unwrap();
    writer.write(batch).unwrap();
    writer.close().unwrap();
}

/// Two conversations as a list of structs, with a score, a date and a category beside them.
pub(crate) fn conversations() -> RecordBatch {
    let fields = Fields::from(vec![
        Field::new("role", DataType::Utf8, true),
        Field::new("content", DataType::Utf8, true),
        Field::new("weight", DataType::Int32, true),
    ]);
    let builder = StructBuilder::from_fields(fields.clone(), 4);
    let mut list = ListBuilder::new(builder);
    let turns = [
        [("user", "hi", None), ("assistant", "hello", None)],
        [("user", "bye", None), ("assistant", "ciao", Some(0))],
    ];
    for conversation in turns {
        for (role, content, weight) in conversation {
            let message = list.values();
            message.field_builder::<StringBuilder>(0).unwrap().append_value(role);
            message.field_builder::<StringBuilder>(1).unwrap().append_value(content);
            message.field_builder::<Int32Builder>(2).unwrap().append_option(weight);
            message.append(true);
        }
        list.append(true);
    }
    let category: DictionaryArray<Int32Type> = vec!["a", "b"].into_iter().collect();
    let nested = StructArray::from(vec![
        (
            Arc::new(Field::new("n", DataType::Int64, true)),
            Arc::new(Int64Array::from(vec![Some(1), None])) as ArrayRef,
        ),
        (
            Arc::new(Field::new("s", DataType::Utf8, true)),
            Arc::new(StringArray::from(vec!["x", "y"])) as ArrayRef,
        ),
    ]);
    RecordBatch::try_from_iter_with_nullable([
        ("messages", Arc::new(list.finish()) as ArrayRef, true),
        ("score", Arc::new(Float32Array::from(vec![Some(0.1), None])), true),
        ("when", Arc::new(TimestampMillisecondArray::from(vec![1_000, 2_000])), true),
        ("category", Arc::new(category), true),
        ("nested", Arc::new(nested), true),
    ])
    .unwrap()
}

#[test]
fn parquet_gives_lists_structs_and_plain_values() {
    let zstd = Compression::ZSTD(Default::default());
    let gzip = Compression::GZIP(Default::default());
    for compression in [Compression::UNCOMPRESSED, Compression::SNAPPY, zstd, gzip] {
        let kept = kept("a.parquet", "");
        write_parquet(&kept.path, &conversations(), compression);
        let t = read(&kept.path, &ReadOptions::default()).unwrap();
        assert_eq!(
            t.layout,
            "messages (column messages; beside them category, nested, score, when)"
        );
        assert_eq!(t.sha256, io::sha256(&std::fs::read(&kept.path).unwrap()));
        let second = &t.examples[1];
        assert_eq!((second.prompt[0].content.as_str(), second.origin.line), ("bye", 2));
        assert_eq!(second.completions[0].turns[0].weight, Some(0.0));
        assert_eq!(t.examples[0].completions[0].turns[0].weight, None);
        assert!(t.examples[0].completions[0].turns[0].extra.is_empty(), "null keys are absent");
        let columns = json!({"score": null, "when": "1970-01-01T00:00:02", "category": "b", "nested": {"s": "y"}});
        assert_eq!(serde_json::Value::Object(second.columns.clone()), columns);
        assert_eq!(t.examples[0].columns["score"], json!(0.1));
        assert_eq!(t.examples[0].columns["nested"], json!({"n": 1, "s": "x"}));
    }
}

#[test]
fn many_files_directories_and_globs_are_one_table() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, n: usize| {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, format!("{{\"prompt\":\"{n}\",\"completion\":\"x\"}}\n")).unwrap();
    };
    write("b.jsonl", 2);
    write("a.jsonl", 1);
    write("deep/c.jsonl", 3);
    std::fs::write(dir.path().join("README.md"), "no data").unwrap();
    let read = |pattern: &str| {
        let t = read_many(&[dir.path().join(pattern)], &ReadOptions::default()).unwrap();
        let prompts: String =
            t.examples.iter().flat_map(|e| &e.prompt).map(|turn| turn.content.as_str()).collect();
        (prompts, t)
    };
    let (prompts, whole) = read("");
    assert_eq!(prompts, "12");
    assert_eq!(read("*.jsonl").0, "12");
    assert_eq!(read("**/*.jsonl").0, "123");
    assert_eq!(read("*/c.json?").0, "3");
    assert_eq!(read("{a,b}.jsonl").0, "12");
    assert_eq!(whole.layout, "prompt/completion (columns prompt, completion)");
    let hash = |n| io::sha256(format!("{{\"prompt\":\"{n}\",\"completion\":\"x\"}}\n").as_bytes());
    assert_eq!(whole.sha256, io::sha256(format!("{}\n{}\n", hash(1), hash(2)).as_bytes()));
    assert!(whole.examples[1].origin.to_string().ends_with("b.jsonl:1"));
    std::fs::write(dir.path().join("z.txt"), "words").unwrap();
    let mixed = read("").1.layout;
    assert!(
        mixed.contains("b.jsonl: prompt/completion") && mixed.contains("z.txt: text"),
        "{mixed}"
    );
}

#[test]
fn rows_and_errors_are_the_same_at_any_thread_count() {
    // Large enough for several portions and many jobs.
    let line =
        |i: usize| format!("{{\"prompt\":\"{i} {}\",\"completion\":\"{i}\"}}\n", "x".repeat(900));
    let good: String = (0..12_000).map(line).collect();
    let bad = good
        .replace("{\"prompt\":\"9000 ", "{\"prompt\" \"9000 ")
        .replace("{\"prompt\":\"9700 ", "[");
    let kept_good = kept("a.jsonl", good);
    let kept_bad = kept("a.jsonl", bad);
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let none = ReadOptions::default();
            let rows = answers(&read(&kept_good.path, &none).unwrap());
            (rows, read(&kept_bad.path, &none).unwrap_err().to_string())
        })
    };
    let (rows, error) = run(1);
    assert!(rows.iter().enumerate().all(|(i, r)| r.1 == i.to_string() && r.2 == i + 1));
    assert!(error.contains("a.jsonl:9001:11: expected `:`, found `\"9000 xxx"), "{error}");
    assert_eq!(run(4), (rows, error));
}

#[test]
fn options_name_columns_and_form() {
    let rows = "{\"q\":\"a\",\"a\":\"b\",\"s\":\"sys\"}\n";
    let columns = "[columns]\nprompt = \"q\"\ncompletion = \"a\"\nsystem = \"s\"";
    let t = try_table("a.jsonl", rows, columns).unwrap();
    assert_eq!(t.layout, "prompt/completion (columns q, a, s)");
    assert_eq!(t.examples[0].prompt[0].role, "system");
    let raw = try_table("a.jsonl", JSONL, "form = \"raw\"").unwrap();
    assert_eq!(raw.examples[0].form, luthier_core::Form::Raw);
    let system = try_table("a.jsonl", JSONL, "system = \"Be brief.\"").unwrap();
    assert_eq!(system.examples[0].prompt[0].content, "Be brief.");
    assert!(toml::from_str::<ReadOptions>("colums = 1").is_err());
    assert_eq!(options("layout = \"sharegpt\"").layout, Some(luthier_data::Layout::ShareGpt));
}
