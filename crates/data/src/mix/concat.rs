//! Several tables as one, one after the other.

use luthier_core::{Table, io};

/// All rows of all tables in the given order; one table stays as it is.
///
/// The hash of several sources is the SHA-256 over their own hashes, one to a line. Layouts that
/// differ are all named, each with its source.
pub fn concat(name: &str, mut tables: Vec<Table>) -> Table {
    if tables.len() == 1 {
        return tables.remove(0);
    }
    let hashes: String = tables.iter().flat_map(|t| [t.sha256.as_str(), "\n"]).collect();
    let same = tables.windows(2).all(|pair| pair[0].layout == pair[1].layout);
    let layout = if same {
        tables.first().map(|t| t.layout.clone()).unwrap_or_default()
    } else {
        let each: Vec<String> =
            tables.iter().map(|t| format!("{}: {}", t.name, t.layout)).collect();
        each.join("; ")
    };
    Table {
        name: name.to_owned(),
        layout,
        sha256: io::sha256(hashes.as_bytes()),
        examples: tables.into_iter().flat_map(|t| t.examples).collect(),
    }
}
