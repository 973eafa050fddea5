use luthier_data::{ReadOptions, read, read_many};

use crate::{gzip, kept, refusal};

/// Every refusal of a file: name, bytes, settings, how the message begins.
#[test]
fn every_refusal_names_its_place() {
    let row = "{\"prompt\":\"a\",\"completion\":\"b\"}\n";
    let after = |bad: &str| format!("{row}\n{bad}\n{row}");
    let chat = |messages: &str| {
        format!(
            "{row_of}\n{{\"messages\":{messages}}}\n",
            row_of = "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"b\"}]}"
        )
    };
    let share = |turn: &str| {
        format!("{{\"conversations\":[{{\"from\":\"human\",\"value\":\"a\"}},{turn}]}}\n")
    };
    let cases: Vec<(&str, Vec<u8>, &str, &str)> = vec![
        // Syntax.
        ("a.jsonl", after("{\"prompt\":\"é\" \"x\"}").into(), "", "a.jsonl:3:15: expected `,` or `}`, found `\"x\"}`"),
        ("a.jsonl", after("{\"prompt\":").into(), "", "a.jsonl:3:"),
        ("a.jsonl", after("[1, 2]").into(), "", "a.jsonl:3: expected an object with one key per column, found a list of 2"),
        ("a.jsonl", b"[\n{}\n]".into(), "", "a.jsonl:1:2: EOF while parsing a list, found the end of the text\nhint: the file seems to hold one JSON array"),
        ("a.jsonl", [row.as_bytes(), b"{\"prompt\":\"\xff\"}"].concat(), "", "a.jsonl:2: not UTF-8: byte 12 of the line is 0xff"),
        ("a.jsonl", b"\xff\xfe{\0".into(), "", "a.jsonl:1: not UTF-8: byte 1 of the line is 0xff\nhint: the file looks like UTF-16"),
        ("a.json", b"[{\"prompt\":\"a\",\"completion\":\"b\"},\n {\"prompt\" 1}]".into(), "", "a.json:2:12: expected `:`, found `1}]`"),
        ("a.json", b"[{\"prompt\":\"a\",\"completion\":\"b\"}]\nx".into(), "", "a.json:2:1: trailing characters, found `x`"),
        ("a.json", b"[{\"prompt\":\"a\",\"completion\":\"b\"}, 3]".into(), "", "a.json:2: expected an object with one key per column, found a number (3)"),
        ("a.json", b"3".into(), "", "a.json: expected an object with one key per column, found a number (3)"),
        ("a.json", b"{\"a\":[{}],\"b\":[{}]}".into(), "", "a.json: expected one array of rows, found several: a, b"),
        ("a.json", b"{\"a\":1} {\"b\":2}".into(), "", "a.json:1:9: trailing characters, found `{\"b\":2}`"),
        ("a.json", b"[\n\n\"\xff\"]".into(), "", "a.json:3: not UTF-8: byte 2 of the line is 0xff"),
        ("a.csv", b"prompt,completion\n\na,b\nc\n".into(), "", "a.csv:4: expected 2 cells (prompt, completion), found 1"),
        ("a.csv", b"prompt,completion\r\n\"a\nx\",b\r\nc,d,e\r\n".into(), "", "a.csv:4: expected 2 cells (prompt, completion), found 3"),
        ("a.csv", b"prompt,completion\na,b\nc,\"d\ne,f\n".into(), "", "a.csv:3: a quoted cell that begins here is never closed"),
        ("a.csv", b"prompt,prompt\na,b\n".into(), "", "a.csv:1: the header names column `prompt` twice"),
        ("a.csv", b"prompt,completion\na,\xe9\n".into(), "", "a.csv:2: not UTF-8: byte 3 of the line is 0xe9"),
        ("a.txt", b"a\n\n\xe9".into(), "", "a.txt:3: not UTF-8: byte 1 of the line is 0xe9"),
        // Nothing there.
        ("a.jsonl", b"".into(), "", "a.jsonl: the file is empty"),
        ("a.parquet", b"".into(), "", "a.parquet: the file is empty"),
        ("a.jsonl", b"\n \n".into(), "", "a.jsonl: the file holds no rows"),
        ("a.jsonl.gz", gzip(b""), "", "a.jsonl.gz: the file holds no rows"),
        ("a.json", b"[]".into(), "", "a.json: the file holds no rows"),
        ("a.json", b" ".into(), "", "a.json: the file holds no rows"),
        ("a.csv", b"prompt,completion\n".into(), "", "a.csv: the file holds no rows"),
        ("a.txt", b" \n".into(), "", "a.txt: the file holds no rows"),
        // Containers.
        ("a.jsonl.gz", row.into(), "", "a.jsonl.gz: expected a gzip stream"),
        ("a.parquet", b"PAR1PAR1".into(), "", "a.parquet: not readable as parquet"),
        ("a.xyz", b"x".into(), "", "a.xyz: the end of the name is that of no known format\nhint: known: .jsonl"),
        // Layout.
        ("a.jsonl", b"{\"qestion\":\"a\",\"id\":1}\n".into(), "", "a.jsonl:1: the columns found, qestion, id, are those of no known layout\nhint: known: preference (chosen, rejected), messages"),
        ("a.jsonl", b"{}\n".into(), "", "a.jsonl:1: the columns found, none, are those"),
        ("a.jsonl", after("{\"promt\":\"a\",\"completion\":\"b\"}").into(), "", "a.jsonl:3: expected the columns prompt, completion as in the rows before, found promt, completion\nhint: is promt meant to be prompt?"),
        ("a.jsonl", row.into(), "layout = \"messages\"", "a.jsonl:1: expected the layout messages, found the columns prompt, completion"),
        ("a.jsonl", row.into(), "columns = { prompt = \"promt\", completion = \"completion\" }", "a.jsonl:1: columns.prompt names `promt`; the columns found are prompt, completion\nhint: did you mean prompt"),
        ("a.jsonl", row.into(), "columns = { promt = \"prompt\" }", "columns.promt: no such role in this layout\nhint: did you mean prompt"),
        // Cells.
        ("a.jsonl", after("{\"prompt\":1,\"completion\":\"b\"}").into(), "", "a.jsonl:3: column prompt: expected text or a list of messages, found a number (1)"),
        ("a.jsonl", after("{\"prompt\":\"a\",\"completion\":\" \"}").into(), "", "a.jsonl:3: column completion: the answer is empty"),
        ("a.jsonl", after("{\"prompt\":\"\",\"completion\":\"b\"}").into(), "", "a.jsonl:3: column prompt: the prompt is empty"),
        ("a.jsonl", after("{\"prompt\":\"a\",\"completion\":\"b\",\"tools\":3}").into(), "", "a.jsonl:3: column tools: expected a list of tools, found a number (3)"),
        ("a.jsonl", after("{\"prompt\":\"a\",\"completion\":\"b\",\"tools\":\"[\"}").into(), "", "a.jsonl:3: column tools: expected JSON text"),
        ("a.jsonl", after("{\"prompt\":\"a\",\"completion\":\"b\",\"chat_template_kwargs\":[]}").into(), "", "a.jsonl:3: column chat_template_kwargs: expected an object, found an empty list"),
        ("a.jsonl", b"{\"text\":\"\"}\n".into(), "", "a.jsonl:1: the text is empty"),
        ("a.jsonl", b"{\"text\":\"a\"}\n".into(), "form = \"chat\"", "a.jsonl:1: form = \"chat\" needs to know who speaks"),
        ("a.jsonl", b"{\"text\":\"a\"}\n".into(), "system = \"s\"", "a.jsonl:1: a system text needs the chat template"),
        ("a.jsonl", b"{\"instruction\":\"a\",\"output\":\"\"}\n".into(), "", "a.jsonl:1: the output is empty"),
        ("a.jsonl", b"{\"instruction\":\"\",\"input\":\"\",\"output\":\"x\"}\n".into(), "", "a.jsonl:1: instruction and input are both empty"),
        ("a.jsonl", b"{\"instruction\":\"a\",\"output\":\"b\",\"history\":[[\"q\"]]}\n".into(), "", "a.jsonl:1: column history: exchange 1: expected [question, answer], found a list of 1"),
        ("a.jsonl", b"{\"chosen\":\"abc\",\"rejected\":\"abc def\"}\n".into(), "form = \"chat\"", "a.jsonl:1: chosen and rejected have no prompt in common"),
        // Messages.
        ("a.jsonl", chat("[]").into(), "", "a.jsonl:2: column messages: the list of messages is empty"),
        ("a.jsonl", chat("\"x\"").into(), "", "a.jsonl:2: column messages: expected JSON text"),
        ("a.jsonl", chat("[3]").into(), "", "a.jsonl:2: column messages: message 1: expected an object, found a number (3)"),
        ("a.jsonl", chat("[{\"text\":\"a\"}]").into(), "", "a.jsonl:2: column messages: message 1: expected the keys role and content, found an object with the keys text"),
        ("a.jsonl", chat("[{\"role\":\"\",\"content\":\"a\"}]").into(), "", "a.jsonl:2: column messages: message 1: role is empty"),
        ("a.jsonl", chat("[{\"role\":\"user\",\"content\":5}]").into(), "", "a.jsonl:2: column messages: message 1: content: expected text, found a number (5)"),
        ("a.jsonl", chat("[{\"role\":\"user\",\"content\":[{\"type\":\"image\"}]}]").into(), "", "a.jsonl:2: column messages: message 1: content: a part of type image"),
        ("a.jsonl", chat("[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"\"}]").into(), "", "a.jsonl:2: column messages: message 2: the assistant's message is empty and calls no tool"),
        ("a.jsonl", chat("[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":null}]").into(), "", "a.jsonl:2: column messages: message 2: content: expected text, found null"),
        ("a.jsonl", chat("[{\"role\":\"assistant\",\"content\":\"a\"},{\"role\":\"user\",\"content\":\"b\"}]").into(), "", "a.jsonl:2: column messages: the conversation ends with a turn of `user`"),
        ("a.jsonl", chat("[{\"role\":\"assistant\",\"content\":\"a\",\"weight\":-1}]").into(), "", "a.jsonl:2: column messages: message 1: weight: expected a number from 0, found a number (-1)"),
        ("a.jsonl", chat("[{\"role\":\"assistant\",\"content\":\"a\",\"train\":\"no\"}]").into(), "", "a.jsonl:2: column messages: message 1: train: expected true or false, found the text `no`"),
        ("a.jsonl", chat("[{\"role\":\"assistant\",\"content\":\"a\"}]").into(), "form = \"raw\"", "a.jsonl:1: form = \"raw\" cannot say who speaks"),
        ("a.jsonl", share("{\"from\":\"robot\",\"value\":\"b\"}").into(), "", "a.jsonl:1: column conversations: message 2: unknown role `robot`\nhint: known: system, user, human, assistant, gpt"),
        ("a.jsonl", share("{\"from\":\"function_call\",\"value\":\"not json\"}").into(), "", "a.jsonl:1: column conversations: message 2: expected a call as JSON with name and arguments"),
        ("a.jsonl", b"{\"messages\":7}\n".into(), "", "a.jsonl:1: column messages: expected a list of messages, found a number (7)"),
    ];
    let mut wrong = Vec::new();
    for (name, bytes, settings, begins) in cases {
        let text = refusal(name, bytes, settings);
        if !text.starts_with(begins) {
            wrong.push(format!("wanted {begins}\n   got {text}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_truncated_or_damaged_gzip_names_the_line_it_reached() {
    let lines: String = (0..400)
        .map(|i| format!("{{\"prompt\":\"{i}\",\"completion\":\"{}\"}}\n", i * 7919 % 1000))
        .collect();
    let whole = gzip(lines.as_bytes());
    let place = |text: &str| -> usize { text.split(':').nth(1).unwrap().parse().unwrap() };
    let text = refusal("a.jsonl.gz", &whole[..whole.len() / 2], "");
    assert!(text.contains("the gzip stream breaks off here"), "{text}");
    assert!((20..400).contains(&place(&text)), "{text}");
    let text = refusal("a.jsonl.gz", &whole[..whole.len() - 1], "");
    assert!(text.starts_with("a.jsonl.gz:401: the gzip stream breaks off here"), "{text}");
    let mut damaged = whole.clone();
    let crc = whole.len() - 8;
    damaged[crc] ^= 1;
    let text = refusal("a.jsonl.gz", &damaged, "");
    assert!(text.starts_with("a.jsonl.gz:401: the gzip stream is damaged"), "{text}");
    let text = refusal("a.json.gz", &whole[..whole.len() / 2], "");
    assert!(text.contains("the gzip stream breaks off here"), "{text}");
    // A bad line before the break is what the user hears of first.
    let mut early = gzip(format!("oops\n{lines}").as_bytes());
    early.truncate(early.len() / 2);
    assert!(
        refusal("a.jsonl.gz", &early, "")
            .starts_with("a.jsonl.gz:1:1: expected value, found `oops`")
    );
}

#[test]
fn missing_files_and_empty_sets_are_refused() {
    let kept = kept("train.jsonl", "{\"text\":\"a\"}\n");
    let dir = kept.dir.path();
    let none = ReadOptions::default();
    let text = read(&dir.join("trian.jsonl"), &none).unwrap_err().to_string();
    assert!(text.ends_with("trian.jsonl: no such file\nhint: did you mean train.jsonl?"), "{text}");
    let text = read_many(&[dir.join("*.csv")], &none).unwrap_err().to_string();
    assert!(text.ends_with("*.csv: the pattern matches no file"), "{text}");
    let text = read_many(&[&kept.path, &dir.to_path_buf()], &none).unwrap_err().to_string();
    assert!(text.ends_with("train.jsonl: the file is named twice"), "{text}");
    assert!(read_many::<&str>(&[], &none).unwrap_err().to_string().contains("no file is named"));
    std::fs::create_dir(dir.join("empty")).unwrap();
    let text = read(&dir.join("empty"), &none).unwrap_err().to_string();
    assert!(text.ends_with("empty: the directory holds no file of a known format"), "{text}");
}
