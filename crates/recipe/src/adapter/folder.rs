//! An adapter folder without its model: the configuration, and the names and shapes of the tensors.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use luthier_core::{Error, Result, io};
use luthier_params::peft;
use serde_json::{Map, Value};

/// Weights as older versions of PEFT wrote them: a pickle.
const PICKLED: &str = "adapter_model.bin";
/// What PEFT puts before every module path.
pub(super) const PREFIX: &str = "base_model.model.";
/// A header beyond this is no header (the limit of the format's own reader).
const LONGEST_HEADER: u64 = 100_000_000;

/// What lies in an adapter folder of PEFT.
pub(super) struct Folder {
    pub config: Map<String, Value>,
    /// Names and shapes; `None` where they are in a pickle.
    pub tensors: Option<BTreeMap<String, Vec<usize>>>,
}

/// What a tensor is to its module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    A,
    B,
    EmbeddingA,
    EmbeddingB,
    Bias,
    Magnitude,
    /// The base's own weight, which PEFT saves with adapted embeddings.
    Base,
}

const PARTS: [(&str, Part); 7] = [
    (".lora_A.weight", Part::A),
    (".lora_B.weight", Part::B),
    (".lora_embedding_A", Part::EmbeddingA),
    (".lora_embedding_B", Part::EmbeddingB),
    (".lora_B.bias", Part::Bias),
    (".lora_magnitude_vector", Part::Magnitude),
    (".base_layer.weight", Part::Base),
];

/// The factors of one module.
#[derive(Clone, Debug, Default)]
pub(super) struct Factors {
    /// Rank by the first and by the second factor.
    pub ranks: (Option<usize>, Option<usize>),
    pub bias: bool,
    pub magnitude: bool,
    pub embedding: bool,
}

impl Factors {
    /// The rank, where the two agree.
    pub fn rank(&self) -> Option<usize> {
        self.ranks.0.filter(|r| self.ranks.1 == Some(*r))
    }
}

impl Folder {
    pub fn open(dir: &Path) -> Result<Self> {
        let config = io::read_json(&dir.join(peft::CONFIG))?;
        let weights = dir.join(peft::WEIGHTS);
        let tensors = match (weights.is_file(), dir.join(PICKLED).is_file()) {
            (true, _) => Some(header(&weights)?),
            (false, true) => None,
            (false, false) => {
                let what = format!("holds neither {} nor {PICKLED}", peft::WEIGHTS);
                return Err(Error::input(dir.display().to_string(), what)
                    .hint("an adapter without weights changes nothing; fetch it again"));
            }
        };
        Ok(Folder { config, tensors })
    }

    /// A key of the configuration; null where it is missing.
    pub fn get(&self, key: &str) -> &Value {
        self.config.get(key).unwrap_or(&Value::Null)
    }

    /// The tensors' names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.iter().flat_map(|tensors| tensors.keys().map(String::as_str))
    }

    /// LoRA's factors by module path.
    pub fn factors(&self) -> BTreeMap<&str, Factors> {
        let mut all: BTreeMap<&str, Factors> = BTreeMap::new();
        for (name, dims) in self.tensors.iter().flatten() {
            let Some((module, part)) = part(name) else { continue };
            if part == Part::Base {
                continue;
            }
            let module = module.strip_prefix(PREFIX).unwrap_or(module);
            let factors = all.entry(module).or_default();
            match part {
                Part::A | Part::EmbeddingA => factors.ranks.0 = dims.first().copied(),
                Part::B | Part::EmbeddingB => factors.ranks.1 = dims.get(1).copied(),
                Part::Bias => factors.bias = true,
                Part::Magnitude => factors.magnitude = true,
                Part::Base => {}
            }
            factors.embedding |= matches!(part, Part::EmbeddingA | Part::EmbeddingB);
        }
        all
    }
}

/// A tensor's module and what it is to it; `None` for what is no part of LoRA.
pub(super) fn part(name: &str) -> Option<(&str, Part)> {
    PARTS.iter().find_map(|(suffix, part)| Some((name.strip_suffix(suffix)?, *part)))
}

/// Names and shapes from the header of a safetensors file, nothing else of which is read.
fn header(path: &PathBuf) -> Result<BTreeMap<String, Vec<usize>>> {
    let broken = |what: &str| {
        let what = format!("not a readable safetensors file: {what}");
        Error::input(path.display().to_string(), what)
            .hint("the download may have been cut short; fetch it again")
    };
    let mut file = File::open(path).map_err(|e| Error::io(path, e))?;
    let size = file.metadata().map_err(|e| Error::io(path, e))?.len();
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(|_| broken("it ends before its header"))?;
    let length = u64::from_le_bytes(length);
    if length > LONGEST_HEADER || length > size - 8 {
        return Err(broken(&format!("a header of {length} bytes in a file of {size}")));
    }
    let mut text = vec![0; length as usize];
    file.read_exact(&mut text).map_err(|e| Error::io(path, e))?;
    let entries: Map<String, Value> =
        serde_json::from_slice(&text).map_err(|e| broken(&format!("its header: {e}")))?;
    let mut tensors = BTreeMap::new();
    for (name, entry) in entries.iter().filter(|(name, _)| *name != "__metadata__") {
        let numbers = |key: &str| -> Option<Vec<u64>> {
            entry.get(key)?.as_array()?.iter().map(Value::as_u64).collect()
        };
        let (Some(shape), Some(offsets)) = (numbers("shape"), numbers("data_offsets")) else {
            return Err(broken(&format!("{name} has no shape or no place")));
        };
        if offsets.last().is_none_or(|end| *end > size - 8 - length) {
            return Err(broken(&format!("{name} lies beyond its end")));
        }
        tensors.insert(name.clone(), shape.into_iter().map(|n| n as usize).collect());
    }
    Ok(tensors)
}
