//! TensorBoard event files, written without TensorFlow.
//!
//! A file is a run of TFRecords: length (u64), masked CRC-32C of the length, data, masked CRC-32C
//! of the data, all little-endian. The data is a protobuf `Event`; the handful of fields needed is
//! encoded here by hand. Scalars have the names the Hugging Face trainers use, so that dashboards
//! made for those show a luthier run unchanged.

use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use luthier_core::{Error, Result};
use serde_json::Value;

/// An open event file.
#[derive(Debug)]
pub struct Events {
    path: PathBuf,
    file: File,
}

impl Events {
    /// Opens an event file under `dir/runs/<MonDD_HH-MM-SS_host>/` (UTC).
    ///
    /// A resumed run adds a file to its newest folder and opens it with a session start at the next
    /// step: TensorBoard then forgets what the interrupted session wrote from there on.
    pub fn open(dir: &Path, resumed: Option<u64>) -> Result<Events> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let (host, runs) = (host(), dir.join("runs"));
        let folder = match resumed.and_then(|_| newest_folder(&runs)) {
            Some(folder) => folder,
            None => runs.join(format!("{}_{host}", stamp(now))),
        };
        fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
        let (path, file) = create(&folder, &format!("{now}.{host}.{}", std::process::id()))?;
        let mut events = Events { path, file };
        let version = Message::default().bytes(3, b"brain.Event:2");
        events.event(0, version)?;
        if let Some(step) = resumed {
            // SessionLog { status: START }
            events
                .event(step + 1, Message::default().bytes(7, &Message::default().varint(1, 1).0))?;
        }
        Ok(events)
    }

    /// The file being written.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes every number of a metrics record as a scalar at the record's step.
    pub fn record(&mut self, record: &Value) -> Result<()> {
        let step = record.get("step").and_then(Value::as_u64).unwrap_or(0);
        let mut summary = Message::default();
        for (name, value) in record.as_object().into_iter().flatten() {
            if let (Some(tag), Some(number)) = (tag(name), value.as_f64()) {
                let value = Message::default().bytes(1, tag.as_bytes()).float(2, number as f32);
                summary = summary.bytes(1, &value.0);
            }
        }
        if summary.0.is_empty() {
            return Ok(());
        }
        self.event(step, Message::default().bytes(5, &summary.0))
    }

    /// Writes a Markdown text, shown under `<tag>/text_summary`.
    pub fn text(&mut self, step: u64, tag: &str, text: &str) -> Result<()> {
        const DT_STRING: u64 = 7;
        let dim = Message::default().varint(1, 1);
        let shape = Message::default().bytes(2, &dim.0);
        let tensor =
            Message::default().varint(1, DT_STRING).bytes(2, &shape.0).bytes(8, text.as_bytes());
        let plugin = Message::default().bytes(1, b"text");
        let metadata = Message::default().bytes(1, &plugin.0);
        let value = Message::default()
            .bytes(1, format!("{tag}/text_summary").as_bytes())
            .bytes(8, &tensor.0)
            .bytes(9, &metadata.0);
        let summary = Message::default().bytes(1, &value.0);
        self.event(step, Message::default().bytes(5, &summary.0))
    }

    /// Makes everything written so far survive a loss of power.
    pub fn sync(&mut self) -> Result<()> {
        self.file.sync_data().map_err(|e| Error::io(&self.path, e))
    }

    /// Writes one record in one system call, so that a kill cannot split it in the usual case and
    /// a live TensorBoard sees it at once.
    fn event(&mut self, step: u64, what: Message) -> Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let mut event = Message::default().double(1, now).varint(2, step);
        event.0.extend_from_slice(&what.0);
        self.file.write_all(&tfrecord(&event.0)).map_err(|e| Error::io(&self.path, e))
    }
}

/// The scalar's name for a metric: `eval_x` is `eval/x`, anything else `train/x`; the step is the
/// axis and has none.
fn tag(metric: &str) -> Option<String> {
    match metric {
        "step" => None,
        "tokens" => Some("train/num_tokens".into()),
        _ => Some(match metric.strip_prefix("eval_") {
            Some(rest) => format!("eval/{rest}"),
            None => format!("train/{metric}"),
        }),
    }
}

fn create(folder: &Path, middle: &str) -> Result<(PathBuf, File)> {
    let mut n = 0;
    loop {
        let path = folder.join(format!("events.out.tfevents.{middle}.{n}"));
        match OpenOptions::new().append(true).create_new(true).open(&path) {
            Ok(file) => return Ok((path, file)),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => n += 1,
            Err(e) => return Err(Error::io(path, e)),
        }
    }
}

/// The folder holding the latest event file, by the time in that file's name.
fn newest_folder(runs: &Path) -> Option<PathBuf> {
    let born = |folder: &Path| -> Option<u64> {
        let files = fs::read_dir(folder).ok()?.flatten();
        files
            .filter_map(|f| {
                let name = f.file_name().into_string().ok()?;
                name.strip_prefix("events.out.tfevents.")?.split('.').next()?.parse().ok()
            })
            .max()
    };
    let folders = fs::read_dir(runs).ok()?.flatten().map(|f| f.path());
    folders.filter_map(|f| Some((born(&f)?, f))).max().map(|(_, folder)| folder)
}

/// The machine's name, with dots and anything unfit for a file name replaced.
fn host() -> String {
    let named = fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let named = named.or_else(|| std::env::var("HOSTNAME").ok());
    let named = named.or_else(|| std::env::var("COMPUTERNAME").ok()).unwrap_or_default();
    let fit = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '-' };
    let clean: String = named.trim().chars().map(fit).collect();
    if clean.is_empty() { "localhost".into() } else { clean }
}

/// `Mar07_14-05-09` for seconds since 1970, in UTC.
fn stamp(unix: u64) -> String {
    const MONTHS: [(&str, u64); 12] = [
        ("Jan", 31),
        ("Feb", 28),
        ("Mar", 31),
        ("Apr", 30),
        ("May", 31),
        ("Jun", 30),
        ("Jul", 31),
        ("Aug", 31),
        ("Sep", 30),
        ("Oct", 31),
        ("Nov", 30),
        ("Dec", 31),
    ];
    let leap = |y: u64| y.is_multiple_of(4) && (!y.is_multiple_of(100) || y.is_multiple_of(400));
    let (mut day, second) = (unix / 86_400, unix % 86_400);
    let mut year = 1970;
    while day >= 365 + u64::from(leap(year)) {
        day -= 365 + u64::from(leap(year));
        year += 1;
    }
    let mut month = 0;
    loop {
        let length = MONTHS[month].1 + u64::from(month == 1 && leap(year));
        if day < length {
            break;
        }
        day -= length;
        month += 1;
    }
    let (h, m, s) = (second / 3600, second / 60 % 60, second % 60);
    format!("{}{:02}_{h:02}-{m:02}-{s:02}", MONTHS[month].0, day + 1)
}

/// A protobuf message under construction: fields append themselves in the order given.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn raw_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn varint(mut self, field: u64, value: u64) -> Self {
        self.raw_varint(field << 3);
        self.raw_varint(value);
        self
    }

    fn double(mut self, field: u64, value: f64) -> Self {
        self.raw_varint(field << 3 | 1);
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    fn bytes(mut self, field: u64, value: &[u8]) -> Self {
        self.raw_varint(field << 3 | 2);
        self.raw_varint(value.len() as u64);
        self.0.extend_from_slice(value);
        self
    }

    fn float(mut self, field: u64, value: f32) -> Self {
        self.raw_varint(field << 3 | 5);
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }
}

fn tfrecord(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(data.len() + 16);
    record.extend_from_slice(&length);
    record.extend_from_slice(&masked(crc32c(&length)).to_le_bytes());
    record.extend_from_slice(data);
    record.extend_from_slice(&masked(crc32c(data)).to_le_bytes());
    record
}

/// TFRecord's disguise of a checksum, so that a checksum of checksums stays meaningful.
fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32 with Castagnoli's polynomial, reflected (RFC 3720, appendix B.4 has test values).
fn crc32c(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = table();
    !bytes.iter().fold(!0u32, |crc, b| TABLE[((crc ^ u32::from(*b)) & 0xff) as usize] ^ (crc >> 8))
}

const fn table() -> [u32; 256] {
    let mut table = [0u32; 256];
    let mut i = 0;
    while i < 256 {
        let (mut crc, mut bit) = (i as u32, 0);
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
            bit += 1;
        }
        table[i] = crc;
        i += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_equal_the_published_ones() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        let ascending: Vec<u8> = (0..32).collect();
        assert_eq!(crc32c(&ascending), 0x46dd_794e);
        assert_eq!(masked(0), 0xa282_ead8);
    }

    #[test]
    fn folders_are_named_by_the_calendar() {
        assert_eq!(stamp(0), "Jan01_00-00-00");
        // 2024-02-29 12:34:56 and the second before 2001 began.
        assert_eq!(stamp(1_709_210_096), "Feb29_12-34-56");
        assert_eq!(stamp(978_307_199), "Dec31_23-59-59");
    }

    #[test]
    fn names_are_those_of_the_trainers() {
        assert_eq!(tag("loss").unwrap(), "train/loss");
        assert_eq!(tag("eval_loss").unwrap(), "eval/loss");
        assert_eq!(tag("eval_rewards/margins").unwrap(), "eval/rewards/margins");
        assert_eq!(tag("tokens").unwrap(), "train/num_tokens");
        assert!(tag("step").is_none());
    }
}
