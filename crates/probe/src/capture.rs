//! Watches sites and remembers the size of what passes through them.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use candle_core::{DType, Tensor};
use luthier_core::{At, Hook, Hooks, Result, SiteKind, SiteMap};
use serde::{Deserialize, Serialize};

/// A hook that changes nothing and keeps the mean and norm of inputs and outputs.
#[derive(Debug, Default)]
pub struct Capture {
    seen: Mutex<BTreeMap<String, (Sums, Sums)>>,
}

/// Running sums over vectors.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    vectors: usize,
    values: usize,
    sum: f64,
    norms: f64,
    squares: f64,
}

/// The size of a site's vectors.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Moments {
    /// Number of vectors (tokens).
    pub vectors: usize,
    /// Mean over all values.
    pub mean: f64,
    /// Root of the mean square of all values.
    pub rms: f64,
    /// Mean length of a vector.
    pub norm: f64,
}

/// What passed through one site.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SiteReport {
    /// The site's name.
    pub site: String,
    /// Its inputs; none at activation sites and at the embedding.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input: Option<Moments>,
    /// Its outputs.
    pub output: Moments,
}

impl Sums {
    fn add(&mut self, x: &Tensor) -> Result<()> {
        let width = x.dims().last().copied().unwrap_or(1).max(1);
        let flat: Vec<f32> = x.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
        for vector in flat.chunks_exact(width) {
            let squares: f64 = vector.iter().map(|v| f64::from(*v).powi(2)).sum();
            self.sum += vector.iter().map(|v| f64::from(*v)).sum::<f64>();
            self.squares += squares;
            self.norms += squares.sqrt();
            self.vectors += 1;
            self.values += width;
        }
        Ok(())
    }

    fn moments(&self) -> Option<Moments> {
        let (vectors, values) = (self.vectors as f64, self.values as f64);
        (self.vectors > 0).then(|| Moments {
            vectors: self.vectors,
            mean: self.sum / values,
            rms: (self.squares / values).sqrt(),
            norm: self.norms / vectors,
        })
    }
}

impl Capture {
    /// Binds a new capture to every site that `glob` names; `key` is where the glob was given.
    pub fn bind(hooks: &mut Hooks, sites: &SiteMap, key: &str, glob: &str) -> Result<Arc<Self>> {
        let capture = Arc::new(Capture::default());
        for site in sites.find(key, glob, |_| true)? {
            hooks.bind(site.id, capture.clone());
        }
        Ok(capture)
    }

    /// What was seen so far, in the order of site names.
    pub fn report(&self) -> Vec<SiteReport> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let report = |(site, (input, output)): (&String, &(Sums, Sums))| {
            let (site, input, output) = (site.clone(), input.moments(), output.moments()?);
            Some(SiteReport { site, input, output })
        };
        seen.iter().filter_map(report).collect()
    }
}

impl Hook for Capture {
    fn after(&self, at: &At, x: &Tensor, y: Tensor) -> Result<Tensor> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let (input, output) = seen.entry(at.site.name.clone()).or_default();
        if matches!(at.site.kind, SiteKind::Linear { .. } | SiteKind::Norm { .. }) {
            input.add(x)?;
        }
        output.add(&y)?;
        Ok(y)
    }
}
