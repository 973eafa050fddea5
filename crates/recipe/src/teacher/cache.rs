//! The file of what a teacher said: rows known by a hash of their tokens.
//!
//! A safetensors file: `rows` (b, 8), the words of each row's SHA-256; `begins` (b + 1,), where a row's
//! targets begin among all; `ids` (n, k) and `logps` (n, k), the likeliest first. Log-probabilities are
//! f32: those of unlikely tokens need the range.

use std::{collections::HashMap, path::Path, sync::Arc};

use candle_core::{Device, Tensor};
use luthier_core::{Error, Result, Row, StateDict, batch::Told, io};

/// What a teacher said of rows.
#[derive(Clone, Debug, Default)]
pub struct Cache {
    /// Where each row's are, by its hash.
    places: HashMap<[u32; 8], usize>,
    told: Vec<Arc<Told>>,
    hashes: Vec<[u32; 8]>,
}

/// The hash of a row's tokens and of which of them are trained.
pub fn key(row: &Row) -> [u32; 8] {
    let mut bytes = Vec::with_capacity(9 * row.len());
    for ((id, target), weight) in row.ids.iter().zip(&row.targets).zip(&row.weights) {
        bytes.extend(id.to_le_bytes());
        bytes.extend(target.to_le_bytes());
        bytes.push(u8::from(*weight != 0.0));
    }
    let hex = io::sha256(&bytes);
    let word = |i: usize| u32::from_str_radix(&hex[8 * i..8 * i + 8], 16);
    std::array::from_fn(|i| word(i).expect("a SHA-256 is 64 hexadecimal digits"))
}

impl Cache {
    /// Adds what was said of a row; the same tokens again are said once.
    pub fn add(&mut self, row: &Row, told: Told) {
        let hash = key(row);
        if !self.places.contains_key(&hash) {
            self.places.insert(hash, self.told.len());
            self.told.push(Arc::new(told));
            self.hashes.push(hash);
        }
    }

    /// What was said of a row.
    pub fn get(&self, row: &Row) -> Option<Arc<Told>> {
        self.places.get(&key(row)).map(|at| self.told[*at].clone())
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.told.len()
    }

    /// Whether nothing was said.
    pub fn is_empty(&self) -> bool {
        self.told.is_empty()
    }

    /// Writes the file; `about` goes into its header.
    pub fn save(&self, path: &Path, about: &[(&str, &str)]) -> Result<()> {
        let k = self.told.first().map_or(1, |told| told.k);
        let mut begins = vec![0u32];
        for told in &self.told {
            let before = begins[begins.len() - 1] as usize;
            let end = u32::try_from(before + told.ids.len() / k).map_err(|_| {
                Error::input(path.display().to_string(), "more than 4 billion targets")
                    .hint("write one file for each part of the data")
            })?;
            begins.push(end);
        }
        let n = begins[begins.len() - 1] as usize;
        let of = |ids: Vec<u32>, dims: &[usize]| Tensor::from_vec(ids, dims, &Device::Cpu);
        let ids = self.told.iter().flat_map(|told| told.ids.iter().copied()).collect();
        let logps: Vec<f32> = self.told.iter().flat_map(|t| t.logps.iter().copied()).collect();
        let mut state = StateDict::default();
        state.insert("rows", of(self.hashes.concat(), &[self.len(), 8])?);
        state.insert("begins", of(begins, &[self.len() + 1])?);
        state.insert("ids", of(ids, &[n, k])?);
        state.insert("logps", Tensor::from_vec(logps, (n, k), &Device::Cpu)?);
        state.save(path, about)
    }

    /// Reads the file.
    pub fn load(path: &Path) -> Result<Self> {
        let state = StateDict::load(path)?;
        let at = path.display().to_string();
        let wrong = |what: &str| {
            Error::input(&at, format!("is no file of `luthier teach`: {what}"))
                .hint("write it with `luthier teach`, for the data that is trained on")
        };
        let tensor = |name: &str| {
            state.get(name).ok_or_else(|| wrong(&format!("it has no tensor `{name}`")))
        };
        let rows = tensor("rows")?.to_vec2::<u32>().map_err(|e| wrong(&e.to_string()))?;
        let begins = tensor("begins")?.to_vec1::<u32>().map_err(|e| wrong(&e.to_string()))?;
        let (n, k) = tensor("ids")?.dims2().map_err(|e| wrong(&e.to_string()))?;
        let flat = |name: &str| -> Result<Tensor> { Ok(tensor(name)?.flatten_all()?) };
        let ids = flat("ids")?.to_vec1::<u32>().map_err(|e| wrong(&e.to_string()))?;
        let logps = flat("logps")?.to_vec1::<f32>().map_err(|e| wrong(&e.to_string()))?;
        let rising = begins.is_sorted() && begins.first() == Some(&0);
        if !rising || begins.len() != rows.len() + 1 || begins.last() != Some(&(n as u32)) {
            return Err(wrong("its rows do not add up"));
        }
        if logps.len() != n * k || k == 0 {
            return Err(wrong("tokens and log-probabilities are not equally many"));
        }
        let mut cache = Cache::default();
        for (hash, ends) in rows.iter().zip(begins.windows(2)) {
            let hash: [u32; 8] =
                hash.as_slice().try_into().map_err(|_| wrong("a hash has not eight words"))?;
            let range = ends[0] as usize * k..ends[1] as usize * k;
            let told = Told { k, ids: ids[range.clone()].to_vec(), logps: logps[range].to_vec() };
            cache.places.insert(hash, cache.told.len());
            cache.told.push(Arc::new(told));
            cache.hashes.push(hash);
        }
        Ok(cache)
    }
}

/// Gives every row with a target what the file has on it. `origin` names an example.
pub fn attach(path: &Path, rows: &mut [Row], origin: &dyn Fn(usize) -> String) -> Result<()> {
    let cache = Cache::load(path)?;
    for row in rows.iter_mut().filter(|row| row.trained() > 0) {
        let Some(told) = cache.get(row) else {
            let what =
                format!("has nothing on {}: no row of it has these tokens", origin(row.example));
            return Err(Error::input(path.display().to_string(), what).hint(
                "write it from the same data, tokenizer, max_length and loss_on: `luthier teach \
                 --recipe` takes them from the recipe",
            ));
        };
        row.teacher = Some(told);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(tokens: &[u32], trained: usize) -> Row {
        let weight = |i: usize| if i + trained >= tokens.len() { 1.0 } else { 0.0 };
        Row::from_tokens(tokens, &(0..tokens.len()).map(weight).collect::<Vec<f32>>(), 3)
    }

    fn told(from: u32, n: usize) -> Told {
        let ids: Vec<u32> = (from..from + 2 * n as u32).collect();
        Told { k: 2, logps: ids.iter().map(|id| -(*id as f32) / 7.0).collect(), ids }
    }

    #[test]
    fn what_was_said_comes_back_by_the_rows_tokens_and_wrong_rows_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("teacher.safetensors");
        let (a, b) = (row(&[1, 2, 3, 4], 2), row(&[5, 6], 1));
        let mut cache = Cache::default();
        cache.add(&a, told(10, 2));
        cache.add(&b, told(30, 1));
        cache.add(&a, told(50, 2));
        assert_eq!(cache.len(), 2);
        cache.save(&path, &[("teacher", "t")]).unwrap();
        let mut rows = [b.clone(), a.clone(), row(&[7, 8], 0)];
        let origin = |example: usize| format!("a.jsonl:{}", example + 1);
        attach(&path, &mut rows, &origin).unwrap();
        assert_eq!(rows[0].teacher.as_deref(), Some(&told(30, 1)));
        assert_eq!(rows[1].teacher.as_deref(), Some(&told(10, 2)));
        assert_eq!(rows[2].teacher, None);
        // Other targets, another token, another mask: another row.
        for other in [row(&[1, 2, 3, 5], 2), row(&[1, 2, 3, 4], 1), row(&[5, 6, 6], 1)] {
            let error = attach(&path, &mut [other], &origin).unwrap_err();
            assert!(error.to_string().contains("nothing on a.jsonl:4"), "{error}");
            assert_eq!(error.exit_code(), 2);
        }
    }

    #[test]
    fn another_file_is_no_teacher() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        StateDict::default().save(&path, &[]).unwrap();
        let error = Cache::load(&path).unwrap_err().to_string();
        assert!(error.contains("no file of `luthier teach`"), "{error}");
        let mut state = StateDict::default();
        let of = |n: usize, dims: &[usize]| Tensor::from_vec(vec![0u32; n], dims, &Device::Cpu);
        state.insert("rows", of(8, &[1, 8]).unwrap());
        state.insert("begins", of(2, &[2]).unwrap());
        state.insert("ids", of(6, &[3, 2]).unwrap());
        state.insert("logps", Tensor::from_vec(vec![0f32; 6], (3, 2), &Device::Cpu).unwrap());
        state.save(&path, &[]).unwrap();
        let error = Cache::load(&path).unwrap_err().to_string();
        assert!(error.contains("do not add up"), "{error}");
    }
}
