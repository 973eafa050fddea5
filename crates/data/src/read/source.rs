//! A file as a stream of decompressed bytes, hashed as it lies on disk while it is read.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, ErrorKind, Read},
    path::{Path, PathBuf},
};

use flate2::bufread::MultiGzDecoder;
use luthier_core::{Error, Result};
use sha2::{Digest, Sha256};

const BUFFER: usize = 1 << 18;
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

struct Hashing {
    file: File,
    hash: Sha256,
}

impl Read for Hashing {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read(buffer)?;
        self.hash.update(&buffer[..n]);
        Ok(n)
    }
}

enum Stream {
    Plain(BufReader<Hashing>),
    Gzip(Box<BufReader<MultiGzDecoder<BufReader<Hashing>>>>),
}

/// An open data file.
pub(super) struct Source {
    path: PathBuf,
    stream: Stream,
    /// 1-based number of the line that comes next.
    line: usize,
}

impl Source {
    /// Opens a file; gzip is known by its first bytes, whatever the name says.
    pub(super) fn open(path: &Path) -> Result<Source> {
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        let mut plain = BufReader::with_capacity(BUFFER, Hashing { file, hash: Sha256::new() });
        let start = plain.fill_buf().map_err(|e| Error::io(path, e))?;
        if start.is_empty() {
            return Err(Error::input(path.display().to_string(), "the file is empty"));
        }
        let stream = if start.starts_with(b"\x1f\x8b") {
            let unpacked = MultiGzDecoder::new(plain);
            Stream::Gzip(Box::new(BufReader::with_capacity(BUFFER, unpacked)))
        } else {
            Stream::Plain(plain)
        };
        let gzip = matches!(stream, Stream::Gzip(_));
        if !gzip && path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gz")) {
            let what = "expected a gzip stream, found other bytes at its start";
            return Err(Error::input(path.display().to_string(), what));
        }
        Ok(Source { path: path.to_path_buf(), stream, line: 1 })
    }

    fn reader(&mut self) -> &mut dyn BufRead {
        match &mut self.stream {
            Stream::Plain(reader) => reader,
            Stream::Gzip(reader) => reader,
        }
    }

    /// The file as the user named it, with a line.
    pub(super) fn at(&self, line: usize) -> String {
        format!("{}:{line}", self.path.display())
    }

    fn refused(&self, error: io::Error) -> Error {
        let gzip = matches!(self.stream, Stream::Gzip(_));
        match error.kind() {
            ErrorKind::UnexpectedEof if gzip => {
                Error::input(self.at(self.line), "the gzip stream breaks off here")
                    .hint("the file was cut short; fetch or write it again")
            }
            ErrorKind::InvalidData | ErrorKind::InvalidInput if gzip => {
                Error::input(self.at(self.line), format!("the gzip stream is damaged: {error}"))
            }
            _ => Error::io(&self.path, error),
        }
    }

    /// Appends the next line without its end to `buffer` and gives its number; `None` at the end.
    pub(super) fn next_line(&mut self, buffer: &mut Vec<u8>) -> Result<Option<usize>> {
        let start = buffer.len();
        let n = match self.reader().read_until(b'\n', buffer) {
            Ok(n) => n,
            Err(error) => {
                buffer.truncate(start);
                return Err(self.refused(error));
            }
        };
        if n == 0 {
            return Ok(None);
        }
        let line = self.line;
        self.line += 1;
        if buffer.last() == Some(&b'\n') {
            buffer.pop();
        }
        if buffer.len() > start && buffer.last() == Some(&b'\r') {
            buffer.pop();
        }
        if line == 1 && buffer[start..].starts_with(BYTE_ORDER_MARK) {
            buffer.drain(start..start + BYTE_ORDER_MARK.len());
        }
        Ok(Some(line))
    }

    /// All that is left, as text without a byte order mark.
    pub(super) fn text(&mut self) -> Result<String> {
        let mut bytes = Vec::new();
        if let Err(error) = self.reader().read_to_end(&mut bytes) {
            self.line += newlines(&bytes);
            return Err(self.refused(error));
        }
        if bytes.starts_with(BYTE_ORDER_MARK) {
            bytes.drain(..BYTE_ORDER_MARK.len());
        }
        String::from_utf8(bytes).map_err(|error| {
            let good = error.utf8_error().valid_up_to();
            let bytes = error.as_bytes();
            let start = bytes[..good].iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1);
            let at = self.at(1 + newlines(&bytes[..good]));
            not_utf8(at, &bytes[start..], good - start)
        })
    }

    /// The SHA-256 of the file's bytes; reads what the format did not need.
    pub(super) fn finish(self) -> Result<String> {
        let mut rest = match self.stream {
            Stream::Plain(reader) => reader,
            Stream::Gzip(reader) => reader.into_inner().into_inner(),
        };
        io::copy(&mut rest, &mut io::sink()).map_err(|e| Error::io(&self.path, e))?;
        let digest = rest.into_inner().hash.finalize();
        Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

/// Counts line ends.
pub(super) fn newlines(bytes: &[u8]) -> usize {
    bytes.iter().filter(|b| **b == b'\n').count()
}

/// The error for a line whose byte at `offset` does not belong to UTF-8 text.
pub(super) fn not_utf8(at: String, line: &[u8], offset: usize) -> Error {
    let what = match line.get(offset) {
        Some(byte) => format!("not UTF-8: byte {} of the line is 0x{byte:02x}", offset + 1),
        None => "not UTF-8".to_owned(),
    };
    let utf16 = line.starts_with(b"\xff\xfe") || line.starts_with(b"\xfe\xff");
    let hint = if utf16 {
        "the file looks like UTF-16; save it as UTF-8"
    } else {
        "save the file as UTF-8"
    };
    Error::input(at, what).hint(hint)
}
