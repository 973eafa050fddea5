use std::fs;

use serde_json::{Value, json};

use super::{metrics::*, *};

fn step(n: u64) -> Line {
    Line::Step(Step {
        step: n,
        epoch: n as f64 / 10.0,
        loss: 2.0 / n as f64,
        learning_rate: 1e-4,
        grad_norm: 0.5,
        tokens: 512 * n,
        tokens_per_second: 900.0 + n as f64,
        seconds: n as f64,
        more: Map::new(),
    })
}

fn eval(n: u64) -> Line {
    Line::Eval(Eval { step: n, eval_loss: 1.5, ..Eval::default() })
}

#[test]
fn a_resumed_file_equals_an_uninterrupted_one() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, cut) = (dir.path().join("whole"), dir.path().join("cut"));
    let mut log = Log::open(&whole, None, false).unwrap();
    for n in 1..=6 {
        log.write(&step(n)).unwrap();
        if n % 2 == 0 {
            log.write(&eval(n)).unwrap();
        }
    }

    let mut log = Log::open(&cut, None, false).unwrap();
    for n in 1..=5 {
        log.write(&step(n)).unwrap();
        if n % 2 == 0 {
            log.write(&eval(n)).unwrap();
        }
    }
    drop(log);
    let file = fs::OpenOptions::new().write(true).open(cut.join(METRICS)).unwrap();
    file.set_len(log_len(&cut) - 7).unwrap();
    // The checkpoint is of step 4: line 5 goes although half of it was written.
    let mut log = Log::open(&cut, Some(4), false).unwrap();
    for n in 5..=6 {
        log.write(&step(n)).unwrap();
        if n % 2 == 0 {
            log.write(&eval(n)).unwrap();
        }
    }
    let plain = |dir: &Path| -> Vec<Value> {
        read(&dir.join(METRICS)).unwrap().into_iter().map(without_timings).collect()
    };
    assert_eq!(plain(&cut), plain(&whole));
    assert_eq!(plain(&whole).len(), 9);
    assert!(plain(&whole)[0].get("tokens_per_second").is_none());
}

fn log_len(dir: &Path) -> u64 {
    fs::metadata(dir.join(METRICS)).unwrap().len()
}

#[test]
fn steps_beyond_the_checkpoint_are_dropped_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(METRICS);
    fs::write(&path, "{\"step\":1}\n{\"step\":2}\n{\"step\":3}\n{\"st").unwrap();
    assert_eq!(truncate_after(&path, 2).unwrap(), 2);
    assert_eq!(fs::read_to_string(&path).unwrap(), "{\"step\":1}\n{\"step\":2}\n");
    assert_eq!(truncate_after(&path, 2).unwrap(), 0);
}

#[test]
fn only_the_last_line_may_be_unfinished() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(METRICS);
    fs::write(&path, "{\"step\":1}\n{\"step\":2").unwrap();
    assert_eq!(read(&path).unwrap(), vec![json!({"step": 1})]);
    fs::write(&path, "{\"step\":1}\n{\"st\n{\"step\":3}\n").unwrap();
    let error = read(&path).unwrap_err();
    assert!(error.to_string().contains("metrics.jsonl:2"), "{error}");
    assert_eq!(error.exit_code(), 2);
    fs::write(&path, "{\"step\":1}\n7\n").unwrap();
    assert!(read(&path).unwrap_err().to_string().contains("metrics.jsonl:2"));
}

#[test]
fn another_runs_metrics_are_never_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    Log::open(dir.path(), None, false).unwrap().write(&step(1)).unwrap();
    let error = Log::open(dir.path(), None, false).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert_eq!(read(&dir.path().join(METRICS)).unwrap().len(), 1);
}

/// A second, independent reading of the format: walks records and protobuf fields generically.
mod decode {
    pub type Field = (u64, Vec<u8>);

    fn varint(bytes: &[u8], at: &mut usize) -> u64 {
        let (mut value, mut shift) = (0, 0);
        loop {
            let byte = bytes[*at];
            *at += 1;
            value |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte < 0x80 {
                return value;
            }
        }
    }

    pub fn fields(bytes: &[u8]) -> Vec<Field> {
        let (mut at, mut out) = (0, Vec::new());
        while at < bytes.len() {
            let key = varint(bytes, &mut at);
            let data = match key & 7 {
                0 => varint(bytes, &mut at).to_le_bytes().to_vec(),
                kind => {
                    let n = match kind {
                        1 => 8,
                        5 => 4,
                        2 => varint(bytes, &mut at) as usize,
                        other => panic!("wire type {other}"),
                    };
                    at += n;
                    bytes[at - n..at].to_vec()
                }
            };
            out.push((key >> 3, data));
        }
        out
    }

    pub fn get(bytes: &[u8], field: u64) -> Option<Vec<u8>> {
        fields(bytes).into_iter().find(|f| f.0 == field).map(|f| f.1)
    }

    pub fn records(mut bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut out = Vec::new();
        while !bytes.is_empty() {
            let n = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            out.push(bytes[12..12 + n].to_vec());
            bytes = &bytes[16 + n..];
        }
        out
    }
}

#[test]
fn events_decode_to_what_was_logged() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = Log::open(dir.path(), None, true).unwrap();
    let path = log.events.as_ref().unwrap().path().to_path_buf();
    log.text("args", "| a | b |").unwrap();
    log.write(&step(300)).unwrap();
    log.write(&eval(300)).unwrap();
    let sample = Sample { step: 300, sample_text: "hello".into(), ..Sample::default() };
    log.write(&Line::Sample(sample)).unwrap();
    drop(log);

    let events = decode::records(&fs::read(&path).unwrap());
    assert_eq!(events.len(), 5);
    assert_eq!(decode::get(&events[0], 3).unwrap(), b"brain.Event:2");
    let mut scalars = Vec::new();
    for event in &events[2..4] {
        assert_eq!(decode::get(event, 2).unwrap(), 300u64.to_le_bytes());
        for (_, value) in decode::fields(&decode::get(event, 5).unwrap()) {
            let tag = String::from_utf8(decode::get(&value, 1).unwrap()).unwrap();
            let number = decode::get(&value, 2).unwrap();
            scalars.push((tag, f32::from_le_bytes(number.try_into().unwrap())));
        }
    }
    assert!(scalars.contains(&("train/loss".into(), (2.0f64 / 300.0) as f32)), "{scalars:?}");
    assert!(scalars.contains(&("train/num_tokens".into(), 153_600.0)));
    assert!(scalars.contains(&("eval/loss".into(), 1.5)));
    let text = decode::get(&decode::get(&events[4], 5).unwrap(), 1).unwrap();
    assert_eq!(decode::get(&text, 1).unwrap(), b"sample/text_summary");
    let words = decode::get(&decode::get(&text, 8).unwrap(), 8).unwrap();
    assert!(String::from_utf8(words).unwrap().contains("hello"));
}

#[test]
fn a_resumed_run_stays_in_its_folder_and_marks_where_it_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let first = Log::open(dir.path(), None, true).unwrap();
    let second = Log::open(dir.path(), Some(7), true).unwrap();
    let path = |log: &Log| log.events.as_ref().unwrap().path().to_path_buf();
    assert_eq!(path(&first).parent(), path(&second).parent());
    assert_ne!(path(&first), path(&second));
    let events = decode::records(&fs::read(path(&second)).unwrap());
    assert_eq!(decode::get(&events[1], 2).unwrap(), 8u64.to_le_bytes());
    assert_eq!(decode::get(&decode::get(&events[1], 7).unwrap(), 1).unwrap(), 1u64.to_le_bytes());
}
